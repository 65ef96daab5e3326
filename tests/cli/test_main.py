"""The command line: one line of error and the right exit code for every bad input, and JSON with --json."""

import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnax
import jax
import pytest
from compiled_once import compiled_once

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli import handlers
from purejaxppo.cli import main as cli
from purejaxppo.cli.arguments import Envs, Resume
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import ALGORITHMS_WITH
from purejaxppo.core.optimizer import OPTIMIZERS, SCHEDULES
from purejaxppo.devices.machine import find_machine
from purejaxppo.envs.registry import ENVS
from purejaxppo.policies.registry import POLICIES

TINY = ["--num-envs", "4", "--num-steps", "8", "--num-epochs", "1", "--num-minibatches", "2", "--hidden-sizes", "4"]
BUDGET = ["--total-timesteps", "64"]
FIELDS = [field.name for kind in (TrainConfig, Hyperparams) for field in dataclasses.fields(kind)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Runs every test in an empty working directory, and undoes its imports and registered environments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    known, modules = list(gymnax.registration.registered_envs), set(sys.modules)
    yield
    gymnax.registration.registered_envs[:] = known
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    with compiled_once():
        yield


@pytest.fixture
def fails(capfd, tmp_path):
    """Returns a function: fails(code, *argv) returns the error's text, and checks what all errors have in common."""

    def check(code, *argv):
        before = sorted(tmp_path.rglob("*"))
        assert cli.run(argv) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("purejaxppo: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert "internal error" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err.removeprefix("purejaxppo: error: ")

    return check


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["xyzzy"], "train, resume, compare, sweep, evaluate, export, extract, plot, verify, envs, doctor"),
        ([""], "unknown command"),
        (["--env", "CartPole-v1"], "unknown command"),
        (["train", "--learning-rte", "1e-3"], "--learning-rate"),
        (["train", "--evn", "CartPole-v1"], "--env"),
        (["envs", "--jsn"], "--json"),
        (["train", "CartPole-v1"], "CartPole-v1"),
        (["train", "--seed"], "--seed"),
        (["train", "--config"], "--config"),
        (["train", "--shared-torso", "yes"], "yes"),
        (["evaluate"], "RUN_DIR"),
        (["plot"], "run directory"),
    ],
)
def test_usage(fails, argv, says):
    assert says in fails(2, *argv)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--coordinator", "localhost:12345"], "belong together; give all three, or none."),
        (["--process-id", "0"], "belong together; give all three, or none."),
        (["--coordinator", "here", "--num-processes", "2", "--process-id", "0"], "is no address; give HOST:PORT"),
        (["--coordinator", "here:0", "--num-processes", "2", "--process-id", "0"], "is no address; give HOST:PORT"),
        (["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"], "is not one of 2 processes"),
        (["--distributed", "--devices", "2"], "--devices 2 chooses among one process's"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_options_of_several_processes(fails, command, options, says):
    """They are refused before anything is joined."""
    assert says in fails(2, command, "--env", "CartPole-v1", *options)


@pytest.mark.parametrize("argv", [["train", "--num-envs", "many"], ["train", "--evn", "x"], ["evaluate"]])
def test_usage_errors_read_as_a_sentence(fails, argv):
    """Nothing is left of the box that tyro draws around them."""
    assert not re.search(r"[-─]{5}|[│╭╰]", fails(2, *argv))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num-envs", "many"),
        ("num-envs", "1.5"),
        ("total-timesteps", "1e3.5"),
        ("total-timesteps", "inf"),
        ("total-timesteps", "nan"),
        ("seed", "0.5"),
        ("learning-rate", "fast"),
        ("target-kl", "off"),
        ("hidden-sizes", "64x64"),
        ("activation", "tahn"),
        ("action-distribution", "normal"),
        ("normalize-advantage", "yes"),
        ("device", "abacus"),
        ("eval-episodes", "all"),
        ("env-params", "gravity"),
        ("env-params", "gravity=heavy"),
        ("env-params", "=1"),
    ],
)
def test_values_of_the_wrong_type(fails, name, value):
    message = fails(2, "train", f"--{name}", value)
    assert name in message
    assert value.split("=")[-1] in message


def owner(name):
    """Returns an algorithm that has the option."""
    return ALGORITHMS_WITH.get(name, ("ppo_clip",))[0]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Hyperparams)])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e400", "1e39"])
def test_hyperparameters_out_of_range(fails, name, value):
    argv = [f"--{name.replace('_', '-')}", value, "--algorithm", owner(name)]
    assert fails(2, "train", *argv).startswith(name)


@pytest.mark.parametrize(
    "name", ["learning_rate", "clip_eps", "max_grad_norm", "vf_clip_eps", "target_kl", "kl_max", "kl_coef"]
)
def test_hyperparameters_that_may_not_be_0(fails, name):
    argv = [f"--{name.replace('_', '-')}", "0", "--algorithm", owner(name)]
    assert fails(2, "train", *argv).startswith(name)


@pytest.mark.parametrize("name", ["gamma", "gae-lambda"])
def test_discounts_above_1(fails, name):
    assert "[0, 1]" in fails(2, "train", f"--{name}", "1.01")


@pytest.mark.parametrize(
    "name",
    [
        "total_timesteps",
        "num_envs",
        "num_steps",
        "num_epochs",
        "num_minibatches",
        "cg_iterations",
        "line_search_steps",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "-1e6"])
def test_counts_below_1(fails, name, value):
    argv = [f"--{name.replace('_', '-')}", value, "--algorithm", owner(name)]
    assert fails(2, "train", *argv).startswith(name)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--num-envs", "3", "--num-steps", "5", "--num-minibatches", "4"], "15 is not divisible"),
        (["--num-envs", "3", "--num-steps", "5", "--num-minibatches", "4"], "try 1, 3 or 5"),
        ([*TINY, "--total-timesteps", "31"], "needs at least 32"),
        ([*TINY, "--total-timesteps", str(2**63)], "2**63"),
        ([*TINY, "--total-timesteps", "1e30"], "2**63"),
        ([*TINY, "--total-timesteps", str(2**62)], "updates"),
        (["--num-envs", "1e6", "--num-steps", "1e6"], "2**31"),
        (["--seed", "-1"], "2**32"),
        (["--seed", str(2**32)], "2**32"),
        (["--hidden-sizes", "0"], "width 0"),
        (["--hidden-sizes", "64", "1000000"], "width 1000000"),
        (["--hidden-sizes", "-64"], "width -64"),
        (["--eval-episodes", "0", *BUDGET, *TINY], "eval_episodes"),
        (["--eval-episodes", "-5", *BUDGET, *TINY], "eval_episodes"),
        (["--algorithm", "ppo_clop", *BUDGET, *TINY], "Did you mean 'ppo_clip'?"),
    ],
)
def test_settings_that_cannot_train(fails, argv, says):
    assert says in fails(2, "train", *argv)


def test_an_option_for_continuous_actions_on_discrete_ones(fails):
    message = fails(2, "train", "--env", "CartPole-v1", "--action-distribution", "tanh_gaussian", *BUDGET, *TINY)
    assert "action_distribution" in message
    assert "CartPole-v1" in message


# --- configuration files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.json", '{"gamma": 0.9,}', "line 1, column 15"),
        ("c.toml", "gamma = = 1", "line 1, column 9"),
        ("c.json", '{"gama": 0.9}', "Did you mean 'gamma'?"),
        ("c.json", '{"gamma": "high"}', "gamma"),
        ("c.json", '{"gamma": NaN}', "gamma"),
        ("c.json", '{"num_envs": null}', "num_envs"),
        ("c.json", '{"num_envs": "8"}', "num_envs"),
        ("c.json", '{"activation": "tahn"}', "tahn"),
        ("c.json", '{"hidden_sizes": ["wide"]}', "wide"),
        ("c.json", '{"seed": -1}', "seed"),
        ("c.json", '{"seed": "lucky"}', "seed"),
        ("c.json", '{"env_params": {"gravity": "low"}}', "env_params"),
        ("c.json", '{"learning_rate": 1' + 400 * "0" + "}", "learning_rate"),
        ("c.json", " " * 2**20 + "{}", "over 1 MB"),
        ("c.json", "[]", "no table"),
        ("c.json", "", "line 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:The field:UserWarning")  # tyro's, about a default of the wrong type
def test_configuration_files(fails, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    assert says in fails(2, "train", "--config", name)


@pytest.mark.parametrize("path", ["missing.json", ".", "/"])
def test_no_configuration_file(fails, path):
    assert path in fails(2, "train", "--config", path)


# --- environments, plugins, devices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "compare"])
def test_an_unknown_environment_comes_before_what_follows_from_it(fails, command):
    assert "unknown environment 'Nope'" in fails(5, command, "--env", "Nope", "--total-timesteps", "1")
    assert "below one update" in fails(2, command, "--env", "Catch-bsuite", "--total-timesteps", "1")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--env", "Cartpole-v1"], "Did you mean 'CartPole-v1'?"),
        (["--env", ""], "unknown environment"),
        (["--env", "MNISTBandit-bsuite"], "--allow-download"),
        (["--env-params", "gravitiy=1"], "Did you mean 'gravity'?"),
        (["--env-params", "gravity=nan"], "gravity"),
        (["--env-params", "gravity=inf"], "gravity"),
        (["--env-params", "max_steps_in_episode=0"], "max_steps_in_episode"),
        (["--env-params", "max_steps_in_episode=-1"], "max_steps_in_episode"),
        (["--env-params", "max_steps_in_episode=1.5"], "max_steps_in_episode"),
        (["--env-params", "max_steps_in_episode=true"], "max_steps_in_episode"),
        (["--plugin", "plugin_that_is_missing"], "plugin_that_is_missing"),
        (["--plugin", ""], "plugin"),
        (["--plugin", "../evil"], "plugin"),
    ],
)
def test_environments_and_plugins(fails, argv, says):
    assert says in fails(5, "train", *argv, *BUDGET, *TINY)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Returns a function: plugin(name, body) writes a module that registers Mine-v0, a CartPole with this body."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which would be a file more

    def write(name, body):
        lines = [
            "import gymnax, jax.numpy as jnp",
            "from gymnax.environments.classic_control.cartpole import CartPole",
            "class Mine(CartPole):",
            *("    " + line for line in body),
            'gymnax.register("Mine-v0", Mine)',
        ]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))

    return write


@pytest.mark.parametrize("name", ["plugin_raises", "./plugin_raises.py"])
def test_plugin_that_raises(fails, plugin, name):
    plugin("plugin_raises", ["1 / 0"])
    message = fails(5, "train", "--plugin", name, "--env", "Mine-v0", *BUDGET, *TINY)
    assert "plugin_raises" in message
    assert "ZeroDivisionError" in message


def test_plugin_with_the_old_step(fails, plugin):
    plugin("plugin_old", ["def step(self, *args):", "    return super().step(*args)[:5]"])
    message = fails(5, "train", "--plugin", "plugin_old", "--env", "Mine-v0", *BUDGET, *TINY)
    assert "Mine-v0.step returns 5 values" in message


def test_plugin_whose_step_raises_is_named_with_its_line(fails, plugin):
    plugin("plugin_broken", ["def step_env(self, *args):", "    raise RuntimeError('out of coffee')"])
    message = fails(5, "train", "--plugin", "plugin_broken", "--env", "Mine-v0", *BUDGET, *TINY)
    assert "Mine-v0" in message
    assert "RuntimeError: out of coffee" in message
    assert "plugin_broken.py:5" in message


@pytest.mark.parametrize("argv", [[], ["ppo_clip"]])
def test_an_unknown_algorithm_of_a_sweep(fails, argv):
    """The registry knows them, plugins included, so that JAX is loaded first; no directory is left behind."""
    message = fails(2, "sweep", "--algorithm", *argv, "ppo_clop", "--out", "out", *BUDGET, *TINY)
    assert "choose from ppo_clip, ppo_kl, trpo, policy_gradient." in message
    assert "Did you mean 'ppo_clip'?" in message


@pytest.fixture
def own_rule(tmp_path):
    """Returns the flags for a plugin that adds an update rule to the registry, as the README shows it."""
    (tmp_path / "plugin_rule.py").write_text(
        "from purejaxppo import policy_gradient, register_algorithm\n"
        "register_algorithm('mine', lambda config, apply, *, shards: policy_gradient(config, apply, shards=shards))\n"
    )
    yield ["--plugin", "plugin_rule"]
    ALGORITHMS.remove("mine")


@pytest.fixture
def own_parts(tmp_path):
    """Yields the flags for a plugin with a part of every kind, and those that name them."""
    (tmp_path / "plugin_parts.py").write_text(
        "import optax, purejaxppo\n"
        "from purejaxppo.policies.networks import mlp\n"
        "def board(num_envs, **params):\n"
        "    return purejaxppo.from_gymnax('Catch-bsuite', num_envs, **params)\n"
        "purejaxppo.register_env('mine', board)\n"
        "purejaxppo.register_policy('mine', lambda config, env: mlp(config, env))\n"
        "purejaxppo.register_algorithm('mine', lambda config, apply, *, shards: purejaxppo.ppo_clip(config, apply))\n"
        "purejaxppo.register_optimizer('mine', lambda hp: optax.lion(hp.learning_rate))\n"
        "purejaxppo.register_schedule('mine', lambda progress: (1 - progress) ** 2)\n"
    )
    kinds = ("env", "policy", "algorithm", "learning-rate-schedule", "ent-coef-schedule", "optimizer")
    yield ["--plugin", "plugin_parts"], [word for kind in kinds for word in (f"--{kind}", "mine")]
    for registry in (ENVS, POLICIES, ALGORITHMS, OPTIMIZERS, SCHEDULES):
        registry.remove("mine")


def test_parts_of_ones_own_by_name(own_parts, fails, capfd):
    """They are trained, resumed and evaluated; without the plugin the first that is missing is named."""
    plugin, names = own_parts
    for argv in (
        ["train", *plugin, *names, "--out", "run", "--eval-episodes", "2", *BUDGET, *TINY],
        ["resume", "run", *plugin, "--total-timesteps", "128"],
        ["evaluate", "run", *plugin, "--episodes", "2"],
    ):
        assert cli.run(argv) == 0, capfd.readouterr().err
    capfd.readouterr()
    settings = json.loads(Path("run/config.json").read_text())
    assert [settings[name] for name in ("env", "policy", "algorithm", "optimizer")] == ["mine"] * 4
    for registry in (OPTIMIZERS, POLICIES, ENVS):  # as in a process without the plugin
        registry.remove("mine")
        message = fails(5 if registry is ENVS else 2, "evaluate", "run")
        assert f"register_{registry.kind}('mine', ...)" in message
        assert "--plugin" in message


@pytest.mark.slow
def test_a_sweep_of_parts_of_ones_own(own_parts, capfd):
    """Two runs, of which one has a built-in optimizer; one is evaluated, exported, extracted and trained further."""
    plugin, names = own_parts
    swept = ["muon", "--seeds", "1", "--eval-episodes", "2", *BUDGET, *TINY]
    for argv in (
        ["sweep", *plugin, *names, *swept, "--out", "swept"],
        ["resume", "swept", *plugin],
        ["evaluate", "swept", "--member", "1", *plugin, "--episodes", "2"],
        ["export", "swept", "--member", "0", *plugin, "--out", "exported"],
        ["extract", "swept", "--member", "1", *plugin, "--out", "member"],
        ["resume", "member", *plugin, "--total-timesteps", "128"],
        ["compare", *plugin, *names[:4], "--algorithms", "mine", "trpo", "--seeds", "1", "--out", "both", *swept[3:]],
    ):
        assert cli.run(argv) == 0, capfd.readouterr().err
    assert json.loads(Path("exported/policy.json").read_text())["network"] is None
    assert not Path("exported/numpy_policy.py").exists()


@pytest.mark.parametrize(
    ("flag", "word", "meant"),
    [("--optimizer", "adm", "adam"), ("--policy", "cnv", "conv"), ("--learning-rate-schedule", "cosin", "cosine")],
)
def test_a_misspelt_part(fails, flag, word, meant):
    """It is refused before a directory is made."""
    message = fails(2, "train", flag, word, "--out", "out", *BUDGET, *TINY)
    assert f"{word!r} is unknown" in message
    assert f"Did you mean {meant!r}?" in message


@pytest.fixture
def nothing_compiled(monkeypatch):
    """Lets every plan fit into memory without compiling its programs; what that finds is in sweeps/test_run.py."""
    monkeypatch.setattr("purejaxppo.sweeps.compiled_group.CompiledGroup.needed_bytes", lambda *_: 1)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_rule_of_ones_own_can_be_swept(own_rule, capfd):
    """It takes the options that it reads, and no message says otherwise."""
    flags = ["--vf-coef", "0.5", "1", "--clip-eps", "0.1", "0.2", "--seeds", "1", *BUDGET, *TINY]
    assert cli.run(["sweep", *own_rule, "--algorithm", "mine", "trpo", *flags, "--plan", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["settings"] == 5  # four of its own, and the one of trpo, which has neither option
    assert [program["values"]["algorithm"] for program in plan["programs"]] == ["mine", "trpo"]


@pytest.mark.slow
def test_a_rule_of_ones_own_goes_through_every_command(own_rule, capfd):
    """It is trained, resumed, evaluated, exported and compared, and a sweep of it is resumed and extracted from."""
    flags = [*own_rule, "--json"]
    mine = [*flags, *BUDGET, *TINY]
    few = ["--eval-episodes", "2"]
    for argv in (
        ["train", "--algorithm", "mine", "--out", "run", *few, *mine],
        ["resume", "run", "--total-timesteps", "128", *flags],
        ["evaluate", "run", "--episodes", "2", *flags],
        ["export", "run", "--out", "policy", *flags],
        ["compare", "--algorithms", "mine", "ppo_clip", "--seeds", "1", "--out", "both", *few, *mine],
        ["sweep", "--algorithm", "mine", "trpo", "--seeds", "1", "--out", "swept", *few, *mine],
        ["resume", "swept", *flags],
        ["extract", "swept", "--member", "0", "--out", "member", *flags],
    ):
        assert cli.run(argv) == 0, capfd.readouterr().err
    capfd.readouterr()
    assert cli.run(["evaluate", "run", "--json"]) == 0  # once imported, it is there
    ALGORITHMS.remove("mine")
    assert cli.run(["evaluate", "run"]) == 2
    assert "'mine' is unknown" in (message := capfd.readouterr().err)
    assert "--plugin" in message


def test_plugin_whose_reward_becomes_nan_ends_with_3(plugin, capfd, tmp_path):
    """It trains until then; the directory remains, without a checkpoint."""
    body = [
        "def step_env(self, *args):",
        "    obs, state, reward, *rest = super().step_env(*args)",
        "    return obs, state, jnp.where(state.time > 9, jnp.nan, reward), *rest",
    ]
    plugin("plugin_nan", body)
    flags = ["--plugin", "plugin_nan", "--env", "Mine-v0", "--out", "out", "--total-timesteps", "320", *TINY]
    assert cli.run(["train", *flags]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"^purejaxppo: error: reward is not finite at update [12] ", err.splitlines()[-1])
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_devices_that_are_not_there(server, tmp_path):
    """It runs in a process of its own, since JAX chooses its devices once."""
    script = (
        "from purejaxppo.cli.main import run\n"
        "for device in ('gpu', 'tpu'):\n"
        f"    print(run(['train', '--device', device, '--out', {str(tmp_path / 'out')!r}]))"
    )
    hidden = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    code, printed, errors = server.script(tmp_path / "log", script, **hidden)
    assert code == 0, errors
    assert printed.split() == ["2", "2"]
    gpu, tpu = (line for line in errors.splitlines() if line.startswith("purejaxppo: error: "))
    for line, device in ((gpu, "gpu"), (tpu, "tpu")):
        assert f"--device {device} is not available" in line
        assert "--device auto" in line
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variables", "argv", "says"),
    [
        ({}, [], "JAX_PLATFORM_NAME=abacus is not available"),
        ({"JAX_PLATFORMS": "cpu"}, [], "JAX_PLATFORMS=cpu JAX_PLATFORM_NAME=abacus is not available"),
        ({}, ["--device", "cpu"], None),
    ],
    ids=["alone", "both", "flag"],
)
def test_the_older_variable_is_named_too_and_the_flag_beats_it(server, tmp_path, variables, argv, says):
    """For JAX_PLATFORM_NAME, JAX only says that there is no such backend."""
    script = (
        "import sys, types; from purejaxppo.cli.main import run\n"
        "table = types.SimpleNamespace(env_table=lambda allow_download: [])\n"
        f"sys.modules['purejaxppo.envs.env_table'] = table; sys.exit(run({['envs', *argv]}))"
    )
    variables = {"JAX_PLATFORMS": None, "JAX_PLATFORM_NAME": "abacus", **variables}
    code, _, errors = server.script(tmp_path / "log", script, **variables)
    assert code == (2 if says else 0)
    assert (says or "") in errors
    assert "--device" not in errors


def test_devices_that_the_variable_asks_for_in_vain(server, tmp_path):
    """The message does not mention the flag, which was not given."""
    argv = ["train", "--out", str(tmp_path / "out")]
    script = f"import sys; from purejaxppo.cli.main import run; sys.exit(run({argv}))"
    code, _, errors = server.script(tmp_path / "log", script, JAX_PLATFORMS="abacus")
    assert code == 2
    assert "JAX_PLATFORMS=abacus is not available" in errors
    assert "unset it, or set it to cpu" in errors
    assert "--device" not in errors


def test_a_signal_while_the_command_line_is_imported_ends_it_with_a_line():
    """Signals are handled before anything slow is imported, so there is never a traceback."""
    script = (
        "import builtins, os, signal, time; from purejaxppo.__main__ import main; load = builtins.__import__\n"
        "def slow(name, *rest):\n"
        "    if name == 'purejaxppo.cli.main':\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    return load(name, *rest)\n"
        "builtins.__import__ = slow; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130
    assert done.stderr == "purejaxppo: error: interrupted; nothing had been written yet, so nothing is lost.\n"


# --- directories ------------------------------------------------------------------------------------------------------


def test_a_picture_without_a_cache_directory_needs_no_words(tmp_path):
    """matplotlib makes a temporary one, and would print two lines about it."""
    (tmp_path / "config.json").write_text(json.dumps({"env": "X", "algorithm": "Y"}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"update": 1, "env_steps": 1, "episode/return": 1.0}) + "\n")
    nowhere = dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(tmp_path / "config.json" / "directory"))
    env = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"} | nowhere
    program = "from purejaxppo.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "plot", "."], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    # What is said after some seconds, on a busy machine, is another matter: of the search for fonts, and progress.
    late = ("building the font cache", " so far")
    assert [line for line in done.stderr.splitlines() if not any(words in line for words in late)] == []


NEEDING_A_RUN = [["evaluate"], ["plot"], ["resume"], ["verify"], ["export", "--out", "policy"]]


@pytest.mark.parametrize("command", NEEDING_A_RUN)
@pytest.mark.parametrize("path", ["missing", ".", "file", "x" * 300, "a\0b", "../evil", "~"])
def test_what_is_no_run_directory(fails, tmp_path, command, path):
    """One line says so, and nothing is written to it."""
    (tmp_path / "file").write_text("")
    message = fails(4, *command, path)
    assert "config.json" in message or "cannot" in message


@pytest.mark.parametrize("command", NEEDING_A_RUN)
@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"format_version": 1}'])
def test_a_config_that_is_no_runs(fails, tmp_path, command, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "env_steps": 1, "episode/return": 1.0}\n')
    assert "config.json" in fails(4, *command, ".")


OF_A_SWEEP = [
    ["evaluate", "--member", "0"],
    ["export", "--out", "policy", "--member", "0"],
    ["extract", "--member", "0"],
]


@pytest.mark.parametrize("command", NEEDING_A_RUN + OF_A_SWEEP, ids=" ".join)
def test_a_comparisons_directory_is_called_what_it_is(fails, tmp_path, command):
    """It has no checkpoints: commands that need one say so, and what the directory is."""
    (tmp_path / "comparison.json").write_text('{"format_version": 1, "seeds": [0], "runs": []}')
    message = fails(4, *command, ".")
    assert "a comparison's directory" in message
    assert "purejaxppo sweep --algorithm" in message


@pytest.mark.parametrize("flag", ["--episodes", "--seed"])
def test_evaluate_checks_its_numbers(fails, flag):
    assert flag.strip("-") in fails(2, "evaluate", ".", flag, "-1")


@pytest.mark.parametrize("out", ["file", "file/below", "full", "/proc/nothing", "x" * 300, "a\0b"])
def test_out_that_cannot_be_a_new_directory(fails, tmp_path, out):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    fails(4, "train", "--out", out, *BUDGET, *TINY)


# --- what works -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the directory of a run made with a configuration file and flags, for tests to read."""
    path = tmp_path_factory.mktemp("trained")
    config = path / "c.toml"
    config.write_text('env = "Acrobot-v1"\nnum-steps = 8\nseed = 9\n[env_params]\nmax_steps_in_episode = 5\n')
    tiny = [x for i in range(0, len(TINY), 2) for x in TINY[i : i + 2] if TINY[i] != "--num-steps"]
    argv = [
        "train",
        "--config",
        str(config),
        "--env",
        "CartPole-v1",
        "--out",
        str(path / "run"),
        "--eval-episodes",
        "4",
    ]
    assert cli.run([*argv, "--total-timesteps", "1e2", *tiny]) == 0
    return path / "run"


def test_train_prints_json_alone_on_stdout(capfd, tmp_path):
    argv = ["train", "--json", "--out", "run", "--total-timesteps", "7e1", "--eval-episodes", "2", *TINY]
    assert cli.run(argv) == 0
    out, err = capfd.readouterr()
    summary = json.loads(out)
    assert summary["env_steps"] == 64  # of 70
    assert summary["exit_reason"] == "finished"
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    first = err.splitlines()[0]
    assert "64 env steps (of 70 asked for)" in first
    assert "seed 0" in first
    assert "device" in first


def test_flag_beats_file_in_a_real_run(trained):
    content = json.loads((trained / "config.json").read_text())
    assert content["env"] == "CartPole-v1"  # flag, not file
    assert content["seed"] == 9  # file, not default
    assert content["num_steps"] == 8  # file, not preset
    assert content["env_params"] == {"max_steps_in_episode": 5}
    assert content["total_timesteps"] == 100
    assert json.loads((trained / "summary.json").read_text())["env_steps"] == 96


def test_a_runs_config_starts_the_same_run_again(trained, capfd):
    argv = ["train", "--json", "--config", str(trained / "config.json"), "--out", "again", "--eval-episodes", "4"]
    assert cli.run(argv) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["state_sha256"] == json.loads((trained / "summary.json").read_text())["state_sha256"]


def test_train_in_words(capfd):
    """The result is on standard output, progress on standard error."""
    assert cli.run(["train", "--out", "run", "--eval-episodes", "2", *BUDGET, *TINY]) == 0
    out, err = capfd.readouterr()
    assert "finished: 64 env steps" in out
    assert "evaluation over 2 episodes: return " in out
    assert "run directory run" in out
    assert "64 / 64 env steps" in err
    seconds = re.search(r"^(\S+) s in all: start (\S+) s, .*compilation \S+ s", out, re.MULTILINE)
    assert 0 < float(seconds[2]) < float(seconds[1])


@pytest.mark.usefixtures("nothing_compiled")
def test_plan_and_training_say_where_the_settings_are_from(capfd):
    """One line on standard error says so, with --json, too."""
    assert cli.run(["sweep", "--env", "MetaMaze-misc", "--gamma", "0.9", "0.99", "--plan", "--json", *TINY]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)
    line, *_ = err.splitlines()  # a plan that takes long says so after it
    assert "the defaults, as MetaMaze-misc has no tuned preset, but for num_envs" in line
    assert line.endswith("a policy without memory cannot go back to it (--policy gru has memory)")


def test_evaluate(trained, capfd):
    argv = ["evaluate", str(trained), "--episodes", "4", "--seed", "9"]
    assert cli.run([*argv, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    expected = json.loads((trained / "summary.json").read_text())["evaluation"]
    assert result == {"env_steps": 96, **expected}
    assert result["length_mean"] == 5
    assert cli.run(argv) == 0
    assert (
        "policy of 96 env steps, evaluation over 4 episodes: return 5 +- 0 (interquartile mean 5), length 5"
        in capfd.readouterr().out
    )


def test_evaluate_sampled(trained, capfd):
    assert cli.run(["evaluate", str(trained), "--episodes", "4", "--sampled", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["episodes"] == 4


def test_plot(trained, capfd, tmp_path):
    assert cli.run(["plot", str(trained), "--out", "curve.png", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"picture": "curve.png"}
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.run(["plot", str(trained), str(trained)]) == 0
    assert capfd.readouterr().out == "learning_curves.png\n"
    assert (tmp_path / "learning_curves.png").stat().st_size > 5000
    assert cli.run(["plot", str(trained)]) == 0
    assert capfd.readouterr().out == f"{trained}/plots/learning_curve.png\n"


@pytest.mark.parametrize(
    "names", [["CartPole-v1", "MNISTBandit-bsuite", "Pong-misc"], pytest.param(None, marks=pytest.mark.slow)]
)
def test_envs(capfd, monkeypatch, names):
    """By default three of them, as building takes long."""
    if names:
        monkeypatch.setattr(gymnax.registration, "registered_envs", list(names))
    with jax.numpy_rank_promotion("allow"):  # inside Swimmer
        assert cli.run(["envs", "--json"]) == 0
    rows = {row["env"]: row for row in json.loads(capfd.readouterr().out)}
    assert len(rows) >= 26 if names is None else list(rows) == names
    assert rows["CartPole-v1"] == {
        "env": "CartPole-v1",
        "observation": [4],
        "actions": "2 discrete",
        "step_limit": 500,
        "preset": True,
    }
    assert rows["Pong-misc"]["preset"] is False
    assert "--allow-download" in rows["MNISTBandit-bsuite"]["error"]


def test_envs_as_a_table(capfd, monkeypatch):
    row = {"env": "CartPole-v1", "observation": [4], "actions": "2 discrete", "step_limit": None}
    broken = {"env": "Odd-v0", "observation": None, "actions": None, "step_limit": None, "error": "no luck"}
    several = {**row, "env": "Own-v0", "observation": {"picture": [8, 8, 3], "speed": [2]}}
    monkeypatch.setattr("purejaxppo.envs.env_table.env_table", lambda allow_download: [row, broken, several])
    assert cli.run(["envs"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"Own-v0 +picture 8 x 8 x 3, speed 2 +2 discrete", out)
    assert re.search(r"CartPole-v1 +4 +2 discrete +- +yes", out)
    assert re.search(r"Odd-v0 +no luck", out)


# --- a sweep: the engine is a stand-in -------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """Replaces planning, training and the table; returns the calls of the replacements, and the summary they return."""
    seen = SimpleNamespace(
        calls=[], summary={"settings": [{"rank": 1}], "axes": [], "out": "o", "exit_reason": "finished"}
    )

    def make_plan(sweep, *, allow_download):
        seen.calls.append(("plan", sweep, allow_download))
        return sweep

    def run_sweep(sweep, *, out, allow_download, stop, phases):
        seen.calls.append(("run", sweep, out, allow_download, stop()))
        return seen.summary

    modules = {
        "plan": {
            "make_plan": make_plan,
            "plan_record": lambda plan: {"runs": plan.num_runs},
            "describe_plan": lambda record: [["runs", str(record["runs"])]],
        },
        "run": {"run_sweep": run_sweep},
        "tables": {"settings_table": lambda rows, sweep: [["rank", *sweep.axes], [str(rows[0]["rank"]), "[0.5]"]]},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"purejaxppo.sweeps.{name}", SimpleNamespace(**content))
    return seen


SWEEP = ["sweep", "--gamma", "0.5", "0.6", "--seeds", "3"]


def test_sweep_in_words(engine, capfd):
    assert cli.run([*SWEEP, "--out", "o", "--allow-download"]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"rank +gamma", out)
    assert re.search(r"1 +\[0\.5\]", out)
    assert "results in o" in out
    assert err == ""
    ((what, sweep, path, allow_download, stop),) = engine.calls
    assert (what, path, allow_download, stop) == ("run", Path("o"), True, None)
    assert sweep.points == ({"gamma": 0.5}, {"gamma": 0.6})


def test_sweep_prints_json_alone_on_stdout(engine, capfd):
    assert cli.run([*SWEEP, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == engine.summary
    assert engine.calls[0][2:] == (None, False, None)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_sweep_that_a_signal_stopped_ends_with_75(engine, capfd, flags):
    engine.summary["exit_reason"] = "SIGTERM"
    assert cli.run([*SWEEP, *flags]) == 75
    err = capfd.readouterr().err
    assert err == "purejaxppo: stopped by SIGTERM; the state is saved, `purejaxppo resume o` goes on\n"


def test_a_plan_trains_nothing(engine, capfd):
    assert cli.run([*SWEEP, "--plan"]) == 0
    assert re.search(r"runs +6", capfd.readouterr().out)
    assert cli.run([*SWEEP, "--plan", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"runs": 6}
    assert [call[0] for call in engine.calls] == ["plan", "plan"]


def test_a_sweep_that_cannot_work_is_refused_before_jax_is_loaded():
    """Each value alone is valid; together they are not."""
    script = (
        "import sys\nfrom purejaxppo.cli.main import run\n"
        "print(run(['sweep', '--num-minibatches', '4', '3']), {'jax', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "2 set()\n"
    assert "1024 is not divisible by num_minibatches = 3" in done.stderr


@pytest.mark.parametrize(
    ("options", "one_thread", "variable", "devices"),
    [
        ({"device": "cpu"}, True, None, 3),
        ({}, True, "2", 2),
        ({}, False, None, 1),
    ],
)
def test_training_has_a_device_per_core(server, tmp_path, options, one_thread, variable, devices):
    """The machine seems to have three cores; the user's variable overrides that. It runs in a process of its own."""
    script = (
        "from purejaxppo.cli import main as cli\nfrom purejaxppo.devices import cpu\n"
        "from purejaxppo.cli.arguments import Common\ncpu.cpu_cores = lambda: 3\n"
        f"for _ in range(2):\n    cli._prepare(Common(**{options}), one_thread={one_thread})\n"
        "import jax\nprint(len(jax.devices()))\n"
        # JAX has started by now
        f"cpu.cpu_cores = lambda: 5\ncli._prepare(Common(**{options}), one_thread={one_thread})\n"
        "print(len(jax.devices()))"
    )
    _, printed, errors = server.script(tmp_path / "log", script, JAX_NUM_CPU_DEVICES=variable)
    assert printed.split() == [str(devices)] * 2, errors


@pytest.mark.parametrize(
    ("argv", "one_thread"),
    [
        (SWEEP, True),
        (["compare"], True),
        (["train"], True),
        (["train", "--env", "Breakout-MinAtar"], False),
        (["train", "--env", "Breakout-MinAtar", "--devices", "2"], True),
        (["envs"], False),
    ],
)
def test_which_commands_have_devices_of_one_thread(monkeypatch, argv, one_thread):
    seen = []
    monkeypatch.setattr(cli, "_prepare", lambda common, **options: seen.append(options["one_thread"]))
    for kind in list(handlers.ACTIONS):
        monkeypatch.setitem(handlers.ACTIONS, kind, lambda command: 0)
    assert cli.run(argv) == 0
    assert seen == [one_thread]


@pytest.mark.parametrize(("before", "one_thread"), [(None, False), (1, False), (2, True), (3, False)])
def test_a_run_is_resumed_on_as_many_devices_of_one_thread(unfinished, monkeypatch, before, one_thread):
    """If there are as many cores, of which there are two here; by its own size it would have one device."""
    seen = []
    monkeypatch.setattr(cli, "_prepare", lambda common, **options: seen.append(options["one_thread"]))
    monkeypatch.setattr(cli, "cpu_cores", lambda: 2)
    monkeypatch.setattr(cli, "one_thread_is_enough", lambda config, cores: False)
    monkeypatch.setitem(handlers.ACTIONS, Resume, lambda command: 0)
    versions = Path(unfinished, "versions.json")
    versions.write_text(json.dumps({**json.loads(versions.read_text()), "devices": before}))
    assert cli.run(["resume", unfinished]) == 0
    assert seen == [one_thread]


# --- going on, and looking at checkpoints -----------------------------------------------------------------------------


@pytest.fixture
def unfinished(trained, tmp_path):
    """Returns a copy of the run as if it had been killed before its evaluation."""
    shutil.copytree(trained, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    return "unfinished"


def test_a_run_whose_result_cannot_be_printed_is_finished(unfinished, monkeypatch, capfd):
    """Training and evaluation are on the disk by then, and resuming has nothing to do."""
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert cli.run(["resume", unfinished]) == 4
    assert json.loads(Path(unfinished, "summary.json").read_text())["exit_reason"] == "finished"
    assert "cannot write to standard output: No space left on device" in capfd.readouterr().err.splitlines()[-1]
    assert cli.run(["resume", unfinished]) == 0
    assert "finished already" in capfd.readouterr().err


def test_resume(unfinished, trained, capfd, monkeypatch):
    argv = ["resume", unfinished, "--json"]
    assert cli.run(argv) == 0
    out, err = capfd.readouterr()
    summary, before = json.loads(out), json.loads((trained / "summary.json").read_text())
    for name in ("state_sha256", "evaluation", "train_return", "seed"):
        assert summary[name] == before[name]
    assert "resumed at 96 env steps" in err.splitlines()[0]
    monkeypatch.setattr(cli, "_prepare", lambda *_, **__: pytest.fail("a finished run needs no JAX"))
    assert cli.run(argv) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == summary
    assert "finished already" in err


def test_resume_with_more_steps(unfinished, capfd, tmp_path):
    argv = ["resume", unfinished, "--json", "--total-timesteps", "128", "--eval-episodes", "3", "--keep-newest", "2"]
    assert cli.run([*argv, "--keep-best", "0"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["env_steps"], summary["evaluation"]["episodes"]) == (128, 3)
    kept = {path.name for path in (tmp_path / unfinished / "checkpoints").iterdir()}
    assert kept == {"step_000000000096", "step_000000000128"}
    assert json.loads((tmp_path / unfinished / "config.json").read_text())["total_timesteps"] == 128


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--learning-rate", "0.5", "--gamma", "0.5"], ["learning_rate 0.001 -> 0.5", "gamma 0.98 -> 0.5"]),
        (["--env", "Acrobot-v1"], ["env CartPole-v1 -> Acrobot-v1"]),
        (["--hidden-sizes", "4", "4"], ["hidden_sizes [4] -> [4, 4]"]),
        (["--num-envs", "8"], ["num_envs 4 -> 8"]),
        (["--seed", "1"], ["--seed"]),
        (["--out", "elsewhere"], ["--out"]),
        (["--total-timesteps", "64"], ["less than what", "96 env steps"]),
        (["--total-timesteps", "3"], ["needs at least 32"]),
        (["--checkpoint-seconds", "-1"], ["checkpoint_seconds"]),
        (["--checkpoint-seconds", "nan"], ["checkpoint_seconds"]),
        (["--keep-newest", "0"], ["keep_newest"]),
        (["--keep-best", "-1"], ["keep_best"]),
        (["--on-nonfinite", "pray"], ["pray"]),
    ],
)
def test_resume_refuses(fails, unfinished, argv, says):
    (Path(unfinished) / "run.lock").touch()
    message = fails(2, "resume", unfinished, *argv)
    assert all(part in message for part in says), message


def test_resume_help_is_that_of_the_run(trained, capfd):
    text = help_of(capfd, "resume", str(trained))
    assert "100" in text
    assert "Example: purejaxppo resume" in text


def test_verify(trained, capfd, tmp_path):
    assert cli.run(["verify", str(trained)]) == 0
    out = capfd.readouterr().out
    assert "evaluation return (best by this)" in out
    assert re.search(r"step_000000000096 +96 +5 +5 +0\.\d\d +sound", out)
    shutil.copytree(trained, tmp_path / "copy")
    commit = tmp_path / "copy" / "checkpoints" / "step_000000000096" / "COMMIT"
    commit.unlink()
    assert cli.run(["verify", "copy", "--json"]) == 4
    out, err = capfd.readouterr()
    assert json.loads(out)[0]["fault"] == "COMMIT is missing"
    assert "1 of 1 checkpoints of copy are damaged" in err
    assert cli.run(["verify", "copy"]) == 4
    assert "COMMIT is missing" in capfd.readouterr().out


def test_verify_without_a_checkpoint(trained, fails, tmp_path):
    shutil.copytree(trained, tmp_path / "copy", ignore=lambda *_: ["checkpoints"])
    assert "no checkpoint" in fails(4, "verify", "copy")
    assert "no checkpoint" in fails(4, "evaluate", "copy")


def test_evaluate_takes_the_checkpoint_that_it_is_told(trained, fails, capfd):
    assert cli.run(["evaluate", str(trained), "--step", "96", "--episodes", "2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["episodes"] == 2
    assert "no checkpoint of 95 env steps" in fails(4, "evaluate", str(trained), "--step", "95")


def test_export(trained, capfd, tmp_path):
    """The exported reader acts in a process that has NumPy alone."""
    assert cli.run(["export", str(trained), "--out", "policy"]) == 0
    assert "policy of 96 env steps written to policy: numpy_policy.py, policy.json" in capfd.readouterr().out
    reader = [sys.executable, "-I", "policy/numpy_policy.py"]
    done = subprocess.run(reader, input="[0.1, 0.0, -0.2, 0.0]", capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("0", "1")
    assert cli.run(["export", str(trained), "--out", "policy"]) == 4
    assert "not an empty directory" in capfd.readouterr().err


def test_doctor(capfd, monkeypatch):
    """Facts, checks and advice are printed, and the exit code is 2 if a check failed."""
    check = {"name": "advantages", "status": "ok", "detail": "fine", "seconds": 0.1}
    report = {**find_machine(), "ok": True, "checks": [check], "recommendations": ["Do this."]}
    monkeypatch.setattr("purejaxppo.cli.doctor.examine", lambda directory: report)
    assert cli.run(["doctor"]) == 0
    out = capfd.readouterr().out
    assert re.search(rf"jax +{re.escape(jax.__version__)}", out)
    assert re.search(r"advantages +ok +fine +0\.1", out)
    assert "- Do this." in out
    report["ok"] = False
    assert cli.run(["doctor", "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["recommendations"] == ["Do this."]


# --- what ends a command from within ----------------------------------------------------------------------------------


@pytest.fixture
def raising(monkeypatch):
    """Returns a function: raising(error) makes `envs` raise it."""

    def use(error):
        def fail(command):
            raise error

        monkeypatch.setitem(handlers.ACTIONS, Envs, fail)

    return use


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes"), 7, "num_envs"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines"),
        (MemoryError(), 7, "num_envs"),
    ],
)
def test_exit_codes(raising, capfd, error, code, says):
    raising(error)
    assert cli.run(["envs"]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(capfd):
    assert cli.run(["train", "--gamma", "2", "--debug"]) == 2
    err = capfd.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "validate_hyperparams" in err
    assert err.splitlines()[-1].startswith("purejaxppo: error: gamma")


def test_version(capfd):
    with pytest.raises(SystemExit) as stop:
        cli.run(["--version"])
    assert not stop.value.code
    assert capfd.readouterr().out == f"purejaxppo {find_machine()['versions']['purejaxppo']}\n"


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["compare", "--help"], ["sweep", "--help"], []])
def test_help_is_fast_and_does_without_jax(argv):
    """It takes under two seconds of processor time, and imports nothing slow."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from purejaxppo.cli.main import main; main()", *argv],
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "train" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "tyro" in imported
    assert not imported & {"jax", "jaxlib", "gymnax", "flax", "optax", "orbax", "matplotlib", "numpy"}
    assert after.ru_utime - before.ru_utime < 2


def help_of(capfd, *argv):
    with pytest.raises(SystemExit) as stop:
        cli.run([*argv, "--help"])
    assert not stop.value.code
    return capfd.readouterr().out


def test_help_mentions_every_setting(capfd):
    text = help_of(capfd, "train")
    for name in FIELDS:
        assert "--" + name.replace("_", "-") in text
    assert "Discount per step" in text  # the docstrings under the fields
    assert "150000" in text  # CartPole's preset


def test_help_of_a_sweep_mentions_every_setting_and_teaches(capfd):
    text = help_of(capfd, "sweep", "--algorithm", "trpo", "--env=Pendulum-v1", "--gamma", "0.9", "oops")
    for name in FIELDS:
        assert "--" + name.replace("_", "-") in text
    for example in ("--learning-rate 3e-4 1e-3 3e-3 --ent-coef 0 0.01", "log:1e-4..1e-2 --samples 64 --halving 4"):
        assert example in text
    assert "256" in text  # steps in the preset of trpo for Pendulum
    assert "resolved" not in text


def test_help_shows_the_defaults_of_the_chosen_environment(capfd):
    assert "1000000" in help_of(capfd, "train", "--env", "Pendulum-v1")


@pytest.mark.parametrize(
    "command", ["compare", "sweep", "evaluate", "export", "extract", "plot", "verify", "envs", "doctor"]
)
def test_every_command_has_help_and_an_example(capfd, command):
    assert f"Example: purejaxppo {command}" in help_of(capfd, command)


_MUTEX = (
    "mutex = ctypes.create_string_buffer(64); lock = ctypes.CDLL(None).pthread_mutex_lock; lock(mutex), lock(mutex)"
)


@pytest.mark.parametrize(
    ("name", "wait"), [("SIGTERM", "time.sleep(60)"), ("SIGINT", "time.sleep(60)"), ("SIGINT", _MUTEX)]
)
def test_a_signal_outside_training_ends_the_process_at_once(name, wait):
    """No exception is raised, which an extension module would not survive while it is loaded.

    It also works while the main thread computes in C and does not return to Python, as in an evaluation.
    """
    program = (
        "import ctypes, os, signal, threading, time; from purejaxppo.cli import main as cli\n"
        "def wait(argv):\n"
        f"    threading.Timer(0.1, os.kill, (os.getpid(), signal.{name})).start()\n"
        f"    {wait}\n"
        "cli.run = wait\n"
        "cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 130
    assert ended.stderr == "purejaxppo: error: interrupted; nothing had been written yet, so nothing is lost.\n"
    assert ended.stdout == ""
