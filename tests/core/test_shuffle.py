"""The shuffle is a uniform permutation as far as statistics can tell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from purejaxppo.core import shuffle as shuffle_module
from purejaxppo.core.shuffle import shuffled_indices

shuffle = jax.jit(shuffled_indices, static_argnums=1)


@functools.cache
def shuffles(count, size):
    """`count` shuffles [count, size] under as many keys, each of them a permutation."""
    keys = jax.random.split(jax.random.key(0), count)
    found = np.asarray(jax.jit(jax.vmap(lambda key: shuffled_indices(key, size)))(keys))
    assert np.all(np.sort(found, axis=1) == np.arange(size))
    return found


# --- a permutation ----------------------------------------------------------------------------------------------------


def test_permutation_for_every_size_up_to_300(monkeypatch):
    """Every index exactly once, whatever the size.

    One compilation instead of 300: `arange` is made to return all 300 indices, so that `size` may be traced; as the
    shuffle treats each index by itself, the first `size` entries are what the function returns. The last lines hold
    it to that.
    """
    most, arange, key = 300, jnp.arange, jax.random.key(1)
    monkeypatch.setattr(shuffle_module.jnp, "arange", lambda _, dtype: arange(most, dtype=dtype))
    padded = np.asarray(jax.jit(jax.vmap(lambda size: shuffled_indices(key, size)))(1 + arange(most)))
    monkeypatch.undo()
    for size in range(1, most + 1):
        np.testing.assert_array_equal(np.sort(padded[size - 1, :size]), np.arange(size))
    for size in (2, most):
        np.testing.assert_array_equal(padded[size - 1, :size], shuffle(key, size))


def test_permutation_for_a_large_prime():
    """A million rows; int32."""
    size = 1_000_003
    index = shuffle(jax.random.key(2), size)
    assert index.dtype == jnp.int32
    np.testing.assert_array_equal(np.bincount(index, minlength=size), 1)


@settings(max_examples=2)
@given(st.integers(301, 100_000).map(lambda n: n | 1), st.integers(0, 2**32 - 1))
def test_permutation_for_odd_sizes(size, seed):
    """Odd sizes, where one index is its own partner in every round."""
    np.testing.assert_array_equal(np.sort(shuffle(jax.random.key(seed), size)), np.arange(size))


def test_same_key_same_shuffle_and_different_keys_differ():
    """The key is all that matters: 200 neighbouring seeds give 200 different shuffles, one seed always the same."""
    keys = jax.vmap(jax.random.key)(jnp.arange(200))
    found = np.asarray(jax.jit(jax.vmap(lambda key: shuffled_indices(key, 50)))(keys))
    assert len({tuple(row) for row in found}) == 200
    assert not np.any(np.all(found == np.arange(50), axis=1))
    for i in (0, 17, 199):  # vmap is a loop
        np.testing.assert_array_equal(found[i], shuffle(jax.random.key(i), 50))


# --- a uniform one ----------------------------------------------------------------------------------------------------


def test_all_orders_of_four_are_equally_likely():
    """chi-square over the 24 permutations."""
    found = shuffles(24_000, 4)
    counts = np.unique(found @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("size", [12, 45])
def test_every_element_is_uniform_over_the_positions(size):
    """chi-square of element against position, (size - 1)^2 degrees of freedom."""
    count = 20_000
    found = shuffles(count, size)
    table = np.zeros((size, size))
    np.add.at(table, (np.broadcast_to(np.arange(size), found.shape), found), 1)
    statistic = ((table - count / size) ** 2 / (count / size)).sum()
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > 1e-3


@pytest.mark.parametrize(("size", "num_minibatches"), [(12, 3), (45, 5)])
def test_every_pair_shares_a_minibatch_as_often_as_it_should(size, num_minibatches):
    """With B rows per minibatch any two rows meet with probability (B - 1) / (size - 1)."""
    count, rows = 20_000, size // num_minibatches
    where = np.argsort(shuffles(count, size), axis=1) // rows  # [count, size] minibatch of each row
    one_hot = np.eye(num_minibatches)[where].transpose(1, 0, 2).reshape(size, -1)
    together = (one_hot @ one_hot.T)[np.triu_indices(size, 1)]
    p = (rows - 1) / (size - 1)
    z = (together - count * p) / np.sqrt(count * p * (1 - p))
    assert np.abs(z).max() < stats.norm.isf(1e-3 / len(z) / 2)  # the largest of them all, at a level of 1e-3
    assert abs(z.mean()) < 1e-6  # each minibatch has B rows: on average over the pairs it is exact


def test_neighbouring_rows_are_uncorrelated():
    """Rows that are neighbours in time (or whose sum is fixed) are not neighbours in the shuffle."""
    count, size = 64, 8192
    found = shuffles(count, size).astype(float)
    centred = (found - (size - 1) / 2) / (size * np.sqrt(1 / 12))
    for lag in (1, 2, 16, size // 2):
        correlation = (centred[:, lag:] * centred[:, :-lag]).mean()
        assert abs(correlation) < 4 / np.sqrt(count * (size - lag)), lag
    mirrored = (centred * centred[:, ::-1]).mean()
    assert abs(mirrored) < 4 * np.sqrt(2) / np.sqrt(count * size)
    # Two neighbours stay neighbours (cyclically) with probability 2 / (size - 1).
    distance = np.abs(np.diff(found, axis=1)) % (size - 2)
    expected = count * (size - 1) * 2 / (size - 1)
    assert abs((distance == 1).sum() - expected) < 4.5 * np.sqrt(expected)
