"""An environment that breaks its contract is refused before anything is trained, in one line that names the culprit."""

import math

import jax
import jax.numpy as jnp
import pytest
from messages import line
from probe_envs import walk

from purejaxppo.config import TrainConfig
from purejaxppo.core.check_env import check_env
from purejaxppo.core.types import Box, Discrete, MultiDiscrete
from purejaxppo.devices.data_parallel import spread_trainer
from purejaxppo.errors import EnvError
from purejaxppo.train import trainer_from_config

E = 4
CONFIG = TrainConfig(env="walk", num_envs=E, num_steps=4, hidden_sizes=(), total_timesteps=16)


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
    "info of no name": (
        stepping(lambda r: {"info": {"a,b": r.reward}}),
        "info['a,b'], which cannot be the name of a column in a table; leave out commas, quotes and line breaks.",
    ),
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
