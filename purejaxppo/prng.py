"""threefry2x32 written out: the very bits of JAX's default generator, without its loop on a CPU.

On a CPU JAX compiles each draw as a loop of five turns, which inside a rollout's step costs more than the environment.
Written out, a draw is element-wise arithmetic that fuses with what surrounds it, as it is on an accelerator anyway.
"""

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
Words = tuple[jax.Array, jax.Array]


def unrolled(key: jax.Array) -> jax.Array:
    """The same key of JAX's default generator, drawing the same numbers by the code below."""
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_UNROLLED)


def can_unroll(key: jax.Array) -> bool:
    """Whether it is a typed key of JAX's default generator."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and str(jax.random.key_impl(key)) == "threefry2x32"


def threefry2x32(key: Words, counter: Words) -> Words:
    """Twenty rounds of Threefry-2x32 on uint32 words; shapes as broadcast.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (SC11), sec. 3.3, constants of table 2.
    """
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    a, b = counter[0] + key[0], counter[1] + key[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << rotation) | (b >> (32 - rotation)))
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return a, b


def _hash(key: jax.Array, shape: tuple[int, ...]) -> Words:
    """Of 0, 1, 2, ... in the given shape, each as two words."""
    size = 1
    low = jnp.zeros(shape, jnp.uint32)
    for axis in reversed(range(len(shape))):
        low = low + jnp.uint32(size) * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        size *= shape[axis]
    if size > 2**32:
        raise ValueError(f"{size} numbers of one key are more than 2**32.")
    return jax.lax.optimization_barrier(threefry2x32((key[0], key[1]), (jnp.zeros(shape, jnp.uint32), low)))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_hash(key, tuple(shape)), axis=-1)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    high, low = _hash(key, tuple(shape))
    if bit_width == 64:
        return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed))


def _fold_in(key: jax.Array, data: int) -> jax.Array:
    zero = jnp.zeros((), jnp.uint32)
    return jnp.stack(threefry2x32((key[0], key[1]), (zero, jnp.asarray(data, jnp.uint32))))


_UNROLLED = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="unrolled", tag="unr"
)
