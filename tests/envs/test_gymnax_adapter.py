"""gymnax environments behind the `VecEnv` interface: every id, exact time limits, and errors that name the culprit."""

import functools
import inspect
import math
import textwrap

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from gymnax.environments import spaces
from gymnax.environments.classic_control.cartpole import CartPole

import purejaxppo
from purejaxppo.core.types import Box, Discrete, MultiDiscrete
from purejaxppo.envs.gymnax_adapter import from_gymnax, registered_envs
from purejaxppo.errors import EnvError
from purejaxppo.policies.inputs import reader
from purejaxppo.train import train

E = 3
ALL = [name for name in gymnax.registration.registered_envs if name != "MNISTBandit-bsuite"]
STEPPED = [
    "CartPole-v1",
    "MountainCarContinuous-v0",
    "Breakout-MinAtar",
    "Catch-bsuite",
    "DiscountingChain-bsuite",
    "UmbrellaChain-bsuite",
    "FourRooms-misc",
    "BernoulliBandit-misc",
    "FrozenLake-misc",
]


def random_action(env, key):
    space = env.action_space
    if isinstance(space, Discrete):
        return jax.random.randint(key, (env.num_envs,), 0, space.n)
    low, high = (jnp.clip(jnp.asarray(x, jnp.float32), -10, 10) for x in (space.low, space.high))
    return jax.random.uniform(key, (env.num_envs, *space.shape), minval=low[None], maxval=high[None])


def random_steps(env, num_steps, seed=0):
    """(first obs, steps [T, E, ...]) of random actions, compiled."""

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(key):
        state, obs = env.reset(jax.random.split(key, env.num_envs))

        def step(state, key):
            draws = env.draw(jax.random.split(key, env.num_envs))
            return env.step(draws, state, random_action(env, key))

        return obs, jax.lax.scan(step, state, jax.random.split(key, num_steps))[1]

    return jax.device_get(run(jax.random.key(seed)))


def check_types(env, obs, step):
    """The promises of `EnvStep`, whatever the environment itself returns."""
    for x in (obs, step.obs, step.final_obs):
        assert x.shape == (E, *env.observation_space.shape)
        assert x.dtype == jnp.float32
    assert step.reward.shape == step.terminated.shape == step.truncated.shape == (E,)
    assert step.reward.dtype == jnp.float32
    assert step.terminated.dtype == step.truncated.dtype == jnp.bool_


@pytest.fixture
def _own_rank_promotion():
    """Lets gymnax promote ranks inside its environments, as Swimmer does; our own code is tested without."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("_own_rank_promotion")
@pytest.mark.parametrize("name", ALL)
def test_every_registered_environment_builds_and_steps(name):
    """Shapes and types of reset and step, by tracing."""
    env = from_gymnax(name, E)
    assert env.num_envs == E
    keys = jax.random.split(jax.random.key(0), E)
    state, obs = jax.eval_shape(env.reset, keys)
    action = jax.eval_shape(lambda key: random_action(env, key), jax.random.key(0))
    following, step = jax.eval_shape(env.step, jax.eval_shape(env.draw, keys), state, action)
    check_types(env, obs, step)
    assert jax.tree.structure(following) == jax.tree.structure(state)
    assert env.step_limit is None or env.step_limit >= 1
    assert 1 <= env.truncation_gap <= (env.step_limit or 1)


def test_there_are_25_of_them():
    assert len(ALL) == 25
    assert set(STEPPED) <= set(ALL)


@pytest.fixture(scope="module")
def stepped():
    """Name -> (env, first obs, 300 random steps) with a time limit of 4; compiled when first asked for."""
    seen = {}

    def get(name):
        if name not in seen:
            env = from_gymnax(name, E, max_steps_in_episode=4)
            seen[name] = (env, *random_steps(env, 300))
        return seen[name]

    return get


def check_steps(env, obs, steps):
    check_types(env, obs, jax.tree.map(lambda x: x[0], steps))
    assert env.step_limit == env.truncation_gap == 4
    assert all(np.isfinite(x).all() for x in (obs, steps.obs, steps.final_obs, steps.reward))
    done = steps.terminated | steps.truncated
    same = (steps.obs == steps.final_obs).all(axis=tuple(range(2, steps.obs.ndim)))
    assert same[~done].all()
    assert steps.truncated.any()
    gaps = [np.diff(np.flatnonzero(steps.truncated[:, e])) for e in range(E)]
    assert min(int(gap.min()) for gap in gaps) >= env.truncation_gap
    # No episode is longer than the limit.
    for e in range(E):
        assert np.diff(np.flatnonzero(done[:, e]), prepend=-1).max() == 4


@pytest.mark.parametrize("name", STEPPED)
def test_random_steps(stepped, name):
    """Types, finite numbers, final_obs only where an episode ends, and truncations at least truncation_gap apart."""
    check_steps(*stepped(name))


@pytest.mark.slow
@pytest.mark.usefixtures("_own_rank_promotion")
@pytest.mark.parametrize("name", [name for name in ALL if name not in (*STEPPED, "SimpleBandit-bsuite")])
def test_random_steps_of_the_others(stepped, name):
    check_steps(*stepped(name))


def test_final_obs_at_a_truncation_is_the_old_episodes_last():
    """Against gymnax's own physics without any limit: the same actions, and the observation after the last of them."""
    env = from_gymnax("CartPole-v1", E, max_steps_in_episode=4)
    endless = from_gymnax("CartPole-v1", E)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def step_both(key, state, action):
        draws = env.draw(jax.random.split(key, E))
        return endless.step(draws, state, action)[1], *env.step(draws, state, action)

    state, _ = env.reset(jax.random.split(jax.random.key(3), E))
    for t in range(4):
        wanted, state, step = step_both(jax.random.key(t), state, jnp.array([0, 1, t % 2]))
        np.testing.assert_allclose(step.final_obs, wanted.obs, rtol=1e-6)
    assert step.truncated.all()
    assert not step.terminated.any()
    assert not np.allclose(step.obs, step.final_obs)
    assert np.abs(step.obs).max() <= 0.05  # CartPole's starts


# --- encodings --------------------------------------------------------------------------------------------------------


def test_frozen_lake_is_one_hot(stepped):
    env, obs, steps = stepped("FrozenLake-misc")
    assert env.observation_space == Box((16,))
    for x in (obs, steps.obs, steps.final_obs):
        assert set(np.unique(x)) == {0.0, 1.0}
        np.testing.assert_array_equal(x.sum(axis=-1), 1)
    np.testing.assert_array_equal(np.argmax(obs, axis=-1), 0)  # every episode starts in the corner
    assert len(np.unique(np.argmax(steps.final_obs, axis=-1))) > 3


def test_four_rooms_comes_out_as_float(stepped):
    """gymnax returns int32 here."""
    _, obs, steps = stepped("FourRooms-misc")
    assert obs.dtype == steps.final_obs.dtype == np.float32
    np.testing.assert_array_equal(steps.obs, np.round(steps.obs))
    assert steps.obs.max() > 1


def test_spaces():
    assert from_gymnax("Pendulum-v1", 1).action_space == Box((1,), (-2.0,), (2.0,))
    assert from_gymnax("Acrobot-v1", 1).action_space == Discrete(3)


def test_parameters_of_the_environment_and_of_its_constructor():
    """Fields keep their type; what is no field goes to the constructor."""
    assert from_gymnax("CartPole-v1", 1, max_steps_in_episode=7.0).step_limit == 7
    assert from_gymnax("DeepSea-bsuite", 1, size=5).observation_space == Box((5, 5))
    _, heavy = random_steps(from_gymnax("CartPole-v1", 1, gravity=100.0), 3)
    _, light = random_steps(from_gymnax("CartPole-v1", 1), 3)
    assert not np.allclose(heavy.obs, light.obs)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(name, **env_params):
    with pytest.raises(EnvError) as caught:
        from_gymnax(name, E, **env_params)
    assert caught.value.exit_code == 5
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_environment_with_a_suggestion():
    assert "Did you mean 'CartPole-v1'?" in refused("Cartpole-v1")
    assert "Did you mean" not in refused("xyzzy")


def test_unknown_parameter_with_a_suggestion():
    message = refused("CartPole-v1", gravitiy=9.8)
    assert "'gravitiy'" in message
    assert "Did you mean 'gravity'?" in message
    assert "max_steps_in_episode" in message  # it lists what there is


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1, 1.5, 2**31, "7", True])
def test_impossible_time_limits(value):
    message = refused("CartPole-v1", max_steps_in_episode=value)
    assert "max_steps_in_episode" in message
    assert str(value) in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "heavy"])
def test_impossible_gravity(value):
    assert "gravity" in refused("CartPole-v1", gravity=value)


def test_a_whole_number_stays_one():
    assert "is not a whole number" in refused("UmbrellaChain-bsuite", chain_length=2.5)


def test_download_is_refused_unless_asked_for():
    assert "allow-download" in refused("MNISTBandit-bsuite")


# --- environments of one's own ----------------------------------------------------------------------------------------


@pytest.fixture
def register(monkeypatch):
    """gymnax.register, undone after the test."""
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    known = list(gymnax.registration.registered_envs)
    yield gymnax.registration.register
    gymnax.registration.registered_envs[:] = known


class Plain(CartPole):
    """CartPole from outside gymnax, its own rule for truncation untouched."""


class Impatient(CartPole):
    """Cuts an episode off whenever the cart is right of the middle, at consecutive steps if need be."""

    def is_truncated(self, state, params):
        return state.x > 0.0


class FiveValues(CartPole):
    """The step of gymnax before 1.0."""

    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info


class Broken(CartPole):
    def step_env(self, key, state, action, params):
        return jnp.zeros(3) @ jnp.zeros(4)  # the line that fails


class Grid(CartPole):
    """A two-dimensional Box of actions, of which the last element is the push."""

    def action_space(self, params=None):
        return spaces.Box(jnp.array([[-1.0], [0.0]]), 1.0, (2, 2))

    def step_env(self, key, state, action, params):
        assert action.shape == (2, 2)
        return super().step_env(key, state, (action[1, 1] > 0.5).astype(jnp.int32), params)


class Levers(CartPole):
    """A tuple of three choices, of which the second is the push."""

    def action_space(self, params=None):
        return spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2), spaces.Discrete(5)])

    def step_env(self, key, state, action, params):
        first, push, last = action
        assert first.shape == push.shape == last.shape == ()
        return super().step_env(key, state, push, params)


class Mixed(CartPole):
    def action_space(self, params=None):
        return spaces.Tuple([spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))])


class Composite(CartPole):
    def action_space(self, params=None):
        return spaces.Dict({"a": spaces.Discrete(2)})


class Seeing(CartPole):
    """Observations of several arrays: CartPole's own, in float16, a picture, a mask, a side, and a count."""

    def observation_space(self, params=None):
        parts = {"obs": spaces.Box(-1.0, 1.0, (4,)), "picture": spaces.Box(0, 255, (2, 3), jnp.uint8)}
        parts |= {"action_mask": spaces.Box(0, 1, (2,), jnp.bool_), "side": spaces.Discrete(2)}
        return spaces.Dict({**parts, "count": spaces.Box(0, 500, (), jnp.int32)})

    def get_obs(self, state, params=None, key=None):
        obs = super().get_obs(state, params, key).astype(jnp.float16)
        parts = {"obs": obs, "picture": jnp.full((2, 3), 255, jnp.uint8), "side": (state.x > 0).astype(jnp.int32)}
        return {**parts, "action_mask": jnp.array([True, True]), "count": jnp.asarray(state.time, jnp.int32)}


class Pictures(CartPole):
    """A picture of bytes, as cameras make them."""

    def observation_space(self, params=None):
        return spaces.Box(0, 255, (2, 3), jnp.uint8)

    def get_obs(self, state, params=None, key=None):
        return jnp.full((2, 3), 200, jnp.uint8)


class Nested(CartPole):
    def observation_space(self, params=None):
        return spaces.Dict({"left": spaces.Dict({"a": spaces.Box(0, 1, (1,))})})


class Tupled(CartPole):
    def observation_space(self, params=None):
        return spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2)])})


class OtherKeys(Seeing):
    def get_obs(self, state, params=None, key=None):
        obs = super().get_obs(state, params, key)
        return {"speed": obs.pop("obs"), **obs}


class Undelivered(CartPole):
    def observation_space(self, params=None):
        return spaces.Dict({"a": spaces.Box(0, 1, (4,))})


class Reporting(CartPole):
    """Numbers, truth values, and what is neither; some have the names of metrics, or none that a table could have."""

    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, info = super().step_env(key, state, action, params)
        info |= {"time": state.time, "right": state.x > 0, "half": 0.5, "return": 7, "a, b": jnp.float32(1.0)}
        return obs, state, reward, terminated, info | {"place": state.x[None], "state": state, "nothing": None}


class ReportingText(Reporting):
    """Beside them what JAX's functions cannot return."""

    def step_env(self, key, state, action, params):
        *results, info = super().step_env(key, state, action, params)
        return *results, info | {"name": "cart", 3: 1.0}


class ReportingStep(Reporting):
    """The same with a step of its own."""

    def step(self, key, state, action, params=None):
        return super().step(key, state, action, params)


class Undescribed(CartPole):
    def action_space(self, params=None):
        raise KeyError("no space here")


class Misdeclared(CartPole):
    def observation_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (7,))


class Changeling(CartPole):
    """The state's type changes in the first step."""

    def step(self, key, state, action, params=None):
        obs, state, *rest = super().step(key, state, action, params)
        return obs, state.replace(x=state.x.astype(jnp.float16)), *rest


class RewardVector(CartPole):
    """A reward of shape (1,), as an array of one action easily gives."""

    def step_env(self, key, state, action, params):
        obs, state, reward, *rest = super().step_env(key, state, action, params)
        return obs, state, jnp.reshape(reward, (1,)), *rest


def test_environment_of_ones_own_promises_no_gap(register):
    """Whoever replaces is_truncated may cut at consecutive steps; a mere subclass is not looked into."""
    register("Plain-test", Plain)
    register("Impatient-test", Impatient)
    assert from_gymnax("Plain-test", E).truncation_gap == 1
    env = from_gymnax("Impatient-test", E)
    assert env.truncation_gap == 1
    assert env.step_limit == 500
    _, steps = random_steps(env, 50)
    assert (steps.truncated[1:] & steps.truncated[:-1]).any()
    assert "Impatient-test" in registered_envs()


@pytest.mark.parametrize("kind", [Grid, Levers])
def test_actions_of_every_kind_reach_the_environment(register, kind):
    """What the element in question pushes is what CartPole does with that push."""
    register("Kind-test", kind)
    env, plain = from_gymnax("Kind-test", E), from_gymnax("CartPole-v1", E)
    push = jnp.array([1, 0, 1])
    if kind is Grid:
        assert env.action_space == Box((2, 2), ((-1.0, -1.0), (0.0, 0.0)), ((1.0, 1.0), (1.0, 1.0)))
        hash(env.action_space)
        action = jnp.zeros((E, 2, 2)).at[:, 1, 1].set(push)
    else:
        assert env.action_space == MultiDiscrete((3, 2, 5))
        action = jnp.full((E, 3), 2).at[:, 1].set(push)
    keys = jax.random.split(jax.random.key(0), E)

    def step(env, action):
        return env.step(env.draw(keys), env.reset(keys)[0], action)[1]

    np.testing.assert_array_equal(step(env, action).obs, step(plain, push).obs)


def test_observations_of_several_arrays(register):
    """Each is float32, but for bytes and truth values; they are CartPole's, also at the end of an episode."""
    register("Seeing-test", Seeing)
    env = from_gymnax("Seeing-test", E, max_steps_in_episode=4)
    assert env.observation_space == {
        "obs": Box((4,)),
        "picture": Box((2, 3)),
        "action_mask": Box((2,)),
        "side": Box((2,)),
        "count": Box(()),
    }
    obs, steps = random_steps(env, 30)
    types = {"obs": "float32", "picture": "uint8", "action_mask": "bool", "side": "float32", "count": "float32"}
    for seen in (obs, steps.obs, steps.final_obs):
        assert {key: x.dtype.name for key, x in seen.items()} == types
    _, plain = random_steps(from_gymnax("CartPole-v1", E, max_steps_in_episode=4), 30)
    for seen, wanted in ((steps.obs, plain.obs), (steps.final_obs, plain.final_obs)):
        np.testing.assert_allclose(seen["obs"], wanted, rtol=1e-3, atol=1e-4)
    assert set(steps.final_obs["count"][steps.truncated]) == {4}
    assert set(steps.obs["count"][steps.truncated]) == {0}
    assert (steps.obs["side"].sum(axis=-1) == 1).all()


def test_they_are_trained_on(register):
    register("Seeing-test", Seeing)
    config = purejaxppo.TrainConfig(env="Seeing-test", total_timesteps=64, num_envs=4, num_steps=8, hidden_sizes=(4,))
    run = jax.jit(lambda key: train(config, purejaxppo.Hyperparams(), key), compiler_options=QUICKLY)
    runner, metrics = run(jax.random.key(0))
    assert runner.obs["picture"].dtype == jnp.uint8
    assert np.isfinite(metrics["loss/value"]).all()


def test_pictures_stay_bytes(register):
    """So that the network divides them by 255."""
    register("Pictures-test", Pictures)
    env = from_gymnax("Pictures-test", E)
    obs, steps = random_steps(env, 3)
    assert {x.dtype.name for x in (obs, steps.obs, steps.final_obs)} == {"uint8"}
    config = purejaxppo.TrainConfig()
    assert reader(config, env.observation_space)(jnp.asarray(obs)).seen.max() == pytest.approx(200 / 255)


# --- what the environment reports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ReportingText, ReportingStep])
def test_numbers_of_info_are_reported(register, kind):
    """Without what gymnax adds, and under names that metrics can have; at an end they are the old episode's."""
    register("Reporting-test", kind)
    env = from_gymnax("Reporting-test", E, max_steps_in_episode=4)
    _, steps = random_steps(env, 30)
    assert steps.info.keys() == {"time", "right", "half", "env_return", "a_b"}
    assert all(x.shape == (30, E) for x in steps.info.values())
    assert steps.info["right"].dtype == np.bool_
    assert set(steps.info["time"][steps.truncated]) == {4}
    assert set(steps.info["half"].ravel()) == {0.5}
    np.testing.assert_array_equal(steps.info["right"], steps.final_obs[..., 0] > 0)


def test_what_gymnaxs_own_environments_report(stepped):
    reported = {name: set(stepped(name)[2].info) for name in STEPPED}
    assert {name: keys for name, keys in reported.items() if keys} == {"FrozenLake-misc": {"p"}}


def test_what_is_reported_is_measured(register):
    register("Reporting-test", Reporting)
    config = purejaxppo.TrainConfig(
        env="Reporting-test",
        env_params={"max_steps_in_episode": 4},
        total_timesteps=64,
        num_envs=4,
        num_steps=8,
        hidden_sizes=(4,),
    )
    run = jax.jit(lambda key: train(config, purejaxppo.Hyperparams(), key), compiler_options=QUICKLY)
    _, metrics = run(jax.random.key(0))
    np.testing.assert_allclose(metrics["episode/time"], metrics["episode/length"])
    np.testing.assert_allclose(metrics["step/half"], 0.5)


def test_five_value_step_is_refused_by_name(register):
    register("Old-test", FiveValues)
    message = refused("Old-test")
    assert "Old-test.step returns 5 values" in message
    assert "terminated, truncated" in message


def test_error_inside_step_names_environment_file_and_line(register):
    register("Broken-test", Broken)
    message = refused("Broken-test")
    source, first = inspect.getsourcelines(Broken)
    line = first + next(i for i, text in enumerate(source) if "the line that fails" in text)
    assert "Broken-test" in message
    assert f"{__file__}:{line}" in message


@pytest.mark.parametrize("folder", ["plugins", "purejaxppo", "jax"])
def test_error_inside_step_is_located_wherever_the_file_lies(register, tmp_path, folder):
    """Also in a clone of this repository, which is called purejaxppo."""
    path = tmp_path / folder / "mine.py"
    path.parent.mkdir()
    path.write_text(
        textwrap.dedent("""\
        from gymnax.environments.classic_control.cartpole import CartPole

        class Mine(CartPole):
            def step_env(self, key, state, action, params):
                raise RuntimeError("first line\\nsecond line")
        """)
    )
    scope = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    register("Mine-test", scope["Mine"])
    message = refused("Mine-test")
    assert "RuntimeError: first line" in message
    assert f"{path}:5" in message


def test_constructor_that_raises_is_named(register):
    def factory():
        raise OSError("no such ROM")

    register("Rom-test", factory)
    assert "Rom-test cannot be built: OSError: no such ROM" in refused("Rom-test")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Mixed, "supported are Discrete, Box and a Tuple of Discrete"),
        (Composite, "supported are Discrete, Box and a Tuple of Discrete"),
        (Nested, "observations with a Dict in a Dict, 'left'; a dict of observations has arrays only"),
        (Tupled, "'a', has observations Tuple; supported are Discrete, Box and a Dict of these."),
        (OtherKeys, "the keys action_mask, count, picture, side, speed (reset's second value), but declares with the"),
        (Undelivered, "observations that are one array (reset's second value), but declares with the keys a by"),
        (Undescribed, "cannot describe its spaces: KeyError"),
        (Misdeclared, f"observations float32[{E}, 4] (reset's second value), but declares [{E}, 7]"),
        (Changeling, "a state of other shapes or types"),
        (RewardVector, f"returns reward float32[{E}, 1]"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(register, kind, says):
    register("Odd-test", kind)
    message = refused("Odd-test")
    assert "Odd-test" in message
    assert says in message
