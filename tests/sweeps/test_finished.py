"""A finished sweep is recognised by its files, without JAX, and only if none of them is missing or damaged."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from purejaxppo.experiment.checkpoints.state import snapshot
from purejaxppo.experiment.checkpoints.store import save_step
from purejaxppo.sweeps.finished import finished_sweep

RESULT = {"updates": [2, 2], "diverged_at": [0, 0], "returns": [1.0, None], "metrics_bytes": 9, "seconds": 0.5}
SUMMARY = {"exit_reason": "finished", "runs": 2, "diverged": 0, "settings": [], "best_run": 0}


@pytest.fixture
def sweep(tmp_path):
    """Returns the directory of a finished sweep."""
    for name, text in {
        "summary.json": json.dumps(SUMMARY),
        "metrics.csv": "head\nrow\n",
        "results.csv": "",
        "table.md": "",
        "plots/learning_curves.png": "",
        "parts/rung0_program1_batch1/result.json": json.dumps(RESULT),
        "parts/.DS_Store": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    save_step(tmp_path / "parts" / "rung0_program1_batch1", 64, snapshot(np.zeros(1)), {"train_return": None})
    return tmp_path


def test_a_finished_sweep(sweep):
    assert finished_sweep(sweep) == {**SUMMARY, "out": str(sweep)}


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.csv", "results.csv", "table.md", "plots/learning_curves.png"]
)
def test_what_is_missing(sweep, name):
    (sweep / name).unlink()
    assert finished_sweep(sweep) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "{}", *({**RESULT, **wrong} for wrong in (
        {"metrics_bytes": "9"},
        {"metrics_bytes": None},
        {"metrics_bytes": [9]},
        {"metrics_bytes": True},
        {"metrics_bytes": 8},
        {"returns": [1.0]},
        {"returns": None},
        {"updates": {"0": 2, "1": 2}},
        {"diverged_at": 0},
    ))],
)  # fmt: skip
def test_a_damaged_result_is_trained_again_and_is_no_error(sweep, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (sweep / "parts" / "rung0_program1_batch1" / "result.json").write_text(text)
    assert finished_sweep(sweep) is None


@pytest.mark.parametrize("gone", sorted(SUMMARY))
def test_a_damaged_summary_is_written_again(sweep, gone):
    (sweep / "summary.json").write_text(json.dumps({name: x for name, x in SUMMARY.items() if name != gone}))
    assert finished_sweep(sweep) is None


def test_a_damaged_checkpoint(sweep):
    step = sweep / "parts" / "rung0_program1_batch1" / "checkpoints" / "step_000000000064"
    (step / "meta.json").write_text("{}")
    assert finished_sweep(sweep) is None


def test_no_checkpoint(sweep):
    shutil.rmtree(sweep / "parts" / "rung0_program1_batch1" / "checkpoints")
    assert finished_sweep(sweep) is None


def test_looking_takes_no_jax():
    """Importing JAX would take most of the time of `resume`."""
    program = "import sys, purejaxppo.experiment.finished, purejaxppo.sweeps.finished; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"
