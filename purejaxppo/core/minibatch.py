"""The batch of a rollout, its minibatches, and early stopping."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.core.shards import Shards
from purejaxppo.core.shuffle import shuffled_indices
from purejaxppo.core.types import Batch, Trajectory

Carry = TypeVar("Carry")
Data = TypeVar("Data")
Info = TypeVar("Info")


def cut(config: TrainConfig, trajectory: Trajectory, advantage: jax.Array, target: jax.Array, extra: Any = ()) -> Batch:
    """Cuts a rollout [T, E, ...] into rows [E * T, ...], environment by environment, so that a shard's are contiguous.

    A policy with memory learns from sequences: the result then is [E * T / L, L, ...], with L = sequence_length, and
    the memory that the rollout had at the beginning of each [E * T / L, ...].

    Args:
      config: with the length of sequences.
      trajectory: the rollout.
      advantage, target: [T, E].
      extra: leaves [T, E, ...] of an algorithm's own.
    """
    length = config.sequence_length or config.num_steps
    lead = (-1, length) if jax.tree.leaves(trajectory.memory) else (-1,)
    t = trajectory
    steps = Batch(t.obs, t.action, t.pi, t.log_prob, t.value, advantage, target, t.start, (), extra)
    batch = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(*lead, *x.shape[2:]), steps)
    at_start = jax.tree.map(lambda x: x[::length].swapaxes(0, 1).reshape(-1, *x.shape[2:]), t.memory)
    return batch._replace(memory=at_start)


def minibatch_rows(key: jax.Array, shards: Shards, size: int, num_epochs: int, num_minibatches: int) -> jax.Array:
    """Returns the rows of every minibatch of an update, of those that are on this device  [steps, B], int32.

    Every shard is shuffled on its own, and each minibatch takes the same share of each; in it the rows lie shard by
    shard. Every row is used exactly once per epoch, the first epoch's minibatches being the first `num_minibatches`.

    Args:
      key: consumed; each epoch and shard has a key of its own.
      shards: of the run.
      size: number of rows on this device; each shard's must be divisible by num_minibatches.
      num_epochs, num_minibatches: static counts, whose product is `steps`.
    """
    shard_rows = size // shards.local

    def epoch(key: jax.Array) -> jax.Array:
        # By the shard's number in the run, not on the device: its shuffle is the same whoever holds it.
        keys = jax.vmap(lambda shard: jax.random.fold_in(key, shard))(shards.ids)
        shuffled = jax.vmap(lambda key: shuffled_indices(key, shard_rows))(keys)
        # From rows of a shard to rows of this device; minibatch m is then the m-th share of each shard, side by side.
        shuffled += shard_rows * jnp.arange(shards.local, dtype=jnp.int32)[:, None]
        return shuffled.reshape(shards.local, num_minibatches, -1).swapaxes(0, 1).reshape(num_minibatches, -1)

    return jnp.concatenate(jax.vmap(epoch)(jax.random.split(key, num_epochs)))


def stop_early(
    stop: Callable[[Info], jax.Array], step: Callable[[Carry, Data], tuple[Carry, Info]]
) -> Callable[[tuple[Carry, jax.Array], Data], tuple[tuple[Carry, jax.Array], Info]]:
    """Returns `step` over (carry, running), which no longer changes the carry once `stop(info)` has been true.

    Early stopping by masking: later steps are computed and discarded. The trip count stays static, since a loop whose
    length depends on data runs under `vmap` as long as the longest.
    """

    def masked_step(state: tuple[Carry, jax.Array], data: Data) -> tuple[tuple[Carry, jax.Array], Info]:
        carry, running = state
        new, info = step(carry, data)
        # The info is measured before the step is taken, so the step that triggers `stop` is discarded too.
        running = running & ~stop(info)
        return (jax.tree.map(lambda a, b: jnp.where(running, a, b), new, carry), running), info

    return masked_step
