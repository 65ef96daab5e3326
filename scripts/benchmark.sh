#!/usr/bin/env bash
# Installs what is missing, then measures this machine: a table per section, one JSON file, and pictures next to it.
#   bash scripts/benchmark.sh --quick
#   bash scripts/benchmark.sh --sections throughput scaling --out result.json
# Compare two results: .venv/bin/python -m benchmarks.compare_results before.json after.json
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$root/.venv/bin/python" -m benchmarks.run "$@"
