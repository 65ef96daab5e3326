"""Compiled programs on the disk."""

import json
import os

import pytest

from purejaxppo.devices import compile_cache

SCRIPT = """
import jax, jax.numpy as jnp
import purejaxppo
kept = purejaxppo.keep_programs()
assert str(kept or "") == (jax.config.jax_compilation_cache_dir or "")
assert purejaxppo.keep_programs() == kept  # a second call changes nothing
print(jax.config.jax_compilation_cache_dir or "nowhere")
jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ c) + jnp.sin(c), None), x, length=9)[0])(jnp.ones((9, 9)))
"""


@pytest.fixture
def run(server, tmp_path_factory):
    """run(script, XDG_CACHE_HOME=...) is what a process prints, and the errors that it prints."""

    def use(script=SCRIPT, **variables):
        log = tmp_path_factory.mktemp("log") / "log"
        code, out, errors = server.script(log, script, **{"JAX_COMPILATION_CACHE_DIR": None, **variables})
        assert code == 0, errors
        return out.strip(), errors

    return use


def test_kept_in_the_users_cache(run, tmp_path):
    where, _ = run(XDG_CACHE_HOME=str(tmp_path))
    assert where.startswith(str(tmp_path / "purejaxppo" / "programs-"))
    assert os.path.isdir(where)


def test_the_variable_stands(run, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    where, _ = run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=elsewhere)
    assert where == elsewhere
    assert not (tmp_path / "purejaxppo").exists()


def test_an_empty_variable_keeps_nothing(run, tmp_path):
    where, _ = run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="")
    assert where == "nowhere"
    assert not (tmp_path / "purejaxppo").exists()


def test_a_place_that_cannot_be_written_is_no_error(run, tmp_path):
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
        monkeypatch.setattr(compile_cache, "_CPU_INFO", info)
        names.add(compile_cache._processor())
    assert len(names) == 2


MENDING = """
import json, shutil, sys, warnings
from pathlib import Path
import jax, jax.numpy as jnp
from purejaxppo.devices.compile_cache import keep_programs

keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
cache, x, hits = Path(jax.config.jax_compilation_cache_dir), jnp.ones(3), []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)

def times(factor):
    jax.clear_caches()
    jax.jit(lambda x: factor * x)(x)

times(1)  # a neighbour of the same name
neighbour = next(cache.glob("jit__lambda-*-cache"))
times(2)
entry = next(path for path in cache.glob("jit__lambda-*-cache") if path != neighbour)
stamp, content = entry.with_name(entry.name.replace("-cache", "-atime")), entry.read_bytes()

def replaced_by_a_directory(path):
    path.unlink()
    path.mkdir()
    (path / "file").touch()

damages = {
    "truncated": lambda: entry.write_bytes(content[:-40]),
    "empty": lambda: entry.write_bytes(b""),
    "garbage": lambda: entry.write_bytes(b"garbage"),
    "flipped bit": lambda: entry.write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:]),
    "unreadable": lambda: entry.chmod(0),
    "a directory": lambda: replaced_by_a_directory(entry),
    "a directory for a stamp": lambda: replaced_by_a_directory(stamp),
    "killed before the stamp": lambda: stamp.unlink(),
    "killed while writing": lambda: (stamp.unlink(), entry.write_bytes(content[:90])),
}
works = {}
for number, (name, damage) in enumerate(damages.items()):
    damage()
    times(2)
    times(-1 - number)  # another one, for which JAX looks at all that there are
    times(-1 - number)
    hits.clear()
    times(2)
    times(-1 - number)
    works[name] = len(hits) == 2 and neighbour.exists()
(cache / ".lockfile").unlink(missing_ok=True)
(cache / ".lockfile").mkdir()  # nothing can be read or written any more
times(2)
works["no lock"] = entry.exists() and neighbour.exists()
warnings.warn("another warning")
print(json.dumps(works))
"""


def test_damaged_entries_are_replaced_without_a_word(run, tmp_path):
    out, errors = run(MENDING, XDG_CACHE_HOME=str(tmp_path))
    works = json.loads(out)
    assert len(works) == 10
    assert [damage for damage, mended in works.items() if not mended] == []
    assert "another warning" in errors
    assert "persistent compilation cache" not in errors
