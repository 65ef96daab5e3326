#!/usr/bin/env bash
# Installs what is missing, then measures this machine: a table per section, one JSON file, and pictures next to it.
#   bash scripts/benchmark.sh --quick
#   bash scripts/benchmark.sh --sections throughput scaling --out result.json
# Or compiles for a device that is not there, and counts what it would run (h100, h200, a100, v5e or v6e; h100x8, v5e-2x4):
#   bash scripts/benchmark.sh --for h100
#   --programs NAME ...: some of them; --list NAME ...: their launches; --keep DIR: their HLO; --out FILE
# Compare two results: .venv/bin/python -m benchmarks.compare_results before.json after.json
set -euo pipefail
case " $* " in
  *" --help "* | *" -h "*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = --for ]; then
  device=$(sed -E 's/(x[0-9]+|-[0-9]+x[0-9]+)$//' <<<"${2:-}") # without how many of it
  target="$root/benchmarks/targets/$device.toml"
  if [ ! -f "$target" ]; then
    known=$(cd "$root/benchmarks/targets" && ls | sed 's/\.toml$//' | paste -sd' ')
    echo "benchmark: --for ${2:-} names no device of benchmarks/targets; give one of $known" >&2
    exit 2
  fi
  compiler=$(sed -n 's/^compiler = "\(.*\)"/\1/p' "$target")
  python=$(bash "$root/scripts/setup_compiler.sh" "$compiler")
  exec "$python" -m benchmarks.run_compiled "${@:2}"
fi
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/python" -m benchmarks.run "$@"
