"""A sweep over several processes: its tables are those of one process, byte for byte, whatever happens on the way."""

import signal

import pytest
from several_processes import LIMIT_S, ended, finish, finish_several, start, start_several, wait_for_checkpoint

SWEEP = [
    *["sweep", "--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "16", "--num-minibatches", "2"],
    *["--learning-rate", "1e-3", "3e-3", "1e-2", "--seeds", "2", "--halving", "2", "--eval-episodes", "4"],
    *["--total-timesteps", "64000", "--checkpoint-seconds", "0"],
]


def tables(directory):
    return {name: (directory / name).read_bytes() for name in ("metrics.csv", "results.csv", "table.md")}


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    """The tables of the sweep on four devices of one process."""
    directory = tmp_path_factory.mktemp("one")
    finish([*SWEEP, "--out", directory / "sweep"], directory)
    return tables(directory / "sweep")


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT_S)
def test_two_processes_make_the_tables_of_one(of_one_process, tmp_path):
    """Six runs on four devices, then two: the second rung has copies, so that each process takes part."""
    finish_several([*SWEEP, "--out", tmp_path / "sweep"], tmp_path)
    assert tables(tmp_path / "sweep") == of_one_process


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT_S)
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("resume", [finish, finish_several])
def test_a_sweep_goes_on_when_a_process_was_killed(of_one_process, tmp_path, killed, resume):
    """The other one ends, and two processes or one with four devices finish it."""
    out = tmp_path / "sweep"
    pair = start_several([[*SWEEP, "--out", out]] * 2, tmp_path)
    wait_for_checkpoint(out / "parts" / "rung0_program1_batch1", pair[0])
    pair[killed].kill()
    pair[killed].wait()
    code, printed = ended(pair[1 - killed], tmp_path / f"log{1 - killed}")
    assert code == 75, printed
    assert f"`purejaxppo resume {out}` goes on" in printed
    resume(["resume", out], tmp_path)
    assert tables(out) == of_one_process


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_signal_to_one_stops_all(of_one_process, tmp_path):
    out = tmp_path / "sweep"
    pair = start_several([[*SWEEP, "--out", out]] * 2, tmp_path)
    wait_for_checkpoint(out / "parts" / "rung0_program1_batch1", pair[0])
    pair[1].send_signal(signal.SIGTERM)
    for i, process in enumerate(pair):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 75, printed
    assert "stopped by SIGTERM; the state is saved" in (tmp_path / "log0").read_text()
    finish_several(["resume", out], tmp_path)
    assert tables(out) == of_one_process


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_S)
def test_a_sweep_of_one_process_goes_on_in_two(tmp_path):
    """If all of its batches can be shared; a late rung of halving might have a single run."""
    sweep = [option for option in SWEEP if option not in ("--halving", "2")] + ["--seeds", "4"]
    whole, out = tmp_path / "whole", tmp_path / "sweep"
    finish([*sweep, "--out", whole], tmp_path)
    for argv in (sweep, SWEEP):
        alone = start([*argv, "--out", out / argv[-1]], 4, tmp_path / "log_alone")
        wait_for_checkpoint(out / argv[-1] / "parts" / "rung0_program1_batch1", alone)
        alone.kill()
        alone.wait()
    finish_several(["resume", out / sweep[-1]], tmp_path)
    assert tables(out / sweep[-1]) == tables(whole)
    for i, process in enumerate(start_several([["resume", out / SWEEP[-1]]] * 2, tmp_path)):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 2, printed
        assert "2 processes cannot share batches of 1 runs equally" in printed


@pytest.mark.slow
def test_one_run_after_the_other_takes_one_process(tmp_path):
    commands = [[*SWEEP, "--exact", "--out", tmp_path / "sweep"]] * 2
    for i, process in enumerate(start_several(commands, tmp_path)):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 2, printed
        assert "exact = True takes one device; train it in one process." in printed
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_the_first_process_prints_the_plan(tmp_path):
    finish_several([*SWEEP, "--plan"], tmp_path)
    assert "6 runs in one batch" in (tmp_path / "log0").read_text()
    assert "6 runs in one batch" not in (tmp_path / "log1").read_text()
