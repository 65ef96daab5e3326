"""Errors in a part of a user's own: one line that names the part, the error and the line of its code."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hand_policy import policy_of
from probe_envs import walk

import purejaxppo
from purejaxppo.algorithms import ALGORITHMS, make_algorithm, ppo_clip
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.faults import faults_of
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.policies.registry import POLICIES, make_policy
from purejaxppo.train import make_trainer, trainer_from_config

CONFIG = TrainConfig(env="walk", num_envs=4, num_steps=4, hidden_sizes=(), total_timesteps=16)


@pytest.fixture
def refused():
    """Yields a function: refused(make) is the message of the ConfigError that make() raises."""

    def message(make):
        with pytest.raises(ConfigError) as caught:
            make()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    yield message
    ALGORITHMS.remove("mine")
    POLICIES.remove("mine")


def broken(*args, **kwargs):
    raise RuntimeError("my bug")


def train():
    """Traces an update of the rule that is registered as `mine`."""
    config = dataclasses.replace(CONFIG, algorithm="mine")
    trainer = trainer_from_config(config, walk(config.num_envs))
    runner = trainer.init(jax.random.key(0), Hyperparams())
    return jax.eval_shape(trainer.update, Hyperparams(), runner)


def test_a_rule_whose_factory_raises(refused):
    purejaxppo.register_algorithm("mine", broken)
    message = refused(lambda: make_algorithm(dataclasses.replace(CONFIG, algorithm="mine"), None))
    assert message.startswith("algorithm 'mine' raises RuntimeError: my bug (")
    assert "test_faults.py:" in message


def test_a_rule_that_does_not_take_shards(refused):
    purejaxppo.register_algorithm("mine", lambda config, policy: ppo_clip(config, policy))
    assert "unexpected keyword argument 'shards'" in refused(train)


def test_a_rule_that_is_none(refused):
    purejaxppo.register_algorithm("mine", lambda config, policy, *, shards: ppo_clip)
    assert "ppo_clip is no Algorithm" in refused(train)


def with_loss(loss):
    """Registers `mine`: ppo_clip with this loss beside its own."""
    purejaxppo.register_algorithm(
        "mine", lambda config, policy, *, shards: ppo_clip(config, policy, shards=shards, extra_loss=loss)
    )


def test_a_loss_that_returns_no_metrics(refused):
    """It is found when the update is traced, before anything is trained."""
    with_loss(lambda params, minibatch: jnp.zeros(()))
    assert refused(train).startswith("algorithm 'mine' raises ")


@pytest.mark.parametrize("name", ["entropy", "loss/policy", "kl", "ratio/mean"])
def test_a_metric_of_ones_own_does_not_replace_the_packages(name, refused):
    with_loss(lambda params, minibatch: (jnp.zeros(()), {name: jnp.zeros(())}))
    message = f"a loss returns a metric {name!r}, which the package reports itself; give it another name."
    assert refused(train) == message


def test_a_policy_whose_factory_raises(refused):
    purejaxppo.register_policy("mine", broken)
    config = dataclasses.replace(CONFIG, policy="mine")
    assert refused(lambda: make_policy(config, walk(4))).startswith("policy 'mine' raises RuntimeError: my bug (")


def test_a_policy_that_raises_when_it_is_traced(refused):
    def apply(params, obs):
        return Categorical(obs @ jnp.zeros((7, 2))), obs[..., 0]

    policy = policy_of(apply)
    message = refused(lambda: make_trainer(CONFIG, walk(4), policy, ppo_clip(CONFIG, policy)))
    assert message.startswith("the policy's init or act raises TypeError: ")
    assert "test_faults.py:" in message


@pytest.mark.parametrize("error", [EnvError("x"), MemoryError("y"), RuntimeError("RESOURCE_EXHAUSTED: z")])
def test_what_a_user_can_act_on_and_memory_pass_unchanged(error):
    with pytest.raises(type(error), match=str(error)), faults_of("algorithm 'mine'"):
        raise error
