"""From the arguments of `purejaxppo sweep` to its settings: which are axes, and where the others come from."""

import json

import pytest
from setting_values import other_value

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli import main as cli
from purejaxppo.cli import parse
from purejaxppo.cli.parse import split_settings
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import ALGORITHMS_WITH
from purejaxppo.config.presets import ALGORITHM_PRESETS, PRESETS
from purejaxppo.config.resolve import FIELDS, resolve
from purejaxppo.errors import ConfigError

CARTPOLE = PRESETS["CartPole-v1"]


def sweep(argv):
    """Returns the settings of the sweep for a command line."""
    return parse.parse(["sweep", *argv.split()]).resolved


# --- axes -------------------------------------------------------------------------------------------------------------


def test_several_values_are_an_axis_and_one_value_is_a_setting():
    """Axes are in the order given, and the first one changes most slowly."""
    asked = sweep("--ent-coef 0.5 --num-envs 4 8 --learning-rate 0.1 0.2 --hidden-sizes 5 6")
    assert asked.axes == ("num_envs", "learning_rate")
    assert asked.points == (
        {"num_envs": 4, "learning_rate": 0.1},
        {"num_envs": 4, "learning_rate": 0.2},
        {"num_envs": 8, "learning_rate": 0.1},
        {"num_envs": 8, "learning_rate": 0.2},
    )
    assert [(config.num_envs, hp.learning_rate) for config, hp in asked.settings] == [
        (4, 0.1),
        (4, 0.2),
        (8, 0.1),
        (8, 0.2),
    ]
    for config, hp in asked.settings:
        assert (hp.ent_coef, config.hidden_sizes) == (0.5, (5, 6))
        assert (config.num_epochs, hp.gamma) == (CARTPOLE["num_epochs"], CARTPOLE["gamma"])


def test_the_order_is_that_of_the_flags():
    assert sweep("--gamma 0.9 0.8 --num-envs 4 8").axes == ("gamma", "num_envs")
    assert sweep("--num-envs 4 8 --gamma 0.9 0.8").axes == ("num_envs", "gamma")


def test_nothing_swept_is_one_setting_with_eight_seeds():
    asked = sweep("--env Acrobot-v1")
    assert (asked.axes, asked.points, asked.seeds) == ((), ({},), tuple(range(8)))
    assert asked.settings == (resolve("Acrobot-v1", {}),)
    assert asked.options == RunOptions()
    assert (asked.halving, asked.exact, asked.num_runs, asked.env) == (None, False, 8, "Acrobot-v1")


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ("--normalize-observation true false", [True, False]),
        ("--normalize-observation", [True]),
        ("--normalize-observation true", [True]),
        ("--normalize-observation=false", [False]),
        ("--no-normalize-observation", [False]),
        ("--normalize_observation=false true", [False, True]),
    ],
)
def test_booleans(argv, values):
    asked = sweep(f"--env Pendulum-v1 {argv}")
    assert [config.normalize_observation for config, _ in asked.settings] == values
    assert asked.axes == (("normalize_observation",) if len(values) > 1 else ())


@pytest.mark.parametrize(
    ("argv", "networks"),
    [
        ("--hidden-sizes 64 32", [(64, 32)]),
        ("--hidden-sizes 64,32", [(64, 32)]),
        ("--hidden-sizes=64,", [(64,)]),
        ("--hidden-sizes 64,64 128,128", [(64, 64), (128, 128)]),
    ],
)
def test_networks(argv, networks):
    assert [config.hidden_sizes for config, _ in sweep(argv).settings] == networks


@pytest.mark.parametrize("argv", ["--learning-rate 0.1 0.2", "--learning-rate=0.1 0.2", "--learning_rate 1e-1 2e-1"])
def test_spellings_of_a_flag(argv):
    assert [hp.learning_rate for _, hp in sweep(argv).settings] == [0.1, 0.2]


def test_none_among_the_values():
    assert [hp.target_kl for _, hp in sweep("--target-kl none 0.5 --vf-clip-eps none").settings] == [None, 0.5]
    assert sweep("--vf-clip-eps none").settings[0][1].vf_clip_eps is None


# What is no number or choice, and what other settings limit further.
VALUES = {
    "total_timesteps": "2e4 30000",
    "hidden_sizes": "3,2 5,",
    "algorithm": "ppo_clip ppo_kl",
    "kl_min": "0.001 0.002",
}


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"env", "env_params", "on_nonfinite"}))
def test_every_other_field_can_be_swept(name):
    words = VALUES.get(name) or f"{FIELDS[name].default} {other_value(FIELDS[name])}"
    algorithm = f"--algorithm {ALGORITHMS_WITH.get(name, ('ppo_clip',))[0]}" if name != "algorithm" else ""
    asked = sweep(f"--{name.replace('_', '-')} {words} {algorithm}")
    assert asked.axes == (name,)
    assert len(asked.settings) == 2
    for point, (config, hp) in zip(asked.points, asked.settings, strict=True):
        assert {**vars(config), **vars(hp)}[name] == point[name]


def test_split_leaves_the_other_flags_to_tyro():
    """A negative number belongs to the flag before it; -h does not."""
    argv = "extra --gamma -1 0.9 --out=a b --env=X --no-plan --shared-torso -h --env-params a=1 b=2"
    words, rest = split_settings(argv.split())
    assert words == {"gamma": ["-1", "0.9"], "env": ["X"], "shared_torso": ["true"], "env_params": ["a=1", "b=2"]}
    assert rest == ["extra", "--out=a", "b", "--env=X", "--no-plan", "-h", "--env-params", "a=1", "b=2"]


# --- where the others come from ---------------------------------------------------------------------------------------


def test_each_algorithm_has_its_own_preset_and_its_own_settings():
    """trpo has another preset for Pendulum, and no clip_eps, so that its points with either value of that are one."""
    asked = sweep("--env Pendulum-v1 --clip-eps 0.1 0.3 --algorithm ppo_clip trpo --ent-coef 0.25")
    assert asked.axes == ("clip_eps", "algorithm")
    assert asked.points == (
        {"clip_eps": 0.1, "algorithm": "ppo_clip"},
        {"algorithm": "trpo"},
        {"clip_eps": 0.3, "algorithm": "ppo_clip"},
    )
    (first, first_hp), (trpo, trpo_hp), (_, third_hp) = asked.settings
    assert (first_hp.clip_eps, third_hp.clip_eps, trpo_hp.clip_eps) == (0.1, 0.3, Hyperparams.clip_eps)
    own = ALGORITHM_PRESETS["trpo"]["Pendulum-v1"]
    assert (trpo.num_steps, trpo_hp.gamma) == (own["num_steps"], own["gamma"])
    assert (first.num_steps, first_hp.gamma) == (128, 0.95)
    assert first_hp.ent_coef == trpo_hp.ent_coef == 0.25


@pytest.mark.parametrize("algorithm", ALGORITHMS.built_in())
def test_a_setting_is_the_one_that_train_would_have(tmp_path, algorithm):
    """It comes from the preset of its environment and algorithm, a file, and a flag, the later ones overriding."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"env": "Pendulum-v1", "gamma": 0.5, "num_envs": 3, "num-epochs": 2}))
    shared = f"--config {path} --num-envs 16 --num-steps 64"
    asked = sweep(f"{shared} --learning-rate 0.1 0.2 --algorithm {' '.join(ALGORITHMS)}")
    assert len(asked.settings) == 8
    for rate in (0.1, 0.2):
        train = parse.parse(["train", *f"{shared} --learning-rate {rate} --algorithm {algorithm}".split()])
        assert (train.settings, train.hp) in asked.settings


def test_the_point_beats_the_flag_beats_the_file_beats_the_preset(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('env = "Acrobot-v1"\nseed = 9\nlearning_rate = 0.5\nnum_envs = 2\ngamma = 0.5\neval_episodes = 7\n')
    asked = sweep(f"--config {path} --num-envs 4 --learning-rate 0.1 0.2 --eval-episodes 6")
    assert asked.seeds == tuple(range(8))  # the file's is that of a run
    for (config, hp), rate in zip(asked.settings, (0.1, 0.2), strict=True):
        assert hp.learning_rate == rate  # point, file, preset
        assert config.num_envs == 4  # flag, file, preset
        assert hp.gamma == 0.5  # file
        assert config.total_timesteps == PRESETS["Acrobot-v1"]["total_timesteps"]  # preset
    assert asked.options == RunOptions(eval_episodes=6)
    assert sweep(f"--config {path}").options == RunOptions(eval_episodes=7)


def test_the_files_algorithm_is_the_sweeps(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"algorithm": "trpo", "cg_damping": 0.5}))
    (config, hp), _ = sweep(f"--config {path} --gamma 0.9 0.8").settings
    assert (config.algorithm, hp.cg_damping) == ("trpo", 0.5)
    clip, trpo = sweep(f"--config {path} --algorithm ppo_clip trpo").settings
    assert (clip[0].algorithm, clip[1].cg_damping) == ("ppo_clip", Hyperparams.cg_damping)
    assert (trpo[0].algorithm, trpo[1].cg_damping) == ("trpo", 0.5)


def test_env_params_and_env_have_one_value():
    asked = sweep("--env-params gravity=5 length=2 --env Acrobot-v1 --gamma 0.9 0.8 --num-envs 4")
    for config, _ in asked.settings:
        assert (config.env, config.num_envs) == ("Acrobot-v1", 4)
        assert config.env_params == (("gravity", 5), ("length", 2))


# --- the sweep's own flags --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "target"),
    [("", 475), ("--target 5", 5.0), ("--env-params gravity=5", None), ("--env Pong-misc", None)],
)
def test_the_target_is_the_published_return_of_the_unchanged_environment(argv, target):
    assert sweep(argv).target == target


@pytest.mark.parametrize(
    ("argv", "seeds"),
    [
        ("--seeds 3", (0, 1, 2)),
        ("--seeds=3 --seed 5", (5, 6, 7)),
        ("--seed 5 --seeds 1", (5,)),
        ("--seeds 4 0 7 --gamma 0.9", (4, 0, 7)),
    ],
)
def test_seeds(argv, seeds):
    assert sweep(argv).seeds == seeds


def test_samples():
    """A span and a list are sampled; the same seed gives the same points."""
    line = "--learning-rate log:1e-4..1e-2 --num-envs 4 8 --samples 5"
    asked = sweep(line)
    assert asked.axes == ("learning_rate", "num_envs")
    assert len(asked.settings) == 5
    assert all(1e-4 <= hp.learning_rate <= 1e-2 and config.num_envs in (4, 8) for config, hp in asked.settings)
    assert sweep(line).points == asked.points != sweep(f"{line} --sample-seed 1").points


def test_halving_and_exact():
    asked = sweep("--gamma 0.9 0.8 0.7 --halving 3 --exact")
    assert (asked.halving, asked.exact) == (3, True)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--seeds 3 3", "--seeds: 3 is given twice"),
        ("--seeds", "--seeds has no value"),
        ("--seeds 0", "--seeds 0"),
        ("--seeds x", "--seeds: 'x'"),
        ("--seeds -1 2", "seed = -1"),
        ("--seeds 1 2 --seed 3", "--seed 3"),
        ("--learning-rate", "--learning-rate has no value"),
        ("--learning-rate=", "learning_rate = ''"),
        ("--learning-rate abc", "learning_rate = 'abc' is not a number"),
        ("--learning-rate 0 1e-3", "learning_rate = 0.0 is outside"),
        ("--num-envs 64 0", "num_envs = 0"),
        ("--clip-eps 0.1 0.1", "clip_eps: 0.1 is given twice"),
        ("--learning-rate 1e-3 --learning-rate 1e-4", "--learning-rate is given twice; give it once, with all of"),
        ("--shared-torso --no-shared-torso", "--shared-torso is given twice"),
        ("--no-shared-torso true", "--no-shared-torso takes no value"),
        ("--env A B", "--env A B: a sweep keeps env at one value"),
        ("--env A --env B", "--env is given twice; give it once."),
        ("--env", "--env"),
        ("--env-params gravity=1 gravity=2", "--env-params gravity=1 gravity=2: a sweep keeps env_params at one value"),
        ("--on-nonfinite stop skip", "--on-nonfinite stop skip: a sweep keeps on_nonfinite at one value"),
        ("--on-nonfinite skip", "on_nonfinite = skip"),
        ("--on-nonfinite", "--on-nonfinite"),
        ("--learning-rate 1e-5..1e-2", "is a span"),
        ("--learning-rate log:0..1e-2 --samples 3", "learning_rate = log:0..1e-2"),
        ("--num-envs 8..64 --samples 3", "num_envs = 8..64 is a span, which only hyperparameters take"),
        ("--samples 3", "--samples draws values of swept settings, and there are none"),
        ("--samples 0 --gamma 0.9 0.8", "--samples 0"),
        ("--samples 3 --gamma 0.9 0.8", "there are only 2 settings"),
        ("--samples few --gamma 0.9 0.8", "few"),
        ("--samples 1 --sample-seed -1 --gamma 0.9 0.8", "--sample-seed -1"),
        ("--halving 2", "--halving 2 chooses among settings, and there is only one"),
        ("--halving 3 --gamma 0.9 0.8", "halving = 3"),
        ("--halving 1 --gamma 0.9 0.8", "halving = 1"),
        ("--target nan", "target = nan"),
        ("--eval-episodes 0", "eval_episodes = 0"),
        ("--algorithm ppo_clip trop", "Did you mean 'trpo'?"),
        ("--algorithm trop", "Did you mean 'trpo'?"),
        ("--algorithm trpo --clip-eps 0.1 0.2", "clip_eps is an option of ppo_clip, not of trpo"),
        ("--algorithm ppo_clip trpo --kl-coef 1 2", "kl_coef is an option of ppo_kl, not of ppo_clip, trpo"),
        ("--algorithm ppo_clip trpo --shared-torso true false", "trpo needs separate torsos"),
        ("--num-minibatches 4 3", "1024 is not divisible by num_minibatches = 3"),
        ("--algorithm ppo_kl --kl-min 0.001 0.5", "kl_min = 0.5 is not below kl_max"),
        ("--learning-rte 1e-3 1e-4", "--learning-rate"),
        ("CartPole-v1 --gamma 0.9 0.8", "CartPole-v1"),
        ("--exact true", "true"),
        ("--plan x", "x"),
        ("--seeds 1e6 --gamma 0.9 0.8", "2 settings x 1000000 seeds = 2000000 runs"),
    ],
)
def test_refusals(capfd, tmp_path, monkeypatch, argv, says):
    """Each gives one line on standard error and exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert cli.run(["sweep", *argv.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("purejaxppo: error: ")
    assert err.count("\n") == 1
    assert "internal error" not in err
    assert says in err
    assert not list(tmp_path.iterdir())


def test_a_file_with_settings_that_no_algorithm_of_the_sweep_has(capfd, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"kl_coef": 2, "algorithm": "ppo_clip"}))
    assert cli.run(["sweep", "--config", str(tmp_path / "c.json"), "--gamma", "0.9", "0.8"]) == 2
    assert "kl_coef is an option of ppo_kl" in capfd.readouterr().err
    (tmp_path / "d.json").write_text(json.dumps({"algorithm": "trop"}))
    assert cli.run(["sweep", "--config", str(tmp_path / "d.json")]) == 2
    assert "Did you mean 'trpo'?" in capfd.readouterr().err


def test_default_algorithm_is_trains():
    assert sweep("").settings[0][0].algorithm == TrainConfig.algorithm


# --- evaluations while training ---------------------------------------------------------------------------------------


def train_options(argv):
    return parse.parse(["train", *argv.split()]).options


@pytest.mark.parametrize(
    ("argv", "updates"),
    [
        ("--total-timesteps 1280", 4),  # 40 updates of 32 steps
        ("--total-timesteps 1279", 4),  # 39
        ("--total-timesteps 1439", 4),  # 44
        ("--total-timesteps 1440", 5),  # 45
        ("--total-timesteps 64", 1),
        ("--total-timesteps 1280 --num-steps 16", 2),
    ],
)
def test_train_evaluates_ten_times(argv, updates):
    """A tenth of the budget is rounded to whole updates, of which it has at least one."""
    command = parse.parse(["train", "--num-envs", "4", "--num-steps", "8", *argv.split()])
    assert command.options == RunOptions(eval_every=updates * command.settings.batch_size)


def test_a_flag_or_a_file_says_how_often_it_evaluates(tmp_path):
    """The default of a budget does not replace what a run's config.json has, even if it is 0."""
    path = tmp_path / "c.json"
    for value in (0, 640):
        path.write_text(json.dumps({"eval_every": value, "total_timesteps": 10**6}))
        assert train_options(f"--config {path} --total-timesteps 64000").eval_every == value
        assert train_options(f"--config {path} --eval-every=7").eval_every == 7
        assert sweep(f"--config {path}").options == RunOptions()
    assert train_options("--eval_every 0").eval_every == 0
    assert train_options("--eval-every-episodes 5") == RunOptions(
        eval_every=train_options("").eval_every, eval_every_episodes=5
    )


def test_the_help_shows_how_often_it_evaluates(capsys):
    with pytest.raises(SystemExit):
        parse.parse(["train", "--env", "Acrobot-v1", "--help"])
    assert f"(default: {train_options('--env Acrobot-v1').eval_every})" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sweep", "compare"])
@pytest.mark.parametrize("flag", ["--eval-every 64", "--eval-every=0", "--eval_every_episodes 4", "--keep-best 1"])
def test_options_of_single_runs_are_refused(command, flag):
    with pytest.raises(ConfigError, match=r"^--(eval-every|eval-every-episodes|keep-best) is for single runs; "):
        parse.parse([command, *flag.split()])
