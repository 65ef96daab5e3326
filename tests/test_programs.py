"""Compiled programs on the disk."""

import os
import subprocess
import sys

import pytest

from purejaxppo import programs

SCRIPT = """
import jax, jax.numpy as jnp
from purejaxppo.programs import keep_programs
keep_programs()
print(jax.config.jax_compilation_cache_dir or "nowhere")
jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ c) + jnp.sin(c), None), x, length=9)[0])(jnp.ones((9, 9)))
"""


def run(**variables):
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_kept_in_the_users_cache(tmp_path):
    where, _ = run(XDG_CACHE_HOME=str(tmp_path))
    assert where.startswith(str(tmp_path / "purejaxppo" / "programs-"))
    assert os.path.isdir(where)


def test_the_variable_stands(tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    where, _ = run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=elsewhere)
    assert where == elsewhere
    assert not (tmp_path / "purejaxppo").exists()


def test_a_place_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "purejaxppo").write_text("in the way")
    where, errors = run(XDG_CACHE_HOME=str(tmp_path))
    assert where == "nowhere"
    assert not errors


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx2", "model name\t: Another"])
def test_another_processor_has_another_place(monkeypatch, tmp_path, line):
    info = tmp_path / "cpuinfo"
    names = set()
    for text in ("processor : 0\ncpu MHz : 1", "processor : 0\ncpu MHz : 2", f"processor : 0\n{line}"):
        info.write_text(text)
        monkeypatch.setattr(programs, "_CPU_INFO", info)
        names.add(programs._processor())
    assert len(names) == 2
