#!/usr/bin/env bash
# Installs what is missing, then measures this machine: a table per section, one JSON file, and pictures next to it.
#   bash scripts/benchmark.sh --quick
#   bash scripts/benchmark.sh --sections throughput scaling --out result.json
# Compare two results: .venv/bin/python benchmarks/regression.py before.json after.json
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/python" "$root/benchmarks/bench.py" "$@"
