"""An exported policy acts as in the run's own evaluation: in JAX, and in NumPy without this package."""

import ast
import dataclasses
import functools
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_envs import shown
from safetensors.numpy import load_file

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import Activation
from purejaxppo.core.normalizer import RunningStats
from purejaxppo.core.types import Box, EnvStep, MultiDiscrete
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.evaluate import frozen
from purejaxppo.experiment.checkpoints.state import snapshot
from purejaxppo.experiment.checkpoints.store import save_step
from purejaxppo.experiment.directory import RunSettings, write_inputs
from purejaxppo.experiment.export import export, numpy_policy
from purejaxppo.experiment.export.export import export_saved
from purejaxppo.experiment.load_run import SavedRun, load_run
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import trainer_from_config

FILES = ["numpy_policy.py", "policy.json", "policy.stablehlo", "weights.safetensors"]
SMALL = {"num_envs": 2, "num_steps": 2, "num_minibatches": 1, "hidden_sizes": (8,)}
NORMALIZED = {"normalize_observation": True}
CASES = {
    "discrete": {"env": "CartPole-v1", "hidden_sizes": (8, 5), "activation": "tanh", **NORMALIZED},
    "shared": {"env": "Acrobot-v1", "shared_torso": True, "activation": "relu"},
    "image": {"env": "Breakout-MinAtar", "hidden_sizes": (8, 5), "activation": "tanh", **NORMALIZED},
    "small board": {"env": "Catch-bsuite", "activation": "elu"},
    "one-hot": {"env": "FrozenLake-misc", "activation": "gelu"},
    "gaussian": {"env": "Pendulum-v1", "activation": "elu", **NORMALIZED},
    "tanh_gaussian": {"env": "Pendulum-v1", "action_distribution": "tanh_gaussian", "activation": "gelu", **NORMALIZED},
    "two actions": {
        "env": "Reacher-misc",
        "action_distribution": "tanh_gaussian",
        "activation": "silu",
        "shared_torso": True,
    },
    "factors": {"env": "CartPole-v1", "activation": "relu", "actions": MultiDiscrete((3, 1, 4)), **NORMALIZED},
    "gru": {"env": "CartPole-v1", "policy": "gru", "activation": "elu", **NORMALIZED},
    "matrix": {"env": "Pendulum-v1", "activation": "tanh", "actions": Box((2, 2), ((-2.0, 0.0), (3.0, 1.0)), 4.0)},
}


def scrambled(key, tree):
    """Randomises every leaf: initial biases are 0, and initial logits so small that rounding would decide.

    Kernels are scaled by their number of inputs, or one action would win whatever the observation.
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    scales = [2 / math.sqrt(x.shape[0]) if x.ndim == 2 else 0.3 for x in leaves]
    zipped = zip(scales, keys, leaves, strict=True)
    return structure.unflatten([scale * jax.random.normal(k, x.shape) for scale, k, x in zipped])


def with_actions(env, space):
    """Returns the environment with another action space, of whose elements it takes the first."""

    def step(draws, state, action):
        first = action.reshape(len(action), -1)[:, 0].astype(env.action_space.element().dtype)
        return env.step(draws, state, first.reshape(len(action), *env.action_space.element().shape))

    return env._replace(action_space=space, step=step)


def make_run(actions=None, of=None, **settings):
    """Returns a run that looks as if it had trained 3 updates, with random parameters and normaliser."""
    config = TrainConfig(**{**SMALL, **settings})
    env = of or from_gymnax(config.env, config.num_envs, **dict(config.env_params))
    env = with_actions(env, actions) if actions else env
    trainer = trainer_from_config(config, env)
    shapes = jax.eval_shape(trainer.init, jax.random.key(0), Hyperparams())
    runner = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes._replace(key=()))
    keys = jax.random.split(jax.random.key(7), 4)
    params = scrambled(keys[0], runner.learner.params)
    normalizer, stats = runner.normalizer, runner.normalizer.obs
    if stats is not None:

        def seen(x):
            mean, var = jax.random.normal(keys[1], x.mean.shape), jnp.exp(jax.random.normal(keys[2], x.mean.shape))
            return x._replace(mean=mean, var=var, rows=jnp.float32(12))

        stats = jax.tree.map(seen, stats, is_leaf=lambda x: isinstance(x, RunningStats))
        normalizer = normalizer._replace(obs=stats)
    learner = runner.learner._replace(params=params)
    runner = runner._replace(learner=learner, normalizer=normalizer, key=keys[3], updates=jnp.int32(3))
    return SavedRun(config, env, runner, {})


def observations(run, batch):
    """Returns observations that reach the normaliser's clip and the actions' bounds; one-hot if the env's are."""
    shape = run.env.observation_space.shape
    if run.config.env == "FrozenLake-misc":
        return np.eye(*shape, dtype=np.float32)[: batch * 2 : 2]
    return 6 * np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)


def own_actions(run, obs):
    """Returns the actions in purejaxppo's own evaluation, in an environment that shows `obs` and records the action."""

    def step(key, state, action):
        zero = jnp.zeros(rows)
        return state, EnvStep(obs, obs, zero, zero > 0, zero > 0, {"action": action})

    rows, obs = len(jax.tree.leaves(obs)[0]), jax.tree.map(jnp.asarray, obs)
    showing = run.env._replace(reset=lambda key: ((), obs), step=step, num_envs=rows)
    env, policy = bound_action(run.config, showing), frozen(make_policy(run.config, run.env), run.runner)
    state, seen = env.reset(jax.random.key(0))
    _, pi = policy.act(run.params, policy.initial_memory(rows), seen, jnp.ones(rows, bool))
    _, result = env.step(jax.random.key(0), state, pi.mode())
    return np.asarray(result.info["action"]), pi


def parameters(pi):
    """Returns what an exported policy says of its distribution, {name: array}."""
    return {"logits": pi.logits} if hasattr(pi, "factors") else pi._asdict()


def assert_same_actions(run, got, expected, pi):
    """Asserts equality of discrete actions; the two best logits of each row must differ by more than rounding."""
    assert got.shape == expected.shape == (len(got), *run.env.action_space.element().shape)
    if not isinstance(run.env.action_space, Box):
        assert got.dtype == expected.dtype == np.int32
        factors = pi.factors if hasattr(pi, "factors") else [pi]
        for factor, mine, own in zip(factors, np.atleast_2d(got.T), np.atleast_2d(expected.T), strict=True):
            best = np.sort(np.asarray(factor.logits), axis=-1)
            clear = np.subtract(*best[:, :-3:-1].T) > 1e-4 if best.shape[-1] > 1 else np.full(len(best), True)
            assert clear.mean() > 0.8
            np.testing.assert_array_equal(mine[clear], own[clear])
    else:
        assert got.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        low, high = run.env.action_space.bounds()
        assert (got >= low).all()
        assert (got <= high).all()


@pytest.fixture
def exported(tmp_path):
    """Yields a function: exported(run) is the directory that a run is exported to."""

    def write(run):
        export_saved(run, tmp_path / "out")
        return tmp_path / "out"

    return write


@pytest.fixture(scope="module")
def exported_case(tmp_path_factory):
    """exported_case("image") is the run of that case, and the directory that it has been exported to."""

    @functools.cache
    def export_once(name):
        run, out = make_run(**CASES[name]), tmp_path_factory.mktemp("case") / "out"
        export_saved(run, out)
        return run, out

    return export_once


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a run, its run directory, its exported directory, what `export_saved` returned); not to be changed."""
    run = make_run(**CASES["discrete"], env_params={"max_steps_in_episode": 9})
    run_dir = tmp_path_factory.mktemp("saved")
    hp = Hyperparams()
    settings = RunSettings(run.config, hp, 0, RunOptions())
    write_inputs(run_dir, settings, devices=1)
    save_step(run_dir, 12, snapshot(run.runner), {"settings": settings.record()})
    out = run_dir / "new" / "exported"
    return run, run_dir, out, export_saved(load_run(run_dir), out)


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the exported directory, to be damaged."""
    return Path(shutil.copytree(saved[2], tmp_path / "copied"))


# --- the same actions -------------------------------------------------------------------------------------------------


# Seven cases by default, with every activation, torso and kind of action.
OFTEN = ("shared", "image", "one-hot", "gaussian", "two actions", "factors", "matrix")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.slow]) for name in CASES if name != "gru"],
)
def test_every_kind_of_policy_acts_as_in_evaluation(name, exported_case):
    """In JAX and in NumPy, for batches of 1 and 7; JAX also returns the distribution, as policy.json describes."""
    run, out = exported_case(name)
    module = jax.export.deserialize(bytearray((out / "policy.stablehlo").read_bytes()))
    policy = numpy_policy.load(out)
    said = policy.spec["stablehlo"]
    assert said["observation"] == {"shape": ["b", *run.env.observation_space.shape], "dtype": "float32"}
    seen = []
    for batch in (1, 7):
        obs = observations(run, batch)
        expected, pi = own_actions(run, obs)
        result = module.call(obs)
        assert result.keys() == {"action", *parameters(pi)}
        arrays = {name: {"shape": ["b", *x.shape[1:]], "dtype": str(x.dtype)} for name, x in result.items()}
        assert arrays == said["returns"]
        assert_same_actions(run, np.asarray(result["action"]), expected, pi)
        for field, value in parameters(pi).items():
            np.testing.assert_allclose(result[field], value, rtol=1e-5, atol=1e-5)
        assert_same_actions(run, policy(obs), expected, pi)
        np.testing.assert_array_equal(policy(obs[0]), policy(obs[:1])[0])
        seen.append(expected)
    assert len(np.unique(np.concatenate(seen))) > 1
    assert module.platforms == ("cpu", "cuda", "tpu")


def test_a_policy_with_memory_remembers_what_the_run_does(exported_case):
    """Step by step: in JAX with memory and starts, in NumPy, and the loaded run itself, alone and in a batch."""
    run, out = exported_case("gru")
    module = jax.export.deserialize(bytearray((out / "policy.stablehlo").read_bytes()))
    policy = numpy_policy.load(out)
    said = policy.spec["stablehlo"]
    assert said["memory"] == {x: {"shape": ["b", 8], "dtype": "float32"} for x in ("actor", "critic")}
    assert said["start"] == {"shape": ["b"], "dtype": "bool"}
    steps = np.stack([observations(run, 3) / (1 + t) for t in range(6)])
    memory = {name: np.ones((3, 8), np.float32) for name in ("actor", "critic")}  # of no effect where episodes start
    remembered = own = alone = None
    logits = []
    for t, obs in enumerate(steps):
        start = np.array([t == 0, t in (0, 3), t == 0])
        result, memory = module.call(obs, memory, start)
        if t == 3:
            remembered[1] = 0
            own = {name: x.at[1].set(0.0) for name, x in own.items()}
        action, remembered = policy(obs, remembered)
        np.testing.assert_allclose(remembered, memory["actor"], rtol=1e-4, atol=1e-5)
        same, own = run.policy(obs, own)
        np.testing.assert_array_equal(same, result["action"])
        clear = np.abs(np.subtract(*np.asarray(result["logits"]).T)) > 1e-4
        np.testing.assert_array_equal(action[clear], np.asarray(result["action"])[clear])
        one, alone = run.policy(obs[0].tolist(), alone)
        assert int(one) == int(result["action"][0])
        logits.append(np.asarray(result["logits"]))
    for wrong in (remembered[:1], remembered[:, :3], ()):
        with pytest.raises(ValueError, match=r"the memory has shape .* but that of the observations is \(3, 8\)"):
            policy(steps[0], wrong)
    fresh, _ = module.call(steps[3], memory, np.full(3, True))
    np.testing.assert_allclose(fresh["logits"][1], logits[3][1], rtol=1e-4, atol=1e-5)  # it had forgotten
    assert np.abs(fresh["logits"][0] - logits[3][0]).max() > 1e-2  # the others had not


@pytest.mark.parametrize("policy", ["mlp", "gru"])
def test_observations_of_several_arrays(policy, exported):
    """The mask holds, what the value function alone sees is not needed, and what no part reads makes no difference."""
    run = make_run(of=shown(2, "dict"), env="shown", policy=policy, **NORMALIZED)
    out = exported(run)
    rng = np.random.default_rng(3)
    mask = rng.random((64, 3)) < 0.5
    mask[:, 0] |= ~mask.any(axis=1)
    obs = {"obs": 6 * rng.standard_normal((64, 1)), "raw": rng.standard_normal((64, 2))}
    obs = {**{name: x.astype(np.float32) for name, x in obs.items()}, "action_mask": mask}
    module, numpy = jax.export.deserialize(bytearray((out / "policy.stablehlo").read_bytes())), numpy_policy.load(out)
    assert numpy.arrays.keys() == obs.keys()
    start = np.full(64, True)
    forgotten = jax.tree.map(lambda x: jnp.zeros((64, *x.shape[1:])), run.runner.memory)
    expected, _ = own_actions(run, {**obs, "critic": np.zeros((64, 1), np.float32)})
    assert mask[np.arange(64), expected].all()
    assert len(np.unique(expected)) == 3
    in_jax = module.call(obs, forgotten, start)[0] if policy == "gru" else module.call(obs)
    in_numpy = numpy(obs)[0] if policy == "gru" else numpy(obs)
    for action in (in_jax["action"], in_numpy, run.policy(obs)[0]):
        np.testing.assert_array_equal(action, expected)
    one = {name: x[5] for name, x in obs.items()}
    assert int(run.policy(one)[0]) == expected[5]
    with pytest.raises(ValueError, match=r"^action_mask have shape \(64, 2\); this policy takes \(3,\)"):
        numpy({**obs, "action_mask": mask[:, :2]})
    with pytest.raises(ValueError, match=r"observations have the arrays \['obs'\]; this policy takes"):
        numpy({"obs": obs["obs"]})


def test_the_cases_cover_every_activation():
    activations = {CASES[name]["activation"] for name in OFTEN}
    assert activations == set(numpy_policy.ACTIVATIONS) == set(get_args(Activation))


def test_an_observation_that_never_varied(exported):
    """Both readers divide its rounding by no less than the evaluation does."""
    run = make_run(**CASES["gaussian"])
    stats = run.runner.normalizer.obs
    stats = stats._replace(mean=jnp.full_like(stats.mean, 1000.1), var=jnp.zeros_like(stats.var))
    run = dataclasses.replace(run, runner=run.runner._replace(normalizer=run.normalizer._replace(obs=stats)))
    out = exported(run)
    obs = np.float32(1000.1) + np.float32(2.0**-14) * np.arange(-6, 6, dtype=np.float32).reshape(4, 3)
    expected, pi = own_actions(run, obs)
    assert len(np.unique(expected)) == 4
    assert_same_actions(run, numpy_policy.load(out)(obs), expected, pi)
    module = jax.export.deserialize(bytearray((out / "policy.stablehlo").read_bytes()))
    assert_same_actions(run, np.asarray(module.call(obs)["action"]), expected, pi)


@pytest.mark.parametrize(
    ("low", "high", "centre", "unit"), [(3.0, math.inf, 0.0, 1.0), (100.0, 200.0, 150.0, 50.0)], ids=["one side", "far"]
)
def test_bounds_of_every_kind(exported, low, high, centre, unit):
    """They may be on one side only, though JSON has no infinity, or on both sides, far from the policy's numbers."""
    run = make_run(env="Pendulum-v1", activation="elu")
    run = dataclasses.replace(run, env=run.env._replace(action_space=Box((1,), (low,), (high,))))
    out = exported(run)
    obs = np.concatenate([observations(run, 7) * scale for scale in (0.01, 10)])
    expected, pi = own_actions(run, obs)
    assert 0 < np.isin(expected, (low, high)).mean() < 1
    assert_same_actions(run, numpy_policy.load(out)(obs), expected, pi)
    bounds = {"low": [low], "high": [high if high < math.inf else None]}
    space = {"kind": "continuous", "shape": [1], **bounds, "centre": [centre], "unit": [unit]}
    assert json.loads((out / "policy.json").read_text())["action_space"] == space


def test_how_the_new_kinds_of_action_are_described(exported_case):
    """Sizes, and bounds in row-major order; files of the kinds before are what they were."""
    spec = exported_case("factors")[1] / "policy.json", exported_case("matrix")[1] / "policy.json"
    factors, matrix = (json.loads(file.read_text()) for file in spec)
    assert factors["action_space"] == {"kind": "multi_discrete", "sizes": [3, 1, 4]}
    assert (factors["policy"], matrix["policy"]) == ("multi_categorical", "gaussian")
    assert factors["network"]["log_std"] is None
    assert matrix["action_space"] == {
        "kind": "continuous",
        "shape": [2, 2],
        "low": [-2.0, 0.0, 3.0, 1.0],
        "high": [4.0] * 4,
        "centre": [1.0, 2.0, 3.5, 2.5],
        "unit": [3.0, 2.0, 0.5, 1.5],
    }


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_files_and_their_summary(saved):
    """A run directory is exported into a directory two levels deep that did not exist."""
    run, _, out, summary = saved
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert json.loads(json.dumps(summary, allow_nan=False)) == {
        "out": str(out),
        "files": {name: (out / name).stat().st_size for name in FILES},
        "env": "CartPole-v1",
        "algorithm": "ppo_clip",
        "env_steps": 12,
        "observation_space": {"shape": [4], "dtype": "float32"},
        "action_space": {"kind": "discrete", "n": 2},
        "parameters": sum(x.size for x in jax.tree.leaves(run.runner.learner.params)),
    }
    assert (out / "numpy_policy.py").read_bytes() == Path(numpy_policy.__file__).read_bytes()


def test_the_restored_run_acts_as_the_one_that_was_saved(saved):
    run, _, out, _ = saved
    obs = observations(run, 7)
    expected, pi = own_actions(run, obs)
    assert_same_actions(run, numpy_policy.load(out)(obs), expected, pi)


def test_the_weights_are_the_networks_and_the_normalisers(saved):
    """They have the same bits, under their flax paths."""
    run, _, out, _ = saved
    weights = load_file(out / "weights.safetensors")
    stats = run.runner.normalizer.obs
    kernel = run.runner.learner.params["params"]["MLPTorso_1"]["Dense_1"]["kernel"]
    np.testing.assert_array_equal(weights["params/MLPTorso_1/Dense_1/kernel"], kernel)
    np.testing.assert_array_equal(weights["normalizer/mean"], stats.mean)
    np.testing.assert_array_equal(weights["normalizer/var"], stats.var)
    assert len(weights) == len(jax.tree.leaves(run.runner.learner.params)) + 2
    for name, weight in numpy_policy.parse_safetensors((out / "weights.safetensors").read_bytes()).items():
        np.testing.assert_array_equal(weight, weights.pop(name))
    assert not weights


@pytest.mark.parametrize("name", ["shared", "image", "gaussian", "factors", "gru"])
def test_every_weight_has_its_place_in_the_description(name, exported_case):
    """policy.json names each weight, and no other."""
    _, out = exported_case(name)
    spec = json.loads((out / "policy.json").read_text())
    network, normalizer = spec["network"], spec["normalizer"] or {}
    units = [unit[part] for unit in (network["gru"], network["critic_gru"]) if unit for part in ("gates", "unit")]
    layers = {*network["actor"], network["head"], *network["critic"], network["value_head"], *units}
    named = {f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")}
    named |= {f"{prefix}/{part}" for prefix in normalizer.get("statistics", ()) for part in ("mean", "var")}
    named |= {network["log_std"]} - {None}
    assert named == set(load_file(out / "weights.safetensors"))
    assert network["hidden_sizes"] == list(CASES[name].get("hidden_sizes", (8,)))
    assert network["torso"] == ("conv" if name == "image" else "mlp")
    assert spec["versions"]["jax"] == jax.__version__
    assert spec["env_steps"] == 12


def test_equal_policies_are_equal_files_without_this_machines_paths(saved, tmp_path):
    """Otherwise the program would contain the path of each line of source that it came from."""
    _, run_dir, out, _ = saved
    limit = jax.config.jax_traceback_in_locations_limit
    export_saved(load_run(run_dir), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert b".py" not in (out / "policy.stablehlo").read_bytes()
    assert jax.config.jax_traceback_in_locations_limit == limit != 0


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_directory_that_holds_anything_is_left_alone(saved, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path, tmp_path / "mine"):
        with pytest.raises(CheckpointError, match="not an empty directory; choose another"):
            export_saved(saved[0], out)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_cannot_be_read_or_written_is_one_clear_line(saved, tmp_path, monkeypatch):
    """The directory cannot be created, or the disk fails after it was created."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot create the directory"):
        export_saved(saved[0], tmp_path / "file" / "out")
    monkeypatch.setattr(export, "create_dir", lambda out, name: out)
    with pytest.raises(CheckpointError, match="cannot write") as caught:
        export_saved(saved[0], tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("missing", ["flatbuffers", "safetensors.numpy"])
def test_a_missing_package_is_named_with_its_remedy(missing, tmp_path, monkeypatch):
    """It is checked first, before the run is used. The remedy is for this Python, not for that of the shell."""
    monkeypatch.setitem(sys.modules, missing, None)
    remedy = re.escape(f"{sys.executable} -m pip install safetensors flatbuffers")
    with pytest.raises(ConfigError, match=f"{missing}.*{remedy}"):
        export_saved(None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the reader -------------------------------------------------------------------------------------------------------

ISOLATED = """
import json, sys

class OnlyNumPy:
    def find_spec(self, name, *_):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "numpy_policy"}:
            raise ImportError(name)

sys.meta_path.insert(0, OnlyNumPy())
sys.path.insert(0, ".")
import numpy_policy

assert not {"jax", "flax", "safetensors", "purejaxppo"} & {*sys.modules}
try:
    import jax
except ImportError:
    print(numpy_policy.load(".")(json.load(sys.stdin)).tolist())
"""


@pytest.mark.parametrize("program", [["-c", ISOLATED], ["numpy_policy.py"]], ids=["alone", "as a program"])
def test_the_exported_directory_needs_numpy_alone(program, saved):
    """The copied reader cannot import any other package."""
    run, _, out, _ = saved
    obs = observations(run, 7)
    command = [sys.executable, "-I", "-W", "error", *program]
    done = subprocess.run(command, cwd=out, input=json.dumps(obs.tolist()), capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert json.loads(done.stdout) == own_actions(run, obs)[0].tolist()


def test_the_reader_imports_nothing_of_ours():
    source = Path(numpy_policy.__file__).read_text()
    imported = {name.name for node in ast.walk(ast.parse(source)) for name in getattr(node, "names", [])}
    assert imported == {"hashlib", "json", "math", "Path", "numpy"}


def test_observations_of_another_shape_are_refused(saved):
    policy = numpy_policy.load(saved[2])
    for shape in [(), (3,), (2, 3), (1, 1, 4)]:
        with pytest.raises(ValueError, match=r"observations have shape .* takes \(4,\)"):
            policy(np.zeros(shape))
    assert policy(np.zeros((0, 4))).shape == (0,)


def test_activations_far_out_stay_finite():
    """There is no warning either, as warnings are errors here."""
    x = np.array([-1e4, -90, -1, -0.0, 0, 1, 90, 1e4], np.float32)
    for name, activation in numpy_policy.ACTIVATIONS.items():
        got = activation(x)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, getattr(nn, name)(x), rtol=1e-5, atol=1e-6)


def with_header(change):
    """Replaces the header's entries, in the order of the data, by `change(entries)`; the numbers stay."""

    def damage(data):
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        header = json.dumps(change(dict(entries))).encode()
        return len(header).to_bytes(8, "little") + header + data[end:]

    return damage


def changed(field, value):
    """Changes a field of the last tensor in the header."""

    def change(entries):
        entries[list(entries)[-1]][field] = value
        return entries

    return with_header(change)


def overlapping(entries):
    """Lets the last tensor have the data of the first, whether it is of that size or not."""
    entries[list(entries)[-1]]["data_offsets"] = next(iter(entries.values()))["data_offsets"]
    return entries


def twice(entries):
    """Gives the same numbers two names."""
    name, entry = next(iter(entries.items()))
    return {f"{name} again": entry, **entries}


def with_gap(data):
    """Inserts four bytes that belong to no tensor before the last one."""
    end = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:end]).values()
    start, stop = max(entry["data_offsets"] for entry in entries)
    damaged = changed("data_offsets", [start + 4, stop + 4])(data)
    return damaged[: start - stop] + bytes(4) + damaged[start - stop :]


DAMAGES = {
    "empty": lambda data: b"",
    "7 bytes": lambda data: data[:7],
    "length alone": lambda data: data[:8],
    "cut header": lambda data: data[:40],
    "no numbers": lambda data: data[: 8 + int.from_bytes(data[:8], "little")],
    "one byte short": lambda data: data[:-1],
    "one number short": lambda data: data[:-4],
    "one number more": lambda data: data + b"0000",
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "header beyond the end": lambda data: (len(data) - 7).to_bytes(8, "little") + data[8:],
    "empty header": lambda data: bytes(8) + data[8:],
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
    "garbage behind a length": lambda data: data[:8] + np.random.default_rng(0).bytes(len(data) - 8),
    "deep header": lambda data: (10**5).to_bytes(8, "little") + b"[" * 10**5,
    "header is a list": with_header(lambda entries: list(entries)),
    "header of numbers": with_header(lambda entries: dict.fromkeys(entries, 1)),
    "header without tensors": with_header(lambda entries: {}),
    "one tensor missing": with_header(lambda entries: dict(list(entries.items())[1:])),
    "overlap": with_header(overlapping),
    "twice": with_header(twice),
    "gap": with_gap,
    "other type": changed("dtype", "I32"),
    "other shape": changed("shape", [3]),
    "negative shape": changed("shape", [-1]),
    "shape of text": changed("shape", "abc"),
    "offsets beyond": changed("data_offsets", [0, 10**12]),
    "offsets of text": changed("data_offsets", ["0", "4"]),
    "three offsets": changed("data_offsets", [0, 4, 8]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_weights_are_refused(name, copied):
    """With a matching hash, so that the container itself is checked, and with the hash from before the damage."""
    file, description = copied / "weights.safetensors", copied / "policy.json"
    data = DAMAGES[name](file.read_bytes())
    assert data != file.read_bytes()
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"holds no policy.*not the file that policy\.json describes"):
        numpy_policy.load(copied)
    spec = json.loads(description.read_text()) | {"weights_sha256": hashlib.sha256(data).hexdigest()}
    description.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"holds no policy that can be used"):
        numpy_policy.load(copied)


@pytest.mark.parametrize("name", ["empty", "7 bytes", "cut header", "huge header"])
def test_a_header_that_is_cut_off_is_called_so(name, saved):
    """The error is not that of the JSON parser."""
    with pytest.raises(ValueError, match="end within their header"):
        numpy_policy.parse_safetensors(DAMAGES[name]((saved[2] / "weights.safetensors").read_bytes()))


def test_one_flipped_bit_is_refused(copied):
    """The container is valid, but the numbers have changed."""
    file = copied / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"not the file that policy\.json describes"):
        numpy_policy.load(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 1},
        {"network": {}},
        {"network": None},
        {"action_space": {"kind": "continuous"}},
        {"observation_space": {"shape": [5]}},
    ],
)
def test_a_description_that_does_not_fit_is_refused(change, copied):
    file = copied / "policy.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match="holds no policy that can be used"):
        numpy_policy.load(copied)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\xff", "1"])
def test_a_description_that_is_none_is_refused(text, copied):
    (copied / "policy.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="holds no policy that can be used"):
        numpy_policy.load(copied)


def test_missing_files_are_an_os_error(tmp_path):
    with pytest.raises(OSError, match="weights"):
        numpy_policy.load(tmp_path)
