"""Damage of every kind to every file of a checkpoint: it is never loaded, and an older checkpoint is found.

This is tested at the level of the store, with the state of a small real run: 150 mutations by default, 1,200 under the
marker `slow`.
"""

import random
import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps
from purejaxppo.experiment.checkpoints.state import snapshot, state_sha256
from purejaxppo.experiment.checkpoints.store import CheckpointChoice, load_newest, save_step
from purejaxppo.train import trainer_from_config

CONFIG = TrainConfig(
    env="Pendulum-v1",
    algorithm="ppo_kl",
    num_envs=2,
    num_steps=2,
    num_minibatches=1,
    hidden_sizes=(4,),
    normalize_observation=True,
    normalize_reward=True,
)
STEPS = (100, 200)


class Saved:
    """A run directory with two checkpoints, an older and a newer one, and their bytes."""

    def __init__(self, run_dir):
        self.run_dir = run_dir
        trainer = trainer_from_config(CONFIG, from_gymnax(CONFIG.env, CONFIG.num_envs))
        init = jax.jit(trainer.init)
        hp = jax.tree.map(jnp.float32, Hyperparams())
        states = [init(jax.random.key(seed), hp) for seed in range(2)]
        self.older, self.newest = (
            save_step(run_dir, env_steps, snapshot(state), {"train_return": None})
            for env_steps, state in zip(STEPS, states, strict=True)
        )
        self.hashes = dict(zip(map(state_sha256, states), STEPS, strict=True))
        self.expected = jax.eval_shape(trainer.init, jax.random.key(0), hp)
        self._copy = run_dir.with_name("untouched")
        shutil.copytree(run_dir / "checkpoints", self._copy)

    def mend(self):
        """Restores the bytes of both checkpoints."""
        shutil.rmtree(self.run_dir / "checkpoints")
        shutil.copytree(self._copy, self.run_dir / "checkpoints")

    def load(self, **options):
        """Returns (env steps of the state that is loaded, the messages)."""
        notes = []
        state, _ = load_newest(self.run_dir, self.expected, CheckpointChoice(note=notes.append, **options))
        return self.hashes.get(state_sha256(state), "a state that was never saved"), notes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("saved") / "run")


# --- mutations: each takes a path, a source of randomness and the older checkpoint, and returns what it did -----------


def delete(path, chance, _):
    path.unlink()


def empty(path, chance, _):
    path.write_bytes(b"")


def truncate(path, chance, _):
    content = path.read_bytes()
    path.write_bytes(content[: _position(content, chance)])


def garbage(path, chance, _):
    """Replaces the content by random bytes of the same length."""
    path.write_bytes(chance.randbytes(len(path.read_bytes())))


def flip_bit(path, chance, _):
    content = bytearray(path.read_bytes())
    at = _position(content, chance)
    content[at : at + 1] = bytes(byte ^ 1 << chance.randrange(8) for byte in content[at : at + 1])
    path.write_bytes(bytes(content))


def append(path, chance, _):
    path.write_bytes(path.read_bytes() + chance.randbytes(1))


def zero_block(path, chance, _):
    """Sets a block to zero, as a disk may do with a page that it lost."""
    content = bytearray(path.read_bytes())
    begin = _position(content, chance)
    content[begin : begin + 512] = bytes(len(content[begin : begin + 512]))
    path.write_bytes(bytes(content))


def swap(path, chance, _):
    """Swaps the file with another one of the checkpoint."""
    step_dir = next(parent for parent in path.parents if parent.name.startswith("step_"))
    other = chance.choice([other for other in files_of(step_dir) if other != path])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def replace_by_older(path, chance, older):
    """Replaces the file by one of the older checkpoint, of the same name or of any."""
    step_dir = next(parent for parent in path.parents if parent.name.startswith("step_"))
    twin = older / path.relative_to(step_dir)
    path.write_bytes((twin if twin.is_file() else chance.choice(files_of(older))).read_bytes())


def link_to_older(path, chance, older):
    path.unlink()
    path.symlink_to(chance.choice(files_of(older)))


def directory_instead(path, chance, _):
    path.unlink()
    path.mkdir()


def remove_directory(path, chance, _):
    below = path.parent if path.parent.name != "step_000000000200" else path.parent / "state"
    shutil.rmtree(below)


def add_file(path, chance, _):
    (path.parent / f"{path.name}{chance.randrange(100)}").write_bytes(chance.randbytes(10))


def rename(path, chance, _):
    path.rename(path.with_name(f"{path.name}~"))


def _position(content, chance):
    return chance.randrange(max(1, len(content)))


MUTATIONS = (
    delete,
    empty,
    truncate,
    garbage,
    flip_bit,
    append,
    zero_block,
    swap,
    replace_by_older,
    link_to_older,
    directory_instead,
    remove_directory,
    add_file,
    rename,
)


def files_of(step_dir):
    return sorted(path for path in step_dir.rglob("*") if path.is_file() and not path.is_symlink())


def content_of(step_dir):
    """Returns all files with their bytes; a link counts as its target."""
    return {path.relative_to(step_dir): path.is_file() and path.read_bytes() for path in step_dir.rglob("*")}


def turns(names, chance):
    """Yields pairs of mutation and file for ever, each as often as any other."""
    pairs = [(mutation, name) for mutation in MUTATIONS for name in names]
    while True:
        yield from chance.sample(pairs, len(pairs))


def load_after(saved, mutation, name, chance):
    """Returns (env steps of the state that is loaded, or the error; whether the reason for the newest was reported).

    Returns None for a mutation without effect, such as truncating an empty file.
    """
    intact = content_of(saved.newest)
    mutation(saved.newest / name, chance, saved.older)
    try:
        if content_of(saved.newest) == intact:
            return None
        env_steps, notes = saved.load()
        return env_steps, len(notes) == 1 and notes[0].startswith("step_000000000200: ")
    except Exception as error:
        return f"{type(error).__name__}: {error}", False
    finally:
        saved.mend()


def mutate_and_load(saved, count, seed):
    """Applies mutations to the newest checkpoint, one at a time.

    Returns:
      The counts of what was loaded, and the mutations after which the older state was not loaded with a reason.
    """
    chance = random.Random(seed)
    names = [path.relative_to(saved.newest) for path in files_of(saved.newest)]
    loaded, wrong = Counter(), []
    mutations = turns(names, chance)
    while loaded.total() < count:
        mutation, name = next(mutations)
        if found := load_after(saved, mutation, name, chance):
            loaded[found[0]] += 1
            if found != (STEPS[0], True):
                wrong.append((mutation.__name__, str(name), found))
    return loaded, wrong


def check(saved, count, seed):
    assert saved.load() == (STEPS[1], [])
    loaded, wrong = mutate_and_load(saved, count, seed)
    print(f"\n{count} mutations; loaded afterwards, by env steps: {dict(loaded)}")
    assert not wrong
    assert loaded == {STEPS[0]: count}
    assert saved.load() == (STEPS[1], [])


def test_no_damage_is_ever_loaded(saved):
    """The older checkpoint is loaded, and the reason is reported."""
    check(saved, 60, 0)


@pytest.mark.slow
def test_no_damage_is_ever_loaded_of_many(saved):
    check(saved, 1200, 1)


@pytest.mark.parametrize("mutation", [flip_bit, delete, truncate])
def test_all_checkpoints_damaged(saved, mutation):
    """The error is one line, with the reason for each."""
    chance = random.Random(0)
    for step_dir in (saved.older, saved.newest):
        mutation(chance.choice(files_of(step_dir / "state")), chance, saved.older)
    reasons = [invalid_reason(step.path) for step in list_steps(saved.run_dir)]
    with pytest.raises(CheckpointError) as caught:
        saved.load()
    saved.mend()
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert all(
        reason and f"step_{n:012d}: {reason}" in str(caught.value)
        for n, reason in zip((200, 100), reasons, strict=True)
    )


def test_every_kind_of_file_is_damaged(saved):
    """There are files of all kinds to damage, and mutations that treat them differently."""
    names = {path.relative_to(saved.newest).parts[0] for path in files_of(saved.newest)}
    assert names == {"state", "meta.json", "MANIFEST.json", "COMMIT"}
    assert len(files_of(saved.newest)) * len(MUTATIONS) >= 150
