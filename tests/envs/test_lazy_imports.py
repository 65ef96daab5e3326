"""Modules that are imported when they are used."""

import subprocess
import sys

import pytest

from purejaxppo.envs.lazy_imports import imported_lazily


def python(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_gymnax_comes_without_drawing_libraries_and_draws_all_the_same():
    script = """
import sys
from purejaxppo.envs.gymnax_adapter import from_gymnax
from_gymnax("CartPole-v1", 2)
print(*(name in sys.modules for name in ("gymnax", "matplotlib", "seaborn", "pandas")))
from gymnax.environments.misc import pong
print(pong.plt.figure.__module__, pong.colors.to_rgb("red")[0])
import matplotlib.pyplot
print(matplotlib.pyplot.figure is pong.plt.figure)
"""
    expected = ["True", "False", "False", "False", "matplotlib.pyplot", "1.0", "True"]
    assert python(script) == expected


def test_stand_ins_go_and_what_was_there_stays(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    before = sys.modules["json"]
    with imported_lazily(("json", "wave")):
        import json
        import wave

        assert json is before
        assert not hasattr(wave, "open")  # nothing is to be had of it yet
    assert "wave" not in sys.modules
    assert callable(wave.open)
    assert sys.modules["wave"].open is wave.open


def test_a_name_of_one_cannot_be_imported_yet(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises(ImportError, match="Wave_read"), imported_lazily(("wave",)):
        from wave import Wave_read  # noqa: F401
    assert "wave" not in sys.modules
