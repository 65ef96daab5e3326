#!/usr/bin/env bash
# Makes .venv from uv.lock: the CUDA 13 build of jax when an NVIDIA driver is there, the CPU build otherwise.
# Needs git and Python >= 3.11 with venv and pip. A second run with nothing changed returns at once.
#   PUREJAXPPO_EXTRA=cuda12     another build of jax: cpu, cuda12, cuda13 or tpu
#   PUREJAXPPO_WHEELS=DIR       without a network: what PYTHON has already, jax above all, and the rest from a folder of
#                               wheels (hatchling and editables among them); versions are then not those of uv.lock
set -euo pipefail
[ -z "${PUREJAXPPO_WHEELS:-}" ] || PUREJAXPPO_WHEELS=$(cd "$PUREJAXPPO_WHEELS" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=cpu
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
  extra=cuda13
fi
extra=${PUREJAXPPO_EXTRA:-$extra}

stamp="$extra${PUREJAXPPO_WHEELS:+ from wheels beside ${PYTHON:-python3}} $(cat uv.lock pyproject.toml | cksum)"
if [ -x .venv/bin/purejaxppo ] && [ "$(cat .venv/setup-stamp 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "setup: $python is not Python 3.11 or newer; set PYTHON to one, e.g. PYTHON=python3.12 $0" >&2
  exit 1
fi

if [ -n "${PUREJAXPPO_WHEELS:-}" ]; then
  echo "setup: installing into .venv from $PUREJAXPPO_WHEELS" >&2
  "$python" -m venv --clear .venv
  # Not --system-site-packages: if PYTHON is an environment's, those would be the packages of the Python below it.
  "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/of_python.pth"
  install=(.venv/bin/python -m pip install --quiet --no-index --find-links "$PUREJAXPPO_WHEELS")
  "${install[@]}" hatchling editables
  "${install[@]}" --no-build-isolation --editable ".${PUREJAXPPO_EXTRA:+[$extra]}"
  echo "$stamp" >.venv/setup-stamp
  exit 0
fi

. scripts/find_uv.sh

echo "setup: installing into .venv ($extra)" >&2
args=(sync --frozen --quiet --python "$("$python" -c 'import sys; print(sys.executable)')")
[ "$extra" = cpu ] || args+=(--extra "$extra")
"${uv[@]}" "${args[@]}"
echo "$stamp" >.venv/setup-stamp
