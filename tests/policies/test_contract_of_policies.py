"""A policy that breaks the contract of `core.types.Policy` is refused by name, before anything is computed."""

import jax.numpy as jnp
import pytest
from probe_envs import shown

from purejaxppo.algorithms import make_algorithm
from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.errors import ConfigError
from purejaxppo.train import make_trainer

E = 4
CONFIG = TrainConfig(num_envs=E, num_steps=6, sequence_length=3, num_minibatches=2, total_timesteps=240)


class Counts:
    """A policy that remembers the number of steps, and whose logits and value follow from it."""

    def init(self, key, obs):
        return jnp.zeros(3)

    def initial_memory(self, num_envs):
        return jnp.zeros(num_envs, jnp.int32)

    def act(self, params, memory, obs, start):
        return jnp.where(start, 0, memory) + 1, Categorical(memory[:, None] + params[None])

    def evaluate(self, params, memory, obs, start):
        steps = jnp.broadcast_to(memory[:, None], start.shape).astype(jnp.float32)
        return Categorical(steps[..., None] + params[None, None]), steps


class OneNumber(Counts):
    def initial_memory(self, num_envs):
        return jnp.zeros((), jnp.int32)


class OtherType(Counts):
    def act(self, params, memory, obs, start):
        memory, pi = super().act(params, memory, obs, start)
        return memory.astype(jnp.float32), pi


class FromNothing(Counts):
    """It says that it remembers nothing, and then does."""

    def initial_memory(self, num_envs):
        return ()

    def act(self, params, memory, obs, start):
        return super().act(params, jnp.zeros(len(obs), jnp.int32), obs, start)

    def evaluate(self, params, memory, obs, start):
        return Categorical(jnp.zeros((len(obs), 3))), jnp.zeros(len(obs))


class StepsFirst(Counts):
    """Its sequences come back as [L, B]."""

    def evaluate(self, params, memory, obs, start):
        pi, value = super().evaluate(params, memory, obs, start)
        return Categorical(pi.logits.swapaxes(0, 1)), value


class LastValueOnly(Counts):
    def evaluate(self, params, memory, obs, start):
        pi, value = super().evaluate(params, memory, obs, start)
        return pi, value[:, -1]


def check(policy, **settings):
    config = TrainConfig(**{**vars(CONFIG), **settings})
    make_trainer(config, shown(E), policy, make_algorithm(config, policy))


def test_the_policy_that_the_others_spoil_is_sound():
    check(Counts())


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (OneNumber, r"initial_memory has a leaf int32\[\] for 4 environments; give each a row of its own"),
        (OtherType, "act returns a memory of other shapes or types than its initial_memory"),
        (FromNothing, "act returns a memory of other shapes or types than its initial_memory"),
        (StepsFirst, r"has a leaf float32\[1, 4, 3\] for 4 observations.*begin with \[4, 1\]"),
        (LastValueOnly, r"value is float32\[4\] for 4 observations; it has to be \[4, 1\]"),
    ],
)
def test_a_broken_policy_is_refused(policy, message):
    with pytest.raises(ConfigError, match=message):
        check(policy())


@pytest.mark.parametrize(
    ("settings", "sequences", "shards"),
    [
        ({"num_minibatches": 3}, 8, 1),
        ({"sequence_length": None, "num_minibatches": 8}, 4, 1),
        ({"num_shards": 4, "num_minibatches": 3}, 2, 4),
    ],
)
def test_sequences_that_do_not_fill_the_minibatches_are_refused(settings, sequences, shards):
    with pytest.raises(ConfigError, match=rf"are {sequences} sequences in each of {shards} shards, which num_mini"):
        check(Counts(), **settings)


def test_a_sequence_length_that_does_not_divide_the_rollout_is_refused():
    with pytest.raises(ConfigError, match=r"sequence_length = 4 does not divide num_steps = 6; try 2, 3 or 6"):
        check(Counts(), sequence_length=4)
