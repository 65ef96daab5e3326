"""Parts by name and by value: each keeps every service of the host, and a part that is missing is named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import optax
import pytest

import purejaxppo
from purejaxppo.algorithms import ALGORITHMS, policy_gradient, trpo
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.optimizer import OPTIMIZERS, SCHEDULES
from purejaxppo.core.types import Box, Discrete, EnvStep, VecEnv
from purejaxppo.envs.registry import ENVS, make_env
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.experiment.directory import read_run_settings
from purejaxppo.experiment.load_run import load_run
from purejaxppo.experiment.parts import know_parts, with_parts
from purejaxppo.experiment.run import evaluate_saved, resume_experiment, run_experiment
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.registry import POLICIES
from purejaxppo.sweeps.compare import compare
from purejaxppo.sweeps.extract import extract_member, load_member
from purejaxppo.sweeps.run import resume_sweep, run_sweep
from purejaxppo.sweeps.spec import SweepSettings

CONFIG = TrainConfig(total_timesteps=64, num_envs=4, num_steps=4, num_minibatches=2, num_epochs=1)
FEW = RunOptions(eval_episodes=2)


def counter(num_envs, limit=5):
    """Counts to the limit, and pays for action 1."""

    def reset(keys):
        state = jnp.zeros(keys.shape[0], jnp.int32)
        return state, jax.nn.one_hot(state, 8)

    def step(draws, state, action):
        final, done = state + 1, state + 1 >= limit
        state = jnp.where(done, 0, final)
        none = jnp.zeros_like(done)
        return state, EnvStep(
            jax.nn.one_hot(state, 8), jax.nn.one_hot(final, 8), action.astype(jnp.float32), done, none, {}
        )

    return VecEnv(reset, step, Box((8,)), Discrete(2), num_envs)


class Linear:
    """A network of two matrices."""

    def init(self, key, obs):
        return {"logits": 0.1 * jax.random.normal(key, (8, 2)), "value": jnp.zeros(8)}

    def apply(self, params, obs):
        return Categorical(obs @ params["logits"]), obs @ params["value"]


def linear_network(config, env):
    return FeedForward(Linear())


def plain_rule(config, apply, *, shards):
    return policy_gradient(config, apply, shards=shards)


def lion(hp):
    return optax.lion(hp.learning_rate)


def square(progress):
    return (1 - progress) ** 2


PARTS = {"env": counter, "policy": linear_network, "algorithm": plain_rule, "optimizer": lion, "schedule": square}
NAMES = {
    "env": "counter",
    "policy": "linear_network",
    "algorithm": "plain_rule",
    "optimizer": "lion",
    "learning_rate_schedule": "square",
}
REGISTRIES = (ENVS, POLICIES, ALGORITHMS, OPTIMIZERS, SCHEDULES)


def forget():
    for registry in REGISTRIES:
        for name in set(registry.names()) - set(registry.built_in()):
            registry.remove(name)


@pytest.fixture(autouse=True)
def _nothing_registered():
    forget()
    yield
    forget()


def test_values_become_names():
    (config,) = with_parts([CONFIG], **PARTS)
    assert config == dataclasses.replace(CONFIG, **NAMES)
    assert [registry.lookup(name) for registry, name in zip(REGISTRIES, NAMES.values(), strict=True)] == [
        *PARTS.values()
    ]
    assert with_parts([CONFIG], algorithm=trpo, optimizer="muon") == (
        dataclasses.replace(CONFIG, algorithm="trpo", optimizer="muon"),
    )


def test_a_part_that_one_of_several_names_is_that_ones():
    """So a comparison of one's own rule with a built-in one keeps both."""
    two = [CONFIG, dataclasses.replace(CONFIG, algorithm="plain_rule")]
    assert with_parts(two, algorithm=plain_rule) == tuple(two)
    know_parts(two, algorithm=plain_rule)
    with pytest.raises(ConfigError, match="optimizer = lion is not what was saved, adam"):
        know_parts(two, optimizer=lion)


def test_an_argument_that_is_no_part():
    with pytest.raises(TypeError, match="network is no part of a run; those are env, policy"):
        with_parts([CONFIG], network=linear_network)


def test_a_run_of_ones_own_parts_is_resumed_and_evaluated(tmp_path):
    """The names are saved; a program that does not know them says which is missing, one after the other."""
    out = tmp_path / "run"
    run_experiment(CONFIG, Hyperparams(), 0, out=out, options=FEW, **PARTS)
    assert json.loads((out / "config.json").read_text()).items() >= NAMES.items()
    forget()
    with pytest.raises(EnvError, match=r"'counter'.*register_env\('counter', \.\.\.\).*--plugin.*env="):
        load_run(out)
    with pytest.raises(ConfigError, match=r"policy 'linear_network' is unknown.*register_policy.*--plugin.*policy="):
        load_run(out, env=counter)
    known = {name: PARTS[name] for name in ("env", "policy", "algorithm", "schedule")}
    with pytest.raises(ConfigError, match="optimizer 'lion' is unknown"):
        load_run(out, **known)
    settings = read_run_settings(out)
    longer = settings._replace(config=dataclasses.replace(settings.config, total_timesteps=96))
    assert resume_experiment(out, settings=longer, **PARTS)["updates"] == 6
    forget()
    assert evaluate_saved(load_run(out, **PARTS), episodes=2)["env_steps"] == 96


@pytest.mark.slow
def test_a_sweep_and_a_comparison_of_ones_own_parts(tmp_path):
    out = tmp_path / "sweep"
    settings = tuple((CONFIG, Hyperparams(learning_rate=rate)) for rate in (1e-3, 1e-2))
    points = tuple({"learning_rate": hp.learning_rate} for _, hp in settings)
    run_sweep(SweepSettings(("learning_rate",), points, settings, (0,), FEW), out=out, **PARTS)
    forget()
    assert evaluate_saved(load_member(out, 1, **PARTS), episodes=2)["env_steps"] == 64
    forget()
    assert extract_member(out, 0, tmp_path / "member", **PARTS)["env_steps"] == 64
    forget()
    assert resume_sweep(out, **PARTS)["exit_reason"] == "finished"
    two = [(CONFIG, Hyperparams()), (dataclasses.replace(CONFIG, algorithm="plain_rule"), Hyperparams())]
    summary = compare(two, [0], out=tmp_path / "both", eval_episodes=2, **PARTS)
    assert [row["algorithm"] for row in summary["algorithms"]] == ["ppo_clip", "plain_rule"]


def test_an_environment_of_ones_own_is_checked():
    purejaxppo.register_env("counter", counter)
    assert make_env(TrainConfig(env="counter"), 3).num_envs == 3
    with pytest.raises(EnvError, match=r"cannot be built.*speed=3"):
        make_env(TrainConfig(env="counter", env_params={"speed": 3}))
    purejaxppo.register_env("counter", lambda num_envs: counter(3))
    with pytest.raises(EnvError, match="returns 3 copies for num_envs = 4"):
        make_env(TrainConfig(env="counter", num_envs=4))
    purejaxppo.register_env("counter", lambda num_envs: None)
    with pytest.raises(EnvError, match="returns a NoneType"):
        make_env(TrainConfig(env="counter"))
    purejaxppo.register_env("counter", lambda num_envs: counter(num_envs)._replace(observation_space=Box((9,))))
    with pytest.raises(EnvError, match="counter"):
        make_env(TrainConfig(env="counter"))
    with pytest.raises(EnvError, match="Did you mean 'counter'"):
        make_env(TrainConfig(env="countr"))
    purejaxppo.register_env("CartPole-v1", counter)  # without asking gymnax, whose import starts JAX
    try:
        with pytest.raises(EnvError, match="is also the name of a gymnax environment"):
            make_env(TrainConfig(env="CartPole-v1"))
    finally:
        ENVS.remove("CartPole-v1")


def test_two_functions_of_one_name_are_not_taken_for_each_other():
    def maker(factor):
        def mine(hp):
            return optax.sgd(factor)

        return mine

    def other():
        def mine(hp):
            return optax.sgd(1.0)

        return mine

    (config,) = with_parts([TrainConfig()], optimizer=maker(1.0))
    assert config.optimizer == "mine"
    with_parts([TrainConfig()], optimizer=maker(2.0))  # the same function, made again, as in a notebook
    with pytest.raises(ConfigError, match="registered already, for another function of that name"):
        with_parts([TrainConfig()], optimizer=other())
    OPTIMIZERS.remove("mine")
