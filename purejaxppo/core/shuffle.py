"""A shuffle without a sort."""

import jax
import jax.numpy as jnp

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
