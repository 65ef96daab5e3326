"""Run directories: they are created without touching existing files, and their settings are read back."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.resolve import differences
from purejaxppo.errors import CheckpointError, PureJaxPPOError, RunDirInUseError
from purejaxppo.experiment import directory as module
from purejaxppo.experiment.directory import (
    RunSettings,
    add_command,
    changed_versions,
    create_dir,
    create_run_dir,
    read_run_settings,
    write_inputs,
    write_settings,
)
from purejaxppo.experiment.lock import LOCK, locked

SETTINGS = RunSettings(
    TrainConfig(env_params={"gravity": 9.5}, num_envs=4, num_steps=8, hidden_sizes=(5, 3), on_nonfinite="skip"),
    Hyperparams(learning_rate=1e-3, target_kl=0.02),
    2**32 - 1,
    RunOptions(eval_episodes=7, keep_best=0),
)


def content_of(directory):
    """Returns path -> bytes of every file; None for directories."""
    paths = directory.rglob("*")
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in paths}


def refused(out, **options):
    """Returns the message of create_dir's error, which must have changed nothing below the parent."""
    with pytest.raises(PureJaxPPOError) as caught:
        create_dir(out, "name", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == (6 if isinstance(caught.value, RunDirInUseError) else 4)
    return message


# --- making it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [None, "runs/new"])
def test_a_directory_that_cannot_be_made_has_a_way_out(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    message = refused(out and tmp_path / out)
    assert "cannot create the directory" in message
    assert "--out" in message


def test_names_of_run_directories(tmp_path, monkeypatch):
    """They are below runs/, consist of safe characters, and never occur twice."""
    monkeypatch.chdir(tmp_path)
    settings = SETTINGS._replace(config=TrainConfig(env="../evil/é v0"), seed=5)
    first, second = (create_run_dir(settings, None) for _ in range(2))
    assert first != second
    for path in (first, second):
        assert path.parent.name == "runs"
        assert path.name.startswith(".._evil_é_v0__ppo_clip__s5__")
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("name", ["out", "a/b/c", "größe 日本", "with space", ".hidden", "-x", "x.tmp-1"])
def test_a_new_directory(tmp_path, name):
    """It is created with its parents, whatever its name."""
    out = tmp_path / name
    assert create_dir(out, "name") == out
    assert out.is_dir()
    assert content_of(out) == {}


LEFTOVERS = {
    "empty": [],
    "lock": [LOCK],
    "a write that was broken off": ["config.json.tmp-123"],
    "both": [LOCK, "versions.json.tmp-1", "command.txt.tmp-99999"],
    "all but config.json": [LOCK, "versions.json", "command.txt"],
}


@pytest.mark.parametrize("files", LEFTOVERS.values(), ids=LEFTOVERS)
def test_what_a_killed_start_leaves_will_do(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("left")
    assert create_dir(tmp_path, "name") == tmp_path
    assert content_of(tmp_path) == dict.fromkeys(files, b"left")


@pytest.mark.parametrize(
    "name", ["mine.txt", ".hidden", "config.json.tmp-", "x.tmp-1a", "run.lock2", "sub/", "config.json"]
)
def test_anything_else_is_never_touched(tmp_path, name):
    """The message advises to resume where there is a run."""
    (tmp_path / LOCK).write_text("left")
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("precious")
    before = content_of(tmp_path)
    message = refused(tmp_path)
    assert "is not an empty directory; choose another --out" in message
    assert (f"`purejaxppo resume {tmp_path}`" in message) == (name == "config.json")
    assert content_of(tmp_path) == before


def test_default_names_of_the_same_second_are_two_directories(tmp_path, monkeypatch):
    """The second one sees the first only when it makes its own."""
    monkeypatch.chdir(tmp_path)
    first, second = create_dir(None, "same"), create_dir(None, "same")
    assert first != second
    assert second.is_dir()


def test_two_that_took_the_same_directory(run_dir):
    """Both found it empty; the second one gets the lock when the first is done."""
    with pytest.raises(CheckpointError, match="has just been taken by another run"):
        write_inputs(run_dir, read_run_settings(run_dir), devices=1)


def test_one_in_use(tmp_path):
    """A directory is refused even if it holds nothing but the lock; afterwards it is free."""
    with locked(tmp_path):
        before = content_of(tmp_path)
        assert f"in use by process {os.getpid()}" in refused(tmp_path)
        assert content_of(tmp_path) == before
    create_dir(tmp_path, "name")


IMPOSSIBLE = {
    "NUL": ("x\0y", "null"),
    "a long name": ("x" * 300, "name too long"),
    "not UTF-8": (os.fsdecode(b"x\xff"), "can't encode"),
    "below a file": ("file/x", "file/x"),
    "a file": ("file", "not an empty directory"),
    "a link to nowhere": ("link", "File exists"),
    "a link to itself": ("loop", "loop"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_places(tmp_path, kind):
    name, says = IMPOSSIBLE[kind]
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    message = refused(tmp_path / name)
    assert says.lower() in message.lower()
    message.encode()  # it can be shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "loop"]
    assert (tmp_path / "file").read_text() == "precious"


def of_length(parent, length):
    """Returns a path of this many bytes below a directory, with `é` of two bytes in it."""
    parts, left = [], length - len(os.fsencode(parent))
    while left > 300:
        parts.append("é" * 100)
        left -= 201
    parts += ["x" * (left // 2 - 1), "y" * (left - left // 2 - 1)]
    path = parent.joinpath(*parts)
    assert len(os.fsencode(path)) == length
    return path


def test_too_long_a_path(tmp_path):
    """It is refused before anything is created, as files further down need room. One byte less is allowed."""
    message = refused(of_length(tmp_path, module._LONGEST_PATH + 1))
    assert "too long" in message
    assert len(message) < 200
    assert content_of(tmp_path) == {}
    out = create_dir(of_length(tmp_path, module._LONGEST_PATH), "name")
    deepest = out / "checkpoints" / "step_9223372036854775807.tmp-4194304" / "state" / ("x" * 150)
    deepest.parent.mkdir(parents=True)
    deepest.write_text("there is room")


def test_far_too_long_a_path(tmp_path):
    refused(of_length(tmp_path, 5000))
    assert content_of(tmp_path) == {}


# --- reading it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run's directory with its settings, begun by `purejaxppo train --seed 1`."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/purejaxppo", "train", "--seed", "1"])
    write_inputs(tmp_path, SETTINGS, devices=1)
    return tmp_path


def edit(run_dir, name="config.json", *, without=(), **changes):
    content = json.loads((run_dir / name).read_text())
    kept = {key: value for key, value in {**content, **changes}.items() if key not in without}
    (run_dir / name).write_text(json.dumps(kept))


def test_settings_read_back(run_dir):
    """Every field of all four comes back, none of them by its default."""
    assert read_run_settings(run_dir) == SETTINGS
    content = json.loads((run_dir / "config.json").read_text())
    fields = [f.name for kind in (TrainConfig, Hyperparams, RunOptions) for f in dataclasses.fields(kind)]
    assert content.keys() == {*fields, "format_version", "seed"}


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    """The validation accepts NumPy's numbers, so the file must too."""
    config = TrainConfig(num_envs=np.int64(4), hidden_sizes=(np.int32(8),), env_params={"gravity": np.float32(9.5)})
    hp = Hyperparams(learning_rate=np.float32(0.5))
    write_inputs(tmp_path, RunSettings(config, hp, np.int64(3), RunOptions(keep_best=np.int64(1))), devices=1)
    back, hp, *_ = read_run_settings(tmp_path)
    assert (back.num_envs, back.hidden_sizes, dict(back.env_params)) == (4, (8,), {"gravity": 9.5})
    assert hp.learning_rate == 0.5


def test_what_an_older_version_did_not_know_has_its_default(run_dir):
    edit(run_dir, without=("on_nonfinite", "target_kl", "keep_best", "checkpoint_seconds"))
    config, hp, seed, options = read_run_settings(run_dir)
    assert config == dataclasses.replace(SETTINGS.config, on_nonfinite="stop")
    assert hp == dataclasses.replace(SETTINGS.hp, target_kl=None)
    assert options == dataclasses.replace(SETTINGS.options, keep_best=1)
    assert seed == SETTINGS.seed


@pytest.mark.parametrize("name", ["env", "algorithm", "seed", "format_version"])
def test_what_makes_a_run_must_be_there(run_dir, name):
    """With the defaults of missing fields it would be another run."""
    edit(run_dir, without=(name,))
    with pytest.raises(CheckpointError, match=rf"config\.json is not a run's .*{name}"):
        read_run_settings(run_dir)


EDITS = [
    {"format_version": 3},
    {"format_version": None},
    {"num_envs": 0},
    {"env": 3},
    {"env_params": 3},
    {"env_params": {"gravity": [1]}},
    {"seed": -1},
    {"seed": "1"},
    {"hidden_sizes": None},
    {"gamma": float("nan")},
    {"learning_rate": 10**400},
    {"eval_episodes": 0},
    {"on_nonfinite": "ignore"},
]


@pytest.mark.parametrize("changes", EDITS, ids=lambda changes: str(changes)[:40])
def test_settings_that_were_edited_are_refused(run_dir, changes):
    edit(run_dir, **changes)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read_run_settings(run_dir)
    assert caught.value.exit_code == 4


CONTENTS = [b"", b"[]", b"{}", b"3", b"{", b"\xff", b'{"format_version": 1}', b"[" * 100_000]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: str(content[:30]))
def test_what_is_no_settings_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_run_settings(tmp_path)


@pytest.mark.parametrize("name", [".", "absent", "x\0y"])
def test_a_directory_that_is_not_a_runs(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"is not a run directory: it has no config\.json"):
        read_run_settings(tmp_path / name)


def test_changed_settings_are_written_over_the_old(run_dir):
    changed = SETTINGS._replace(config=dataclasses.replace(SETTINGS.config, total_timesteps=10**7))
    write_settings(run_dir, changed)
    assert read_run_settings(run_dir) == changed


# --- where it came from -----------------------------------------------------------------------------------------------


def test_commands_are_added(run_dir, monkeypatch):
    """Each is one line, as a shell takes it; the first may have been lost."""
    monkeypatch.setattr(sys, "argv", ["purejaxppo", "resume", "a b"])
    add_command(run_dir)
    assert (run_dir / "command.txt").read_text() == "purejaxppo train --seed 1\npurejaxppo resume 'a b'\n"
    (run_dir / "command.txt").unlink()
    add_command(run_dir)
    assert (run_dir / "command.txt").read_text() == "purejaxppo resume 'a b'\n"


def test_versions_that_changed(run_dir):
    """Changes of what determines the last bit of a result are reported, and no others."""
    assert changed_versions(run_dir) == []
    now = json.loads((run_dir / "versions.json").read_text())
    edit(run_dir, "versions.json", python="2.7", xla_flags="--x", jax="0.0.1")
    assert changed_versions(run_dir) == [f"jax 0.0.1 -> {now['jax']}"]
    edit(run_dir, "versions.json", without=("jaxlib",), jax=now["jax"], device="abacus")
    assert sorted(changed_versions(run_dir)) == [
        f"device abacus -> {now['device']}",
        f"jaxlib None -> {now['jaxlib']}",
    ]


def test_another_number_of_devices(run_dir):
    """It is reported if both are known; a directory of before has none."""
    edit(run_dir, "versions.json", devices=2)
    assert changed_versions(run_dir, devices=2) == changed_versions(run_dir) == []
    assert changed_versions(run_dir, devices=1) == ["devices 2 -> 1"]
    edit(run_dir, "versions.json", without=("devices",))
    assert changed_versions(run_dir, devices=1) == []


def test_code_that_changed(run_dir, monkeypatch):
    """A change is reported if git knew the commit then and knows it now."""
    monkeypatch.setattr(module, "code_revision", lambda: {"commit": "b", "dirty": True})
    for then, changes in (
        ({"commit": "b", "dirty": True}, []),
        ({"commit": "a", "dirty": False}, ["commit a -> b", "dirty False -> True"]),
        ({"commit": None, "dirty": None}, []),
    ):
        edit(run_dir, "versions.json", **then)
        assert changed_versions(run_dir) == changes
    edit(run_dir, "versions.json", without=("commit", "dirty"))
    assert changed_versions(run_dir) == []
    edit(run_dir, "versions.json", commit="a", dirty=True)
    monkeypatch.setattr(module, "code_revision", lambda: {"commit": None, "dirty": None})
    assert changed_versions(run_dir) == []


def test_differences():
    old, new = {"a": 1, "b": [2], "c": None, "gone": 4}, {"b": [3], "a": 1, "c": None, "come": False}
    assert differences(old, new) == {
        "b": "b [2] -> [3]",
        "gone": "gone 4 -> absent",
        "come": "come absent -> False",
    }
    assert differences(old, dict(reversed(old.items()))) == {}
