"""The trainer: rollout, advantage, batch, update, metrics. Start reading here.

One update collects a rollout with the current policy, estimates advantages, and lets the algorithm learn from them. It
is a pure function of the hyperparameters and the run's state. docs/architecture.md has the reading path and a glossary.
"""

from functools import partial

import jax
import jax.numpy as jnp

from purejaxppo.algorithms import make_algorithm
from purejaxppo.algorithms.adaptive_lr import kl_adaptive
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import whole
from purejaxppo.config.validate import validate_config
from purejaxppo.core.advantage import ESTIMATORS
from purejaxppo.core.checks import check_algorithm, check_env, check_hyperparams, check_network
from purejaxppo.core.episodes import ended_episodes, no_episodes
from purejaxppo.core.nonfinite import NONFINITE_RULES, nonfinite, undo_nonfinite
from purejaxppo.core.normalizer import Normalizer, init_normalizer, normalized_obs, scaled_reward, update_normalizer
from purejaxppo.core.optimizer import anneal, check_names
from purejaxppo.core.rollout import rollout
from purejaxppo.core.rollout_metrics import RolloutStats, measure_rollout, rollout_metrics
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import (
    Algorithm,
    Batch,
    Distribution,
    LearnerState,
    Metrics,
    Network,
    Params,
    RunnerState,
    Trainer,
    Transition,
    VecEnv,
)
from purejaxppo.envs.registry import make_env
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.errors import ConfigError
from purejaxppo.policies.registry import make_network


def make_trainer(config: TrainConfig, env: VecEnv, network: Network, algorithm: Algorithm) -> Trainer:
    """Returns a training run as a pair of pure functions. Both may be jitted, and vmapped over key and hyperparameters.

    Args:
      config: static settings; `env.num_envs` must equal `config.num_envs`.
      env: environments, e.g. from `from_gymnax`.
      network: `init(key, obs)` and `apply(params, obs) -> (pi, value)`.
      algorithm: e.g. `ppo_clip(config, network.apply)`.

    Raises:
      ConfigError: invalid settings, or a network or an algorithm that does not fit.
      EnvError: an environment that breaks the contract of `VecEnv`.
    """
    _check_parts(config, env, network, algorithm)
    if config.learning_rate_schedule == "kl_adaptive":
        algorithm = kl_adaptive(algorithm)
    bounded_env = bound_action(config, env)
    shards = algorithm.shards or Shards(config.shard_count)

    def init(key: jax.Array, hp: Hyperparams) -> RunnerState:
        check_hyperparams(hp)
        key, key_env, key_params = jax.random.split(key, 3)
        env_state, obs = bounded_env.reset(jax.random.split(key_env, config.num_envs))
        learner = algorithm.init(hp, network.init(key_params, obs))
        episodes = no_episodes(config.num_envs)
        normalizer = init_normalizer(obs, config.normalize_observation, config.normalize_reward)
        env_ids = jnp.arange(config.num_envs, dtype=jnp.int32)
        return RunnerState(learner, env_state, obs, episodes, normalizer, env_ids, key, jnp.zeros((), jnp.int32))

    def update(hp: Hyperparams, runner: RunnerState) -> tuple[RunnerState, Metrics]:
        key, key_rollout, key_update = jax.random.split(runner.key, 3)
        hp = anneal(config, hp, runner.updates)
        normalize = partial(normalized_obs, runner.normalizer)  # by the same statistics for the whole update

        def apply(params: Params, obs: jax.Array) -> tuple[Distribution, jax.Array]:
            return network.apply(params, normalize(obs))

        params, num_steps = runner.learner.params, config.num_steps
        env_state, obs, transition, sums = rollout(
            key_rollout, bounded_env, apply, params, runner.env_state, runner.obs, runner.env_ids, num_steps
        )
        done = transition.terminated | transition.truncated
        episodes, ended = ended_episodes(runner.episodes, transition.reward, done)
        advantage, target = _estimate(config, hp, scaled_reward(runner.normalizer, transition.reward), transition)
        batch = _flatten(transition._replace(obs=normalize(transition.obs)), advantage, target)
        stats, discounted = measure_rollout(hp, shards, runner.normalizer, transition, obs, batch, {**sums, **ended})
        stats = shards.gather(stats)  # what all devices have to know of the rollout, in one exchange
        normalizer = update_normalizer(runner.normalizer, stats.obs, stats.returns, discounted, config.batch_size)
        learner, metrics = algorithm.update(key_update, hp, runner.learner, batch)
        # The algorithm's metrics come last: one with an adaptive learning rate reports the rate that it used.
        metrics = {**rollout_metrics(hp, stats), **metrics}
        metrics["nonfinite"] = _nonfinite(stats, normalizer, learner, metrics)
        updates = runner.updates + 1
        return RunnerState(learner, env_state, obs, episodes, normalizer, runner.env_ids, key, updates), metrics

    trainer = Trainer(init, update)
    return undo_nonfinite(trainer) if NONFINITE_RULES[config.on_nonfinite].undo else trainer


def advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> tuple[RunnerState, Metrics]:
    """Scans `num_updates` (static) updates. Returns the state, and metrics with leaves [num_updates]."""
    check_hyperparams(hp)
    return jax.lax.scan(lambda runner, _: trainer.update(hp, runner), runner, length=whole(num_updates))


def trainer_from_config(config: TrainConfig, env: VecEnv | None = None) -> Trainer:
    """Returns the trainer of the environment, network and algorithm that `config` names; `env` replaces the first.

    Raises ConfigError or EnvError for settings from which no trainer can be built.
    """
    validate_config(config)
    env = env or make_env(config)
    network = make_network(config, env)
    return make_trainer(config, env, network, make_algorithm(config, network.apply))


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


def _check_parts(config: TrainConfig, env: VecEnv, network: Network, algorithm: Algorithm) -> None:
    validate_config(config)
    check_names(config)
    check_algorithm(algorithm)
    if env.num_envs != config.num_envs:
        raise ConfigError(
            f"the environment has {env.num_envs} copies, but num_envs = {config.num_envs}; make them equal."
        )
    check_env(env)
    check_network(config, env, network)
    if algorithm.shards and algorithm.shards.number != config.shard_count:
        raise ConfigError(
            f"the algorithm was made for {algorithm.shards.number} shards, but the run has {config.shard_count}; make "
            f"it from the run's own config."
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


def _estimate(
    config: TrainConfig, hp: Hyperparams, reward: jax.Array, transition: Transition
) -> tuple[jax.Array, jax.Array]:
    """Returns advantages and value targets [T, E]."""
    estimator, t = ESTIMATORS[config.value_target], transition
    return estimator(reward, t.value, t.next_value, t.terminated, t.truncated, hp.gamma, hp.gae_lambda)


def _flatten(transition: Transition, advantage: jax.Array, target: jax.Array) -> Batch:
    """Reshapes [T, E, ...] to rows [E * T, ...] in environment-major order.

    The rows of a shard are then one contiguous block.
    """
    batch = Batch(
        transition.obs, transition.action, transition.pi, transition.log_prob, transition.value, advantage, target
    )
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), batch)
