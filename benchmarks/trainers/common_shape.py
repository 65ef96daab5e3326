"""The baseline of the benchmarks: PPO in the shape that most JAX codebases share.

Everything happens per step: actor, critic and log-probability inside the rollout scan, and the episode statistics of
each step and environment handed out of the outermost scan. The shuffle is `jax.random.permutation`, the optimizer
lives in a flax `TrainState`, and a time limit counts as death. Written for this repository from that description, and
meant to be as fast as the shape allows: nothing in here is slow on purpose.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from benchmarks.trainers.compiled import CompiledTrainer, Training
from benchmarks.trainers.protocol import Settings, serve

Info = dict[str, jax.Array]


class Transition(NamedTuple):
    """One step of E environments; after the scan [T, E, ...]."""

    done: jax.Array
    action: jax.Array
    value: jax.Array
    reward: jax.Array
    log_prob: jax.Array
    obs: jax.Array
    info: Info


class Episodes(NamedTuple):
    """A gymnax state and the statistics of the running and of the last finished episode."""

    env: Any
    running_return: jax.Array
    running_length: jax.Array
    returned_return: jax.Array
    returned_length: jax.Array
    timestep: jax.Array


class RunnerState(NamedTuple):
    """State carried from one update to the next."""

    train: TrainState
    env: Episodes
    obs: jax.Array
    key: jax.Array


class CommonShape(NamedTuple):
    """A run as pure functions, to be jitted by the caller."""

    init: Callable[[jax.Array], RunnerState]
    update: Callable[[RunnerState], tuple[RunnerState, Info]]


class ActorCritic(nn.Module):
    """Two towers of 64-64 tanh: obs [..., O] -> logits [..., A], value [...]."""

    num_actions: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        def tower(outputs: int, gain: float) -> jax.Array:
            x = obs
            for _ in range(2):
                x = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(x))
            return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(gain))(x)

        return tower(self.num_actions, 0.01), tower(1, 1.0)[..., 0]


def make_train(settings: Settings) -> CommonShape:
    """Returns the training run that the settings, all of them compiled in, describe."""
    env, env_params = gymnax.make(settings.env)
    network = ActorCritic(env.action_space(env_params).n)
    steps_per_update = settings.num_epochs * settings.num_minibatches

    def schedule(count: jax.Array) -> jax.Array:
        return settings.learning_rate_after(count // steps_per_update)

    def init(key: jax.Array) -> RunnerState:
        key, key_params, key_env = jax.random.split(key, 3)
        obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(
            jax.random.split(key_env, settings.num_envs), env_params
        )
        optimizer = optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), optax.adam(schedule, eps=1e-5))
        train = TrainState.create(apply_fn=network.apply, params=network.init(key_params, obs), tx=optimizer)
        zeros, counts = jnp.zeros(settings.num_envs), jnp.zeros(settings.num_envs, jnp.int32)
        return RunnerState(train, Episodes(env_state, zeros, counts, zeros, counts, counts), obs, key)

    def env_step(runner: RunnerState, _: None) -> tuple[RunnerState, Transition]:
        train, episodes, obs, key = runner
        key, key_action, key_env = jax.random.split(key, 3)
        logits, value = train.apply_fn(train.params, obs)
        action = jax.random.categorical(key_action, logits)
        keys = jax.random.split(key_env, settings.num_envs)
        next_obs, env_state, reward, terminated, truncated, _info = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            keys, episodes.env, action, env_params
        )
        done = terminated | truncated
        episodes = count_episodes(episodes, env_state, reward, done)
        info = {
            "returned_episode_returns": episodes.returned_return,
            "returned_episode_lengths": episodes.returned_length,
            "returned_episode": done,
            "timestep": episodes.timestep,
        }
        transition = Transition(done, action, value, reward, log_probability(logits, action), obs, info)
        return RunnerState(train, episodes, next_obs, key), transition

    def loss(params: Any, train: TrainState, rows: tuple[Transition, jax.Array, jax.Array]) -> jax.Array:
        old, advantage, target = rows
        logits, value = train.apply_fn(params, old.obs)
        log_p = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1).mean()
        ratio = jnp.exp(log_probability(logits, old.action) - old.log_prob)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        near = jnp.clip(ratio, 1.0 - settings.clip_eps, 1.0 + settings.clip_eps)
        policy_loss = -jnp.minimum(ratio * advantage, near * advantage).mean()
        near_value = old.value + jnp.clip(value - old.value, -settings.clip_eps, settings.clip_eps)
        value_loss = 0.5 * jnp.maximum((value - target) ** 2, (near_value - target) ** 2).mean()
        return policy_loss + settings.vf_coef * value_loss - settings.ent_coef * entropy

    def update(runner: RunnerState) -> tuple[RunnerState, Info]:
        (train, env_state, obs, key), rollout = jax.lax.scan(env_step, runner, length=settings.num_steps)
        _, last_value = train.apply_fn(train.params, obs)
        advantage, target = advantages(settings, rollout, last_value)

        def minibatch(train: TrainState, rows: Any) -> tuple[TrainState, jax.Array]:
            value, grads = jax.value_and_grad(loss)(train.params, train, rows)
            return train.apply_gradients(grads=grads), value

        def epoch(carry: tuple[TrainState, jax.Array], _: None) -> tuple[tuple[TrainState, jax.Array], jax.Array]:
            train, key = carry
            key, key_shuffle = jax.random.split(key)
            order = jax.random.permutation(key_shuffle, settings.num_envs * settings.num_steps)
            rows = jax.tree.map(
                lambda x: jnp.take(x.reshape(-1, *x.shape[2:]), order, axis=0).reshape(
                    settings.num_minibatches, -1, *x.shape[2:]
                ),
                (rollout, advantage, target),
            )
            train, losses = jax.lax.scan(minibatch, train, rows)
            return (train, key), losses

        (train, key), _ = jax.lax.scan(epoch, (train, key), length=settings.num_epochs)
        return RunnerState(train, env_state, obs, key), rollout.info

    return CommonShape(init, update)


def advance(train: CommonShape, runner: RunnerState, num_updates: int) -> tuple[RunnerState, Info]:
    """Runs `num_updates` (static) updates in one scan; the info is that of every step, [num_updates, T, E] each."""
    return jax.lax.scan(lambda runner, _: train.update(runner), runner, length=num_updates)


def count_episodes(old: Episodes, env_state: Any, reward: jax.Array, done: jax.Array) -> Episodes:
    """Adds one step to the running episodes and moves those that ended to the returned ones."""
    total, length = old.running_return + reward, old.running_length + 1
    return Episodes(
        env=env_state,
        running_return=jnp.where(done, 0.0, total),
        running_length=jnp.where(done, 0, length),
        returned_return=jnp.where(done, total, old.returned_return),
        returned_length=jnp.where(done, length, old.returned_length),
        timestep=old.timestep + 1,
    )


def log_probability(logits: jax.Array, action: jax.Array) -> jax.Array:
    """Returns log softmax(logits)[action]."""
    chosen = jax.nn.one_hot(action, logits.shape[-1])
    return jnp.sum(chosen * jax.nn.log_softmax(logits), axis=-1)


def advantages(settings: Settings, rollout: Transition, last_value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns generalised advantage estimates; every end of an episode, a time limit included, has no future."""

    def backward(carry: tuple[jax.Array, jax.Array], step: Transition) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        following, next_value = carry
        alive = 1.0 - step.done
        delta = step.reward + settings.gamma * next_value * alive - step.value
        advantage = delta + settings.gamma * settings.gae_lambda * alive * following
        return (advantage, step.value), advantage

    start = (jnp.zeros_like(last_value), last_value)
    _, advantage = jax.lax.scan(backward, start, rollout, reverse=True, unroll=16)
    return advantage, advantage + rollout.value


def make_training(settings: Settings) -> Training:
    """Returns a training of one run, or of many by `vmap`."""
    train = make_train(settings)
    if settings.num_runs == 1:
        first = jax.jit(train.init)(jax.random.key(settings.seed))
        return Training(first, lambda run, updates: advance(train, run, updates))
    keys = jax.vmap(jax.random.key)(settings.seed + jnp.arange(settings.num_runs))
    first = jax.jit(jax.vmap(train.init))(keys)
    return Training(first, lambda runs, updates: jax.vmap(lambda run: advance(train, run, updates))(runs))


class CommonShapeTrainer(CompiledTrainer):
    """The common shape behind the protocol."""

    packages = ("jax", "flax", "optax", "gymnax")
    differences = ("the value is clipped by clip_eps", "a time limit counts as death")

    def __init__(self, settings: Settings) -> None:
        super().__init__(make_training(settings), settings)

    def actor(self) -> list[tuple[Any, Any]]:
        """Returns the policy's tower of a single run."""
        layers = [self.compiled.state.train.params["params"][f"Dense_{i}"] for i in range(3)]
        return [(layer["kernel"], layer["bias"]) for layer in layers]


if __name__ == "__main__":
    serve(CommonShapeTrainer)
