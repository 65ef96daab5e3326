"""An evaluation from the host: episodes are played in pieces, so that there is progress and signals are heard."""

import time
from collections.abc import Callable

import jax
import numpy as np

from purejaxppo.config import TrainConfig
from purejaxppo.evaluate import Episodes, Play, begin_play, most_steps, play
from purejaxppo.types import Apply, RunnerState, VecEnv
from purejaxppo.watch import announced
from purejaxppo.wrappers import evaluation_env, observation_stats

_FIRST_PIECE = 128  # steps
_LONG_PIECE = 0.5  # seconds; a shorter piece is followed by one of twice as many steps
_SILENCE = 5.0  # seconds between two lines of progress


def play_in_pieces(
    key: jax.Array,
    config: TrainConfig,
    env: VecEnv,
    apply: Apply,
    runner: RunnerState,
    greedy: bool,
    say: Callable[[str], object],
) -> Episodes:
    """The very episodes of `evaluate.evaluate_runner`, by calls of a compiled program that each take about a second.

    How many steps a call plays is an argument of the program, so there is one compilation, and changes no result.

    Args:
      key, config, env, apply, runner, greedy: as there.
      say: told of the progress if the episodes take longer than a few seconds.
    """

    def frozen(runner: RunnerState) -> VecEnv:
        return evaluation_env(config, env, observation_stats(runner.env_state))

    @jax.jit
    def begin(key: jax.Array, runner: RunnerState) -> Play:
        return begin_play(key, frozen(runner))

    @jax.jit
    def go_on(state: Play, until: int, runner: RunnerState) -> Play:
        return play(state, until, frozen(runner), apply, runner.learner.params, greedy)

    limit = most_steps(env)
    with announced(say, f"evaluating {env.num_envs:,} episodes"):  # above all, compiling
        state = jax.block_until_ready(go_on(begin(key, runner), min(_FIRST_PIECE, limit), runner))
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
