"""Minibatches: a shuffle without a sort, the rows of each minibatch, and early stopping."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from purejaxppo.core.shards import Shards

Carry = TypeVar("Carry")
Data = TypeVar("Data")
Info = TypeVar("Info")

_ROUNDS = 24  # of the shuffle


def shuffled_indices(key: jax.Array, size: int) -> jax.Array:
    """Returns a pseudo-random permutation of 0 .. size - 1  [size], int32.

    It is a swap-or-not network. In round i every index x has one partner, (k_i - x) mod size, and one hashed bit of
    the pair decides whether the two are swapped. Each round is a bijection for any size, and so is their composition.
    All of it is element-wise arithmetic, where `jax.random.permutation` sorts (twice). Two rows keep their distance
    only if their bits agree in every round, which has probability 2^-24.

    Source: Hoang, Morris & Rogaway 2012, "An enciphering scheme based on a card shuffle" (CRYPTO), fig. 2.
    """
    key_offset, key_salt = jax.random.split(key)
    offset = jax.random.randint(key_offset, (_ROUNDS,), 0, size).astype(jnp.uint32)
    salt = jax.random.bits(key_salt, (_ROUNDS,), jnp.uint32)

    def swap(index: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        offset, salt = drawn
        # (offset - index) mod size; both are below size, so that one conditional addition replaces the division.
        partner = jnp.where(offset >= index, offset - index, offset + jnp.uint32(size) - index)
        # The bit is hashed from the larger of the two, so that both partners come to the same decision.
        return jnp.where(_coin(jnp.maximum(index, partner) ^ salt), partner, index), None

    # Unrolled, since a loop would be a kernel per round on a GPU.
    index, _ = jax.lax.scan(swap, jnp.arange(size, dtype=jnp.uint32), (offset, salt), unroll=_ROUNDS)
    # The barrier keeps XLA from fusing the rounds into the gather that reads the indices, which it would do where an
    # update has one gradient step; LLVM (in jaxlib 0.11) does not finish compiling that.
    return jax.lax.optimization_barrier(index.astype(jnp.int32))


def _coin(x: jax.Array) -> jax.Array:
    """Returns one well-mixed bit of each 32-bit word (two rounds of multiply and shift), as bool."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return (x >> 31) == 1


def minibatch_rows(key: jax.Array, shards: Shards, size: int, num_epochs: int, num_minibatches: int) -> jax.Array:
    """Returns the rows of every minibatch of an update, of those that are on this device  [steps, B], int32.

    Every shard is shuffled on its own, and each minibatch takes the same share of each. Every row is used exactly once
    per epoch, the first epoch's minibatches being the first `num_minibatches`.

    Args:
      key: consumed; each epoch and shard has a key of its own.
      shards: of the run.
      size: number of rows on this device; each shard's must be divisible by num_minibatches.
      num_epochs, num_minibatches: static counts, whose product is `steps`.
    """
    rows = size // shards.local  # of a shard

    def epoch(key: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda shard: jax.random.fold_in(key, shard))(shards.ids)
        shuffled = jax.vmap(lambda key: shuffled_indices(key, rows))(keys)
        shuffled += rows * jnp.arange(shards.local)[:, None]
        return shuffled.reshape(shards.local, num_minibatches, -1).swapaxes(0, 1).reshape(num_minibatches, -1)

    return jnp.concatenate(jax.vmap(epoch)(jax.random.split(key, num_epochs)))


def stop_early(
    stop: Callable[[Info], jax.Array], step: Callable[[Carry, Data], tuple[Carry, Info]]
) -> Callable[[tuple[Carry, jax.Array], Data], tuple[tuple[Carry, jax.Array], Info]]:
    """Returns `step` over (carry, running), which no longer changes the carry once `stop(info)` has been true.

    Early stopping by masking: later steps are computed and discarded, and so is the step whose info triggers `stop`.
    The trip count stays static, since a loop whose length depends on data runs under `vmap` as long as the longest.
    """

    def masked_step(state: tuple[Carry, jax.Array], data: Data) -> tuple[tuple[Carry, jax.Array], Info]:
        carry, running = state
        new, info = step(carry, data)
        # The info is measured before the step is taken, so the step that triggers `stop` is discarded too.
        running = running & ~stop(info)
        return (jax.tree.map(lambda a, b: jnp.where(running, a, b), new, carry), running), info

    return masked_step
