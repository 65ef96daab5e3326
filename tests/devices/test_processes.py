"""Several processes that train one run, on one machine: they agree, stop together, and outlive each other's end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from purejaxppo.devices import processes
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.checkpoints.directory import list_steps

SETTINGS = [
    *["--env", "CartPole-v1", "--num-envs", "16", "--num-steps", "16", "--num-shards", "4", "--num-minibatches", "2"],
    *["--eval-episodes", "4", "--eval-every-episodes", "2", "--normalize-observation"],
]
# With signs of life that are missed sooner than users need.
SCRIPT = """
import sys
from purejaxppo.devices import processes
from purejaxppo.cli.main import main
processes.BEAT_S, processes.LOST_S, processes.FAILED_S, processes.START_S = 0.5, 8.0, 3.0, 4
sys.argv = ["purejaxppo", *{argv}]
main()
"""
LIMIT_S = 240


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def start(argv, devices, log):
    """Starts a command in a process with so many CPU devices."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "1", "JAX_PLATFORMS": "cpu"}
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, "-c", SCRIPT.format(argv=argv)], stderr=file, stdout=file, env=env)


def start_two(argv, tmp_path):
    port, pair = free_port(), []
    for i in range(2):
        others = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", str(i)]
        pair.append(start([*argv, *others], 2, tmp_path / f"log{i}"))
    return pair


def ended(process, log):
    """Waits for the end of a process, and returns its exit code and what it has printed."""
    try:
        return process.wait(LIMIT_S), log.read_text()
    finally:
        process.kill()


def rows(run_dir):
    """Returns the rows of a run's metrics without the wall clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def first_checkpoint(run_dir, process):
    end = time.monotonic() + LIMIT_S
    while not list_steps(run_dir) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    assert list_steps(run_dir)


@pytest.mark.timeout(2 * LIMIT_S)
def test_two_processes_train_a_run_and_one_goes_on_when_the_other_is_killed(tmp_path):
    """The first one ends soon, with a message; one process with four devices then finishes the run, as if alone."""
    out, alone = tmp_path / "run", tmp_path / "alone"
    budget = ["--total-timesteps", "512000", "--checkpoint-seconds", "0", "--eval-every", "51200"]
    leader, follower = start_two(["train", *SETTINGS, *budget, "--out", str(out)], tmp_path)
    first_checkpoint(out, leader)
    follower.send_signal(signal.SIGKILL)
    code, printed = ended(leader, tmp_path / "log0")
    assert code == 75, printed
    assert "process 1 of 2 has ended or cannot be reached; `purejaxppo resume" in printed
    follower.wait()
    done = list_steps(out)[0].env_steps
    assert 0 < done < 512000

    more = ["--total-timesteps", str(done + 2560), "--eval-every", "0", "--devices", "4"]
    code, printed = ended(start(["resume", str(out), *more], 4, tmp_path / "log2"), tmp_path / "log2")
    assert code == 0, printed
    few = ["--total-timesteps", "512", "--eval-every", "0", "--devices", "4", "--out", str(alone)]
    code, printed = ended(start(["train", *SETTINGS, *few], 4, tmp_path / "log3"), tmp_path / "log3")
    assert code == 0, printed
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
    argv = ["train", *settings, "--total-timesteps", "512000", "--checkpoint-seconds", "0", "--out", str(out)]
    pair = start_two(argv, tmp_path)
    first_checkpoint(out, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    for i, process in enumerate(pair):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 75, printed
        assert "stopped by SIGTERM; the state is saved" in printed
    done = list_steps(out)[0].env_steps
    budget = ["--total-timesteps", str(done + 2560)]
    for i, process in enumerate(start_two(["resume", str(out), *budget], tmp_path)):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 0, printed
    whole = tmp_path / "whole"
    for i, process in enumerate(start_two(["train", *settings, *budget, "--out", str(whole)], tmp_path)):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 0, printed
    assert rows(out) == rows(whole)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (out, whole)]
    assert summaries[0]["state_sha256"] == summaries[1]["state_sha256"]


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
    port, pair = free_port(), []
    for i, change in enumerate(changes):
        others = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", str(i)]
        argv = ["train", *SETTINGS, *change, *others, "--out", str(tmp_path / "run")]
        pair.append(start(argv, 2, tmp_path / f"log{i}"))
    for i, process in enumerate(pair):
        code, printed = ended(process, tmp_path / f"log{i}")
        assert code == 2, printed
        assert message in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "localhost:PORT"], "belong together; give all three, or none."),
        (["--process-id", "0"], "belong together; give all three, or none."),
        (["--coordinator", "here", "--num-processes", "2", "--process-id", "0"], "is no address; give HOST:PORT"),
        (["--coordinator", "localhost:TAKEN", "--num-processes", "2", "--process-id", "0"], "is not free here"),
        (["--coordinator", "localhost:PORT", "--num-processes", "2", "--process-id", "1"], "was not reached at"),
        (
            ["--coordinator", "localhost:PORT", "--num-processes", "2", "--process-id", "1", "--devices", "2"],
            "--devices 2 chooses among one process's",
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
