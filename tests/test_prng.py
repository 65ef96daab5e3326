"""The generator that is written out draws the bits of JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.prng import threefry2x32, unrolled

KEY = jax.random.key(5)


def same(draw):
    np.testing.assert_array_equal(draw(KEY), draw(unrolled(KEY)))


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        # The known answers that come with Random123, the reference implementation of the paper.
        ((0x0, 0x0), (0x0, 0x0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    words = threefry2x32(tuple(map(jnp.uint32, key)), tuple(map(jnp.uint32, counter)))
    assert tuple(map(int, words)) == expected


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
def test_bits(shape, dtype):
    same(lambda key: jax.random.bits(key, shape, dtype))


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.uniform(key, (7,)),
        lambda key: jax.random.normal(key, (3, 2)),
        lambda key: jax.random.gumbel(key, (4, 2)),
        lambda key: jax.random.randint(key, (9,), 0, 100),
        lambda key: jax.random.permutation(key, 20),
        lambda key: jax.random.key_data(jax.random.split(key, 6)),
        lambda key: jax.random.key_data(jax.random.split(key, (3, 2))),
        lambda key: jax.random.key_data(jax.random.fold_in(key, 77)),
        lambda key: jax.vmap(lambda k: jax.random.uniform(k, (3,)))(jax.random.split(key, 4)),
    ],
)
def test_draws(draw):
    same(draw)
    same(jax.jit(draw))
