"""Minibatches: a shuffle without a sort, and a scan of gradient steps over epochs and minibatches."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

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


def fold_minibatches(
    key: jax.Array,
    step: Callable[[Carry, Data], tuple[Carry, Info]],
    carry: Carry,
    batch: Data,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[Carry, Info]:
    """Scans `step` over the minibatches of `num_epochs` shuffles; every row is used exactly once per epoch.

    Args:
      key: consumed; each epoch's shuffle gets a key of its own.
      step: (carry, minibatch) -> (carry, info); the minibatch's leaves are [B, ...] with B = N / num_minibatches.
      carry: the state that `step` updates, such as parameters and optimizer state.
      batch: pytree with leaves [N, ...]; N must be divisible by num_minibatches.
      num_epochs, num_minibatches: static counts.

    Returns:
      The last carry, and the infos stacked to [num_epochs, num_minibatches, ...].
    """
    size = jax.tree.leaves(batch)[0].shape[0]

    def minibatch(carry: Carry, rows: jax.Array) -> tuple[Carry, Info]:
        return step(carry, jax.tree.map(lambda x: x[rows], batch))

    def epoch(carry: Carry, rows: jax.Array) -> tuple[Carry, Info]:
        return jax.lax.scan(minibatch, carry, rows)

    # All epochs are shuffled at once, before the first: element-wise arithmetic costs less the larger the arrays.
    shuffles = jax.vmap(lambda key: shuffled_indices(key, size))(jax.random.split(key, num_epochs))
    return jax.lax.scan(epoch, carry, shuffles.reshape(num_epochs, num_minibatches, -1))


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
