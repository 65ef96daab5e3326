"""The forks in scripts/examples: short files that register parts, each of which keeps every service of the host."""

import dataclasses
import functools
import io
import json
import re
import signal
import sys
from pathlib import Path

import gymnax  # noqa: F401  its functions are jitted when it is imported: not by the jax.jit that a test puts in place
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY, compiled_once
from jax.flatten_util import ravel_pytree
from rich.console import Console

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.plugins import import_plugins
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.devices.data_parallel import spread_trainer
from purejaxppo.envs.registry import ENVS, make_env
from purejaxppo.experiment.export.export import export_saved
from purejaxppo.experiment.load_run import load_run
from purejaxppo.experiment.run import evaluate_saved, resume_experiment, run_experiment
from purejaxppo.policies.registry import POLICIES, make_policy
from purejaxppo.sweeps.extract import load_member
from purejaxppo.sweeps.run import run_sweep
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.train import trainer_from_config

ROOT = Path(__file__).parent.parent
EXAMPLES, GUIDE = ROOT / "scripts" / "examples", ROOT / "docs" / "forking.md"
UPDATES, SEED, HP = 4, 3, Hyperparams(learning_rate=1e-2)
OPTIONS = RunOptions(eval_episodes=4, checkpoint_seconds=0.0)
SIZE = {"num_envs": 4, "num_steps": 16, "num_epochs": 1, "num_minibatches": 2, "hidden_sizes": (8,)}
FORKS = {  # file -> the settings that choose its parts
    "rnd": {"env": "sparse-chain", "algorithm": "rnd"},
    "auxiliary_loss": {"env": "CartPole-v1", "policy": "predictive", "algorithm": "ppo_predictive"},
    "masked_actions": {"env": "lattice", "num_steps": 256},
    "asymmetric_critic": {"env": "noisy-cartpole"},
    "own_network": {"env": "CartPole-v1", "policy": "residual_mlp"},
    "last_observation": {"env": "still-cartpole", "policy": "last_observation"},
}
FORK = pytest.mark.parametrize("fork", FORKS)
ROWS = []  # of the uninterrupted lattice


def config_of(fork, **settings):
    config = TrainConfig(**{**SIZE, **FORKS[fork], **settings})
    return dataclasses.replace(config, total_timesteps=UPDATES * config.batch_size)


def quiet(function, *args, **options):
    return function(*args, console=Console(file=io.StringIO()), **options)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """The forks as plugins; each environment is made once per size, so that its programs are found again."""
    registries, modules = (ENVS, POLICIES, ALGORITHMS), set(sys.modules)
    before = [set(registry.names()) for registry in registries]
    with compiled_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        # Bits may be compared nevertheless, as they are those of one program.
        patch.setattr(jax.stages.Lowered, "compile", functools.partialmethod(jax.stages.Lowered.compile, QUICKLY))
        patch.setattr("purejaxppo.experiment.chunked_loop._CHUNK_UPDATES", 2)
        patch.setattr("purejaxppo.experiment.run.plot_runs", lambda *_: None)  # seconds of no interest here
        patch.setattr("purejaxppo.sweeps.run.plot_sweep", lambda *_: None)
        import_plugins([str(EXAMPLES / f"{fork}.py") for fork in FORKS])
        for name in set(ENVS.names()) - before[0]:
            ENVS.register(name, functools.cache(ENVS.lookup(name)))
        yield
    for registry, known in zip(registries, before, strict=True):
        for name in set(registry.names()) - known:
            registry.remove(name)
    for name in set(sys.modules) - modules & set(FORKS):
        del sys.modules[name]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """run_of(fork) is (directory, summary) of an uninterrupted run, not to be changed."""

    @functools.cache
    def run(fork):
        out = tmp_path_factory.mktemp(fork) / "run"
        sinks = [lambda _, row: ROWS.append(row)] if fork == "masked_actions" else []
        return out, quiet(run_experiment, config_of(fork), HP, SEED, options=OPTIONS, out=out, sinks=sinks)

    return run


@FORK
def test_it_is_one_file_of_at_most_100_lines(fork):
    assert len((EXAMPLES / f"{fork}.py").read_text().splitlines()) <= 100


def test_what_the_guide_shows_stands_in_the_forks():
    """Each piece of Python in it, word for word but for indentation and empty lines."""

    def lines(text):
        return "\n".join(line.strip() for line in text.splitlines() if line)

    shown = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    written = [lines((EXAMPLES / f"{fork}.py").read_text()) for fork in FORKS]
    assert len(shown) > 5
    for piece in shown:
        assert any(lines(piece) in text for text in written), piece


@FORK
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(fork, run_of, tmp_path):
    _, whole = run_of(fork)

    def stop_in_the_middle(_, row):
        if row["update"] == UPDATES // 2:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "run"
    half = quiet(run_experiment, config_of(fork), HP, SEED, options=OPTIONS, out=out, sinks=[stop_in_the_middle])
    assert (half["exit_reason"], half["updates"]) == ("SIGTERM", UPDATES // 2)
    resumed = quiet(resume_experiment, out)
    assert (resumed["exit_reason"], resumed["updates"]) == ("finished", UPDATES)
    assert resumed["state_sha256"] == whole["state_sha256"] != half["state_sha256"]
    assert resumed["evaluation"] == whole["evaluation"]


@FORK
def test_the_saved_run_is_evaluated_and_exported(fork, run_of, tmp_path):
    """The evaluation is the run's own; the exported program acts as the policy does, without what it must not see."""
    out, whole = run_of(fork)
    saved = load_run(out)
    found = evaluate_saved(saved, episodes=4, seed=SEED)
    assert {name: found[name] for name in whole["evaluation"]} == whole["evaluation"]
    export_saved(saved, tmp_path / "policy")
    policy = jax.export.deserialize(bytearray((tmp_path / "policy" / "policy.stablehlo").read_bytes()))
    obs, memory = saved.runner.obs, saved.runner.memory
    acting = {key: x for key, x in obs.items() if key != "critic"} if isinstance(obs, dict) else obs
    if fork == "last_observation":  # from the memory that the run had, and again from the memory after it
        start = np.zeros(len(obs), bool)
        exported, after = policy.call(obs, memory, start)
        action, wanted = saved.policy(obs, memory)
        jax.tree.map(np.testing.assert_array_equal, after, wanted)
        exported, _ = policy.call(obs, after, start)
        action, _ = saved.policy(obs, wanted)
    else:
        exported, (action, _) = policy.call(acting), saved.policy(acting)
        np.testing.assert_array_equal(action, saved.policy(obs)[0])
    np.testing.assert_array_equal(exported["action"], action)


@FORK
def test_a_sweep_of_two_runs(fork, tmp_path):
    config, rates = config_of(fork), (1e-3, 1e-2)
    settings = tuple((config, Hyperparams(learning_rate=rate)) for rate in rates)
    points = tuple({"learning_rate": rate} for rate in rates)
    out = tmp_path / "sweep"
    summary = quiet(run_sweep, SweepSettings(("learning_rate",), points, settings, (SEED,), OPTIONS), out=out)
    assert summary["exit_reason"] == "finished"
    one, two = (load_member(out, i) for i in range(2))
    for member in (one, two):
        assert member.meta["env_steps"] == config.total_timesteps
    different = [np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (one.params, two.params)), strict=True)]
    assert any(different)


def test_the_masks_are_never_violated(run_of):
    """In 4,096 steps; and without its mask the environment does count such steps."""
    run_of("masked_actions")
    assert len(ROWS) == UPDATES
    assert config_of("masked_actions").total_timesteps == 4096
    assert all(row["step/forbidden"] == 0 for row in ROWS)
    env = make_env(config_of("masked_actions", env_params={"masked": False}))
    state, obs = env.reset(jax.random.split(jax.random.key(0), 4))
    assert "action_mask" not in obs
    _, result = env.step(env.draw(jax.random.split(jax.random.key(1), 4)), state, jnp.arange(4))
    _, seen = make_env(config_of("masked_actions")).reset(jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(result.info["forbidden"], ~np.diagonal(seen["action_mask"]))
    assert np.any(result.info["forbidden"])
    np.testing.assert_array_equal(result.terminated, result.info["forbidden"])


def test_the_heads_of_a_fork_learn(run_of):
    """The bonus shrinks as the predictor learns, and predictions become better."""
    for fork, metric in (("rnd", "loss/distillation"), ("auxiliary_loss", "loss/prediction")):
        out, _ = run_of(fork)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1][metric] < rows[0][metric]


def test_the_policy_with_memory_acts_as_it_evaluates():
    """Step by step and over a sequence in which an episode begins; what came before that has no effect."""
    config = config_of("last_observation")
    policy = make_policy(config, make_env(config))
    rng = np.random.default_rng(0)
    obs, start = np.float32(rng.normal(size=(4, 5, 2))), np.zeros((4, 5), bool)
    start[:2, 2] = True
    params = policy.init(jax.random.key(0), obs[:, 0])
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), params)
    evaluate = jax.jit(policy.evaluate, compiler_options=QUICKLY)
    memory = np.float32(rng.normal(size=(4, 2)))
    pi, _ = evaluate(params, memory, obs, start)
    act, after = jax.jit(policy.act, compiler_options=QUICKLY), memory
    for t in range(5):
        after, now = act(params, after, obs[:, t], start[:, t])
        np.testing.assert_allclose(now.logits, pi.logits[:, t], rtol=1e-4, atol=1e-5)
    other = obs.copy()
    other[:, :2] += 1.0
    changed, _ = evaluate(params, memory, other, start)
    moved = np.any(changed.logits[:, 2:] != pi.logits[:, 2:], axis=-1)  # [4, 3] of the steps from the third one on
    np.testing.assert_array_equal(moved, [[False] * 3] * 2 + [[True, False, False]] * 2)


@pytest.mark.parametrize(
    "fork", [pytest.param(fork, marks=[] if fork == "rnd" else pytest.mark.slow) for fork in FORKS]
)
def test_two_devices_do_what_one_does(fork):
    """In the first update; the statistics of the bonus are those of all devices."""
    config = config_of(fork, num_shards=2)
    ends = []
    for trainer in (trainer_from_config(config), spread_trainer(config, devices=jax.devices()[:2])):
        update = jax.jit(trainer.update, compiler_options=QUICKLY)
        runner, metrics = update(HP, jax.jit(trainer.init, compiler_options=QUICKLY)(jax.random.key(0), HP))
        ends.append((np.asarray(ravel_pytree(runner.learner)[0]), np.asarray(ravel_pytree(metrics)[0])))
    (one, metrics), (two, other_metrics) = ends
    assert np.linalg.norm(one - two) < 1e-5 * np.linalg.norm(one)
    np.testing.assert_allclose(metrics, other_metrics, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "fork", [pytest.param(fork, marks=[] if fork == "masked_actions" else pytest.mark.slow) for fork in FORKS]
)
def test_by_name_on_the_command_line(fork, server, tmp_path):
    plugin, out = ("--plugin", EXAMPLES / f"{fork}.py"), tmp_path / "run"
    config = dataclasses.replace(config_of(fork), num_steps=16)
    parts = [f"--{name}={FORKS[fork][name]}" for name in FORKS[fork] if name != "num_steps"]
    numbers = {**SIZE, "hidden_sizes": 8, "eval_episodes": 4, "total_timesteps": 2 * config.batch_size}
    size = [f"--{name.replace('_', '-')}={number}" for name, number in numbers.items()]

    def command(*words):
        code, errors = server.run(tmp_path / words[0], *words, fill_cache=True)
        assert code == 0, errors

    command("train", *plugin, *parts, *size, "--eval-every", 0, "--out", out)
    command("resume", out, *plugin, "--total-timesteps", 4 * config.batch_size)
    command("evaluate", out, *plugin, "--episodes", 4)
    command("export", out, *plugin, "--out", tmp_path / "policy")
    assert (tmp_path / "policy" / "policy.json").exists()
    assert json.loads((out / "summary.json").read_text())["updates"] == 4
    if fork != "masked_actions":  # which is not to take long
        command("sweep", *plugin, *parts, *size, "--seeds", 2, "--out", tmp_path / "sweep")
        assert json.loads((tmp_path / "sweep" / "summary.json").read_text())["exit_reason"] == "finished"
