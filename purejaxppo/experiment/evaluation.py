"""Evaluation from the host: episodes are played in pieces, between which it shows progress and checks for signals."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import Policy, RunnerState, VecEnv
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.evaluate import Episodes, Play, begin_play, frozen, most_steps, play
from purejaxppo.experiment.statistics import interquartile_mean
from purejaxppo.experiment.watchdog import announced

_FIRST_PIECE = 128  # steps per environment in the first call of the program
_LONG_PIECE = 0.5  # seconds; after a shorter piece the number of steps is doubled
_SILENCE = 5.0  # seconds between two progress messages


def play_in_pieces(
    key: jax.Array,
    config: TrainConfig,
    env: VecEnv,
    policy: Policy,
    runner: RunnerState,
    greedy: bool,
    say: Callable[[str], object],
) -> Episodes:
    """Plays the episodes of `evaluate.evaluate_runner`, bit for bit, in calls that each take about a second.

    The number of steps per call is an argument of the compiled program, so there is one compilation. It does not change
    the result.

    Args:
      key, config, env, policy, runner, greedy: as in `evaluate.evaluate_runner`.
      say: called with progress messages if the episodes take longer than a few seconds.
    """

    bounded_env = bound_action(config, env)

    @jax.jit
    def begin(key: jax.Array) -> Play:
        return begin_play(key, bounded_env, policy)

    @jax.jit
    def go_on(state: Play, until: int, runner: RunnerState) -> Play:
        return play(state, until, bounded_env, frozen(policy, runner), runner.learner.params, greedy)

    limit = most_steps(env)
    with announced(say, f"evaluating {env.num_envs:,} episodes"):  # most of it is compilation
        state = jax.block_until_ready(go_on(begin(key), min(_FIRST_PIECE, limit), runner))
    length, said = _FIRST_PIECE, time.monotonic()
    while True:
        steps, finished = int(state.steps), int(np.asarray(state.episodes.finished).sum())
        if steps >= limit or finished == env.num_envs:
            return state.episodes
        began = time.monotonic()
        if began - said >= _SILENCE:
            said = began
            say(f"evaluation: {finished:,} of {env.num_envs:,} episodes finished in {steps:,} of {limit:,} steps")
        state = jax.block_until_ready(go_on(state, min(steps + length, limit), runner))
        if time.monotonic() - began < _LONG_PIECE:
            length *= 2


def summarize(episodes: Episodes) -> dict[str, Any]:
    """Returns the statistics of episodes: episodes, return_mean, return_std, return_iqm, length_mean.

    `return_iqm` is the interquartile mean. Statistics that a non-finite return makes non-finite are None. `unfinished`
    is the number of episodes that were ended at the step limit; it is absent if there are none.
    """
    returns = np.asarray(episodes.episode_return, np.float64)
    unfinished = int(np.sum(~np.asarray(episodes.finished)))
    return {
        "episodes": len(returns),
        "return_mean": _finite(returns.mean()),
        "return_std": _finite(returns.std()) if np.isfinite(returns).all() else None,
        "return_iqm": None if np.isnan(returns).any() else _finite(interquartile_mean(returns)),
        "length_mean": float(np.mean(np.asarray(episodes.episode_length, np.float64))),
        **({"unfinished": unfinished} if unfinished else {}),
    }


def _finite(number: Any) -> float | None:
    return float(number) if np.isfinite(number) else None
