#!/usr/bin/env bash
# Makes .venv-cuda or .venv-tpu from uv.lock, with a compiler for devices that need not be there, and prints its Python.
#   bash scripts/setup_compiler.sh cuda
# The CUDA build is about 5 GB, the TPU's 1 GB. Needs Python >= 3.12; uv fetches one where there is none.
#   PUREJAXPPO_WHEELS=DIR           install from a folder of wheels, without a network
#   PUREJAXPPO_COMPILER_PYTHON=BIN  use the Python of an environment that is there, and install nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  cuda) extra=cuda13 ;;
  tpu) extra=tpu ;;
  *) echo "setup: ${1:-nothing} is no kind of compiler; give cuda or tpu" >&2 && exit 2 ;;
esac
if [ -n "${PUREJAXPPO_COMPILER_PYTHON:-}" ]; then
  if ! "$PUREJAXPPO_COMPILER_PYTHON" -c 'import jax' 2>/dev/null; then
    echo "setup: PUREJAXPPO_COMPILER_PYTHON=$PUREJAXPPO_COMPILER_PYTHON has no jax; name one that has, or unset it" >&2
    exit 1
  fi
  echo "$PUREJAXPPO_COMPILER_PYTHON"
  exit 0
fi

venv=$PWD/.venv-$1
stamp="$extra $(cat uv.lock pyproject.toml | cksum)"
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/setup-stamp" 2>/dev/null)" != "$stamp" ]; then
  python=${PYTHON:-python3}
  . scripts/find_uv.sh
  wanted=3.12 # one that is installed, or that uv fetches
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
    wanted=$("$python" -c 'import sys; print(sys.executable)')
  fi
  if ! "${uv[@]}" python find --quiet "$wanted" >/dev/null 2>&1 && ! "${uv[@]}" python install --quiet "$wanted" >&2; then
    echo "setup: there is no Python 3.12, and uv could not fetch one; set PYTHON to one, e.g. PYTHON=/usr/bin/python3.12" >&2
    exit 1
  fi
  echo "setup: installing into .venv-$1 ($extra), some minutes" >&2
  export UV_PROJECT_ENVIRONMENT=$venv
  if [ -n "${PUREJAXPPO_WHEELS:-}" ]; then
    # The lock's versions, but not its addresses.
    "${uv[@]}" venv --quiet --offline --clear --python "$wanted" "$venv"
    "${uv[@]}" export --quiet --frozen --offline --no-dev --no-hashes --no-emit-project --python "$wanted" --extra "$extra" |
      "${uv[@]}" pip install --quiet --offline --no-index --find-links "$PUREJAXPPO_WHEELS" --python "$venv/bin/python" -r - >&2
  else
    "${uv[@]}" sync --frozen --quiet --no-dev --no-install-project --python "$wanted" --extra "$extra" >&2
  fi
  echo "$stamp" >"$venv/setup-stamp"
fi
echo "$venv/bin/python"
