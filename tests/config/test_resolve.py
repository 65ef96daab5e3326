"""The origin of a setting: defaults, preset, file, flag; and files that are refused."""

import dataclasses
import json

import pytest
from setting_values import other_value

from purejaxppo.cli import parse
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import ALGORITHMS_WITH
from purejaxppo.config.presets import PRESETS
from purejaxppo.config.resolve import (
    describe_settings,
    read_settings,
    refuse_changes,
    resolve,
    settings_record,
    tenth_of_budget,
    upgraded,
)
from purejaxppo.config.validate import validate_config, validate_hyperparams
from purejaxppo.errors import ConfigError

# Differs from the default in a field of each kind.
ENV = "CartPole-v1"
PRESET = PRESETS[ENV]


@pytest.fixture
def write(tmp_path):
    """Yields a function: write(name, content) -> path; content other than text and bytes is written as JSON."""

    def put(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return put


def refused(path):
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert caught.value.exit_code == 2
    assert path.name in str(caught.value)
    return str(caught.value)


# --- precedence -------------------------------------------------------------------------------------------------------


def test_preset_beats_default():
    config, hp = resolve(ENV, {})
    assert config.total_timesteps == PRESET["total_timesteps"] != TrainConfig.total_timesteps
    assert hp.learning_rate == PRESET["learning_rate"] != Hyperparams.learning_rate
    assert hp.vf_coef == Hyperparams.vf_coef


def test_settings_beat_the_preset():
    config, hp = resolve(ENV, {"num_envs": 3, "learning_rate": 0.5})
    assert (config.num_envs, hp.learning_rate) == (3, 0.5)
    assert config.total_timesteps == PRESET["total_timesteps"]


@pytest.mark.parametrize(
    ("env", "settings", "says"),
    [
        ("Pendulum-v1", [{}], "settings: the tuned preset of Pendulum-v1"),
        ("Pendulum-v1", [{"algorithm": "trpo"}, {}], "settings: the tuned preset of Pendulum-v1"),
        (
            "Pendulum-v1",
            [{"gamma": 0.5, "num_envs": 2}, {"clip_eps": 0.3}, {}],
            "settings: the tuned preset of Pendulum-v1, but for num_envs, gamma, clip_eps",
        ),
        ("Pong-misc", [{}], "settings: the defaults, as Pong-misc has no tuned preset"),
        ("Pong-misc", [{"gamma": 0.5}], "settings: the defaults, as Pong-misc has no tuned preset, but for gamma"),
        (
            "PointRobot-misc",
            [{}],
            "settings: the tuned preset of PointRobot-misc; PointRobot-misc: its goal is not shown, so a policy "
            "without memory cannot go back to it (--policy gru has memory)",
        ),
        (
            "PointRobot-misc",
            [{"policy": "gru"}],
            "settings: the tuned preset of PointRobot-misc, but for policy",
        ),
        (
            "SimpleBandit-bsuite",
            [{"policy": "gru"}],
            "settings: the defaults, as SimpleBandit-bsuite has no tuned preset, but for policy; SimpleBandit-bsuite: "
            "which arm pays is drawn for every episode of one step and never shown, so no policy does better than "
            "chance",
        ),
        ("MemoryChain-bsuite", [{}], "settings: the tuned preset of MemoryChain-bsuite"),
    ],
)
def test_where_settings_are_from_is_one_line(env, settings, says):
    assert describe_settings([resolve(env, each) for each in settings]) == says


def test_which_environments_preset():
    """It is that of the argument, else that of the settings, else that of the default."""
    assert resolve("Pendulum-v1", {"env": ENV})[0].env == "Pendulum-v1"
    assert resolve("Pendulum-v1", {"env": ENV})[0].normalize_observation
    assert resolve(None, {"env": "Pendulum-v1"})[0].normalize_observation
    assert resolve(None, {})[0] == resolve(TrainConfig.env, {})[0]
    assert resolve("NoPreset-v0", {}) == (TrainConfig(env="NoPreset-v0"), Hyperparams())


def test_flag_beats_file_beats_preset_beats_default(write):
    """One field is set at each level and all levels below; hyphens and underscores are the same."""
    path = write("c.json", {"env": ENV, "num-envs": 2, "learning_rate": 0.5, "num_steps": 64})
    command = parse.parse(["train", "--config", str(path), "--learning-rate", "0.25"])
    assert command.hp.learning_rate == 0.25  # flag, file, preset
    assert command.settings.num_envs == 2  # file, preset
    assert command.settings.total_timesteps == PRESET["total_timesteps"]  # preset
    assert command.hp.vf_coef == Hyperparams.vf_coef  # nobody
    assert command.seed == 0


@pytest.mark.parametrize("argv", [["--env", "Pendulum-v1"], ["--env=Pendulum-v1"]])
def test_env_flag_decides_about_the_preset(write, argv):
    path = write("c.json", {"env": ENV, "seed": 7})
    command = parse.parse(["train", *argv, "--config", str(path)])
    assert command.settings.env == "Pendulum-v1"
    assert command.settings.normalize_reward
    assert command.seed == 7
    assert parse.parse(["train", *argv, f"--config={path}", "--seed", "8"]).seed == 8


@pytest.mark.parametrize("algorithm", ["ppo_clip", "ppo_kl", "trpo", "policy_gradient"])
def test_every_field_is_a_flag(algorithm):
    """Each takes a value of its own type, with an algorithm that has it; booleans are pairs of flags."""
    by_hand = {
        "env": "Acrobot-v1",
        "env_params": (("gravity", 1.5), ("max_steps_in_episode", 20)),
        "algorithm": algorithm,
        "hidden_sizes": (3, 2, 1),
    }
    fields = [field for kind in (TrainConfig, Hyperparams, RunOptions) for field in dataclasses.fields(kind)]
    given = {f.name: by_hand[f.name] if f.name in by_hand else other_value(f, i) for i, f in enumerate(fields)}
    given = {name: x for name, x in given.items() if algorithm in ALGORITHMS_WITH.get(name, (algorithm,))}
    argv = []
    for name, value in given.items():
        argv.append(("--no-" if value is False else "--") + name.replace("_", "-"))
        if name == "env_params":
            argv += [f"{k}={v}" for k, v in value]
        elif isinstance(value, tuple):
            argv += map(str, value)
        elif not isinstance(value, bool):
            argv.append(str(value))
    command = parse.parse(["train", *argv])
    records = (command.settings, command.hp, command.options)
    parsed = {name: value for record in records for name, value in dataclasses.asdict(record).items()}
    assert {name: parsed[name] for name in given} == given
    off = parse.parse(["train", "--env", "Pendulum-v1", "--no-normalize-observation", "--no-normalize-reward"])
    assert not off.settings.normalize_observation
    assert not off.settings.normalize_reward
    nothing = parse.parse(["train", "--target-kl", "None", "--vf-clip-eps", "None"])
    assert nothing.hp.target_kl is nothing.hp.vf_clip_eps is None


@pytest.mark.parametrize(("text", "number"), [("1e6", 10**6), ("1000", 1000), ("2.0", 2), ("1_000", 1000)])
def test_whole_numbers_may_be_written_as_floats(text, number):
    assert parse.parse(["train", "--total-timesteps", text]).settings.total_timesteps == number


# --- files ------------------------------------------------------------------------------------------------------------

CONTENT = {
    "env": "Pendulum-v1",
    "env_params": {"max_steps_in_episode": 100, "g": 9.5},
    "num_envs": 16.0,
    "total_timesteps": 1e6,
    "hidden_sizes": [8, 4],
    "shared_torso": True,
    "learning_rate": 3e-4,
    "target_kl": 0.02,
    "seed": 5,
}
TOML = """\
env = "Pendulum-v1"
num-envs = 16.0
total_timesteps = 1e6
hidden_sizes = [8, 4]
shared_torso = true
learning_rate = 3e-4
target_kl = 0.02
seed = 5
[env_params]
max_steps_in_episode = 100
g = 9.5
"""


@pytest.mark.parametrize(("name", "content"), [("c.json", CONTENT), ("c.toml", TOML), ("no_ending", CONTENT)])
def test_json_and_toml(write, name, content):
    """Numbers keep their type, except that whole ones may be written 1e6."""
    settings = read_settings(write(name, content))
    assert settings == CONTENT
    assert isinstance(settings["total_timesteps"], int)
    assert isinstance(settings["num_envs"], int)
    config, hp = resolve(None, settings)
    validate_config(config)
    validate_hyperparams(hp)
    assert config.hidden_sizes == (8, 4)
    assert dict(config.env_params) == CONTENT["env_params"]


def test_a_runs_own_config_is_such_a_file(write):
    """Its nulls and its format version are accepted."""
    config, hp = resolve("Pendulum-v1", {"num_envs": 4})
    fields = {**dataclasses.asdict(config), **dataclasses.asdict(hp), "env_params": {}}
    settings = read_settings(write("config.json", {"format_version": 1, "seed": 3, **fields}))
    assert settings.pop("seed") == 3
    assert resolve(None, settings) == (config, hp)


def test_json_error_has_line_and_column(write):
    assert "line 3, column 13" in refused(write("c.json", '{\n"num_envs": 8,\n"gamma": 0.9x\n}'))


def test_toml_error_has_line_and_column(write):
    assert "line 2, column 9" in refused(write("c.toml", "num_envs = 8\ngamma = = 1\n"))


@pytest.mark.parametrize(("name", "content"), [("c.json", {"learning_rte": 1}), ("c.toml", "learning-rte = 1")])
def test_unknown_key_with_a_suggestion(write, name, content):
    message = refused(write(name, content))
    assert "'learning_rte'" in message
    assert "Did you mean 'learning_rate'?" in message


def test_over_one_megabyte(write):
    assert "over 1 MB" in refused(write("c.json", " " * 2**20 + "{}"))
    assert read_settings(write("c.json", "{}" + " " * 1000)) == {}


def test_a_file_that_is_not_there(tmp_path):
    refused(tmp_path / "missing.json")
    refused(tmp_path)  # a directory


WRONG = {
    "a list": [1],
    "a number": "3",
    "empty": "",
    "binary": b"\xff\xfe\x00",
    "nested too deeply": "[" * 100_000,
    "a number too long to read": '{"num_envs": 1' + "0" * 5000 + "}",
    "env is a number": {"env": 3},
    "env is null": {"env": None},
    "env_params is a list": {"env_params": [["g", 1]]},
    "env_params holds text": {"env_params": {"g": "1"}},
    "env_params holds null": {"env_params": {"g": None}},
    "hidden_sizes is a number": {"hidden_sizes": 64},
    "hidden_sizes is text": {"hidden_sizes": "64"},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_cannot_be_one(write, kind):
    assert "\n" not in refused(write("c.json", WRONG[kind]))


WRONG_VALUES = {
    "num_envs": ["8", None, True, 1.5, [8], 10**400],
    "total_timesteps": [float("inf"), float("nan"), 2**63],
    "hidden_sizes": [["a"], [0], [1.5], [None], [True], [[8]]],
    "activation": ["tahn", 3, None],
    "shared_torso": ["yes", 1, None],
    "learning_rate": ["3e-4", None, True, float("nan"), -1, [1.0], 10**400],
    "target_kl": ["off", 0, False],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG_VALUES.items() for v in values], ids=repr)
def test_a_value_of_the_wrong_type_is_refused_before_anything_is_built(write, key, value):
    """The file's reader or the validation refuses it, with exit code 2 and without a traceback."""
    path = write("c.json", {key: value})

    def load():
        config, hp = resolve(None, read_settings(path))
        validate_config(config)
        validate_hyperparams(hp)

    with pytest.raises(ConfigError, match=key):
        load()


# --- files of earlier versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", "tanh_gaussian"])
def test_policy_was_the_action_distribution(write, name):
    settings = read_settings(write("config.json", {"policy": name, "num_envs": 4}))
    assert settings == {"action_distribution": name, "num_envs": 4}
    assert upgraded({"policy": "conv"}) == {"policy": "conv"}
    assert upgraded(settings) == settings
    old = {**settings_record(TrainConfig(action_distribution=name), Hyperparams()), "policy": name}
    for later in ("action_distribution", "optimizer"):
        del old[later]
    refuse_changes(old, settings_record(TrainConfig(action_distribution=name), Hyperparams()), "")
    with pytest.raises(ConfigError, match="optimizer adam -> sgd"):
        refuse_changes(old, settings_record(TrainConfig(action_distribution=name, optimizer="sgd"), Hyperparams()), "")


@pytest.mark.parametrize(("timesteps", "steps"), [(3200, 320), (3199, 320), (1, 0), (32, 32), (480, 64)])
def test_a_tenth_of_the_budget_is_in_whole_updates(timesteps, steps):
    """It is 0 where the budget is below one update, which is refused elsewhere; 15 updates have a tenth of two."""
    assert tenth_of_budget(TrainConfig(num_envs=4, num_steps=8, total_timesteps=timesteps)) == steps


@pytest.mark.parametrize("change", [{"num_envs": 0}, {"num_steps": "8"}, {"total_timesteps": None}])
def test_invalid_settings_have_no_tenth(change):
    assert tenth_of_budget(TrainConfig(**change)) == 0
