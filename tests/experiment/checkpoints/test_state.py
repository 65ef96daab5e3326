"""The bytes of a state: they are restored exactly, described, and hashed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxppo.experiment.checkpoints.state import (
    is_finite,
    read_state,
    snapshot,
    state_sha256,
    tree_spec,
    write_state,
)


class State(NamedTuple):
    """A state with one leaf of each kind that a runner's state has."""

    params: dict
    opt_state: Any
    algo_state: tuple
    key: jax.Array
    updates: jax.Array
    flags: jax.Array
    tiny: jax.Array


def make_state(seed=0):
    key = jax.random.key(seed)
    params = {"params": {"Dense_0": {"kernel": jax.random.normal(key, (3, 4)), "bias": jnp.arange(4.0)}}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(
        params,
        optimizer.init(params),
        (),
        jax.random.split(key)[0],
        jnp.int32(7),
        jnp.array([True, False]),
        jnp.array([1e-40, -0.0, jnp.inf], jnp.float32),
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def bits(state):
    leaves = jax.tree.leaves(state)
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()
        for x in leaves
    ]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_written_and_read_are_the_same_bits(tmp_path, impl):
    state = make_state()._replace(key=jax.random.split(jax.random.key(3, impl=impl), 2))
    write_state(tmp_path / "state", snapshot(state).tree)
    back = read_state(tmp_path / "state", abstract(state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert bits(back) == bits(state)
    assert [x.dtype for x in jax.tree.leaves(back)] == [x.dtype for x in jax.tree.leaves(state)]
    assert state_sha256(back) == state_sha256(state)
    # The keys are keys: they go on drawing the same numbers.
    np.testing.assert_array_equal(jax.random.normal(back.key[1], (3,)), jax.random.normal(state.key[1], (3,)))


def test_a_snapshot_is_a_copy():
    """Donating or overwriting the state afterwards does not change it."""
    x = jnp.arange(4.0)
    kept = snapshot({"x": x}).tree["x"]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    add(x).block_until_ready()
    np.testing.assert_array_equal(kept, np.arange(4.0))
    assert kept.flags.owndata


def test_description():
    """It is the same for arrays and for their shapes; for a key it names the generator."""
    state = make_state()
    spec = tree_spec(state)
    assert spec[".updates"] == "int32[]"
    assert spec[".key"] == "key<fry>[]"
    assert spec[".params['params']['Dense_0']['kernel']"] == "float32[3, 4]"
    assert spec == tree_spec(abstract(state)) == snapshot(state).spec
    assert tree_spec(state._replace(key=jax.random.key(0, impl="rbg")))[".key"] == "key<rbg>[]"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite(bad):
    tree = {"a": jnp.arange(3), "b": jnp.ones(2), "key": jax.random.key(0)}
    assert is_finite(tree)
    assert not is_finite({**tree, "b": jnp.array([1.0, bad])})


# --- the hash ---------------------------------------------------------------------------------------------------------


def test_hash_is_a_function_of_the_bits():
    assert state_sha256(make_state()) == state_sha256(make_state())
    assert len(state_sha256(make_state())) == 64


def test_hash_changes_with_every_leaf():
    """Each array by itself changes it, by one bit or one element."""
    state = make_state()
    leaves, tree = jax.tree.flatten(state)
    seen = {state_sha256(state)}
    for i, leaf in enumerate(leaves):
        changed = list(leaves)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            changed[i] = jax.random.key(99)
        else:
            flat = np.array(leaf).reshape(-1)
            flat.view(np.uint8)[0] ^= 1
            changed[i] = jnp.asarray(flat.reshape(leaf.shape))
        seen.add(state_sha256(jax.tree.unflatten(tree, changed)))
    assert len(seen) == 1 + len(leaves)


def test_hash_knows_signs_of_zero_types_shapes_and_paths():
    states = [
        {"a": jnp.zeros(2)},
        {"a": -jnp.zeros(2)},
        {"a": jnp.zeros(2, jnp.int32)},
        {"a": jnp.zeros((2, 1))},
        {"b": jnp.zeros(2)},
        {"a": jnp.zeros(1), "b": jnp.zeros(1)},
        (jnp.zeros(2),),
    ]
    assert len({state_sha256(state) for state in states}) == len(states)


def test_a_state_may_have_nodes_without_a_leaf_that_the_saved_one_lacks(tmp_path):
    """As those of another version have: a field that is empty for this run takes no space, and no other checkpoint."""

    class Now(NamedTuple):
        x: jax.Array
        memory: tuple
        inner: dict

    saved = {"x": np.arange(3.0, dtype=np.float32), "inner": {"b": np.array(2, np.int32), "none": None}}
    write_state(tmp_path / "state", saved)
    now = Now(jnp.arange(3.0), (), {"b": jnp.int32(2)})
    back = read_state(tmp_path / "state", abstract(now))
    assert jax.tree.structure(back) == jax.tree.structure(now)
    jax.tree.map(np.testing.assert_array_equal, back, now)
