"""Several processes that train one run, on one machine: they agree, stop together, and outlive each other's end."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from several_processes import (
    LIMIT_S,
    ended,
    finish,
    finish_several,
    free_port,
    start,
    start_several,
    wait_for_checkpoint,
)

from purejaxppo.devices import processes
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.checkpoints.directory import list_steps

SETTINGS = [
    *["--env", "CartPole-v1", "--num-envs", "16", "--num-steps", "16", "--num-shards", "4", "--num-minibatches", "2"],
    *["--eval-episodes", "4", "--eval-every-episodes", "2", "--normalize-observation"],
]


_FORK = Path(__file__).parents[2] / "scripts" / "examples" / "masked_actions.py"


def rows(run_dir):
    """Returns the rows of a run's metrics without the wall clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.timeout(2 * LIMIT_S)
def test_two_processes_train_a_run_and_one_goes_on_when_the_other_is_killed(tmp_path):
    """The first one ends soon, with a message; one process with four devices then finishes the run, as if alone."""
    out, alone = tmp_path / "run", tmp_path / "alone"
    budget = ["--total-timesteps", "512000", "--checkpoint-seconds", "0", "--eval-every", "51200"]
    leader, follower = start_several([["train", *SETTINGS, *budget, "--out", out]] * 2, tmp_path)
    wait_for_checkpoint(out, leader)
    follower.send_signal(signal.SIGKILL)
    code, printed = ended(leader, tmp_path / "log0")
    assert code == 75, printed
    assert "process 1 of 2 has ended or cannot be reached; `purejaxppo resume" in printed
    follower.wait()
    done = list_steps(out)[0].env_steps
    assert 0 < done < 512000

    more = ["--total-timesteps", str(done + 2560), "--eval-every", "0", "--devices", "4"]
    finish(["resume", out, *more], tmp_path)
    few = ["--total-timesteps", "512", "--eval-every", "0", "--devices", "4", "--out", alone]
    finish(["train", *SETTINGS, *few], tmp_path)
    two, one = rows(out), rows(alone)
    assert [row["update"] for row in two] == list(range(1, done // 256 + 11))
    # As on one process but for rounding: the first update, which nothing has made grow yet.
    for name in ("loss/policy", "loss/value", "entropy", "kl", "episode/count"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-3, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_signal_to_one_stops_both_and_the_resumed_run_is_the_undisturbed_one(tmp_path):
    out = tmp_path / "run"
    settings = [*SETTINGS, "--learning-rate-schedule", "constant", "--eval-every", "0"]
    argv = ["train", *settings, "--total-timesteps", "512000", "--checkpoint-seconds", "0", "--out", out]
    pair = start_several([argv] * 2, tmp_path)
    wait_for_checkpoint(out, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    for i, process in enumerate(pair):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 75, printed
        assert "stopped by SIGTERM; the state is saved" in printed
    done = list_steps(out)[0].env_steps
    budget = ["--total-timesteps", str(done + 2560)]
    finish_several(["resume", out, *budget], tmp_path)
    whole = tmp_path / "whole"
    finish_several(["train", *settings, *budget, "--out", whole], tmp_path)
    assert rows(out) == rows(whole)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (out, whole)]
    assert summaries[0]["state_sha256"] == summaries[1]["state_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_a_process_that_stands_still_is_lost(tmp_path):
    """The other one ends within a minute, and it ends itself when it goes on."""
    out = tmp_path / "run"
    argv = ["train", *SETTINGS, "--total-timesteps", "512000", "--checkpoint-seconds", "0", "--out", out]
    leader, follower = start_several([argv] * 2, tmp_path)
    wait_for_checkpoint(out, leader)
    found = subprocess.run(["pgrep", "-P", str(follower.pid)], capture_output=True, text=True, check=True)
    child = int(found.stdout)
    os.kill(child, signal.SIGSTOP)
    assert leader.wait(60) == 75
    assert "process 1 of 2 has ended or cannot be reached; `purejaxppo resume" in (tmp_path / "log0").read_text()
    os.kill(child, signal.SIGCONT)
    code, printed = ended(follower, tmp_path / "log1")
    assert code == 75, printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            (["--seed", "1"], ["--seed", "2"]),
            "processes 0 and 1 differ in seed: 1 and 2; start all of them with the same",
        ),
        ((["--num-shards", "1"], ["--num-shards", "1"]), "4 devices cannot share num_shards = 1 equally"),
    ],
)
def test_processes_that_do_not_fit_are_refused(tmp_path, changes, message):
    commands = [["train", *SETTINGS, *change, "--out", tmp_path / "run"] for change in changes]
    for i, process in enumerate(start_several(commands, tmp_path)):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 2, printed
        assert message in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distributed"], "JAX did not find the other processes by itself"),
        (["--coordinator", "localhost:TAKEN", "--num-processes", "2", "--process-id", "0"], "is not free here"),
        (["--coordinator", "localhost:PORT", "--num-processes", "2", "--process-id", "1"], "was not reached at"),
        (
            ["--coordinator", "localhost:PORT", "--num-processes", "2", "--process-id", "0"],
            "not all of 2 processes have come to localhost:",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(tmp_path, options, message):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        words = {"PORT": str(free_port()), "TAKEN": str(taken.getsockname()[1])}
        for word, number in words.items():
            options = [option.replace(word, number) for option in options]
        log = tmp_path / "log"
        code, printed = ended(start(["train", *SETTINGS, *options, "--out", str(tmp_path / "run")], 1, log), log)
    assert code == 2, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("purejaxppo: error")]
    assert message in line


def test_one_process_agrees_with_itself():
    assert processes.number() == 1
    assert processes.leads()
    assert processes.exchange("x") == ["x"]
    assert processes.first_of(None) is None
    assert processes.first_of("stop") == "stop"
    assert (processes.any_of(True), processes.any_of(False)) == (True, False)
    assert processes.from_leader(lambda: "here") == "here"
    processes.check_same({"a": 1})
    with processes.together("goes on"):
        pass
    processes.leave()


def test_a_difference_between_processes_is_named(monkeypatch):
    monkeypatch.setattr(processes, "exchange", lambda text: [text, json.dumps({"a": 1, "b": 3})])
    with pytest.raises(ConfigError, match="processes 0 and 1 differ in b: 2 and 3"):
        processes.check_same({"a": 1, "b": 2})


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_S)
@pytest.mark.parametrize(
    "settings",
    [
        ["--algorithm", "ppo_kl", "--normalize-observation", "--normalize-reward"],
        ["--algorithm", "trpo"],
        ["--algorithm", "policy_gradient"],
        ["--policy", "gru", "--sequence-length", "8"],
        ["--plugin", _FORK, "--env", "lattice"],
    ],
    ids=["ppo_kl", "trpo", "policy_gradient", "gru", "masks"],
)
def test_whatever_is_trained_is_trained_by_two_processes(tmp_path, settings):
    """To the result of one process with as many devices, up to rounding, in the first update."""
    argv = ["train", *SETTINGS, *settings, "--total-timesteps", "1024", "--eval-every", "512"]
    finish([*argv, "--devices", "4", "--out", tmp_path / "one"], tmp_path)
    finish_several([*argv, "--out", tmp_path / "two"], tmp_path)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert one[0].keys() == two[0].keys()
    assert [row["update"] for row in two] == [1, 2, 3, 4]
    for name, value in one[0].items():
        assert two[0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    evaluations = [row["evaluation/return"] for row in two if "evaluation/return" in row]
    assert len(evaluations) == 2
