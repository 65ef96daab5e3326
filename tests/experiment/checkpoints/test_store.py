"""The store: only states that were saved are loaded, and every valid checkpoint is found."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.checkpoints import directory, store
from purejaxppo.experiment.checkpoints.directory import (
    FORMAT_VERSION,
    clean,
    commit,
    invalid_reason,
    list_steps,
    prune,
    survey,
)
from purejaxppo.experiment.checkpoints.state import snapshot, state_sha256
from purejaxppo.experiment.checkpoints.store import CheckpointChoice, load_newest, save_step


class State(NamedTuple):
    """A small runner, of which only `learner` has to be finite."""

    learner: Any
    env_state: jax.Array
    key: jax.Array


def make_state(seed=0):
    key = jax.random.key(seed)
    return State({"kernel": jax.random.normal(key, (3, 4))}, jnp.array([jnp.inf, 1.0]), key)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def save(run_dir, env_steps, seed=0, **meta):
    return save_step(run_dir, env_steps, snapshot(make_state(seed)), {"train_return": None, **meta})


def load(run_dir, **options):
    """Returns (seed of the state that is loaded, meta.json)."""
    state, meta = load_newest(run_dir, abstract(make_state()), CheckpointChoice(**options))
    found = [seed for seed in range(10) if state_sha256(make_state(seed)) == state_sha256(state)]
    assert len(found) == 1, "a state that was never saved"
    return found[0], meta


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory with the checkpoints 100 (of seed 1) and 200 (of seed 2), not to be changed."""
    run_dir = tmp_path_factory.mktemp("saved")
    save(run_dir, 100, 1, train_return=5.0)
    save(run_dir, 200, 2, train_return=3.0)
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path):
    """A copy of `saved`, to be damaged."""
    shutil.copytree(saved, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def step_dir(run_dir, env_steps):
    return run_dir / "checkpoints" / f"step_{env_steps:012d}"


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


# --- saving -----------------------------------------------------------------------------------------------------------


def test_layout(saved):
    files = {path.name for path in step_dir(saved, 100).iterdir()}
    assert files == {"state", "meta.json", "MANIFEST.json", "COMMIT"}
    meta = json.loads((step_dir(saved, 100) / "meta.json").read_text())
    assert (meta["format_version"], meta["env_steps"], meta["train_return"]) == (FORMAT_VERSION, 100, 5.0)
    assert meta["tree"][".key"] == "key<fry>[]"
    manifest = json.loads((step_dir(saved, 100) / "MANIFEST.json").read_text())
    present = {
        path.relative_to(step_dir(saved, 100)).as_posix()
        for path in step_dir(saved, 100).rglob("*")
        if path.is_file() and path.name not in ("MANIFEST.json", "COMMIT")
    }
    assert manifest.keys() == present
    assert [step.env_steps for step in list_steps(saved)] == [200, 100]


def test_counters_beyond_2_to_31(tmp_path):
    """Checkpoints are in the order of their numbers, not of their names."""
    for env_steps in (2**31 + 1, 2**62 + 1, 7):
        save(tmp_path, env_steps)
    assert [step.env_steps for step in list_steps(tmp_path)] == [2**62 + 1, 2**31 + 1, 7]
    assert load(tmp_path)[1]["env_steps"] == 2**62 + 1


def test_the_same_place_again(run_dir):
    """The same state is not written again; another state replaces it, and so does any state a damaged checkpoint."""
    before = (step_dir(run_dir, 200) / "COMMIT").stat().st_mtime_ns
    save(run_dir, 200, 2)
    assert (step_dir(run_dir, 200) / "COMMIT").stat().st_mtime_ns == before
    save(run_dir, 200, 4)
    assert load(run_dir)[0] == 4
    (step_dir(run_dir, 200) / "meta.json").write_text("{}")
    save(run_dir, 200, 3)
    assert load(run_dir)[0] == 3
    assert len(names(run_dir)) == 2


FAILURES = {
    "orbax": (store, "write_state", RuntimeError("tensorstore: No space left on device\nlong\nstory")),
    "meta.json": (store, "write_json", OSError(28, "No space left on device")),
    "sync": (directory, "sync", OSError(28, "No space left on device")),
    "COMMIT": (directory, "write_text", CheckpointError("cannot write COMMIT: No space left on device")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_save_that_fails_leaves_nothing_and_hurts_nothing(run_dir, monkeypatch, name):
    module, function, error = FAILURES[name]

    def fail(*_):
        raise error

    before = names(run_dir)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail)
        with pytest.raises(CheckpointError, match="no space left") as caught:
            save(run_dir, 300, 3)
    assert "\n" not in str(caught.value)
    assert names(run_dir) == before
    assert load(run_dir)[0] == 2
    save(run_dir, 300, 3)  # the next one is not told of the old error
    assert load(run_dir)[0] == 3


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in its place")
    with pytest.raises(CheckpointError, match="cannot save"):
        save(tmp_path, 1)


# --- what a killed process leaves -------------------------------------------------------------------------------------


def test_a_kill_at_any_moment_of_saving_leaves_the_older_ones(run_dir, monkeypatch):
    """The process ends after the n-th operation on the disk, for every n; a new process cleans up and goes on."""

    class Killed(BaseException):
        pass

    functions = [
        (store, "write_state"),
        (store, "write_json"),
        (directory, "write_json"),
        (directory, "write_text"),
        (directory, "sync"),
        (store, "sync"),
        (Path, "replace"),
    ]
    moment = 0
    while True:
        left = iter(range(moment))

        def dying(real, left=left):
            def call(*args, **kwargs):
                if next(left, None) is None:
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for owner, name in functions:
                patch.setattr(owner, name, dying(getattr(owner, name)))
            try:
                save(run_dir, 300, 3)
                break
            except Killed:
                pass
        assert load(run_dir)[0] in (2, 3)
        assert all(invalid_reason(step.path) is None for step in list_steps(run_dir))
        clean(run_dir)
        assert all(name.startswith("step_0") and ".tmp" not in name for name in names(run_dir))
        shutil.rmtree(step_dir(run_dir, 300), ignore_errors=True)
        moment += 1
    assert moment > 10
    assert load(run_dir)[0] == 3


def test_cleaning_takes_leftovers_alone(run_dir):
    for name in ("step_000000000300.tmp-17", "step_000000000300.tmp-x", "mine.tmp-17", "step_3.tmp-17"):
        (run_dir / "checkpoints" / name).mkdir()
    (run_dir / "config.json.tmp-17").write_text("half")
    (run_dir / "mine.txt").write_text("precious")
    clean(run_dir)
    assert set(names(run_dir)) == {
        "step_000000000100",
        "step_000000000200",
        "step_000000000300.tmp-x",
        "mine.tmp-17",
        "step_3.tmp-17",
    }
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoints", "mine.txt"]


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_newest_is_loaded_bit_by_bit(saved):
    state, meta = load_newest(saved, abstract(make_state()))
    assert state_sha256(state) == state_sha256(make_state(2))
    assert jax.tree.structure(state) == jax.tree.structure(make_state())
    assert meta["env_steps"] == 200


def test_one_by_its_number(saved):
    assert load(saved, env_steps=100)[0] == 1
    with pytest.raises(CheckpointError, match="no checkpoint of 150 env steps"):
        load(saved, env_steps=150)


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint(tmp_path, exists):
    if exists:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path)


def test_only_names_of_checkpoints_count(run_dir):
    for name in (
        "step_99999999999999x",
        "step_1",
        "step_-00000000001",
        "step_000000000300.tmp-1",
        "../evil",
        "step_" + "9" * 30,
    ):
        (run_dir / "checkpoints" / name).mkdir()
    assert [step.env_steps for step in list_steps(run_dir)] == [200, 100]
    assert load(run_dir)[0] == 2


def rewrite(path, content):
    path.write_bytes(content)


def first_array_file(directory):
    return max(
        (path for path in (directory / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def resigned(directory, **changes):
    """Changes the content of meta.json, with hashes as if it had been saved so."""
    path = directory / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for name in ("MANIFEST.json", "COMMIT"):
        (directory / name).unlink()
    commit(directory)


def not_finite(directory):
    state = make_state(4)
    shutil.rmtree(directory)
    bad = state._replace(learner={"kernel": jnp.full((3, 4), jnp.nan)})
    save_step(directory.parent.parent, 200, snapshot(bad), {"train_return": None})


DAMAGE = {
    "empty directory": (lambda d: (shutil.rmtree(d), d.mkdir()), "MANIFEST.json is missing|COMMIT is missing"),
    "file in its place": (lambda d: (shutil.rmtree(d), d.write_text("x")), "not a directory"),
    "link in its place": (
        lambda d: (d.rename(d.with_name("other")), d.symlink_to(d.with_name("other"))),
        "not a directory",
    ),
    "pickle in its place": (lambda d: (shutil.rmtree(d), d.write_bytes(b"\x80\x04K\x01.")), "not a directory"),
    "no COMMIT": (lambda d: (d / "COMMIT").unlink(), "COMMIT is missing"),
    "no manifest": (lambda d: (d / "MANIFEST.json").unlink(), "MANIFEST.json is missing"),
    "no meta": (lambda d: (d / "meta.json").unlink(), "meta.json is missing"),
    "no state": (lambda d: shutil.rmtree(d / "state"), "is missing"),
    "state is a file": (lambda d: (shutil.rmtree(d / "state"), (d / "state").write_text("x")), "is missing"),
    "manifest changed": (lambda d: flip(d / "MANIFEST.json"), "hash in COMMIT"),
    "COMMIT changed": (lambda d: flip(d / "COMMIT"), "hash in COMMIT"),
    "COMMIT is huge": (lambda d: rewrite(d / "COMMIT", b"0" * 10**6), "too large"),
    "one bit of the arrays": (lambda d: flip(first_array_file(d)), "has changed"),
    "one byte less": (lambda d: rewrite(d / "meta.json", (d / "meta.json").read_bytes()[:-1]), "bytes instead of"),
    "empty array file": (lambda d: rewrite(first_array_file(d), b""), "0 bytes instead of"),
    "one file more": (lambda d: (d / "state" / "more").write_text("x"), "does not belong"),
    "a link more": (lambda d: (d / "state" / "more").symlink_to("/etc/passwd"), "does not belong"),
    "other version": (lambda d: resigned(d, format_version=1), "has format version 1, where this version"),
    "another tree": (lambda d: resigned(d, tree={".key": "key<fry>[]"}), "another state"),
    "a huge shape": (lambda d: resigned(d, tree={".key": "float32[1000000000000]"}), "another state"),
    "not finite": (not_finite, "not finite"),
    "that of another step": (
        lambda d: (shutil.rmtree(d), shutil.copytree(step_dir(d.parent.parent, 100), d)),
        "of 100 env",
    ),
    "not ours": (lambda d: resigned(d, env_steps=None), "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_seen_and_passed_over(run_dir, kind):
    """The older checkpoint is loaded, with the reason; --strict, or a run without an older one, fails."""
    damage, reason = DAMAGE[kind]
    damage(step_dir(run_dir, 200))
    notes = []
    assert load(run_dir, note=notes.append)[0] == 1
    assert len(notes) == 1
    assert notes[0].startswith("step_000000000200: ")
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(run_dir, strict=True)
    assert "--strict" in str(caught.value)
    shutil.rmtree(step_dir(run_dir, 100))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(run_dir)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


CHANGES = {
    "shape": lambda state: state._replace(env_state=jnp.zeros(3)),
    "dtype": lambda state: state._replace(env_state=jnp.zeros(2, jnp.int32)),
    "one leaf more": lambda state: state._replace(env_state=(state.env_state, jnp.zeros(()))),
    "no key": lambda state: state._replace(key=jax.random.key_data(state.key)),
    "other name": lambda state: state._replace(learner={"other": state.learner["kernel"]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_tree_than_expected_is_refused(saved, monkeypatch, change):
    """It is refused before anything is read, since orbax would cast a type silently."""
    monkeypatch.setattr(store, "read_state", None)
    with pytest.raises(CheckpointError, match=r"another state .*\.(env_state|key|learner)"):
        load_newest(saved, abstract(CHANGES[change](make_state())))


def test_a_directory_by_its_name(saved):
    """It may be text, for users who load a run in a program of their own."""
    assert [step.env_steps for step in list_steps(str(saved))] == [200, 100]
    assert [row["env_steps"] for row in survey(str(saved))] == [200, 100]
    assert load(str(saved))[0] == 2


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        (lambda state: state._replace(key=jax.random.key(0, impl="rbg")), "JAX_DEFAULT_PRNG_IMPL=threefry2x32"),
        (lambda state: state._replace(env_state=np.zeros(2)), "JAX_ENABLE_X64=0"),
        (
            lambda state: state._replace(key=jax.random.key(0, impl="unsafe_rbg"), env_state=np.zeros(2)),
            "JAX_DEFAULT_PRNG_IMPL=threefry2x32 JAX_ENABLE_X64=0",
        ),
    ],
)
def test_a_sound_state_of_another_setting_of_jax_names_the_setting(saved, change, setting):
    """Under that setting it can be read, so nobody has to train it again."""
    with pytest.raises(CheckpointError, match=f"was made under {setting}: .*; set {setting} to read") as caught:
        load_newest(saved, abstract(change(make_state())))
    assert "again" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_state_of_wider_numbers_names_the_setting_too(tmp_path):
    """It was saved under JAX_ENABLE_X64 and is read without it; a damaged newer one does not change the advice."""
    wide = make_state()._replace(env_state=np.array([1.0, 2.0]), key=jax.random.key(0, impl="rbg"))
    save_step(tmp_path, 100, snapshot(wide), {"train_return": None})
    save(tmp_path, 200)
    (step_dir(tmp_path, 200) / "COMMIT").unlink()
    with pytest.raises(CheckpointError, match="set JAX_DEFAULT_PRNG_IMPL=rbg JAX_ENABLE_X64=1 to read"):
        load_newest(tmp_path, abstract(make_state()))


def test_a_checkpoint_that_is_replaced_while_it_is_read(run_dir, monkeypatch):
    """A run in training keeps one checkpoint, and removes it when an evaluation has just begun to read it."""
    prune(run_dir, 1, 0)
    real = store.load_step

    def slow(step, expected):
        if step.env_steps == 200:
            save(run_dir, 300, 3)
            prune(run_dir, 1, 0)
        return real(step, expected)

    monkeypatch.setattr(store, "load_step", slow)
    assert load(run_dir)[0] == 3


def test_all_reasons_are_given(run_dir):
    (step_dir(run_dir, 100) / "COMMIT").unlink()
    flip(first_array_file(step_dir(run_dir, 200)))
    with pytest.raises(CheckpointError, match=r"200: .* has changed; step_000000000100: COMMIT is missing") as caught:
        load(run_dir)
    assert "\n" not in str(caught.value)


# --- retention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returns", "newest", "best", "kept"),
    [
        ([1, 2, 3, 4, 5], 2, 0, [4, 5]),
        ([9, 2, 3, 4, 5], 2, 1, [1, 4, 5]),
        ([9, 2, 8, 4, 5], 1, 2, [1, 3, 5]),
        ([1, 2, 3, 4, 5], 2, 2, [4, 5]),
        ([None, 2, None, None, None], 1, 1, [2, 5]),
        ([None, None, None], 1, 1, [3]),
        ([1, 2], 0, 0, [2]),
        ([1], 5, 5, [1]),
    ],
)
def test_newest_and_best_are_kept(tmp_path, returns, newest, best, kept):
    for i, value in enumerate(returns, start=1):
        save(tmp_path, i, train_return=value)
    prune(tmp_path, newest, best)
    assert sorted(step.env_steps for step in list_steps(tmp_path)) == kept
    assert len(names(tmp_path)) == len(kept)


@pytest.mark.parametrize(
    ("evaluations", "kept"),
    [
        ([3, 9, 8, 1, 1], [2, 5]),
        ([3, None, 3, 1, None], [3, 5]),  # the training return decides among equal ones
        ([None, None, None, None, None], [4, 5]),  # as before the first evaluation
    ],
)
def test_the_best_by_their_evaluations_are_kept(tmp_path, evaluations, kept):
    """One without an evaluation ranks worst, whatever its training return."""
    for i, value in enumerate(evaluations, start=1):
        save(tmp_path, i, train_return=[1.0, 2.0, 3.0, 5.0, 4.0][i - 1], evaluation_return=value)
    prune(tmp_path, 1, 1, "evaluation_return")
    assert sorted(step.env_steps for step in list_steps(tmp_path)) == kept


def test_the_only_sound_one_is_never_removed(run_dir):
    """However old it is, it stays, and damaged ones are left for inspection."""
    for env_steps in (300, 400):
        save(run_dir, env_steps)
    for env_steps in (200, 300, 400):
        (step_dir(run_dir, env_steps) / "COMMIT").unlink()
    prune(run_dir, 1, 0)
    assert [step.env_steps for step in list_steps(run_dir)] == [400, 300, 200, 100]
    assert load(run_dir)[0] == 1


def test_survey(run_dir):
    (step_dir(run_dir, 200) / "meta.json").write_text("{}")
    newest, oldest = survey(run_dir)
    assert (newest["checkpoint"], newest["env_steps"], newest["train_return"]) == ("step_000000000200", 200, None)
    assert newest["fault"] == "meta.json has 2 bytes instead of " + newest["fault"].split()[-1]
    assert (oldest["env_steps"], oldest["train_return"], oldest["fault"]) == (100, 5.0, None)
    size = sum(os.path.getsize(path) for path in step_dir(run_dir, 100).rglob("*") if path.is_file())
    assert oldest["bytes"] == size
    assert (oldest["evaluation_return"], oldest["ranked_by"]) == (None, "train_return")
    save(run_dir, 300, train_return=1.0, evaluation_return=2.0, ranked_by="evaluation_return")
    assert survey(run_dir)[0].items() > {"evaluation_return": 2.0, "ranked_by": "evaluation_return"}.items()
    assert np.isfinite(size)
