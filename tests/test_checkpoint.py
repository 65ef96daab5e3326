"""A state on disk: back bit by bit, its hash, and clear errors for what cannot be read."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxppo.checkpoint import load_checkpoint, read_json, save_checkpoint, state_sha256, write_json
from purejaxppo.errors import CheckpointError


class State(NamedTuple):
    """One of everything that a runner's state holds."""

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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(run directory, state) with one checkpoint, not to be changed."""
    run_dir = tmp_path_factory.mktemp("saved")
    state = make_state()
    save_checkpoint(run_dir, 12_345, state)
    return run_dir, state


@pytest.fixture
def run(saved, tmp_path):
    """(copy of the run directory, its checkpoint directory, state), to be broken."""
    run_dir = tmp_path / "run"
    shutil.copytree(saved[0], run_dir)
    return run_dir, run_dir / "checkpoints" / "step_000000012345", saved[1]


def test_saved_and_loaded_are_the_same_bits(saved):
    run_dir, state = saved
    loaded = load_checkpoint(run_dir, abstract(state))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert bits(loaded) == bits(state)
    assert [x.dtype for x in jax.tree.leaves(loaded)] == [x.dtype for x in jax.tree.leaves(state)]
    assert state_sha256(loaded) == state_sha256(state)
    # The key is a key: it goes on drawing the same numbers.
    np.testing.assert_array_equal(jax.random.normal(loaded.key, (3,)), jax.random.normal(state.key, (3,)))


def test_names_and_description(saved):
    run_dir, _ = saved
    (step_dir,) = (run_dir / "checkpoints").iterdir()
    assert step_dir.name == "step_000000012345"
    meta = json.loads((step_dir / "meta.json").read_text())
    assert meta["format_version"] == 1
    assert meta["env_steps"] == 12_345
    assert meta["tree"][".updates"] == "int32[]"
    assert meta["tree"][".key"] == "key<fry>[]"
    assert meta["tree"][".params['params']['Dense_0']['kernel']"] == "float32[3, 4]"


def test_the_newest_is_loaded_by_number_not_by_name(run):
    run_dir, step_dir, _ = run
    newest = make_state(1)
    save_checkpoint(run_dir, 10**13, newest)
    shutil.copytree(step_dir, step_dir.with_name("step_99999999999999x"))
    assert bits(load_checkpoint(run_dir, abstract(newest))) == bits(newest)


def test_an_unfinished_checkpoint_is_passed_over(run):
    """Without its meta.json, which is written last."""
    run_dir, step_dir, state = run
    save_checkpoint(run_dir, 99_999, make_state(1))
    (step_dir.with_name("step_000000099999") / "meta.json").unlink()
    assert bits(load_checkpoint(run_dir, abstract(state))) == bits(state)


def test_nothing_is_overwritten(run):
    run_dir, _, state = run
    with pytest.raises(CheckpointError, match="step_000000012345"):
        save_checkpoint(run_dir, 12_345, make_state(1))
    assert bits(load_checkpoint(run_dir, abstract(state))) == bits(state)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in its place")
    with pytest.raises(CheckpointError, match="cannot save"):
        save_checkpoint(tmp_path, 1, make_state())


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint(tmp_path, exists):
    if exists:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        load_checkpoint(tmp_path, abstract(make_state()))


CHANGES = {
    "shape": lambda state: state._replace(updates=jnp.zeros(2, jnp.int32)),
    "dtype": lambda state: state._replace(updates=jnp.float32(7)),
    "leaf missing": lambda state: state._replace(algo_state=(jnp.zeros(()),)),
    "no key": lambda state: state._replace(key=jax.random.key_data(state.key)),
    "other name": lambda state: state._replace(params={"other": state.params["params"]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_tree_than_expected_is_refused(saved, change):
    """Before anything is read: orbax would cast a type silently."""
    run_dir, state = saved
    with pytest.raises(CheckpointError, match="another state"):
        load_checkpoint(run_dir, abstract(CHANGES[change](state)))


def damage_garbage(step_dir):
    for path in step_dir.rglob("*"):
        if path.is_file() and path.name != "meta.json":
            path.write_bytes(b"garbage")


def damage_truncated(step_dir):
    for path in (step_dir / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "no state": lambda step_dir: shutil.rmtree(step_dir / "state"),
    "empty state": lambda step_dir: (shutil.rmtree(step_dir / "state"), (step_dir / "state").mkdir()),
    "file for state": lambda step_dir: (shutil.rmtree(step_dir / "state"), (step_dir / "state").write_text("x")),
    "garbage": damage_garbage,
    "truncated": damage_truncated,
    "meta is not JSON": lambda step_dir: (step_dir / "meta.json").write_text("{"),
    "meta is no table": lambda step_dir: (step_dir / "meta.json").write_text("[]"),
    "meta has no tree": lambda step_dir: (step_dir / "meta.json").write_text("{}"),
    "meta is binary": lambda step_dir: (step_dir / "meta.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_a_clear_error(run, kind):
    run_dir, step_dir, state = run
    DAMAGE[kind](step_dir)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run_dir, abstract(state))
    assert caught.value.exit_code == 4
    assert "step_000000012345" in str(caught.value)


# --- the hash ---------------------------------------------------------------------------------------------------------


def test_hash_is_a_function_of_the_bits():
    assert state_sha256(make_state()) == state_sha256(make_state())
    assert len(state_sha256(make_state())) == 64


def test_hash_changes_with_every_leaf():
    """Each array alone, by one bit or one element."""
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


# --- small files ------------------------------------------------------------------------------------------------------


def test_json_there_and_back(tmp_path):
    content = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "x.json", {"old": 1})
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(AttributeError):
        write_json(tmp_path / "x.json", {"new": object()})
    assert read_json(tmp_path / "x.json") == {"old": 1}


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_json_that_cannot_be_read(tmp_path, content):
    path = Path(tmp_path / "x.json")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.json"):
        read_json(path)
