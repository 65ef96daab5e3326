"""Policies and update rules that do not fit are refused before anything is trained, in one line."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from hand_policy import policy_of
from messages import line
from probe_envs import walk

from purejaxppo.algorithms import make_algorithm, ppo_clip
from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import Categorical, DiagGaussian, MultiCategorical, TanhDiagGaussian
from purejaxppo.core.types import Box, MultiDiscrete
from purejaxppo.errors import ConfigError
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import make_trainer, trainer_from_config

E = 4
CONFIG = TrainConfig(env="walk", num_envs=E, num_steps=4, hidden_sizes=(), total_timesteps=16)


class Fixed:
    """A network whose outputs are all zeros, of the given shapes behind those of the observations."""

    def __init__(self, *outputs, pi=Categorical, value=()):
        self.outputs, self.pi, self.value = outputs, pi, value

    def init(self, key, obs):
        return jnp.zeros(())

    def apply(self, params, obs):
        lead = obs.shape[:-1]
        return self.pi(*(jnp.zeros((*lead, n)) for n in self.outputs)), jnp.zeros((*lead, *self.value))


def refused(policy, env, /, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ConfigError) as caught:
        make_trainer(config, env, policy, make_algorithm(config, policy))
    return line(caught)


def refused_network(network, env, **changes):
    return refused(FeedForward(network), env, **changes)


def test_a_policy_whose_leaves_are_not_one_per_observation_is_refused():
    """Such as a standard deviation that all observations share; broadcasting would hide it until an array is sliced."""

    class Shared(Fixed):
        def apply(self, params, obs):
            pi, value = super().apply(params, obs)
            return pi._replace(log_std=jnp.zeros((1, 2))), value

    message = refused_network(Shared(2, 2, pi=DiagGaussian), walk(E, continuous=True))
    assert "a leaf float32[1, 2]" in message
    assert "jnp.broadcast_to" in message


def test_an_algorithm_for_another_number_of_shards_is_refused():
    env = walk(E)
    policy = make_policy(CONFIG, env)
    algorithm = make_algorithm(dataclasses.replace(CONFIG, num_shards=E), policy)
    with pytest.raises(ConfigError, match=f"made for {E} shards, but the run has 1"):
        make_trainer(CONFIG, env, policy, algorithm)


def test_a_policy_with_other_actions_than_the_environment_is_refused():
    discrete, continuous = walk(E), walk(E, continuous=True)
    assert "7 logits for 2 actions" in refused_network(Fixed(7), discrete)
    message = refused_network(Fixed(3, 3, pi=DiagGaussian), continuous)
    assert "draws actions float32[4, 3]" in message
    assert "takes float32[4, 2]" in message
    assert "takes int32[4]" in refused_network(Fixed(2, 2, pi=DiagGaussian), discrete)
    assert "draws actions int32[4]" in refused_network(Fixed(2), continuous)


class Factored(Fixed):
    """Factors of these sizes instead of one output of each."""

    def apply(self, params, obs):
        pi, value = super().apply(params, obs)
        return MultiCategorical(tuple(Categorical(x) for x in pi)), value


def test_factors_of_other_sizes_than_the_environments_are_refused():
    """Also where the number of factors agrees, and where one of the two has none."""
    env = walk(E)._replace(action_space=MultiDiscrete((3, 2)), step=walk(E, continuous=True).step)
    message = refused_network(Factored(2, 3, pi=lambda *x: x), env)
    assert "factors of the sizes (2, 3) for actions of the sizes (3, 2)" in message
    assert "draws actions int32[4]" in refused_network(Fixed(3), env)
    assert "draws actions int32[4, 2]" in refused_network(Factored(2, 2, pi=lambda *x: x), walk(E))
    policy = FeedForward(Factored(3, 2, pi=lambda *x: x))
    make_trainer(CONFIG, env, policy, ppo_clip(CONFIG, policy))


def test_a_policys_action_is_flat():
    """Whatever the shape of the environment's."""
    env = walk(E, continuous=True)
    env = env._replace(
        action_space=Box((2, 1), -1.0, 1.0), step=lambda k, s, a, step=env.step: step(k, s, a.reshape(-1, 2))
    )
    policy = FeedForward(Fixed(2, 2, pi=DiagGaussian))
    make_trainer(CONFIG, env, policy, ppo_clip(CONFIG, policy))
    assert "takes float32[4, 2]" in refused_network(Fixed(3, 3, pi=DiagGaussian), env)


def test_a_value_with_an_axis_too_many_is_refused():
    """[E, 1] would be broadcast against the rewards [E]."""
    assert "value is float32[4, 1] for 4 observations" in refused_network(Fixed(2, value=(1,)), walk(E))


def test_a_distribution_that_does_not_suit_the_policy_is_refused():
    """The one would get the other's actions."""
    env = walk(E, continuous=True)
    assert "need action_distribution = tanh_gaussian" in refused_network(Fixed(2, 2, pi=TanhDiagGaussian), env)
    assert "need action_distribution = gaussian" in refused_network(
        Fixed(2, 2, pi=DiagGaussian), env, action_distribution="tanh_gaussian"
    )


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_what_fits_is_not_refused(policy):
    fixed = FeedForward(Fixed(2))
    make_trainer(CONFIG, walk(E), fixed, ppo_clip(CONFIG, fixed))
    trainer_from_config(dataclasses.replace(CONFIG, action_distribution=policy), walk(E, continuous=True))


def test_a_rule_without_its_settings_is_refused():
    env = walk(E)
    with pytest.raises(ConfigError, match=r"^ppo_clip is no Algorithm; .*ppo_clip\(config, policy\)"):
        make_trainer(CONFIG, env, make_policy(CONFIG, env), ppo_clip)


def test_a_policy_that_lacks_a_method_is_refused():
    """A network has to be wrapped, which the message says."""
    network, policy = Fixed(2), policy_of(Fixed(2).apply)
    assert refused(network, walk(E)) == (
        "the policy, a Fixed, has no method initial_memory; wrap a network in FeedForward."
    )
    for name in ("init", "initial_memory", "act", "evaluate"):
        methods = {x: getattr(policy, x) for x in ("init", "initial_memory", "act", "evaluate") if x != name}
        message = refused(SimpleNamespace(**methods), walk(E))
        assert message == f"the policy, a SimpleNamespace, has no method {name}; see core.types.Policy."


# --- policies with memory ---------------------------------------------------------------------------------------------


class Remembering:
    """Remembers the running episode's last observation, and is otherwise a network of zeros."""

    def __init__(self, num_envs=E, after=lambda obs: obs):
        self.num_envs, self.after = num_envs, after

    def init(self, key, obs):
        return jnp.zeros(())

    def initial_memory(self, num_envs):
        return {"last": jnp.zeros((self.num_envs, 2))}

    def act(self, params, memory, obs, start):
        return {"last": self.after(obs)}, Categorical(jnp.zeros((len(obs), 2)))

    def evaluate(self, params, memory, obs, start):
        assert memory["last"].shape == obs[:, 0].shape  # one memory for each sequence, not for each step
        return Categorical(jnp.zeros((*start.shape, 2))), jnp.zeros(start.shape)


def remembering(policy, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return make_trainer(config, walk(config.num_envs), policy, make_algorithm(config, policy))


def test_a_memory_without_a_row_per_environment_is_refused():
    assert refused(Remembering(1), walk(E)) == (
        "the policy's initial_memory has a leaf float32[1, 2] for 4 environments; give each a row of its own."
    )


@pytest.mark.parametrize("after", [lambda obs: obs[:, :1], lambda obs: obs.astype(jnp.int32), lambda obs: (obs, obs)])
def test_a_memory_that_changes_its_shape_or_type_is_refused(after):
    assert refused(Remembering(after=after), walk(E)) == (
        "the policy's act returns a memory of other shapes or types than its initial_memory."
    )


def test_a_value_of_rows_where_there_are_sequences_is_refused():
    class Flat(Remembering):
        def evaluate(self, params, memory, obs, start):
            pi, value = super().evaluate(params, memory, obs, start)
            return pi, value.ravel()

    assert "the policy's value is float32[4] for 4 observations; it has to be [4, 1]" in refused(Flat(), walk(E))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_minibatches": 8}, "num_steps = 4 / sequence_length = 4 are 4 sequences in each of 1 shards"),
        ({"num_minibatches": 4, "num_shards": 2}, "are 2 sequences in each of 2 shards, which num_minibatches = 4"),
        (
            {"num_steps": 12, "total_timesteps": 48, "sequence_length": 6, "num_minibatches": 12},
            "num_steps = 12 / sequence_length = 6 are 8 sequences in each of 1 shards",
        ),
    ],
)
def test_sequences_that_do_not_fill_the_minibatches_are_refused(changes, says):
    """The rows would: a policy without memory trains with the same numbers."""
    assert says in refused(Remembering(), walk(E), **changes)
    trainer_from_config(dataclasses.replace(CONFIG, **changes), walk(E))


@pytest.mark.parametrize("changes", [{}, {"num_minibatches": 4}, {"num_minibatches": 8, "sequence_length": 2}])
def test_a_policy_with_memory_that_fits_is_not_refused(changes):
    remembering(Remembering(), **{"num_minibatches": 1, **changes})


@pytest.mark.parametrize("policy", [Remembering(), FeedForward(Fixed(2))])
def test_a_sequence_length_that_does_not_divide_the_rollout_is_refused(policy):
    """Whatever the policy: it says what could be used instead."""
    message = refused(policy, walk(E), num_minibatches=1, sequence_length=3)
    assert message == "sequence_length = 3 does not divide num_steps = 4; try 1, 2 or 4."
