"""`kill -9` and signals at any moment of a sweep that is then resumed: its tables are those of an undisturbed one.

The default set kills one sweep and then asks it to stop, the slow one takes sweeps of two programs through 60 kills.
"""

import fcntl
import json
import random
import signal
import time

import pytest
from fault_runs import side_by_side

from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps

# Two rungs: eight runs for ten updates, then two for all forty.
FLAGS = (
    "--env CartPole-v1 --num-envs 4 --num-steps 8 --num-minibatches 2 --hidden-sizes 4 --num-epochs 1 "
    "--learning-rate 0.003 0.01 0.03 0.1 --eval-episodes 4 --seeds 3 9 --total-timesteps 1280 --halving 4 "
    "--env-params max_steps_in_episode=30 --normalize-observation --target 25"
)
SWEEP = FLAGS.split()
TWO_PROGRAMS = FLAGS.replace("--num-epochs 1", "--num-epochs 1 2").split()  # sixteen runs, then four
TABLES = ("metrics.csv", "results.csv", "table.md", "plots/learning_curves.png")


def tables(directory):
    """Returns the bytes of the files that no interruption may change, and checks that every checkpoint is valid."""
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["exit_reason"] == "finished"
    for batch in (directory / "parts").iterdir():
        assert [invalid_reason(step.path) for step in list_steps(batch)] == [None] * len(list_steps(batch))
    assert not list(directory.rglob("*.tmp-*"))
    del summary["train_seconds"], summary["env_steps_per_second"], summary["seconds"]
    return [(directory / name).read_bytes() for name in TABLES], summary


def undisturbed(server, shared, sweep, name):
    """Returns the directory of an undisturbed sweep, which has filled the cache of compiled programs."""
    out = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
        if not (out / "summary.json").exists():
            code, stderr = server.run(shared / f"{name}_log", "sweep", *sweep, "--out", out, fill_cache=True)
            assert code == 0, stderr
    return out


def _moved(out):
    """Returns a function that tells whether there is a checkpoint, or the beginning of one, that is not there now."""
    before = set(out.glob("parts/*/checkpoints/*"))
    return lambda: not before.issuperset(out.glob("parts/*/checkpoints/*"))


def survive(server, directory, sweep, seed, numbers):
    """Sends these signals, each at a random time after a random event, and resumes until the sweep is finished."""
    chance = random.Random(seed)
    out = directory / f"sweep_{seed}"
    sent = 0
    for attempt, number in enumerate([*numbers, None]):
        new = not (out / "sweep.json").exists()
        command = ["sweep", *sweep, "--out", out] if new else ["resume", out]
        reached = _moved(out) if chance.random() < 0.7 else None
        log, options = directory / f"log_{seed}_{attempt}", ["--checkpoint-seconds", "0"]
        child = server.start(log, *command, *options, fill_cache=number is None)
        if number is not None:
            assert child.until(reached or (lambda: True)), f"hangs, in kill {attempt} of {seed}"
            time.sleep(chance.uniform(0, 0.7 if reached else 4.0))
            sent += child.poll() is None
            child.kill(number)
        code = child.wait()
        expected = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (75, 130, 0), None: (0,)}[number]
        assert code in expected, (seed, attempt, child.stderr)
        if code == 0:
            break
    assert code == 0
    return out, sent


def test_a_sweep_survives(server, shared, tmp_path):
    """It is killed, and then asked to stop."""
    whole = undisturbed(server, shared, SWEEP, "sweep")
    seed = 10  # both come soon after a checkpoint
    out, sent = survive(server, tmp_path, SWEEP, seed, (signal.SIGKILL, signal.SIGTERM))
    assert tables(out) == tables(whole)
    assert sent >= 1


@pytest.mark.slow
def test_a_sweep_of_two_programs_survives_60_kills(server, shared, tmp_path):
    whole = undisturbed(server, shared, TWO_PROGRAMS, "two_programs")

    def killed(seed):
        return survive(server, tmp_path, TWO_PROGRAMS, seed, 8 * [signal.SIGKILL])

    total, seed = 0, 100
    while total < 60:
        for out, sent in side_by_side(killed, [seed, seed + 1]):
            assert tables(out) == tables(whole)
            total += sent
        seed += 2
    print(f"\n{total} kills in {seed - 100} sweeps")
