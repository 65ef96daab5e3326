"""A saved run in Python: its policy acts as the evaluation does, and says in one line what it cannot take."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purejaxppo
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.core.types import Box, Discrete, MultiDiscrete
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.errors import ConfigError
from purejaxppo.evaluate import evaluation_key, frozen
from purejaxppo.experiment.load_run import SavedRun
from purejaxppo.policies.registry import make_policy

SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "hidden_sizes": (8,)}
SPACES = {"obs": Box((2,)), "critic": Box((1,)), "action_mask": Box((3,)), "picture": Box((2, 2))}


def untrained(env=None, **settings):
    """A run before its first update, in CartPole or the environment that is passed."""
    config = TrainConfig(**SMALL, **settings)
    env = env or from_gymnax(config.env, config.num_envs)
    trainer = purejaxppo.trainer_from_config(config, env)
    return SavedRun(config, env, jax.jit(trainer.init)(jax.random.key(2), Hyperparams()), {"env_steps": 0})


def dict_env(spaces=SPACES, actions=Discrete(3)):  # noqa: B008  a tuple
    """Steps of one step, whose observations have these keys; the picture is uint8."""
    types = {"action_mask": jnp.bool_, "picture": jnp.uint8}

    def observe(key):
        drawn = {name: jax.random.normal(key, space.shape) for name, space in spaces.items()}
        return {name: x.astype(types.get(name, x.dtype)) for name, x in drawn.items()}

    def step(key, state, action):
        return state, observe(key), 0.0, True, False

    return purejaxppo.autoreset(lambda key: (jnp.zeros(()), observe(key)), step, spaces, actions, SMALL["num_envs"])


@pytest.fixture(scope="module")
def cartpole():
    return untrained()


@pytest.fixture(scope="module")
def several():
    return untrained(dict_env())


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """A run with a GRU and normalised observations, loaded from its directory."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(
        policy="gru", normalize_observation=True, total_timesteps=128, env_params={"max_steps_in_episode": 30}, **SMALL
    )
    purejaxppo.run_experiment(config, Hyperparams(), 1, out=out, options=RunOptions(eval_episodes=2))
    return purejaxppo.load_run(out)


# --- what it returns --------------------------------------------------------------------------------------------------


def test_one_observation_or_several_as_arrays_or_lists(cartpole):
    obs = np.random.default_rng(0).normal(size=(64, 4))
    actions, memory = cartpole.policy(obs)
    assert memory == ()
    assert (actions.shape, actions.dtype) == ((64,), jnp.int32)
    assert set(np.unique(actions)) == {0, 1}
    for given in (obs[3], obs[3].tolist(), jnp.asarray(obs[3]), tuple(obs[3])):
        action, memory = cartpole.policy(given, memory)
        assert memory == ()
        assert action.shape == ()
        assert int(action) == actions[3]
    np.testing.assert_array_equal(cartpole.policy(obs.tolist())[0], actions)
    assert cartpole.policy([0, 0, 0, 0])[0].shape == ()  # whole numbers are numbers


def test_actions_are_the_modes_of_the_policy(cartpole):
    """Computed from the network, without the code under test."""
    obs = jax.random.normal(jax.random.key(1), (20, 4))
    pi, _ = make_policy(cartpole.config, cartpole.env).network.apply(cartpole.params, obs)
    np.testing.assert_array_equal(cartpole.policy(obs)[0], np.argmax(pi.logits, axis=1))


def test_continuous_actions_are_within_their_bounds():
    run = untrained(from_gymnax("Pendulum-v1", SMALL["num_envs"]))
    big = jax.tree.map(lambda x: 1000 * x, run.params)  # so that the bounds are reached
    run = SavedRun(run.config, run.env, run.runner._replace(learner=run.runner.learner._replace(params=big)), run.meta)
    obs = np.random.default_rng(0).normal(size=(64, 3))
    actions, _ = run.policy(obs)
    assert (actions.shape, actions.dtype) == ((64, 1), jnp.float32)
    assert (actions.min(), actions.max()) == (-2, 2)
    assert run.policy(obs[0])[0].shape == (1,)


def test_several_choices_at_once():
    run = untrained(dict_env({"obs": Box((2,))}, MultiDiscrete((3, 2))))
    assert run.policy({"obs": [0.5, 1]})[0].shape == (2,)
    assert run.policy({"obs": np.ones((5, 2))})[0].shape == (5, 2)


def test_a_dict_with_a_mask_and_without_what_the_policy_does_not_see(several):
    """Only what the mask allows is done. The numbers of the critic make no difference, so they may be missing."""
    draw = np.random.default_rng(0)
    mask = np.eye(3, dtype=bool)[draw.integers(3, size=32)]
    obs = {"obs": draw.normal(size=(32, 2)), "action_mask": mask, "picture": np.full((32, 2, 2), 255)}
    actions, _ = several.policy(obs)
    np.testing.assert_array_equal(actions, mask.argmax(axis=1))
    free = {**obs, "action_mask": np.ones((32, 3), int)}  # truth values may be 0 and 1
    wanted = several.policy(free)[0]
    for critic in (0.0, 100.0):
        np.testing.assert_array_equal(several.policy({**free, "critic": np.full((32, 1), critic)})[0], wanted)
    one = {"obs": [1.0, 2.0], "action_mask": [False, True, False], "picture": [[0, 1], [2, 3]]}
    assert int(several.policy(one)[0]) == 1


# --- memory -----------------------------------------------------------------------------------------------------------


def test_an_episode_with_memory_is_that_of_the_evaluation(recurrent):
    """Step by step in gymnax; then the policy's own `evaluate` sees the whole sequence at once."""
    env, params = gymnax.make("CartPole-v1")
    obs, state = env.reset(jax.random.key(5), params)
    memory, seen, actions = None, [], []
    for _ in range(12):
        action, memory = recurrent.policy(obs, memory)
        seen.append(obs)
        actions.append(int(action))
        obs, state, *_ = env.step(jax.random.key(6), state, action, params)
    policy = frozen(make_policy(recurrent.config, recurrent.env), recurrent.runner)
    start = jnp.zeros((1, 12), jnp.bool_).at[0, 0].set(True)
    pi, _ = policy.policy.evaluate(
        recurrent.params, policy.initial_memory(1), _normalized(recurrent, jnp.stack(seen))[None], start
    )
    assert actions == pi.mode()[0].tolist()
    # The memory is used: without it other numbers come out.
    forgetful = [recurrent.policy(x)[1]["actor"] for x in seen]
    assert not np.allclose(forgetful[-1], memory["actor"])


def _normalized(run, obs):
    stats = run.normalizer.obs
    return jnp.clip((obs - stats.mean[None]) / jnp.sqrt(stats.var[None] + 1e-8), -10, 10)


def test_several_environments_that_end_at_different_times_are_played_as_the_evaluation_does(recurrent):
    """With the evaluation's keys: the same returns, which no other actions have."""
    episodes = 3
    env = from_gymnax("CartPole-v1", episodes, max_steps_in_episode=30)
    step = jax.jit(env.step)
    key, key_reset = jax.random.split(evaluation_key(7))
    state, obs = env.reset(jax.random.split(key_reset, episodes))
    memory, start = None, None
    returns, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        key, _, key_env = jax.random.split(key, 3)
        action, memory = recurrent.policy(obs, memory, start)
        state, result = step(env.draw(jax.random.split(key_env, episodes)), state, action)
        returns += running * np.asarray(result.reward)
        start = result.terminated | result.truncated
        running &= ~np.asarray(start)
        obs = result.obs
    evaluated = purejaxppo.evaluate_saved(recurrent, episodes=episodes, seed=7)
    assert evaluated["return_mean"] == pytest.approx(returns.mean())
    assert evaluated["return_std"] == pytest.approx(returns.std())


def test_start_forgets(recurrent):
    obs = np.random.default_rng(0).normal(size=(2, 4))
    _, fresh = recurrent.policy(obs)
    _, used = recurrent.policy(obs, fresh)
    _, half = recurrent.policy(obs, fresh, [True, False])
    np.testing.assert_array_equal(half["actor"], np.stack([fresh["actor"][0], used["actor"][1]]))
    _, one = recurrent.policy(obs[0], jax.tree.map(lambda x: x[0], fresh), True)
    np.testing.assert_allclose(one["actor"], fresh["actor"][0], rtol=1e-5, atol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(run, *arguments):
    with pytest.raises(ConfigError) as caught:
        run.policy(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(), (3,), (5,), (2, 3), (1, 1, 4)])
def test_another_shape(cartpole, shape):
    assert refused(cartpole, np.zeros(shape)) == (
        f"the observation has the shape {list(shape)}; it has to be [4], or [b, 4] for b environments."
    )


def test_what_is_no_array_of_numbers(cartpole):
    assert "is no array" in refused(cartpole, [[0.0], [0.0, 1.0]])
    assert "is of the type <U4; give numbers, float32" in refused(cartpole, ["left"] * 4)
    assert "is of the type object" in refused(cartpole, [None] * 4)


WHOLE = {"obs": np.zeros(2), "action_mask": np.ones(3, bool), "picture": np.zeros((2, 2), np.uint8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((5, 2))}, "'action_mask' has the shape [3]; it has to be [3], or [b, 3] for b environments"),
        ({"picture": np.zeros((2, 3))}, "'picture' has the shape [2, 3]; it has to be [2, 2], or [b, 2, 2]"),
        ({"picture": np.full((2, 2), 0.5)}, "'picture' has numbers that are no uint8; give them as env returns them"),
        ({"picture": np.full((2, 2), -1)}, "'picture' has numbers that are no uint8"),
        ({"action_mask": [1, 2, 0]}, "'action_mask' has numbers that are no bool"),
        (
            {"speed": 1.0},
            "a dict with the keys action_mask, obs, picture, speed; the policy takes a dict with the keys",
        ),
    ],
)
def test_a_dict_that_does_not_fit(several, change, message):
    assert message in refused(several, {**WHOLE, **change})


def test_a_dict_in_place_of_an_array(cartpole, several):
    assert refused(cartpole, WHOLE).endswith("obs, picture; the policy takes one array.")
    assert "is one array; the policy takes a dict with the keys action_mask, obs, picture." in refused(
        several, np.zeros(2)
    )
    missing = {key: x for key, x in WHOLE.items() if key != "action_mask"}
    assert "a dict with the keys obs, picture; the policy takes" in refused(several, missing)


def test_a_memory_of_other_environments(recurrent, cartpole):
    _, memory = recurrent.policy(np.zeros((2, 4)))
    for obs in (np.zeros((3, 4)), np.zeros(4)):
        assert "pass what the call before has returned" in refused(recurrent, obs, memory)
    assert "pass what the call before has returned" in refused(cartpole, np.zeros(4), memory)
    assert "start has the shape [3], not [2]" in refused(recurrent, np.zeros((2, 4)), memory, [True] * 3)
