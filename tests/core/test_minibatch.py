"""Rollouts cut into rows or sequences; every row is in one minibatch per epoch; the steps on them are a Python loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.minibatch import cut, minibatch_rows, stop_early
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Trajectory

# --- the cut ----------------------------------------------------------------------------------------------------------

T, E = 6, 2


def numbered(*shape, start=0):
    """[T, E, *shape] of 100 t + e (and 0.1 times the place in the other axes), so that rows say where they are from."""
    step, env = np.arange(T).reshape(T, 1), np.arange(E).reshape(1, E)
    place = 0.1 * np.arange(int(np.prod(shape))).reshape(shape)
    return (start + (100 * step + env).reshape(T, E, *(1 for _ in shape)) + place).astype(np.float32)


def trajectory(memory=()):
    """Each field has a thousand of its own."""
    return Trajectory(
        obs={"obs": numbered(3), "board": numbered(2, 2, start=10_000)},
        action=numbered(2, start=20_000),
        pi=Categorical(numbered(4, start=30_000)),
        log_prob=numbered(start=40_000),
        value=numbered(start=50_000),
        next_value=numbered(start=60_000),
        reward=numbered(start=70_000),
        terminated=np.zeros((T, E), bool),
        truncated=np.zeros((T, E), bool),
        next_obs=None,
        start=numbered() % 300 == 1,  # of environment 1, at steps 0 and 3
        memory=memory,
        info={},
    )


def cut_of(memory=(), **settings):
    """The batch, with advantage, target and something of an algorithm's own."""
    extra = {"own": numbered(5, start=100_000)}
    config = TrainConfig(num_envs=E, num_steps=T, **settings)
    return cut(config, trajectory(memory), numbered(start=80_000), numbered(start=90_000), extra)


ROWS = [0, 100, 200, 300, 400, 500, 1, 101, 201, 301, 401, 501]  # the first environment's steps, then the second's


def test_rows_lie_environment_by_environment():
    """In every leaf; without memory there are single steps, whatever the length of sequences."""
    for batch in (cut_of(), cut_of(sequence_length=3)):
        np.testing.assert_allclose(batch.obs["obs"][:, 0], ROWS)
        np.testing.assert_allclose(batch.obs["obs"][:, 2], np.add(ROWS, 0.2), rtol=1e-6)
        assert batch.obs["board"].shape == (T * E, 2, 2)
        np.testing.assert_allclose(batch.obs["board"][:, 0, 0], np.add(ROWS, 10_000))
        np.testing.assert_allclose(batch.action[:, 0], np.add(ROWS, 20_000))
        np.testing.assert_allclose(batch.pi.logits[:, 0], np.add(ROWS, 30_000))
        np.testing.assert_allclose(batch.log_prob, np.add(ROWS, 40_000))
        np.testing.assert_allclose(batch.value, np.add(ROWS, 50_000))
        np.testing.assert_allclose(batch.advantage, np.add(ROWS, 80_000))
        np.testing.assert_allclose(batch.target, np.add(ROWS, 90_000))
        np.testing.assert_allclose(batch.extra["own"][:, 0], np.add(ROWS, 100_000))
        assert batch.extra["own"].shape == (T * E, 5)
        assert np.flatnonzero(batch.start).tolist() == [6, 9]
        assert batch.memory == ()


@pytest.mark.parametrize(
    ("length", "sequences", "at_start"),
    [
        (None, [[0, 100, 200, 300, 400, 500], [1, 101, 201, 301, 401, 501]], [0, 1]),
        (6, [[0, 100, 200, 300, 400, 500], [1, 101, 201, 301, 401, 501]], [0, 1]),
        (3, [[0, 100, 200], [300, 400, 500], [1, 101, 201], [301, 401, 501]], [0, 300, 1, 301]),
        (2, [[0, 100], [200, 300], [400, 500], [1, 101], [201, 301], [401, 501]], [0, 200, 400, 1, 201, 401]),
        (1, [[row] for row in ROWS], ROWS),
    ],
)
def test_sequences_have_the_memory_of_their_first_step(length, sequences, at_start):
    """Environment by environment, too, so that those of a shard are contiguous."""
    memory = {"cell": numbered(4), "count": numbered().astype(np.int32)}
    batch = cut_of(memory, sequence_length=length)
    number = len(sequences)
    np.testing.assert_allclose(batch.log_prob, np.add(sequences, 40_000))
    np.testing.assert_allclose(batch.advantage, np.add(sequences, 80_000))
    np.testing.assert_allclose(batch.obs["board"][..., 0, 0], np.add(sequences, 10_000))
    np.testing.assert_allclose(batch.pi.logits[..., 0], np.add(sequences, 30_000))
    np.testing.assert_allclose(batch.extra["own"][..., 0], np.add(sequences, 100_000))
    np.testing.assert_array_equal(batch.start, np.isin(sequences, [1, 301]))
    np.testing.assert_array_equal(batch.memory["count"], at_start)
    np.testing.assert_allclose(batch.memory["cell"][:, 0], at_start)
    assert batch.memory["cell"].shape == (number, 4)
    assert batch.obs["board"].shape == (number, T * E // number, 2, 2)


# --- the fold ---------------------------------------------------------------------------------------------------------


def batch_of(size):
    """Rows that know who they are, in two leaves that must stay aligned."""
    row = jnp.arange(size)
    return {"row": row, "x": jnp.stack([jnp.sin(row), 10.0 * row], axis=1)}


def step(carry, data):
    """Not commutative, so that the order of the minibatches shows."""
    carry = 0.9 * carry + data["x"].mean(0)
    return carry, {"row": data["row"], "x": data["x"], "carry": carry}


def fold_minibatches(key, step, carry, batch, num_epochs, num_minibatches, shards=Shards()):  # noqa: B008
    """The steps on all minibatches in turn; what they return has leaves [epochs, minibatches, ...]."""
    size = len(jax.tree.leaves(batch)[0])
    rows = minibatch_rows(key, shards, size, num_epochs, num_minibatches)
    carry, info = jax.lax.scan(lambda carry, rows: step(carry, jax.tree.map(lambda x: x[rows], batch)), carry, rows)
    return carry, jax.tree.map(lambda x: x.reshape(num_epochs, num_minibatches, *x.shape[1:]), info)


def folded(key, num_epochs=5, num_minibatches=4):
    return fold_minibatches(key, step, jnp.zeros(2), batch_of(24), num_epochs, num_minibatches)


compiled_fold = jax.jit(folded, static_argnums=(1, 2))


def fold(seed, *counts):
    return compiled_fold(jax.random.key(seed), *counts)


def test_every_row_is_used_once_per_epoch_and_epochs_differ():
    """Infos are [epochs, minibatches, ...]; each epoch is a permutation of the rows, and no two epochs are the same."""
    _, info = fold(7)
    assert info["row"].shape == (5, 4, 6)
    orders = np.asarray(info["row"]).reshape(5, 24)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(24), (5, 1)))
    assert len({tuple(order) for order in orders}) == 5
    assert not np.array_equal(orders[0], np.asarray(fold(8)[1]["row"]).reshape(5, 24)[0])


def test_leaves_of_a_minibatch_stay_aligned():
    """The same rows are taken from every leaf."""
    _, info = fold(9)
    np.testing.assert_array_equal(info["x"][..., 1], 10.0 * info["row"])


def test_fold_equals_a_python_loop():
    """The carry passes from minibatch to minibatch and from epoch to epoch, in the order of the infos."""
    last, info = fold(10)
    x = np.asarray(batch_of(24)["x"], np.float64)
    carry = np.zeros(2)
    for epoch in range(5):
        for i in range(4):
            carry = 0.9 * carry + x[info["row"][epoch, i]].mean(0)
            np.testing.assert_allclose(info["carry"][epoch, i], carry, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, carry, rtol=1e-5, atol=1e-5)


def test_one_epoch_with_one_minibatch_is_one_step():
    """The smallest counts: the whole batch once."""
    last, info = fold(11, 1, 1)
    assert info["row"].shape == (1, 1, 24)
    np.testing.assert_allclose(last, np.asarray(batch_of(24)["x"]).mean(0), rtol=1e-5)


def test_a_batch_of_one_row():
    """The smallest batch there is: each epoch is that row."""
    fold_one = jax.jit(lambda key: fold_minibatches(key, lambda c, x: (2 * c + x[0], x), 0.0, jnp.ones(1), 3, 1))
    last, info = fold_one(jax.random.key(0))
    assert float(last) == 7.0
    np.testing.assert_array_equal(info, np.ones((3, 1, 1)))


def test_fold_under_vmap_is_a_loop():
    """Runs of a sweep shuffle independently, each as it would alone."""
    keys = jax.vmap(jax.random.key)(jnp.asarray([7, 8]))
    swept = jax.jit(jax.vmap(folded))(keys)
    for i, seed in enumerate((7, 8)):
        for whole, one in zip(jax.tree.leaves(swept), jax.tree.leaves(fold(seed)), strict=True):
            np.testing.assert_allclose(whole[i], one, rtol=1e-6, atol=1e-6)


# --- stop_early -------------------------------------------------------------------------------------------------------


@jax.jit
def gated_sum(data):
    """Adds up data until one of it exceeds 10; the info is that datum."""
    masked = stop_early(lambda info: info > 10.0, lambda carry, x: (carry + x, x))
    return jax.lax.scan(masked, (jnp.zeros(()), jnp.array(True)), data)


@pytest.mark.parametrize(
    ("data", "total", "running"),
    [
        ([1.0, 2.0, 3.0, 4.0], 10.0, True),
        ([1.0, 2.0, 11.0, 4.0], 3.0, False),
        ([11.0, 2.0, 3.0, 4.0], 0.0, False),
        ([1.0, 2.0, 3.0, 11.0], 6.0, False),
        ([1.0, 11.0, 1.0, 11.0], 1.0, False),
        ([10.0, 0.0, 0.0, 0.0], 10.0, True),
    ],
)
def test_stop_early_stops_at_the_first_stopping_info(data, total, running):
    """The step that stops is not taken, and none after it; its info is still reported, and so are the later ones."""
    (carry, flag), info = gated_sum(jnp.asarray(data))
    assert float(carry) == total
    assert bool(flag) == running
    np.testing.assert_array_equal(info, data)


def test_stop_early_leaves_the_carry_alone_even_if_later_steps_diverge():
    """What follows the stop is computed and masked: NaN does not get through the mask, nor into integers."""

    def step(carry, x):
        return {"sum": carry["sum"] + jnp.log(x), "count": carry["count"] + 1}, x

    masked = stop_early(lambda info: info < 0, step)
    start = ({"sum": jnp.zeros(3), "count": jnp.zeros((), jnp.int32)}, jnp.array(True))
    (carry, running), _ = jax.lax.scan(masked, start, jnp.asarray([1.0, jnp.e, -1.0, 5.0]))
    np.testing.assert_allclose(carry["sum"], np.ones(3), rtol=1e-6)
    assert carry["count"].dtype == jnp.int32
    assert int(carry["count"]) == 2
    assert not bool(running)


def test_stop_early_inside_the_fold_equals_a_python_loop_with_break():
    """Across the epochs' boundary as well: once stopped, later epochs change nothing."""

    def stop(info):
        return info["row"][0] == 5

    start = (jnp.zeros(2), jnp.array(True))
    run = jax.jit(lambda key: fold_minibatches(key, stop_early(stop, step), start, batch_of(24), 4, 6))
    x = np.asarray(batch_of(24)["x"], np.float64)
    stopped_in = set()
    for seed in range(8):
        (last, running), info = run(jax.random.key(seed))
        carry, stopped = np.zeros(2), False
        for i, rows in enumerate(np.asarray(info["row"]).reshape(24, 4)):
            if rows[0] == 5:
                stopped = True
                stopped_in.add(i // 6)
                break
            carry = 0.9 * carry + x[rows].mean(0)
        assert bool(running) != stopped
        np.testing.assert_allclose(last, carry, rtol=1e-5, atol=1e-5)
    assert len(stopped_in) > 1  # the seeds cover stops in more than one epoch


# --- shards -----------------------------------------------------------------------------------------------------------


@settings(max_examples=12)  # each is a program
@given(
    shards=st.sampled_from([1, 2, 4, 8]),
    share=st.integers(1, 5),
    num_minibatches=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_each_minibatch_takes_the_same_share_of_each_shard(shards, share, num_minibatches, seed):
    """And every row is used exactly once per epoch."""
    size = shards * share * num_minibatches
    rows = np.asarray(minibatch_rows(jax.random.key(seed), Shards(shards), size, 3, num_minibatches))
    assert rows.shape == (3 * num_minibatches, size // num_minibatches)
    for epoch in rows.reshape(3, -1):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    for taken in rows:
        np.testing.assert_array_equal(np.bincount(taken // (size // shards), minlength=shards), share)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_have_the_minibatches_of_one(devices):
    """Each its own rows, numbered from 0; no device's shuffle is another's."""
    key, size = jax.random.key(5), 96
    whole = np.sort(minibatch_rows(key, Shards(8), size, 2, 3), axis=1)
    local = size // devices
    parts = [
        np.asarray(minibatch_rows(key, Shards(8, devices, lambda device=device: device), local, 2, 3)) + device * local
        for device in range(devices)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts, axis=1), axis=1), whole)
    assert not np.array_equal(parts[0], parts[1] - local)
