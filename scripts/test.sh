#!/usr/bin/env bash
# Installs what is missing, then lint, types and tests. Arguments go to pytest: bash scripts/test.sh -m learning
# The tests of the benchmarks run when they are asked for: bash scripts/test.sh benchmarks/tests
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A worker that dies ends the run: with another in its place, pytest-xdist has been seen to wait for ever.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 "$@"
