"""The trainer: rollout, advantage, batch, update, metrics. Start reading here.

One update collects a rollout with the current policy, estimates advantages, and lets the algorithm learn from them. It
is a pure function of the hyperparameters and the run's state. docs/architecture.md has the reading path and a glossary.
"""

import jax
import jax.numpy as jnp

from purejaxppo.algorithms import make_algorithm
from purejaxppo.algorithms.adaptive_lr import kl_adaptive
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import whole
from purejaxppo.config.validate import validate_config
from purejaxppo.core.check_hyperparams import check_hyperparams
from purejaxppo.core.check_parts import check_parts
from purejaxppo.core.episodes import ended_episodes, no_episodes
from purejaxppo.core.nonfinite import NONFINITE_RULES, nonfinite, undo_nonfinite
from purejaxppo.core.normalizer import Normalizer, init_normalizer, normalized_obs, scaled_reward, update_normalizer
from purejaxppo.core.optimizer import anneal, check_names
from purejaxppo.core.rollout import rollout
from purejaxppo.core.rollout_metrics import RolloutStats, measure_rollout, rollout_metrics
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import (
    Actors,
    Algorithm,
    LearnerState,
    Metrics,
    Policy,
    RunnerState,
    Trainer,
    Trajectory,
    VecEnv,
)
from purejaxppo.envs.registry import make_env
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.policies.normalized import Normalized
from purejaxppo.policies.registry import make_policy


def make_trainer(config: TrainConfig, env: VecEnv, policy: Policy, algorithm: Algorithm) -> Trainer:
    """Returns a training run as a pair of pure functions. Both may be jitted, and vmapped over key and hyperparameters.

    Args:
      config: static settings; `env.num_envs` must equal `config.num_envs`.
      env: environments, e.g. from `from_gymnax`.
      policy: e.g. from `make_policy`, or `FeedForward(network)`.
      algorithm: e.g. `ppo_clip(config, policy)`.

    Raises:
      ConfigError: invalid settings, or a policy or an algorithm that does not fit.
      EnvError: an environment that breaks the contract of `VecEnv`.
    """
    validate_config(config)
    check_names(config)
    check_parts(config, env, policy, algorithm)
    if config.learning_rate_schedule == "kl_adaptive":
        algorithm = kl_adaptive(algorithm)
    bounded_env = bound_action(config, env)
    shards = algorithm.shards or Shards(config.shard_count)

    def init(key: jax.Array, hp: Hyperparams) -> RunnerState:
        check_hyperparams(hp)
        key, key_env, key_params = jax.random.split(key, 3)
        env_state, obs = bounded_env.reset(jax.random.split(key_env, config.num_envs))
        return RunnerState(
            # A key that no split of the policy's makes: fold_in(key, 1) would be the second of split(key).
            learner=algorithm.init(jax.random.fold_in(key_params, 0xA160), hp, policy.init(key_params, obs)),
            env_state=env_state,
            obs=obs,
            memory=policy.initial_memory(config.num_envs),
            episodes=no_episodes(config.num_envs),
            normalizer=init_normalizer(obs, config.normalize_observation, config.normalize_reward),
            env_ids=jnp.arange(config.num_envs, dtype=jnp.int32),
            key=key,
            updates=jnp.zeros((), jnp.int32),
        )

    def update(hp: Hyperparams, runner: RunnerState) -> tuple[RunnerState, Metrics]:
        key, key_rollout, key_update = jax.random.split(runner.key, 3)
        hp = anneal(config, hp, runner.updates)
        params, normalizer = runner.learner.params, runner.normalizer
        actors = Actors(runner.env_state, runner.obs, runner.memory, start=runner.episodes.length == 0)
        acting = Normalized(policy, normalizer.obs)
        actors, seen = rollout(key_rollout, bounded_env, acting, params, actors, runner.env_ids, config.num_steps)

        episodes, ended = ended_episodes(runner.episodes, seen.reward, seen.terminated | seen.truncated)
        stats, discounted = measure_rollout(hp, shards, normalizer, seen, actors.obs, ended)
        stats = shards.gather(stats)  # what all devices have to know of the rollout, in one exchange

        # By the same statistics for the whole update; they change after it.
        learner, metrics = algorithm.update(key_update, hp, runner.learner, _normalized(normalizer, seen))
        normalizer = update_normalizer(normalizer, stats.obs, stats.returns, discounted, config.batch_size)
        # The algorithm's metrics come last: one with an adaptive learning rate reports the rate that it used.
        metrics = {**rollout_metrics(hp, stats), **metrics}
        metrics["nonfinite"] = _nonfinite(stats, normalizer, learner, metrics)
        return RunnerState(
            learner,
            actors.env_state,
            actors.obs,
            actors.memory,
            episodes,
            normalizer,
            runner.env_ids,
            key,
            runner.updates + 1,
        ), metrics

    trainer = Trainer(init, update)
    return undo_nonfinite(trainer) if NONFINITE_RULES[config.on_nonfinite].undo else trainer


def advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> tuple[RunnerState, Metrics]:
    """Scans `num_updates` (static) updates. Returns the state, and metrics with leaves [num_updates]."""
    check_hyperparams(hp)
    return jax.lax.scan(lambda runner, _: trainer.update(hp, runner), runner, length=whole(num_updates))


def trainer_from_config(config: TrainConfig, env: VecEnv | None = None) -> Trainer:
    """Returns the trainer of the environment, policy and algorithm that `config` names; `env` replaces the first.

    Raises ConfigError or EnvError for settings from which no trainer can be built.
    """
    validate_config(config)
    env = env or make_env(config)
    policy = make_policy(config, env)
    return make_trainer(config, env, policy, make_algorithm(config, policy))


def train(config: TrainConfig, hp: Hyperparams, key: jax.Array) -> tuple[RunnerState, Metrics]:
    """Trains one run from beginning to end, with the trainer of `trainer_from_config`.

    It may be jitted, and vmapped over `hp` and `key`.

    Returns:
      The final state, and metrics with leaves [num_updates].

    Raises:
      ConfigError or EnvError: settings from which no trainer can be built, or a hyperparameter out of range, unless it
        is traced.
    """
    trainer = trainer_from_config(config)
    return advance(trainer, hp, trainer.init(key, hp), config.num_updates)


def _normalized(normalizer: Normalizer, seen: Trajectory) -> Trajectory:
    """Returns the trajectory with observations and rewards normalised, if they are to be."""
    return seen._replace(
        obs=normalized_obs(normalizer.obs, seen.obs),
        next_obs=normalized_obs(normalizer.obs, seen.next_obs),
        reward=scaled_reward(normalizer, seen.reward),
    )


def _nonfinite(stats: RolloutStats, normalizer: Normalizer, learner: LearnerState, metrics: Metrics) -> jax.Array:
    """Returns the bit mask of what is not finite after an update."""
    watched = {
        **metrics,
        "observation": stats.obs_marks,
        "reward": stats.reward_marks,
        # Not `discounted`, of which each device has its own part: all have to come to the same bits.
        "normalizer": (normalizer.obs, normalizer.returns),
        "optimizer_state": learner.opt_state,
        "parameter": learner.params,
    }
    return nonfinite(watched)
