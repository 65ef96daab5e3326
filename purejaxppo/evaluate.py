"""Episodes with frozen parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.core.sums import Sum, add, empty_sum
from purejaxppo.core.types import Apply, EnvState, Params, RunnerState, VecEnv
from purejaxppo.envs.wrappers import evaluation_env, observation_stats

LONGEST_EPISODE = 100_000  # steps after which an episode is broken off, whatever limit its environment has
_ENDLESS = 10_000  # the same for an environment without a limit


class Episodes(NamedTuple):
    """One episode per environment."""

    episode_return: jax.Array  # [E] sum of raw rewards
    episode_length: jax.Array  # [E] int32, steps
    finished: jax.Array  # [E] bool; False where it was broken off


class Play(NamedTuple):
    """Episodes under way, one in each of the E environments."""

    steps: jax.Array  # int32, played so far
    key: jax.Array
    env_state: EnvState
    obs: jax.Array  # [E, *shape]
    rewards: Sum  # [E], of which `episodes.episode_return` is the value
    episodes: Episodes  # as far as they have come


def evaluate(
    key: jax.Array, env: VecEnv, apply: Apply, params: Params, greedy: bool = True, max_steps: int | None = None
) -> Episodes:
    """Plays one whole episode in each of the E environments.

    Every environment contributes exactly one episode, however short: taking the first E to finish would favour the
    short ones.

    Args:
      key: consumed.
      env: from `evaluation_env`, so that it normalises observations as in training, but frozen.
      apply, params: the network.
      greedy: take the distribution's mode instead of a sample.
      max_steps: static; by default `most_steps`.
    """
    return play(begin_play(key, env), max_steps or most_steps(env), env, apply, params, greedy).episodes


def most_steps(env: VecEnv) -> int:
    """Steps after which an evaluation breaks an episode off.

    They are the environment's own limit, 10,000 where it has none, and `LONGEST_EPISODE` where its limit is beyond
    that: an evaluation has to end.
    """
    return min(env.step_limit or _ENDLESS, LONGEST_EPISODE)


def begin_play(key: jax.Array, env: VecEnv) -> Play:
    """The first moment of one episode in each of the E environments."""
    key, key_reset = jax.random.split(key)
    state, obs = env.reset(key_reset)
    state = jax.tree.map(_with_its_type, state)
    nothing = Episodes(jnp.zeros(env.num_envs), jnp.zeros(env.num_envs, jnp.int32), jnp.zeros(env.num_envs, jnp.bool_))
    return Play(jnp.zeros((), jnp.int32), key, state, obs, empty_sum((env.num_envs,)), nothing)


def play(start: Play, until: int | jax.Array, env: VecEnv, apply: Apply, params: Params, greedy: bool = True) -> Play:
    """Goes on until so many steps are played, counted from the beginning, or every episode has finished.

    Pieces of any length come to the same episodes as all steps at once. The other arguments are those of `evaluate`.
    """

    def unfinished(carry: Play) -> jax.Array:
        return (carry.steps < until) & ~jnp.all(carry.episodes.finished)

    def step(carry: Play) -> Play:
        step, key, state, obs, rewards, episodes = carry
        key, key_action, key_env = jax.random.split(key, 3)
        pi, _ = apply(params, obs)
        action = pi.mode() if greedy else pi.sample(key_action)
        state, result = env.step(key_env, state, action)
        running = ~episodes.finished
        rewards = add(rewards, jnp.where(running, result.reward, 0.0))
        length = episodes.episode_length + running
        finished = episodes.finished | result.terminated | result.truncated
        return Play(step + 1, key, state, result.obs, rewards, Episodes(rewards.value, length, finished))

    return jax.lax.while_loop(unfinished, step, start)


def _with_its_type(x: Any) -> jax.Array:
    """The same numbers, no longer weakly typed as those of a Python scalar are: each step has the types of the next.

    `play` would otherwise be compiled twice, for the first piece and for those after it.
    """
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def evaluate_runner(
    key: jax.Array, config: TrainConfig, env: VecEnv, apply: Apply, runner: RunnerState, greedy: bool = True
) -> Episodes:
    """Plays with the policy of a run's state, its normalisers frozen, in each of the E environments of `env`."""
    env = evaluation_env(config, env, observation_stats(runner.env_state))
    return evaluate(key, env, apply, runner.learner.params, greedy)


def evaluation_key(seed: int | jax.Array) -> jax.Array:
    """Another stream than training's own, whose key is the seed's."""
    return jax.random.fold_in(jax.random.key(seed), 0x5EED)
