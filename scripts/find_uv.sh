# Sourced from the repository's root by the scripts that install: sets the array `uv` to a command that runs uv.
if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then
  uv=(uv)
else
  # An environment of its own for uv, so that nothing outside this directory changes.
  [ -x .venv-uv/bin/uv ] || { "$python" -m venv .venv-uv && .venv-uv/bin/python -m pip install --quiet uv; }
  uv=(.venv-uv/bin/uv)
fi
