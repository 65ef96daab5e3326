"""A sweep over several processes: its tables are those of one process, byte for byte, whatever happens on the way."""

import signal

import pytest
from several_processes import LIMIT_S, ended, finish, finish_several, start_several, wait_for_checkpoint

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
def test_what_processes_cannot_share_is_refused(tmp_path):
    for option, message in (
        (["--exact"], "exact = True takes one device; train it in one process."),
        (["--plan"], None),
    ):
        commands = [[*SWEEP[:-2], *option, "--out", tmp_path / "sweep"]] * 2
        for i, process in enumerate(start_several(commands, tmp_path)):
            code, printed = ended(process, tmp_path / f"log{i}")
            assert code == (2 if message else 0), printed
            assert message is None or message in printed
        assert not (tmp_path / "sweep").exists()
