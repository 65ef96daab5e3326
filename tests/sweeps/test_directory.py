"""A sweep's directory: sweep.json is read back as it was written and holds everything that determines the results.

A file that is damaged or edited is refused in one line.
"""

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_sweeps import sweep_of

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.errors import CheckpointError
from purejaxppo.sweeps.directory import FORMAT_VERSION, Sizes, is_sweep, read_sweep, sweep_record, write_sweep
from purejaxppo.sweeps.plan import Plan

FIELDS = [field.name for kind in (TrainConfig, Hyperparams) for field in dataclasses.fields(kind)]
POINTS = [{"learning_rate": 1e-3, "hidden_sizes": (4, 4)}, {"learning_rate": 3e-4, "hidden_sizes": ()}]


def sweep(points=POINTS, **changes):
    return sweep_of(points)._replace(**changes)


def for_all(sweep, *numbers, **changes):
    """Returns the sweep with fields of the numbered settings changed, by default of all settings."""
    settings = list(sweep.settings)
    for i in numbers or range(len(settings)):
        settings[i] = tuple(
            dataclasses.replace(x, **{k: v for k, v in changes.items() if hasattr(x, k)}) for x in settings[i]
        )
    return sweep._replace(settings=tuple(settings))


def sizes_of(sweep):
    """Returns sizes 1, 2, 3 ..., one for each configuration and choice of hyperparameters that are None."""
    programs = {(config, hp.target_kl is None, hp.vf_clip_eps is None) for config, hp in sweep.settings}
    return Sizes(tuple(range(1, len(programs) + 1)), 2)


def fingerprint(sweep):
    plan = object.__new__(Plan)
    plan.sweep = sweep
    return plan.fingerprint


def same_after_all(directory, sweep):
    """Writes and reads a sweep, and checks that values, their types (1 == 1.0 == True) and the file are unchanged."""
    sizes = sizes_of(sweep)
    write_sweep(directory, sweep, sizes)
    content = (directory / "sweep.json").read_bytes()
    again, again_sizes = read_sweep(directory)
    assert again == sweep
    assert repr(again) == repr(sweep)
    assert again_sizes == sizes
    write_sweep(directory, again, again_sizes)
    assert (directory / "sweep.json").read_bytes() == content
    assert json.dumps(sweep_record(again)) == json.dumps(sweep_record(sweep))


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "points",
    [
        [{}],
        [{"hidden_sizes": (64, 64)}, {"hidden_sizes": (8,)}, {"hidden_sizes": ()}],
        [{"target_kl": None}, {"target_kl": 0.01}, {"vf_clip_eps": None, "target_kl": 0.02}],
        [{"normalize_reward": True}, {"normalize_reward": False}],
        [{"algorithm": "trpo", "cg_damping": 0.5}, {"algorithm": "ppo_clip", "clip_eps": 0.3}],
        [{"learning_rate": 1}, {"learning_rate": 0.1 + 0.2}, {"learning_rate": 1e-30}],
        [{"total_timesteps": 2**33}, {"num_envs": 2**20, "total_timesteps": 2**52}],
        [{"activation": "relu", "num_epochs": 1}, {"activation": "tanh", "num_epochs": 2}],
        [{"clip_eps": 0.1}, {"clip_eps": 0.1}],
    ],
)
def test_there_and_back(tmp_path, points):
    same_after_all(tmp_path, sweep(points))


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": (2**32 - 1, 0, 7)},
        {"halving": 2},
        {"exact": True},
        {"target": -3.5},
        {"target": 200},
        {"options": RunOptions(3, 0.0, 4, 0)},
    ],
)
def test_there_and_back_of_what_is_not_a_setting(tmp_path, changes):
    same_after_all(tmp_path, sweep(**changes))


def test_there_and_back_of_environment_parameters(tmp_path):
    """They may be integers, floats and booleans; JSON keeps their order and types."""
    params = {"max_steps_in_episode": 200, "gravity": 9.5, "b": True, "a": 1.0}
    same_after_all(tmp_path, for_all(sweep(), env_params=params))
    assert dict(read_sweep(tmp_path)[0].settings[1][0].env_params) == params


positive = st.floats(1e-30, 1e30)
VALUES = {
    "learning_rate": positive,
    "gamma": st.floats(0, 1),
    "target_kl": st.none() | positive,
    "vf_clip_eps": st.none() | positive,
    "hidden_sizes": st.lists(st.integers(1, 2**16), max_size=3).map(tuple),
    "normalize_observation": st.booleans(),
    "num_epochs": st.integers(1, 2**63 - 1),
    "algorithm": st.sampled_from(["ppo_clip", "ppo_kl", "trpo"]),
    "activation": st.sampled_from(["tanh", "relu"]),
}
points = st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries({}, optional={name: VALUES[name] for name in names}), min_size=1)
)


@given(
    points=points,
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
    target=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_there_and_back_of_any_sweep(tmp_path_factory, points, seeds, target):
    same_after_all(tmp_path_factory.mktemp("sweep"), sweep(points, seeds=tuple(seeds), target=target))


def test_what_all_settings_share_is_there_once(tmp_path):
    write_sweep(tmp_path, sweep(), Sizes((4, 2), 2))
    content = json.loads((tmp_path / "sweep.json").read_text())
    own = [{"learning_rate": 1e-3, "hidden_sizes": [4, 4]}, {"learning_rate": 3e-4, "hidden_sizes": []}]
    assert content["settings"] == own
    assert content["shared"].keys() | own[0].keys() == set(FIELDS)
    assert not content["shared"].keys() & own[0].keys()
    assert content["axes"] == ["learning_rate", "hidden_sizes"]
    assert content["points"] == own
    assert content["format_version"] == FORMAT_VERSION


def test_what_an_older_version_did_not_know_has_its_default(tmp_path):
    write_sweep(tmp_path, sweep(), Sizes((4, 2), 2, processes=2))
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert read_sweep(tmp_path)[1] == Sizes((4, 2), 2, processes=2)
    for name in ("line_search_steps", "vf_clip_eps"):
        del content["shared"][name]
    del content["processes"]
    del content["keep_best"]
    (tmp_path / "sweep.json").write_text(json.dumps(content | {"of a later version": 1}))
    assert read_sweep(tmp_path) == (sweep(), Sizes((4, 2), 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": tuple(np.arange(3, dtype=np.uint32))},
        {"target": np.float32(0.1)},
        {"halving": np.int64(2)},
        {"settings": for_all(sweep(), gamma=np.float32(0.9), num_epochs=np.int32(3)).settings},
    ],
)
def test_numbers_of_numpy_are_the_same_sweep_after_all(tmp_path, changes):
    """The hash that its checkpoints carry is the same."""
    given = sweep(**changes)
    given.validate()
    write_sweep(tmp_path, given, sizes_of(given))
    again, _ = read_sweep(tmp_path)
    assert again == given
    assert fingerprint(again) == fingerprint(given)


# --- the record -------------------------------------------------------------------------------------------------------


def another(name):
    """Returns a value that differs from the field's."""
    value = getattr(sweep().settings[0][name in Hyperparams.__dataclass_fields__], name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "another"
    if isinstance(value, tuple):
        return {"a": 1} if name == "env_params" else (*value, 3)
    return 0.125 if value is None else value * 2


@pytest.mark.parametrize("numbers", [(), (0,), (1,)])
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_every_setting_is_in_the_record(name, numbers):
    """A field is changed in all settings, in the first, and in the last."""
    changed = for_all(sweep(), *numbers, **{name: another(name)})
    assert sweep_record(changed) != sweep_record(sweep())


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": (5, 7)},
        {"seeds": (6, 5)},
        {"seeds": (5,)},
        {"settings": sweep().settings[::-1]},
        {"settings": sweep().settings[:1]},
        {"points": sweep().points[::-1]},
        {"axes": ("learning_rate",)},
        {"halving": 2},
        {"exact": True},
        {"target": 1.0},
        {"options": RunOptions(eval_episodes=3)},
    ],
)
def test_what_decides_the_result_is_in_the_record(changes):
    assert sweep_record(sweep(**changes)) != sweep_record(sweep())


@pytest.mark.parametrize("changes", [{"checkpoint_seconds": 1.0}, {"keep_newest": 5}, {"keep_best": 0}])
def test_what_decides_nothing_is_not_in_the_record(tmp_path, changes):
    """Such values are in the file, though."""
    other = sweep(options=RunOptions(**changes))
    assert sweep_record(other) == sweep_record(sweep())
    same_after_all(tmp_path, other)


# --- what is not a sweep's --------------------------------------------------------------------------------------------


def refused(directory):
    """Returns the text of the error, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        read_sweep(directory)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_runs_directory_is_called_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not is_sweep(tmp_path)
    assert f"{tmp_path} is a run's directory, not a sweep's: it has no sweep.json" in refused(tmp_path)
    write_sweep(tmp_path, sweep(), Sizes((4, 2), 2))
    assert is_sweep(tmp_path)
    assert read_sweep(tmp_path)[0] == sweep()


@pytest.mark.parametrize("place", ["", "missing", "file", "n" * 300, "a\0b"])
def test_any_other_place_is_not_a_sweeps_directory(tmp_path, place):
    (tmp_path / "file").write_text("{}")
    assert not is_sweep(tmp_path / place)
    assert "is not a sweep's directory: it has no sweep.json" in refused(tmp_path / place)


def test_a_directory_in_the_place_of_the_file(tmp_path):
    (tmp_path / "sweep.json").mkdir()
    assert not is_sweep(tmp_path)
    assert "it has no sweep.json" in refused(tmp_path)


# --- what is broken or edited -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns a directory whose sweep.json tests overwrite, and the valid content of that file."""
    directory = tmp_path_factory.mktemp("written")
    write_sweep(directory, for_all(sweep(halving=2, target=3.0), env_params={"gravity": 9.5}), Sizes((4, 2), 2))
    return directory, json.loads((directory / "sweep.json").read_text())


def put(directory, content):
    (directory / "sweep.json").write_text(json.dumps(content))


@pytest.mark.parametrize("version", [0, 1, 3, "1", "1\n2", None])
def test_another_format_version(written, version):
    directory, content = written
    put(directory, content | {"format_version": version})
    message = refused(directory)
    assert f"sweep.json has format version {version!r}; this version reads {FORMAT_VERSION}. Sweep again" in message


@pytest.mark.parametrize(
    "text", [b"", b"{", b"null", b"[]", b"3", b'"sweep"', b"\xff\xfe\x00", b"{}", b"[" * 100_000, b'{"a": ' * 100_000]
)
def test_garbage(tmp_path, text):
    (tmp_path / "sweep.json").write_bytes(text)
    assert str(tmp_path / "sweep.json") in refused(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("seeds",), [], "at least one setting and one seed"),
        (("seeds",), [1, 1], "seed 1 is given twice"),
        (("seeds", 0), 2**32, "seed = 4294967296"),
        (("seeds", 0), 0.5, "seed = 0.5"),
        (("seeds",), 3, "int"),
        (("settings",), [], "at least one setting"),
        (("settings",), {"a": 1}, "not a mapping"),
        (("settings", 1), None, "not a mapping"),
        (("settings", 1, "learning_rate"), -1, "learning_rate = -1 is outside"),
        (("settings", 1, "learning_rate"), "1e-3", "learning_rate = '1e-3' is not a number"),
        (("settings", 1, "hidden_sizes"), 64, "hidden_sizes = 64"),
        (("settings", 1, "hidden_sizes"), [[64]], "width [64]"),
        (("settings", 1, "env"), "Acrobot-v1", "different environments"),
        (("shared",), [], "not a mapping"),
        (("shared", "env"), ["CartPole-v1"], "Error("),
        (("shared", "env_params"), {"gravity": "g"}, "env_params: gravity = 'g'"),
        (("shared", "env_params"), 3, "env_params = 3"),
        (("shared", "num_envs"), 0, "num_envs = 0"),
        (("shared", "num_minibatches"), 3, "not divisible by num_minibatches = 3"),
        (("shared", "on_nonfinite"), "skip", "on_nonfinite = skip"),
        (("points", 0), 7, "'int' object has no attribute"),
        (("points",), None, "NoneType"),
        (("halving",), 3, "halving = 3"),
        (("halving",), "2", "Error("),
        (("target",), float("inf"), "target = inf"),
        (("target",), "3", "Error("),
        (("target",), 10**400, "it takes a finite return"),
        (("halving",), 2.0, "halving = 2.0"),
        (("points",), [], "0 points are not 2 settings"),
        (("points", 0, "learning_rate"), 0.5, "point 0 has learning_rate = 0.5"),
        (("axes",), [], "point 0 has learning_rate"),
        (("sizes",), None, "NoneType"),
        (("sizes",), [4], "sizes = (4,) are not those of 2 programs"),
        (("sizes",), [4, 2, 1], "sizes = (4, 2, 1)"),
        (("sizes", 0), 0, "sizes = (0, 2)"),
        (("sizes", 0), 1.5, "sizes = (1.5, 2)"),
        (("sizes", 0), "4", "sizes = ('4', 2)"),
        (("sizes", 0), True, "sizes = (True, 2)"),
        (("checkpoint_seconds",), -1, "checkpoint_seconds = -1"),
        (("eval_episodes",), "128", "eval_episodes = '128'"),
    ],
)
def test_an_edit_that_cannot_be_is_named(written, place, value, says):
    directory, content = written
    put(directory, edited(content, place, value))
    message = refused(directory)
    assert message.startswith(f"{directory / 'sweep.json'} is not a sweep's configuration: ")
    assert says in message
    assert message.endswith("start a new one.")


@pytest.mark.parametrize(
    "name", ["format_version", "axes", "points", "shared", "settings", "seeds", "halving", "exact", "target", "sizes"]
)
def test_what_is_missing_is_named(written, name):
    directory, content = written
    put(directory, {key: value for key, value in content.items() if key != name})
    assert f"KeyError('{name}')" in refused(directory)


GARBAGE = [None, True, -1, 1.5, 2**63, 10**400, float("nan"), "1\n2", [[1]], {"a": [1]}]
ABSENT = object()


def places(content, before=()):
    """Yields the path of every item in a JSON value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*before, key)
        yield from places(value, (*before, key))


def edited(content, place, value):
    content = copy.deepcopy(content)
    *before, last = place
    parent = content
    for key in before:
        parent = parent[key]
    parent[last] = value
    if value is ABSENT:
        del parent[last]
    return content


def refused_or_valid(directory):
    """Checks that reading raises no other exception, and that a sweep which is read can be trained."""
    try:
        read_sweep(directory)[0].validate()
    except CheckpointError:
        assert str(directory / "sweep.json") in refused(directory)


def test_whatever_is_edited(written):
    """Each item of the file is replaced by each type of JSON value."""
    directory, content = written
    count = 0
    for place in places(content):
        for value in [*GARBAGE, ABSENT]:
            put(directory, edited(content, place, value))
            refused_or_valid(directory)
            count += 1
    assert count > 500


@given(st.data())
def test_whatever_is_damaged(written, data):
    """The file is truncated, or some of its bytes are changed; json.loads may raise any of its errors."""
    directory, content = written
    text = bytearray(json.dumps(content).encode())
    for place in data.draw(st.lists(st.integers(0, len(text) - 1), max_size=3)):
        text[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(text)) | st.just(len(text)))
    (directory / "sweep.json").write_bytes(text[:end])
    refused_or_valid(directory)


# --- sweeps of earlier versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("swept", [False, True])
def test_policy_was_the_action_distribution(tmp_path, swept):
    """Such a sweep is read, and its checkpoints are still its own."""
    points = [{"action_distribution": name} for name in ("gaussian", "tanh_gaussian")] if swept else POINTS
    given = sweep(points) if swept else for_all(sweep(), action_distribution="tanh_gaussian")
    write_sweep(tmp_path, given, sizes_of(given))
    path = tmp_path / "sweep.json"
    content = json.loads(path.read_text())
    content["axes"] = ["policy" if name == "action_distribution" else name for name in content["axes"]]
    for name in ("policy", "optimizer"):
        del content["shared"][name]
    for settings in (content["shared"], *content["points"], *content["settings"]):
        if "action_distribution" in settings:
            settings["policy"] = settings.pop("action_distribution")
    path.write_text(json.dumps(content))
    again, _ = read_sweep(tmp_path)
    assert again == given
    assert fingerprint(again) == fingerprint(given)


def test_a_hash_of_an_earlier_version():
    """As it was computed when policy was the action distribution."""
    given = for_all(sweep(), action_distribution="tanh_gaussian")
    assert fingerprint(given) == "913f3b3e1a5b57dcd0591bac63450c2d9dd5eba09a9feddd0d6ff2ff07d2d376"
