"""Evaluation: episodes played with a policy whose parameters and normalisers are frozen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.core.sums import Sum, add, empty_sum
from purejaxppo.core.types import EnvState, Memory, Observation, Params, Policy, RunnerState, VecEnv
from purejaxppo.envs.autoreset import strongly_typed
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.policies.normalized import Normalized

LONGEST_EPISODE = 100_000  # steps after which an episode is broken off, even if its environment's limit is larger
_STEPS_WITHOUT_LIMIT = 10_000  # the same for an environment without a limit


class Episodes(NamedTuple):
    """One episode per environment."""

    episode_return: jax.Array  # [E] sum of raw rewards
    episode_length: jax.Array  # [E] int32, steps
    finished: jax.Array  # [E] bool; False if the evaluation broke the episode off


class Play(NamedTuple):
    """The state of an evaluation: unfinished episodes, one in each of the E environments."""

    steps: jax.Array  # int32, played so far
    key: jax.Array
    env_state: EnvState
    obs: Observation  # [E, ...]
    memory: Memory  # [E, ...] of the policy, before it has seen obs
    start: jax.Array  # [E] bool, whether obs is the first of an episode
    rewards: Sum  # [E], the compensated sum whose value is `episodes.episode_return`
    episodes: Episodes  # so far


def evaluate(
    key: jax.Array, env: VecEnv, policy: Policy, params: Params, greedy: bool = True, max_steps: int | None = None
) -> Episodes:
    """Plays one whole episode in each of the E environments, and returns them.

    Every environment contributes exactly one episode, however short: taking the first E episodes to finish would be
    biased towards short ones.

    Args:
      key: consumed.
      env: takes the policy's actions, as that of `bound_action` does.
      policy, params: which act. One that was trained on normalised observations is to be given as `Normalized`.
      greedy: act by the distribution's mode instead of a sample.
      max_steps: static; `most_steps(env)` by default.
    """
    return play(begin_play(key, env, policy), max_steps or most_steps(env), env, policy, params, greedy).episodes


def most_steps(env: VecEnv) -> int:
    """Returns the number of steps after which an evaluation breaks an episode off.

    It is the environment's own limit, or 10,000 if there is none, and at most `LONGEST_EPISODE`, since an evaluation
    has to end.
    """
    return min(env.step_limit or _STEPS_WITHOUT_LIMIT, LONGEST_EPISODE)


def begin_play(key: jax.Array, env: VecEnv, policy: Policy) -> Play:
    """Returns the initial state of an evaluation: a new episode in each of the E environments."""
    key, key_reset = jax.random.split(key)
    state, obs = env.reset(jax.random.split(key_reset, env.num_envs))
    # In the types that it has after a step: otherwise `play` would be compiled twice, for the first piece and the rest.
    state = jax.tree.map(strongly_typed, state)
    nothing = Episodes(jnp.zeros(env.num_envs), jnp.zeros(env.num_envs, jnp.int32), jnp.zeros(env.num_envs, jnp.bool_))
    memory, start = policy.initial_memory(env.num_envs), jnp.ones(env.num_envs, jnp.bool_)
    return Play(jnp.zeros((), jnp.int32), key, state, obs, memory, start, empty_sum((env.num_envs,)), nothing)


def play(begun: Play, until: int | jax.Array, env: VecEnv, policy: Policy, params: Params, greedy: bool = True) -> Play:
    """Continues an evaluation until `until` steps have been played, or every episode has finished.

    The result does not depend on the number of calls: pieces of any length give the episodes of a single call.

    Args:
      begun: from `begin_play` or `play`.
      until: steps, counted from the beginning of the evaluation; may be traced.
      env, policy, params, greedy: as for `evaluate`.
    """

    def unfinished(carry: Play) -> jax.Array:
        return (carry.steps < until) & ~jnp.all(carry.episodes.finished)

    def step(carry: Play) -> Play:
        step, key, state, obs, memory, start, rewards, episodes = carry
        key, key_action, key_env = jax.random.split(key, 3)
        memory, pi = policy.act(params, memory, obs, start)
        action = pi.mode() if greedy else pi.sample(pi.noise(key_action))
        state, result = env.step(env.draw(jax.random.split(key_env, env.num_envs)), state, action)
        # Finished environments auto-reset and are stepped on, but masked: only their first episode counts.
        running = ~episodes.finished
        rewards = add(rewards, jnp.where(running, result.reward, 0.0))
        length = episodes.episode_length + running
        done = result.terminated | result.truncated
        episodes = Episodes(rewards.value, length, episodes.finished | done)
        return Play(step + 1, key, state, result.obs, memory, done, rewards, episodes)

    return jax.lax.while_loop(unfinished, step, begun)


def evaluate_runner(
    key: jax.Array, config: TrainConfig, env: VecEnv, policy: Policy, runner: RunnerState, greedy: bool = True
) -> Episodes:
    """Plays one episode in each of the E environments of `env`, with a run's policy and its normalisers frozen."""
    return evaluate(key, bound_action(config, env), frozen(policy, runner), runner.learner.params, greedy)


def frozen(policy: Policy, runner: RunnerState) -> Policy:
    """Returns the policy that sees observations as in training, normalised by the run's statistics."""
    return Normalized(policy, runner.normalizer.obs)


def evaluation_key(seed: int | jax.Array) -> jax.Array:
    """Returns the key of an evaluation, which is independent of the key of the training with the same seed."""
    return jax.random.fold_in(jax.random.key(seed), 0x5EED)
