"""Results are printed, or the command reports that they were not: outputs that are full, closed, or not read."""

import json
import os
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest

from purejaxppo.cli import main as cli
from purejaxppo.cli.output import describe_checkpoints, describe_run
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.experiment import signals
from purejaxppo.experiment.checkpoints.state import snapshot
from purejaxppo.experiment.checkpoints.store import save_step
from purejaxppo.experiment.directory import RunSettings, write_settings


@pytest.fixture(autouse=True)
def run_dir(tmp_path, monkeypatch):
    """Makes a working directory with nothing but `run`, which has one very small checkpoint."""
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_settings(run_dir, RunSettings(TrainConfig(), Hyperparams(), 0, RunOptions()))
    rows = [{"env_steps": i, "episode/return": 1.0} for i in range(2)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_step(run_dir, 100, snapshot(np.zeros(1)), {"train_return": None})
    return run_dir


def unwritable(kind, buffering=-1):
    """Returns a buffered stream that is full, like a full device, or closed."""
    path, flags = ("/dev/full", os.O_WRONLY) if kind == "full" else (os.devnull, os.O_RDONLY)
    return open(os.open(path, flags), "w", buffering=buffering)


VERIFY = ["verify", "run"]
COMMANDS = [VERIFY, [*VERIFY, "--json"], ["plot", "run"], ["plot", "run", "--json"], ["--help"], ["train", "--help"]]


@pytest.mark.parametrize("kind", ["full", "closed"])
@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_a_result_that_cannot_be_printed_ends_with_4(monkeypatch, capfd, argv, kind):
    """One line says so, and Python prints no error when it ends."""
    with unwritable(kind) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.run(argv) == 4
        stream.flush()
    err = capfd.readouterr().err
    assert err.startswith("purejaxppo: error: cannot write to standard output: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_nobody_reads(monkeypatch, capfd, argv):
    """As in `purejaxppo verify run | true`, it is no failure, and there is no message."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.run(argv) == 0
        stream.flush()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["full", "closed"])
@pytest.mark.parametrize("argv", [["verify", "nowhere"], ["verify", "nowhere", "--debug"], ["trian"]], ids=" ".join)
def test_an_error_that_cannot_be_told_keeps_its_code(monkeypatch, capfd, argv, kind):
    """It is not printed on standard output instead."""
    with unwritable(kind, buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.run(argv) == (2 if argv == ["trian"] else 4)
        stream.flush()
    assert capfd.readouterr().out == ""


def started(arguments, redirections):
    """Runs `python -m purejaxppo arguments` in a shell, with its redirections; returns exit code, output and errors."""
    line = f"exec {shlex.quote(sys.executable)} -m purejaxppo {arguments} {redirections}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_shell_that_closes_the_streams():
    """A file that is opened must not get the descriptor of a stream, or C code would print into it."""
    code, out, err = started("verify run", "<&- >&-")
    assert (code, out) == (4, "")
    assert err.startswith("purejaxppo: error: cannot write to standard output: Bad file descriptor")
    assert err.count("\n") == 1
    assert started("verify nowhere", "2>&-") == (4, "", "")


@pytest.mark.filterwarnings("ignore:'purejaxppo.cli.__main__' found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", ["purejaxppo", "purejaxppo.cli"])
def test_both_modules_are_the_command(monkeypatch, capfd, module):
    """With `python -m`, the usage shows that, as no command may be installed."""
    for place in (signals, cli):
        monkeypatch.setattr(place, "end_process_on_signal", lambda: None)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["-m", *argv])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return stop.value.code, *capfd.readouterr()

    code, out, _ = run("verify", "--help")
    assert not code
    assert f"{os.path.basename(sys.executable)} -m {module} verify" in " ".join(out.split())
    code, _, err = run("verify", "nowhere")
    assert code == 4
    assert "nowhere is not a run directory" in err


def test_checking_checkpoints_takes_no_jax():
    """Importing it would take most of the time."""
    program = "import sys; from purejaxppo.cli.main import run; run(['verify', 'run']); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "step_000000000100" in done.stdout
    assert done.stdout.endswith("False\n")


def test_a_table_of_checkpoints_says_which_return_ranks_them():
    """Evaluations have a column where they rank a checkpoint; one without a return has a dash."""
    row = {"checkpoint": "step_1", "env_steps": 1000, "bytes": 10**6, "fault": None}
    plain = {**row, "train_return": 2.0, "evaluation_return": None, "ranked_by": "train_return"}
    other = {**row, "train_return": None, "evaluation_return": 3.5, "ranked_by": "evaluation_return"}
    assert describe_checkpoints([plain]) == [
        ["checkpoint", "env steps", "training return", "MB", "state"],
        ["step_1", "1,000", "2", "1.00", "sound"],
    ]
    head, *rows = describe_checkpoints([other, plain])
    assert head[2:4] == ["training return", "evaluation return (best by this)"]
    assert [cells[2:4] for cells in rows] == [["-", "3.5"], ["2", "-"]]


def test_what_the_environment_reports_is_a_line_of_its_own():
    summary = {"exit_reason": "finished", "env_steps": 64, "train_seconds": 1.0, "compile_seconds": 2.0}
    summary |= {"env_steps_per_second": 64.0, "evaluation": None, "run_dir": "runs/a"}
    assert len(describe_run(summary).splitlines()) == 2
    lines = describe_run({**summary, "train_info": {"lost": None, "won": 0.123456}}).splitlines()
    assert lines[1] == "the environment reports, at the ends of the episodes of the last tenth: lost -, won 0.1235"
