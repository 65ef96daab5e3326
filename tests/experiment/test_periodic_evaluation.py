"""Evaluations while training: when they are due, by which keys, and what they add to a row."""

import jax
import numpy as np
import pytest

from purejaxppo.config import RunOptions, TrainConfig
from purejaxppo.errors import OutOfMemoryError
from purejaxppo.evaluate import Episodes, evaluation_key
from purejaxppo.experiment.periodic_evaluation import PeriodicEvaluation, eval_period, periodic_key

CONFIG = TrainConfig(num_envs=4, num_steps=8, total_timesteps=32 * 10)


class Player:
    """Stands in for an `Evaluator`: its episodes have the returns that it was given; None stands for a signal."""

    num_episodes = 3

    def __init__(self, *returns):
        self.returns = list(returns)
        self.keys, self.compiled = [], 0

    def compile(self, runner):
        self.compiled += 1

    def play(self, key, runner, say, stop):
        self.keys.append(key)
        returns = self.returns.pop(0)
        if isinstance(returns, Exception):
            raise returns
        return (
            None if returns is None else Episodes(np.array(returns), np.array([2, 3, 4]), np.array([True, True, False]))
        )


def subject(player, eval_every=64, newest=None):
    return PeriodicEvaluation(CONFIG, RunOptions(eval_every=eval_every), 7, player, newest, print, lambda: None)


@pytest.mark.parametrize(
    ("eval_every", "period"), [(0, 0), (1, 1), (32, 1), (63, 1), (64, 2), (320, 10), (10**12, 31250000000)]
)
def test_the_period_is_in_whole_updates(eval_every, period):
    assert eval_period(CONFIG, RunOptions(eval_every=eval_every)) == period


def test_it_is_due_at_every_multiple_and_never_without_one():
    assert [update for update in range(11) if subject(Player()).due(update)] == [2, 4, 6, 8, 10]
    assert not any(subject(None).due(update) for update in range(11))
    assert not any(subject(None, eval_every=0).due(update) for update in range(11))


@pytest.mark.parametrize(
    ("eval_every", "done", "compiled"), [(64, 0, 1), (64, 9, 1), (64, 10, 1), (96, 8, 1), (96, 10, 0), (352, 0, 0)]
)
def test_it_is_compiled_if_one_is_left(eval_every, done, compiled):
    """The one after the update that is done already is left too: a signal may have stopped it."""
    player = Player()
    subject(player, eval_every).compile(None, done)
    assert player.compiled == compiled


def test_its_keys_are_those_of_seed_and_update():
    """No two of them are equal, nor do they depend on what was evaluated before."""
    player = Player(*[[1.0, 2.0, 3.0]] * 2)
    evaluation = subject(player)
    for update in (2, 4):
        evaluation.measure(None, update)
    keys = [periodic_key(7, 2), periodic_key(7, 4), periodic_key(8, 2), evaluation_key(7), jax.random.key(7)]
    keys += [*jax.random.split(jax.random.key(7), 3), *jax.random.split(evaluation_key(7), 3)]
    data = [tuple(jax.random.key_data(key).tolist()) for key in keys]
    assert len({*data}) == len(data)
    assert [tuple(jax.random.key_data(key).tolist()) for key in player.keys] == data[:2]


def test_what_it_adds_to_a_row():
    """The newest return stays known when a signal stops the next evaluation."""
    evaluation = subject(Player([1.0, 2.0, 6.0], None), newest=-1.0)
    assert evaluation.newest == -1.0
    assert evaluation.measure(None, 2) == {
        "evaluation/return": 3.0,
        "evaluation/return_std": pytest.approx(np.std([1, 2, 6])),
        "evaluation/length": 3.0,
        "evaluation/episodes": 3,
        "evaluation/unfinished": 1,
    }
    assert evaluation.newest == 3.0
    assert evaluation.measure(None, 4) is None
    assert evaluation.newest == 3.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_not_finite(bad):
    evaluation = subject(Player([1.0, bad, 6.0]), newest=2.0)
    row = evaluation.measure(None, 2)
    assert (row["evaluation/return"], row["evaluation/return_std"], evaluation.newest) == (None, None, None)


def test_its_seconds_are_counted_from_when_the_clock_was_asked_for(monkeypatch):
    ticks = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr("purejaxppo.experiment.periodic_evaluation.time.perf_counter", lambda: next(ticks))
    evaluation = subject(Player([1.0, 2.0, 3.0], None))
    evaluation.measure(None, 2)
    clock = evaluation.clock()
    assert clock() == 0.0
    evaluation.measure(None, 4)  # also one that was stopped
    assert clock() == 2.0


def test_too_little_memory_names_its_own_flags():
    with pytest.raises(
        OutOfMemoryError, match=r"3 episodes side by side while training.*--eval-every-episodes 1"
    ) as caught:
        subject(Player(MemoryError())).measure(None, 2)
    assert "\n" not in str(caught.value)
