"""`kill -9` at any moment, repeatedly: once resumed to its end, a run equals the uninterrupted one.

The default set takes one run through 3 kills, the slow one four configurations through 200.
"""

import json
import random
import time
from collections import Counter
from typing import NamedTuple

import pytest
from fault_runs import BATCH, UPDATES, outcome, side_by_side, train_flags

from purejaxppo.experiment.checkpoints.directory import list_steps

# --- moments ----------------------------------------------------------------------------------------------------------


def starting(run_dir):
    """Returns a condition that holds from the very beginning."""
    return lambda: True


def training(run_dir):
    """Returns a condition that holds from the next checkpoint on."""
    before = list_steps(run_dir)[:1]
    return lambda: list_steps(run_dir)[:1] != before


def saving(run_dir):
    """Returns a condition that holds while a checkpoint is being written."""
    return lambda: any((run_dir / "checkpoints").glob("*.tmp-*"))


def ending(run_dir):
    """Returns a condition that holds from the last checkpoint on."""
    return lambda: [step.env_steps for step in list_steps(run_dir)[:1]] == [UPDATES * BATCH]


def drawing(run_dir):
    """Returns a condition that holds from the summary on."""
    return lambda: (run_dir / "summary.json").exists()


# Up to how many seconds later: as long as what follows takes at the least.
DELAYS = {starting: 2.5, training: 0.5, saving: 0.1, ending: 0.4, drawing: 0.1}


def phase(run_dir):
    """Returns where a run was when it was killed, judged by its files."""
    if not (run_dir / "config.json").exists():
        return "starting"
    if (run_dir / "summary.json").exists():
        return "after the summary"
    steps = list_steps(run_dir)
    if any((run_dir / "checkpoints").glob("*.tmp-*")):
        return "within a save" if steps else "within the first save"
    if not steps:
        return "before any checkpoint"
    return "evaluating" if steps[0].env_steps == UPDATES * BATCH else "training"


class Life(NamedTuple):
    """A run to be killed again and again."""

    name: str  # of its configuration
    seed: int
    moments: tuple  # for one kill each, if the run is not finished before


def survive(server, directory, life):
    """Kills and resumes a run until it is finished; returns (its directory, the phases in which it was killed)."""
    chance = random.Random(life.seed)
    run_dir = directory / f"{life.name}_{life.seed}"
    killed = []
    for attempt, moment in enumerate([*life.moments, None]):
        new = not (run_dir / "config.json").exists()
        command = ["train", *train_flags(life.name), "--out"] if new else ["resume"]
        reached = moment(run_dir) if moment else lambda: False
        delay = chance.uniform(0.0, DELAYS[moment]) if moment else 0.0
        log = directory / f"{life.name}_{life.seed}_log{attempt}"
        child = server.start(log, *command, run_dir, "--checkpoint-seconds", "0")
        assert child.until(reached), f"hangs, in kill {attempt} of {life}"
        if moment:
            time.sleep(delay)
        child.kill(9)
        code = child.wait()
        assert code in (-9, 0), (life, attempt, child.stderr)
        if code == 0:
            break
        killed.append(phase(run_dir))
    assert code == 0
    return run_dir, killed


def check(server, undisturbed, tmp_path, lives):
    """Runs all lives, two at a time, and compares the results; returns how many kills fell into which phase."""
    side_by_side(undisturbed, sorted({life.name for life in lives}))
    phases = Counter()
    differing = []
    for life, (run_dir, killed) in zip(
        lives, side_by_side(lambda life: survive(server, tmp_path, life), lives), strict=True
    ):
        phases.update(killed)
        if outcome(run_dir) != outcome(undisturbed(life.name)):
            differing.append((life, killed))
    assert not differing
    print(f"\n{phases.total()} kills: {dict(phases)}")
    return phases


def test_a_run_survives_kills_at_any_moment(server, undisturbed, tmp_path):
    """Parameters, optimizer, beta, learning rate, normalisers, episodes, keys and metrics are restored."""
    phases: Counter[str] = Counter()
    for seed in (1, 2, 3):  # a run that ends before it is killed is no kill: then there are more of them
        phases += check(server, undisturbed, tmp_path, [Life("ppo_kl", seed, (starting, saving, ending))])
        early = phases["starting"] + phases["before any checkpoint"]
        amid = phases["training"] + phases["within a save"] + phases["within the first save"]
        late = phases["evaluating"] + phases["after the summary"]
        if early and amid and late:
            return
    pytest.fail(f"too few kills: {phases}")


@pytest.mark.slow
def test_a_run_survives_200_kills(server, undisturbed, tmp_path):
    """All four update rules are among the runs."""
    chance = random.Random(0)
    names = ("ppo_kl", "ppo_clip", "trpo", "policy_gradient")
    phases, seed = Counter(), 100
    while phases.total() < 200:
        lives = []
        for name in names[seed % 2 :: 2]:
            early = chance.choices((starting, training, saving), (1, 2, 2), k=7)
            lives.append(Life(name, seed, (*early, ending, drawing)))
        seed += 1
        phases += check(server, undisturbed, tmp_path, lives)
    print(json.dumps(phases, indent=2))
