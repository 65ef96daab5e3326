"""A plain environment with auto-reset, against a Python loop over one environment that resets it by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.check_env import check_step
from purejaxppo.core.types import Box, Discrete, MultiDiscrete
from purejaxppo.devices.data_parallel import _check_rows, spread_trainer
from purejaxppo.envs.autoreset import autoreset
from purejaxppo.errors import EnvError
from purejaxppo.evaluate import evaluate_runner
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import advance, trainer_from_config

T, E = 60, 3
PICTURE = 200  # numbers, too many to be drawn ahead


class Wander:
    """A random walk with a key in its state, which ends with these probabilities, independently, in every step."""

    def __init__(self, terminates=0.15, truncates=0.15, size=2):
        self.terminates, self.truncates, self.size = terminates, truncates, size

    def observe(self, state):
        return jnp.full(self.size, state["position"]).at[1].set(state["time"])

    def reset(self, key):
        state = {"position": jax.random.normal(key), "time": 0, "key": jax.random.fold_in(key, 1)}
        return state, self.observe(state)

    def step(self, key, state, action):
        push = jax.random.normal(state["key"]) + action
        state = {
            "position": state["position"] + push,
            "time": state["time"] + 1,
            "key": jax.random.fold_in(state["key"], 2),
        }
        ends = jax.random.uniform(key, (2,)) < jnp.array([self.terminates, self.truncates])
        reward = state["position"] ** 2
        return state, self.observe(state), reward, ends[0], ends[1], {"push": push}


def vectorised(env, **settings):
    return autoreset(env.reset, env.step, Box((env.size,)), Discrete(2), E, **settings)


def keys_of(seed):
    return jax.random.split(jax.random.key(seed), E)


ACTIONS = np.random.default_rng(0).integers(0, 2, (T, E)).astype(np.int32)


def play(env, seed=0):
    """(first obs, the steps [T, E, ...]) with ACTIONS, compiled; the keys are those of `by_hand`."""

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(keys):
        state, obs = env.reset(keys)

        def step(state, inputs):
            key, action = inputs
            return env.step(env.draw(jax.random.split(key, E)), state, action)

        return obs, jax.lax.scan(step, state, (jax.random.split(jax.random.key(seed + 1), T), jnp.asarray(ACTIONS)))[1]

    return jax.device_get(run(keys_of(seed)))


def by_hand(env, step_limit=math.inf, pool=None, seed=0):
    """The same by a loop of plain calls, with an `if` for every end; numbers as NumPy arrays."""
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    firsts, rows = [], []
    for e, key in enumerate(keys_of(seed)):
        starts = [reset(k) for k in jax.random.split(key, pool)] if pool else None
        state, obs = starts[0] if pool else reset(key)
        firsts.append(obs)
        count, history = 0, []
        for t in range(T):
            key = jax.random.split(jax.random.split(jax.random.key(seed + 1), T)[t], E)[e]
            key_step, key_reset = jax.random.split(key)
            state, obs, reward, terminated, truncated, info = step(key_step, state, ACTIONS[t, e])
            final_obs, count = obs, count + 1
            truncated = bool(truncated) or count >= step_limit
            if terminated or truncated:
                count = 0
                state, obs = starts[int(jax.random.randint(key_reset, (), 0, pool))] if pool else reset(key_reset)
            history.append((obs, final_obs, reward, terminated, truncated, info["push"]))
        rows.append(history)
    fields = [np.stack([np.stack([np.asarray(row[i]) for row in history]) for history in rows], 1) for i in range(6)]
    return np.stack(firsts), fields


def assert_same(found, expected):
    (first, steps), (first_by_hand, fields) = found, expected
    np.testing.assert_allclose(first, first_by_hand, rtol=1e-5)
    for name, value, wanted in zip(
        [*steps._fields[:-1], "push"], [*steps[:-1], steps.info["push"]], fields, strict=True
    ):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5, err_msg=name)


CASES = {
    "ends at random": (Wander(), {}),
    "and a limit": (Wander(), {"step_limit": 4}),
    "a limit alone": (Wander(0, 0), {"step_limit": 7}),
    "every step ends": (Wander(), {"step_limit": 1}),
    "always terminated": (Wander(2.0, 0), {}),
    "both flags at once": (Wander(2.0, 2.0), {}),
    "a picture": (Wander(size=PICTURE), {"step_limit": 5}),
    "a pool": (Wander(), {"pool": 3}),
    "a pool of one": (Wander(), {"pool": 1, "step_limit": 5}),
    "a pool of pictures": (Wander(size=PICTURE), {"pool": 4, "step_limit": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_loop_that_resets_by_hand(name):
    """Observations, successors, rewards, both flags and info, over many episodes with ends at random places."""
    env, settings = CASES[name]
    found = play(vectorised(env, **settings))
    assert_same(found, by_hand(env, **settings))
    steps = found[1]
    done = steps.terminated | steps.truncated
    assert done.sum() > E
    assert found[0].dtype == steps.obs.dtype == steps.reward.dtype == np.float32
    # The successor of an end is the episode's own; the next observation is one of time 0.
    np.testing.assert_array_equal(steps.obs[done][:, 1], 0)
    assert (steps.final_obs[done][:, 1] > 0).all()
    np.testing.assert_array_equal(steps.obs[~done], steps.final_obs[~done])


def test_both_flags_are_reported():
    _, steps = play(vectorised(Wander(2.0, 2.0)))
    assert steps.terminated.all()
    assert steps.truncated.all()
    _, steps = play(vectorised(Wander(2.0, 0), step_limit=1))
    assert steps.terminated.all()
    assert steps.truncated.all()


def test_a_pool_is_drawn_from_evenly_and_is_each_environments_own():
    """All starts of an environment are among its n, each as often as the others; another has other ones."""
    pool = 4
    env = vectorised(Wander(2.0, 0), pool=pool)
    first, steps = play(env)
    starts = np.concatenate([first[None], steps.obs])[..., 0]
    seen = [np.unique(starts[:, e]) for e in range(E)]
    assert [len(x) for x in seen] == [pool] * E
    assert len(np.unique(seen)) == pool * E
    draws = jax.vmap(env.draw)(jax.random.split(jax.random.key(3), (1000, E)))[1]
    assert np.abs(np.bincount(np.ravel(draws), minlength=pool) / draws.size - 1 / pool).max() < 0.03


@pytest.mark.parametrize("settings", [{}, {"step_limit": 5}, {"pool": 2, "step_limit": 5}])
def test_an_environment_does_not_depend_on_the_others(settings):
    """Two of the three, stepped by themselves as on a device of their own, do the same bit for bit."""
    env = vectorised(Wander(), **settings)
    keys, action = keys_of(0), jnp.zeros(E, jnp.int32)

    def run(keys, action):
        state, obs = env.reset(keys)
        for _ in range(3):
            state, result = env.step(env.draw(keys), state, action)
        return obs, result, jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == keys.dtype else x, state)

    whole, part = jax.jit(run)(keys, action), jax.jit(run)(keys[1:], action[1:])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1:], y), whole, part)
    _check_rows(env._replace(num_envs=E), 3)
    state, _ = jax.eval_shape(env.reset, keys[:1])
    check_step(env._replace(num_envs=1), state)


def test_two_devices_have_the_starts_of_one():
    """A rollout on two devices leaves the same states, counts and pools bit for bit, and the same mean return."""
    config = TrainConfig(
        env="mine", num_envs=4, num_steps=8, num_minibatches=1, num_shards=2, hidden_sizes=(4,), total_timesteps=32
    )
    wander = Wander()
    env = autoreset(wander.reset, wander.step, Box((2,)), Discrete(2), 4, step_limit=3, pool=2)
    hp = Hyperparams()
    found = []
    for devices in (1, 2):
        trainer = spread_trainer(config, env, jax.devices()[:devices])
        run = jax.jit(lambda key, trainer=trainer: advance(trainer, hp, trainer.init(key, hp), 1))
        runner, metrics = run(jax.random.key(0))
        state = jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == keys_of(0).dtype else x, runner.env_state)
        found.append(((state, metrics["episode/count"]), metrics["episode/return"]))
    jax.tree.map(np.testing.assert_array_equal, *(exact for exact, _ in found))
    np.testing.assert_allclose(*(mean for _, mean in found), rtol=1e-6)  # but for the order of sums


def test_the_pool_is_made_once():
    """No step computes a reset, which sorts here; without a pool every step does."""

    class Sorts(Wander):
        def reset(self, key):
            state, _ = super().reset(key)
            return state, jnp.sort(self.observe(state))

    def program(**settings):
        env = vectorised(Sorts(size=PICTURE), **settings)
        state, _ = jax.eval_shape(env.reset, keys_of(0))
        draws = jax.eval_shape(env.draw, keys_of(0))
        return str(jax.make_jaxpr(env.step)(draws, state, jnp.zeros(E, jnp.int32)))

    assert "sort[" in program()
    assert "sort[" not in program(pool=2)


def test_small_starts_are_drawn_ahead():
    """They are among the draws, so that a rollout makes all of its own at once; pictures are not."""
    small, large = (jax.eval_shape(vectorised(Wander(size=n)).draw, keys_of(0)) for n in (2, PICTURE))
    assert sorted(x.shape for x in jax.tree.leaves(small)) == [(E,)] * 4 + [(E, 2)]
    assert [x.shape for x in jax.tree.leaves(large)] == [(E,)] * 2


def constant(flag):
    """Wander whose step returns `flag` as truncated."""

    class Constant(Wander):
        def step(self, *args):
            return (*super().step(*args)[:4], flag)

    return Constant()


def test_the_gap_between_truncations():
    """That of the limit if it alone truncates; one step if the environment may do so too."""
    assert vectorised(constant(False), step_limit=9).truncation_gap == 9
    assert vectorised(constant(False), step_limit=9).step_limit == 9
    assert vectorised(Wander(), step_limit=9).truncation_gap == 1
    assert vectorised(constant(True), step_limit=9).truncation_gap == 1
    env = vectorised(constant(False))
    assert (env.truncation_gap, env.step_limit) == (1, None)


def test_observations_may_be_mappings_of_any_types():
    """Every leaf has its successor and its next episode's first value."""
    spaces = {"obs": Box((2,)), "mask": Box((2,)), "number": Box(())}

    def observe(state):
        return {"obs": jnp.full(2, state), "mask": jnp.array([True, state > 0]), "number": jnp.uint8(state)}

    def reset(key):
        return jnp.int32(0), observe(jnp.int32(0))

    def step(key, state, action):
        return state + 1, observe(state + 1), 1, state + 1 >= 3, False

    env = autoreset(reset, step, spaces, Discrete(2), E, step_limit=5)
    state, obs = env.reset(keys_of(0))
    for number in (1, 2, 3):
        state, result = env.step(env.draw(keys_of(1)), state, jnp.zeros(E, jnp.int32))
        assert result.final_obs["number"].tolist() == [number] * E
    assert result.final_obs["mask"].all()
    for name, x in result.obs.items():
        np.testing.assert_array_equal(x, obs[name])
        assert x.dtype == obs[name].dtype == result.final_obs[name].dtype
    assert result.reward.dtype == jnp.float32


@pytest.mark.parametrize("pool", [None, 2])
def test_a_trainer_takes_it(pool):
    config = TrainConfig(env="mine", num_envs=E, num_steps=4, num_minibatches=1, hidden_sizes=(4,), total_timesteps=24)
    trainer = trainer_from_config(config, vectorised(Wander(), step_limit=3, pool=pool))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(key):
        return advance(trainer, Hyperparams(), trainer.init(key, Hyperparams()), config.num_updates)

    _, metrics = run(jax.random.key(0))
    assert np.isfinite(metrics["episode/return"]).all()


# --- every kind of action, learnt -------------------------------------------------------------------------------------


def choices(obs, action):
    """Each right factor earns a third: 2 in the first, the sign of the observation in the second, 0 in the last."""
    right = jnp.array([2, (obs[0] > 0).astype(jnp.int32), 0])
    return jnp.mean(action == right), jnp.all((action >= 0) & (action < jnp.array([3, 2, 4])))


GOAL = np.float32([[0.2, 130.0], [-3.0, 0.5]])
LOW, HIGH = np.float32([[-1, 100], [-4, 0]]), np.float32([[1, 200], [4, 2]])


def near(obs, action):
    """1 less the mean squared distance to a goal, in halves of the bounds' distance."""
    return 1 - jnp.mean(((action - GOAL) / (HIGH - LOW) * 2) ** 2), jnp.all((action >= LOW) & (action <= HIGH))


KINDS = {
    "factors": (MultiDiscrete((3, 2, 4)), choices, "gaussian", 0.5, 0.9),
    "matrix": (Box((2, 2), ((-1, 100), (-4, 0)), ((1, 200), (4, 2))), near, "gaussian", 0.35, 0.7),
    "squashed matrix": (Box((2, 2), ((-1, 100), (-4, 0)), ((1, 200), (4, 2))), near, "tanh_gaussian", 0.6, 0.75),
}


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [*((kind, "ppo_clip") for kind in KINDS), ("factors", "trpo"), ("matrix", "trpo")],
)
def test_every_kind_of_action_is_learnt(kind, algorithm):
    """Episodes of one step. The return rises, no action leaves its bounds, and the greedy policy has learnt it too."""
    space, judge, policy, before, after = KINDS[kind]

    def reset(key):
        obs = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)[None]
        return obs, obs

    def step(key, obs, action):
        reward, inside = judge(obs, action)
        return obs, obs, reward, True, False, {"inside": inside}

    sizes = {"num_envs": 32, "num_steps": 16, "num_minibatches": 2, "hidden_sizes": (16,)}
    config = TrainConfig(
        env="mine",
        **sizes,
        action_distribution=policy,
        algorithm=algorithm,
        total_timesteps=40 * 512,
        learning_rate_schedule="constant",
    )
    hp = Hyperparams(learning_rate=1e-2, target_kl=0.02 if algorithm == "trpo" else None)
    env = autoreset(reset, step, Box((1,)), space, config.num_envs)
    trainer = trainer_from_config(config, env)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(key):
        runner, metrics = advance(trainer, hp, trainer.init(key, hp), config.num_updates)
        return metrics, evaluate_runner(key, config, env, make_policy(config, env), runner).episode_return

    metrics, greedy = run(jax.random.key(0))
    returns = np.asarray(metrics["episode/return"])
    assert returns[0] < before
    assert returns[-1] > after
    assert greedy.mean() > after
    np.testing.assert_array_equal(metrics["step/inside"], 1.0)  # every single one


# --- refusals ---------------------------------------------------------------------------------------------------------


def stepping(**changes):
    """Wander with something else at these places of what its step returns."""

    class Changed(Wander):
        def step(self, *args):
            names = ("state", "obs", "reward", "terminated", "truncated", "info")
            return tuple(changes.get(name, lambda x: x)(x) for name, x in zip(names, super().step(*args), strict=True))

    return Changed()


class Swapped(Wander):
    def reset(self, key):
        return super().reset(key)[::-1]


class Three(Wander):
    def reset(self, key):
        return *super().reset(key), {}


class Four(Wander):
    def step(self, *args):
        return super().step(*args)[:4]


class Alone(Wander):
    def step(self, *args):
        return super().step(*args)[1]


class Failing(Wander):
    def step(self, *args):
        raise ZeroDivisionError("in the physics")


REFUSED = {
    "reset of three": (Three(), "reset returns 3 values; it has to return two: state, obs"),
    "step of four": (Four(), "step returns 4 values; it has to return five"),
    "an array": (Alone(), "step returns one "),
    "an error": (Failing(), "ZeroDivisionError: in the physics"),
    "an order": (Swapped(), "raises when it is traced: "),
    "reward of a row": (stepping(reward=lambda x: x[None]), "reward float32[1]; it has to be a single number"),
    "no reward": (stepping(reward=lambda x: None), "reward of the type NoneType; it has to be a single number"),
    "a flag for reward": (stepping(reward=lambda x: x > 0), "reward bool[]; it has to be a single number"),
    "number for a flag": (stepping(terminated=lambda x: 1.0 * x), "terminated float32[]; it has to be a single flag"),
    "two flags": (stepping(truncated=lambda x: jnp.array([x, x])), "truncated bool[2]; it has to be a single flag"),
    "obs of another shape": (stepping(obs=lambda x: x[:1]), "an observation that is float32[1], but float32[2] in"),
    "obs of another type": (stepping(obs=lambda x: x.astype(int)), "an observation that is int32[2], but float32[2]"),
    "a state of another type": (
        stepping(state=lambda x: {**x, "time": 1.0 * x["time"]}),
        "a state that is float32[] at ['time'], but int32[] in its reset",
    ),
    "a state of another structure": (stepping(state=lambda x: {}), "a state of another structure"),
    "info of a list": (stepping(info=lambda x: [0.0]), "an info of the type list; it has to be a dict"),
    "info of a row": (stepping(info=lambda x: {"v": jnp.zeros(2)}), f"info['v'] float32[{E}, 2]"),
    "misdeclared": (Wander(size=3), "but declares"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name):
    env, says = REFUSED[name]
    with pytest.raises(EnvError) as caught:
        autoreset(env.reset, env.step, Box((2,)), Discrete(2), E, step_limit=5)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the environment")
    assert says in str(caught.value)


@pytest.mark.parametrize("setting", ["num_envs", "step_limit", "pool"])
@pytest.mark.parametrize("value", [0, 1.5, True, "3"])
def test_numbers_below_one_are_refused(setting, value):
    env = Wander()
    with pytest.raises(EnvError, match=f"{setting} = {value!r} is not a whole number from 1"):
        autoreset(env.reset, env.step, Box((2,)), Discrete(2), **{"num_envs": E, setting: value})
