"""Evaluation in pieces: the episodes are those of one call, it shows progress if it takes long, and it always ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_policy import policy_of
from probe_envs import endless

from purejaxppo import evaluate
from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.episodes import no_episodes
from purejaxppo.core.normalizer import Normalizer
from purejaxppo.core.types import LearnerState, RunnerState
from purejaxppo.evaluate import evaluate_runner
from purejaxppo.experiment import evaluation
from purejaxppo.experiment.evaluation import Evaluator, summarize

E = 6
CONFIG = TrainConfig()
WEIGHTS = jnp.array([[-0.3, 0.4]])
RUNNER = RunnerState(
    learner=LearnerState(WEIGHTS, (), ()),
    env_state=(),
    obs=jnp.zeros((1, 1)),
    memory=(),
    episodes=no_episodes(1),
    normalizer=Normalizer(),
    env_ids=jnp.arange(1),
    key=jax.random.key(0),
    updates=jnp.int32(0),
)


def apply(params, obs):
    return Categorical(obs * params), obs[..., 0]


def staggered(limit=40):
    """Returns environments of which number e plays episodes of limit - e steps with random rewards."""
    env = endless(E)
    ends = limit - jnp.arange(E)

    def reset(keys):
        state, obs = env.reset(keys)
        return (0, state), obs  # a weakly typed number, which `step` returns as an int32

    def step(keys, state, action):
        time, inner = state
        inner, result = env.step(keys, inner, action)
        reward = jax.vmap(jax.random.normal)(keys) + action
        return (time + jnp.int32(1), inner), result._replace(
            reward=reward, terminated=time + 1 >= ends, truncated=jnp.zeros(E, bool)
        )

    return env._replace(reset=reset, step=step, step_limit=limit)


def pieces(env, monkeypatch, greedy=False, first=1, long=0.5, silence=0.0):
    """Returns (episodes, progress messages); the first piece has this many steps, and a quick one doubles the next.

    Nothing may be traced after the first progress message.
    """
    monkeypatch.setattr(evaluation, "_FIRST_PIECE", first)
    monkeypatch.setattr(evaluation, "_LONG_PIECE", long)
    monkeypatch.setattr(evaluation, "_SILENCE", silence)
    said, traced = [], []

    def counted(params, obs):
        traced.append(len(said))
        return apply(params, obs)

    def say(line):
        if line.startswith("evaluation: "):
            said.append(line)

    episodes = Evaluator(CONFIG, env, policy_of(counted), greedy).play(jax.random.key(3), RUNNER, say)
    assert set(traced) == {0}
    return episodes, said


def test_pieces_are_the_episodes_of_one_call_and_tell_how_far_they_are(monkeypatch):
    env = staggered()
    whole = jax.jit(lambda key, runner: evaluate_runner(key, CONFIG, env, policy_of(apply), runner, greedy=False))
    episodes, said = pieces(env, monkeypatch)
    for one, many in zip(whole(jax.random.key(3), RUNNER), episodes, strict=True):
        np.testing.assert_array_equal(one, many)
    assert episodes.finished.all()
    assert said[0] == "evaluation: 0 of 6 episodes finished in 1 of 40 steps"
    assert len(said) > 3
    assert len(set(said)) == len(said)


def test_a_limit_of_two_billion_steps_ends_at_the_bound(monkeypatch):
    """Environments that never finish are ended and counted. There is no message about a quick evaluation."""
    monkeypatch.setattr(evaluate, "LONGEST_EPISODE", 21)
    episodes, said = pieces(staggered(2_000_000_000), monkeypatch, silence=60.0)
    assert episodes.episode_length.tolist() == [21] * E
    assert summarize(episodes)["unfinished"] == E
    assert said == []


def test_it_stops_when_the_last_episode_has_ended(monkeypatch):
    """It stops long before the bound, after as many pieces as the episodes take."""
    env = staggered()._replace(step_limit=None)
    episodes, said = pieces(env, monkeypatch, greedy=True, first=7, long=0.0)
    steps = [int(line.split(" finished in ")[1].split(" of ")[0]) for line in said]
    assert steps == [7, 14, 21, 28, 35]
    assert episodes.episode_length.tolist() == [40, 39, 38, 37, 36, 35]


def test_it_is_compiled_once_for_all_evaluations():
    """That may be before the first of them; other parameters and keys need no other program."""
    traced = []

    def counted(params, obs):
        traced.append(obs.shape)
        return apply(params, obs)

    subject = Evaluator(CONFIG, staggered(), policy_of(counted))
    subject.compile(RUNNER)
    before = len(traced)
    other, key = RUNNER._replace(learner=LearnerState(2 * WEIGHTS, (), ())), jax.random.key(0)
    played = [subject.play(key, runner, print) for runner in (RUNNER, other, RUNNER)]
    assert len(traced) == before
    assert subject._go_on._cache_size() == subject._begin._cache_size() == 1
    np.testing.assert_array_equal(played[0].episode_return, played[2].episode_return)


@pytest.mark.parametrize("pieces_before", [0, 1, 2])
def test_it_ends_between_two_pieces_when_asked_to_stop(monkeypatch, pieces_before):
    monkeypatch.setattr(evaluation, "_FIRST_PIECE", 2)
    monkeypatch.setattr(evaluation, "_LONG_PIECE", 0.0)
    asked = []

    def stop():
        asked.append(len(asked))
        return "SIGTERM" if len(asked) > pieces_before else None

    assert Evaluator(CONFIG, staggered(), policy_of(apply)).play(jax.random.key(3), RUNNER, print, stop) is None
    assert len(asked) == pieces_before + 1
