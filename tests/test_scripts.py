"""The programs that fork one thing: each runs, at a tiny size, and is short."""

import importlib.util
import math
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.parametrize("name", ["swap_env", "swap_network", "swap_objective"])
def test_fork_program_runs_and_is_at_most_60_lines(name):
    path = SCRIPTS / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert math.isfinite(module.main(total_timesteps=8192))
