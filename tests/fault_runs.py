"""Tiny runs for the fault tests: their flags, what they come to undisturbed, and how another one is compared to it."""

import fcntl
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps

SIZE = "--num-envs 4 --num-steps 8 --num-minibatches 2 --hidden-sizes 4 --eval-episodes 4 --keep-newest 3 --seed 7"
CONFIGURATIONS = {
    # As much carried state as there is: beta, the learning rate, both normalisers, unfinished episodes.
    "ppo_kl": (
        "--env Pendulum-v1 --algorithm ppo_kl --num-epochs 2 --normalize-observation --normalize-reward "
        "--learning-rate-schedule kl_adaptive --target-kl 0.003 --kl-min 0.001 --kl-max 0.003"
    ),
    "ppo_clip": (
        "--env CartPole-v1 --algorithm ppo_clip --num-epochs 2 --target-kl 0.0005 --learning-rate 0.01 "
        "--learning-rate-schedule linear --clip-eps-schedule linear --ent-coef-schedule linear "
        "--normalize-observation --normalize-reward --env-params max_steps_in_episode=30"
    ),
    "trpo": (
        "--env Pendulum-v1 --algorithm trpo --num-epochs 1 --action-distribution tanh_gaussian --normalize-observation"
    ),
    "policy_gradient": (
        "--env CartPole-v1 --algorithm policy_gradient --num-epochs 1 --shared-torso --normalize-reward "
        "--env-params max_steps_in_episode=20"
    ),
}
BATCH = 32  # env steps per update


UPDATES = 40  # 20 chunks


def train_flags(name):
    return [*CONFIGURATIONS[name].split(), *SIZE.split(), "--total-timesteps", str(UPDATES * BATCH)]


class Undisturbed:
    """Directories of whole runs, each made once; they save at the end only, and fill the cache of compiled programs.

    They are made without a network; `attempts` is the file that any use of it would have left.
    """

    def __init__(self, server, directory):
        self._server = server
        self._directory = directory
        self._known = {}
        self.attempts = directory / "network"

    def __call__(self, name):
        if name not in self._known:
            with (self._directory / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
                self._known[name] = self._make(name)
        return self._known[name]

    def _make(self, name):
        run_dir, again = self._directory / name, self._directory / f"{name}_again"
        if not (again / "summary.json").exists():
            self._run(name, "train", *train_flags(name), "--checkpoint-seconds", "1000", "--out", run_dir)
            assert len(list_steps(run_dir)) == 1
            shutil.copytree(run_dir, again, ignore=lambda *_: ["summary.json"])
            self._run(name, "resume", again)  # for the programs of resuming
        assert outcome(again) == outcome(run_dir)
        return run_dir

    def _run(self, name, *argv):
        faults = [f"no_network={self.attempts}"]
        code, stderr = self._server.run(self._directory / f"{name}_log", *argv, faults=faults, fill_cache=True)
        assert code == 0, stderr


class Outcome(NamedTuple):
    """All that must not depend on what happened on the way."""

    state_sha256: str
    evaluation: dict[str, Any]
    train_return: float | None
    rows: list[dict[str, Any]]


def outcome(run_dir):
    """Of a finished run; every checkpoint of it is sound, and nothing half-written lies about."""
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["exit_reason"] == "finished"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    assert [invalid_reason(step.path) for step in list_steps(run_dir)] == [None] * len(list_steps(run_dir))
    assert list_steps(run_dir)[0].env_steps == summary["env_steps"]
    assert not list(run_dir.rglob("*.tmp-*"))
    return Outcome(summary["state_sha256"], summary["evaluation"], summary["train_return"], rows)


def assert_one_line(stderr):
    """An error of one line, the last one of what was said, and no traceback."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("purejaxppo: error:")]
    assert len(lines) == 1, stderr
    return lines[0]


def side_by_side(function, cases):
    """What a function says of each case, two at a time: most of the time a process waits for the disk."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, cases))
