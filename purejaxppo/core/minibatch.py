"""Minibatches: a shuffle without a sort, and the fold of a gradient step over epochs and minibatches."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from purejaxppo.core.ahead import scan_ahead

Carry = TypeVar("Carry")
Data = TypeVar("Data")
Info = TypeVar("Info")

_ROUNDS = 24


def shuffled_indices(key: jax.Array, size: int) -> jax.Array:
    """A pseudo-random permutation of 0 .. size - 1  [size], int32.

    A swap-or-not network: in round i every index x has one partner, (k_i - x) mod size, and one hashed bit of the
    pair decides whether both change places. Each round is a bijection for any size, so the composition is one; it is
    element-wise arithmetic, where `jax.random.permutation` sorts (twice). Two rows keep their distance only while the
    coins agree: 24 rounds leave 2^-24 of that.

    Source: Hoang, Morris & Rogaway 2012, "An enciphering scheme based on a card shuffle" (CRYPTO), fig. 2.
    """
    key_offset, key_salt = jax.random.split(key)
    offset = jax.random.randint(key_offset, (_ROUNDS,), 0, size).astype(jnp.uint32)
    salt = jax.random.bits(key_salt, (_ROUNDS,), jnp.uint32)
    index = jnp.arange(size, dtype=jnp.uint32)
    for i in range(_ROUNDS):
        # (offset - index) mod size; both are below size, so one conditional addition does it.
        partner = jnp.where(offset[i] >= index, offset[i] - index, offset[i] + jnp.uint32(size) - index)
        index = jnp.where(_coin(jnp.maximum(index, partner) ^ salt[i]), partner, index)
    # Kept apart from what reads it: in an update of one gradient step XLA would fuse all rounds into the gather of the
    # rows, which LLVM (in jaxlib 0.11) does not finish compiling.
    return jax.lax.optimization_barrier(index.astype(jnp.int32))


def _coin(x: jax.Array) -> jax.Array:
    """One well-mixed bit of each 32-bit word (two rounds of multiply and shift), as bool."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return (x >> 31) == 1


def fold_minibatches(
    key: jax.Array,
    step: Callable[[Carry, Data], tuple[Carry, Info]],
    carry: Carry,
    batch: Data,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[Carry, Info]:
    """Folds `step` over the minibatches of `num_epochs` shuffles; every row is used exactly once per epoch.

    Args:
      key: one key; each epoch's shuffle gets its own.
      step: (carry, minibatch) -> (carry, info), the minibatch's leaves being [B, ...] with B = N / num_minibatches.
      carry: what is passed from step to step.
      batch: pytree with leaves [N, ...]; N must be divisible by num_minibatches.
      num_epochs, num_minibatches: static counts.

    Returns:
      The last carry, and the infos stacked to [num_epochs, num_minibatches, ...].
    """
    size = jax.tree.leaves(batch)[0].shape[0]

    def minibatch(carry: Carry, rows: jax.Array) -> tuple[Carry, Info]:
        return step(carry, jax.tree.map(lambda x: x[rows], batch))

    def epoch(carry: Carry, key: jax.Array) -> tuple[Carry, Info]:
        rows = shuffled_indices(key, size).reshape(num_minibatches, -1)
        return jax.lax.scan(minibatch, carry, rows)

    return scan_ahead(epoch, carry, jax.random.split(key, num_epochs))


def until(
    stop: Callable[[Info], jax.Array], step: Callable[[Carry, Data], tuple[Carry, Info]]
) -> Callable[[tuple[Carry, jax.Array], Data], tuple[tuple[Carry, jax.Array], Info]]:
    """A step over (carry, running) that leaves the carry alone from the first info on for which `stop` holds.

    The trip count stays static: what would follow is computed and masked. The info that stops belongs to a step that
    is no longer taken.
    """

    def gated(state: tuple[Carry, jax.Array], data: Data) -> tuple[tuple[Carry, jax.Array], Info]:
        carry, running = state
        new, info = step(carry, data)
        running = running & ~stop(info)
        return (jax.tree.map(lambda a, b: jnp.where(running, a, b), new, carry), running), info

    return gated
