"""What does not fit together is refused before anything is trained, in one line that names the culprit."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_policy import policy_of
from probe_envs import walk

from purejaxppo.algorithms import make_algorithm, ppo_clip
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.checks import check_env
from purejaxppo.core.distributions import Categorical, DiagGaussian, MultiCategorical, TanhDiagGaussian
from purejaxppo.core.types import Box, Discrete, MultiDiscrete
from purejaxppo.devices.data_parallel import spread_trainer
from purejaxppo.devices.vectorize import grid, make_runs
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import advance, make_trainer, train, trainer_from_config

E = 4
CONFIG = TrainConfig(env="walk", num_envs=E, num_steps=4, hidden_sizes=(), total_timesteps=16)
HP = Hyperparams()


def line(caught):
    """The message, which is one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- environments -----------------------------------------------------------------------------------------------------


def stepping(change):
    """walk, with something else in what its steps return."""
    env = walk(E)

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(**change(result))

    return env._replace(step=step)


def retyped(env):
    """Its state is another after the first step."""
    return env._replace(step=lambda key, state, action: (state[0], env.step(key, state, action)[1]))


def swapped(env):
    """reset in gymnax's order."""
    return env._replace(reset=lambda key: env.reset(key)[::-1])


def six_values(env):
    """A step as gymnax returns it, but for the state in front."""
    return env._replace(step=lambda key, state, action: (state, tuple(env.step(key, state, action)[1])))


def failing(key, state, action):
    raise ZeroDivisionError("in the physics")


WRONG = {
    "reward of a column": (stepping(lambda r: {"reward": r.reward[:, None]}), "reward float32[4, 1]"),
    "one reward": (stepping(lambda r: {"reward": r.reward.sum()}), "reward float32[]"),
    "whole rewards": (stepping(lambda r: {"reward": r.reward.astype(jnp.int32)}), "reward int32[4]"),
    "no array": (stepping(lambda r: {"reward": None}), "reward of the type NoneType"),
    "float terminated": (stepping(lambda r: {"terminated": r.terminated * 1.0}), "terminated float32[4]"),
    "float truncated": (stepping(lambda r: {"truncated": r.truncated * 1.0}), "truncated float32[4]"),
    "one flag": (stepping(lambda r: {"truncated": jnp.array(False)}), "truncated bool[]"),
    "obs without an axis": (stepping(lambda r: {"obs": r.obs[:, 0]}), "observations float32[4] (step's obs)"),
    "final_obs of another": (
        stepping(lambda r: {"final_obs": r.final_obs[:, :1]}),
        "observations float32[4, 1] (step's final_obs), but declares [4, 2]",
    ),
    "obs of two types": (
        stepping(lambda r: {"obs": r.obs.astype(jnp.int32)}),
        "observations int32[4, 2] (step's obs), but float32[4, 2] in reset",
    ),
    "misdeclared": (
        walk(E)._replace(observation_space=Box((3,))),
        "float32[4, 2] (reset's second value), but declares [4, 3]",
    ),
    "copies": (
        walk(E)._replace(num_envs=5, reset=lambda keys: walk(E).reset(keys[:E])),
        "float32[4, 2] (reset's second value), but declares [5, 2]",
    ),
    "info": (stepping(lambda r: {"info": {"speed": r.obs}}), "info['speed'] float32[4, 2]; it has to be [4]"),
    "info of keys": (
        stepping(lambda r: {"info": {"seed": jax.random.split(jax.random.key(0), E)}}),
        "info['seed'] key<fry>[4]; it has to be [4], one number per environment",
    ),
    "info without an axis": (stepping(lambda r: {"info": {"speed": r.reward[0]}}), "info['speed'] float32[]"),
    "info of no array": (stepping(lambda r: {"info": {"speed": None}}), "info['speed'] of the type NoneType"),
    "no info": (stepping(lambda r: {"info": None}), "info of the type NoneType"),
    "state": (retyped(walk(E)), "a state of other shapes or types than its reset"),
    "order of reset": (swapped(walk(E)), "of the type tuple (reset's second value)"),
    "a tuple": (six_values(walk(E)), "the state and a tuple; it has to be an EnvStep"),
    "an error": (walk(E)._replace(step=failing), "ZeroDivisionError: in the physics"),
    "no actions": (walk(E)._replace(action_space=Discrete(0)), "0 discrete actions"),
    "no factors": (walk(E)._replace(action_space=MultiDiscrete(())), "factors of the sizes ()"),
    "a factor without a choice": (walk(E)._replace(action_space=MultiDiscrete((2, 0))), "sizes (2, 0)"),
    "no element": (walk(E)._replace(action_space=Box((2, 0))), "actions of shape (2, 0), without an element"),
    "bounds of a matrix": (walk(E)._replace(action_space=Box((2, 2), (0.0,) * 4, (1.0,) * 4)), "one per element"),
    "bounds": (walk(E)._replace(action_space=Box((2,), (0.0,) * 3, (1.0,) * 3)), "one per element"),
    "order of bounds": (walk(E)._replace(action_space=Box((2,), (0.0, 1.0), (1.0, 0.0))), "bounds (0.0, 1.0)"),
    "bounds that are NaN": (walk(E)._replace(action_space=Box((1,), (math.nan,), (1.0,))), "bounds (nan,)"),
    "gap of 0": (walk(E)._replace(truncation_gap=0), "truncation_gap = 0"),
    "gap beyond the limit": (walk(E, limit=3)._replace(truncation_gap=4), "truncation_gap = 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_environment_that_breaks_its_contract_is_refused(name):
    env, says = WRONG[name]
    with pytest.raises(EnvError) as caught:
        check_env(env)
    assert says in line(caught)
    assert line(caught).startswith("the environment")


@pytest.mark.parametrize("name", ["return", "length", "count"])
def test_what_an_environment_reports_does_not_take_the_name_of_a_metric(name):
    """`episode/return` is the trainer's own."""
    with pytest.raises(EnvError) as caught:
        check_env(stepping(lambda r: {"info": {name: r.reward}}))
    assert f"info[{name!r}], which is the name of a metric; give it another one" in line(caught)


def test_an_environment_may_report_numbers_of_any_type_and_truth_values():
    numbers = {"speed": jnp.float32, "lives": jnp.int32, "level": jnp.uint8, "success": jnp.bool_}
    info = {name: jnp.zeros(E, dtype) for name, dtype in numbers.items()}
    check_env(stepping(lambda r: {"info": info}))


SPACES = {"obs": Box((2,)), "critic": Box((1,)), "action_mask": Box((2,))}


def shown(obs):
    """An observation [E, 2] as a dict of three arrays."""
    return {"obs": obs, "critic": obs[:, :1], "action_mask": jnp.ones((len(obs), 2), bool)}


def showing(change=lambda obs: obs, change_final=lambda obs: obs, spaces=None):
    """walk, with a dict of arrays as its observation."""
    env = walk(E)

    def reset(keys):
        state, obs = env.reset(keys)
        return state, change(shown(obs))

    def step(draws, state, action):
        state, result = env.step(draws, state, action)
        return state, result._replace(obs=change(shown(result.obs)), final_obs=change_final(shown(result.final_obs)))

    return env._replace(reset=reset, step=step, observation_space=spaces or SPACES)


def without(key):
    return lambda obs: {name: x for name, x in obs.items() if name != key}


def with_array(key, make):
    return lambda obs: {**obs, key: make(obs)}


WRONG_DICTS = {
    "a key is missing": (
        showing(without("critic")),
        "returns observations with the keys action_mask, obs (reset's second value), but declares with the keys "
        "action_mask, critic, obs by observation_space",
    ),
    "a key is missing in final_obs": (
        showing(change_final=without("critic")),
        "with the keys action_mask, obs (step's final_obs)",
    ),
    "a key too many": (showing(with_array("goal", lambda obs: obs["obs"])), "with the keys action_mask, critic, goal"),
    "an array for a dict": (showing(lambda obs: obs["obs"]), "that are one array (reset's second value), but declares"),
    "a dict for an array": (showing(spaces=Box((2,))), "but declares that are one array by observation_space"),
    "a shape": (
        showing(with_array("critic", lambda obs: obs["obs"])),
        "returns observations 'critic' float32[4, 2] (reset's second value), but declares [4, 1]",
    ),
    "no array": (showing(with_array("critic", lambda obs: None)), "observations 'critic' of the type NoneType"),
    "a mask of numbers": (
        showing(with_array("action_mask", lambda obs: jnp.ones((E, 2)))),
        "returns 'action_mask' float32[4, 2] (reset's second value); it has to be bool, one per action",
    ),
    "another type than in reset": (
        showing(change_final=with_array("critic", lambda obs: obs["critic"].astype(jnp.int32))),
        "int32[4, 1] (step's final_obs), but float32[4, 1] in reset",
    ),
}


@pytest.mark.parametrize("name", WRONG_DICTS)
def test_an_observation_of_several_arrays_that_breaks_the_contract_is_refused(name):
    env, says = WRONG_DICTS[name]
    with pytest.raises(EnvError) as caught:
        check_env(env)
    assert says in line(caught)


def test_an_observation_of_several_arrays_that_keeps_it_is_not():
    """With or without those that have a meaning, and of any types."""
    check_env(showing())
    pixels = {"board": Box((2, 2)), "score": Box(())}
    arrays = {"board": jnp.zeros((E, 2, 2), jnp.uint8), "score": jnp.zeros(E)}
    check_env(showing(lambda obs: arrays, lambda obs: arrays, spaces=pixels))


@pytest.mark.parametrize("continuous", [False, True])
def test_an_environment_that_keeps_it_is_not(continuous):
    check_env(walk(E, continuous=continuous))
    check_env(walk(E)._replace(step_limit=None, truncation_gap=9))


@pytest.mark.parametrize("build", [trainer_from_config, spread_trainer])
def test_trainers_look_at_environments_of_ones_own(build):
    """Whichever way they are built."""
    env, says = WRONG["reward of a column"]
    with pytest.raises(EnvError) as caught:
        build(CONFIG, env)
    assert says in line(caught)


# --- policies and update rules ----------------------------------------------------------------------------------------


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


# --- hyperparameters --------------------------------------------------------------------------------------------------

BAD = {
    "learning_rate": math.nan,
    "gamma": 1.5,
    "clip_eps": np.float32(0),
    "vf_coef": "0.5",
    "ent_coef": jnp.float32(-1),
    "kl_max": 1e-9,
    "max_grad_norm": None,
}


@pytest.fixture(scope="module")
def trainer():
    return trainer_from_config(CONFIG, walk(E))


@pytest.mark.parametrize("name", BAD)
def test_a_hyperparameter_that_cannot_work_is_refused_where_its_number_is_known(name, trainer):
    """Also under jit, as long as it is no argument."""
    hp = dataclasses.replace(HP, **{name: BAD[name]})
    for begin in (lambda key: trainer.init(key, hp), lambda key: advance(trainer, hp, None, 1)):
        with pytest.raises(ConfigError, match=name) as caught:
            jax.eval_shape(begin, jax.random.key(0))
        line(caught)


def test_train_refuses_it_too():
    with pytest.raises(ConfigError, match="learning_rate = nan"):
        train(dataclasses.replace(CONFIG, env="CartPole-v1"), Hyperparams(learning_rate=math.nan), jax.random.key(0))


def test_traced_hyperparameters_pass_and_the_others_are_looked_at(trainer):
    """Under vmap over one of them, to an array that is known, and without any number at all."""
    key = jax.random.key(0)

    def init(rate, hp):
        return trainer.init(key, dataclasses.replace(hp, learning_rate=rate))

    shapes = jax.eval_shape(jax.vmap(init, (0, None)), jnp.array([1e-3, jnp.nan]), HP)
    assert shapes.updates.shape == (2,)
    with pytest.raises(ConfigError, match="gamma"):
        jax.eval_shape(jax.vmap(partial(init, hp=Hyperparams(gamma=2))), jnp.ones(2))


@pytest.mark.parametrize(
    ("hps", "seeds", "says"),
    [
        ({"learning_rate": [1e-3, math.nan]}, [0, 1], "learning_rate = nan"),
        ({"kl_max": [0.02, 1e-9]}, [0, 1], "kl_max = "),
        ({}, [0, 1, 2], r"learning_rate has the shape \(2,\) and seeds \(3,\)"),
        ({"gamma": 0.9}, [0, 1], r"gamma has the shape \(\)"),
        ({}, [0, -1], "seed = -1"),
        ({}, [0.5, 1], "seed = 0.5"),
    ],
)
def test_runs_that_cannot_work_are_refused(hps, seeds, says, trainer):
    """`grid` makes none of these; arrays of one's own may be anything."""
    whole, _ = grid(HP, [0, 1])
    changed = dataclasses.replace(whole, **{name: np.float32(values) for name, values in hps.items()})
    with pytest.raises(ConfigError, match=says) as caught:
        make_runs(trainer, changed, np.array(seeds))
    line(caught)


# --- cores ------------------------------------------------------------------------------------------------------------

CORES = """
import purejaxppo
import jax
{first}
try:
    purejaxppo.use_all_cores()
    print(jax.device_count())
except ValueError as error:
    print(error)
"""


def test_all_cores_are_asked_for_before_jax_starts(server, tmp_path):
    """Afterwards there is nothing to be had; asking twice is fine."""

    def say(first):
        fake = "import purejaxppo.devices.cpu as t; t.cpu_cores = lambda: 3; "
        code, out, errors = server.script(tmp_path / "log", CORES.format(first=fake + first), JAX_NUM_CPU_DEVICES=None)
        assert code == 0, errors
        return out.strip()

    assert say("purejaxppo.use_all_cores()") == "3"
    message = say("jax.devices()")
    assert "use_all_cores() comes too late: JAX has started with 1 CPU device(s) for 3 cores" in message
    assert "\n" not in message
