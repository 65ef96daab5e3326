"""Evaluation from the host: episodes are played in pieces, between which it shows progress and checks for signals."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import Params, Policy, RunnerState, VecEnv
from purejaxppo.devices import selection
from purejaxppo.devices.processes import here
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.evaluate import Episodes, Play, begin_play, most_steps, play
from purejaxppo.experiment.statistics import interquartile_mean
from purejaxppo.experiment.watchdog import announced
from purejaxppo.policies.normalized import Normalized

_FIRST_PIECE = 128  # steps per environment in the first call of the program
_LONG_PIECE = 0.5  # seconds; after a shorter piece the number of steps is doubled
_SILENCE = 5.0  # seconds between two progress messages


class _Frozen(NamedTuple):
    """What an evaluation takes from a run's state, on one device."""

    params: Params
    obs_stats: Any  # `Normalizer.obs`; None if observations are not normalised


class Evaluator:
    """Plays the episodes of `evaluate.evaluate_runner`, bit for bit, in calls that each take about a second.

    The number of steps per call is an argument of the compiled program, so there is one compilation for all evaluations
    of a run. It does not change the result.

    Args:
      config, env, policy, greedy: as in `evaluate.evaluate_runner`.
    """

    def __init__(self, config: TrainConfig, env: VecEnv, policy: Policy, greedy: bool = True) -> None:
        self.num_episodes = env.num_envs
        self._limit = most_steps(env)
        bounded_env = bound_action(config, env)

        @jax.jit
        def begin(key: jax.Array) -> Play:
            return begin_play(key, bounded_env, policy)

        @jax.jit
        def go_on(state: Play, until: int, frozen: _Frozen) -> Play:
            return play(state, until, bounded_env, Normalized(policy, frozen.obs_stats), frozen.params, greedy)

        self._begin, self._go_on = begin, go_on

    def compile(self, runner: RunnerState) -> None:
        """Compiles the programs for states like this one, which the first evaluation does otherwise."""
        key, frozen = _on_one_device(jax.random.key(0), runner)
        jax.block_until_ready(self._go_on(self._begin(key), 0, frozen))

    def play(
        self,
        key: jax.Array,
        runner: RunnerState,
        say: Callable[[str], object],
        stop: Callable[[], object] = lambda: None,
    ) -> Episodes | None:
        """Plays one episode in each environment with a run's policy and its normalisers frozen.

        Args:
          key: consumed.
          runner: the run's state.
          say: called with progress messages if the episodes take longer than a few seconds.
          stop: called before each piece; if true, the evaluation ends there.

        Returns:
          The episodes, or None if `stop` has ended it.
        """
        if stop():
            return None
        limit = self._limit
        key, frozen = _on_one_device(key, runner)
        with announced(say, f"evaluating {self.num_episodes:,} episodes"):  # most of it may be compilation
            state = jax.block_until_ready(self._go_on(self._begin(key), min(_FIRST_PIECE, limit), frozen))
        length, said = _FIRST_PIECE, time.monotonic()
        while True:
            steps, finished = int(state.steps), int(np.asarray(state.episodes.finished).sum())
            if steps >= limit or finished == self.num_episodes:
                return state.episodes
            if stop():
                return None
            began = time.monotonic()
            if began - said >= _SILENCE:
                said = began
                ended = f"{finished:,} of {self.num_episodes:,} episodes finished"
                say(f"evaluation: {ended} in {steps:,} of {limit:,} steps")
            state = jax.block_until_ready(self._go_on(state, min(steps + length, limit), frozen))
            if time.monotonic() - began < _LONG_PIECE:
                length *= 2


def _on_one_device(key: jax.Array, runner: RunnerState) -> tuple[jax.Array, _Frozen]:
    """Returns an evaluation's key and what it takes from a state, on the first device; a run may be on several.

    The key is put there explicitly too. Otherwise JAX would compile `go_on` twice: for the state that follows from a
    key that may be anywhere, and for the one that follows from parameters that are on that device.
    """
    return jax.device_put(key, selection.first()), here(_Frozen(runner.learner.params, runner.normalizer.obs))


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
