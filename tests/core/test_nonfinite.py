"""The guard: what is not finite is seen, named by its cause, and undone where that is asked for."""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_envs import walk

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.nonfinite import NONFINITE_RULES, WATCHED, Cause, every_run_diverged, first_nonfinite, nonfinite
from purejaxppo.experiment.checkpoints.state import is_finite, state_sha256
from purejaxppo.train import trainer_from_config

BAD = [np.nan, np.inf, -np.inf]
E, T = 4, 4
CONFIG = TrainConfig(
    num_envs=E, num_steps=T, num_epochs=1, num_minibatches=1, hidden_sizes=(4,), total_timesteps=1000 * E * T
)
HP = jax.tree.map(jnp.float32, Hyperparams(learning_rate=1e-3))


# --- nonfinite --------------------------------------------------------------------------------------------------------


def quantities():
    """Each of WATCHED, as a tree with arrays of several shapes and types among which two are of floats."""
    tree = {
        "scalar": np.float32(1.0),
        "matrix": np.linspace(-3e38, 3e38, 6, dtype=np.float32).reshape(2, 3),
        "count": np.int32(2**31 - 1),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float32),
    }
    return {name: {"inner": (dict(tree),)} for name in WATCHED}


def oracle(quantities):
    """Bit i for WATCHED[i], by NumPy."""
    bits = 0
    for i, name in enumerate(WATCHED):
        for leaf in jax.tree.leaves(quantities[name]):
            if np.issubdtype(np.asarray(leaf).dtype, np.floating) and not np.all(np.isfinite(leaf)):
                bits |= 2**i
    return bits


seen = jax.jit(nonfinite)
places = st.tuples(st.sampled_from(WATCHED), st.sampled_from(["scalar", *range(6)]), st.sampled_from(BAD))


@given(st.lists(places, max_size=4))
def test_every_place_is_seen(places):
    """Against NumPy: any of the three, in any quantity, leaf and element, alone or with others."""
    watched = quantities()
    for name, place, value in places:
        tree = watched[name]["inner"][0]
        if place == "scalar":
            tree["scalar"] = np.float32(value)
        else:
            tree["matrix"] = tree["matrix"].copy()
            tree["matrix"].flat[place] = value
    bits = seen(watched)
    assert bits.dtype == jnp.int32
    assert bits.shape == ()
    assert int(bits) == oracle(watched)
    assert first_nonfinite(int(bits)) == next((name for name in WATCHED if name in {p[0] for p in places}), None)


def test_each_has_its_bit():
    """The second oracle: one bad number at a time."""
    for i, name in enumerate(WATCHED):
        for value in BAD:
            assert int(nonfinite({name: jnp.array([0.0, value])})) == 2**i


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_float_counts(dtype):
    assert int(nonfinite({WATCHED[0]: jnp.array([1.0, jnp.nan], dtype)})) == 1
    assert int(nonfinite({WATCHED[0]: jnp.finfo(dtype).max})) == 0


def test_what_is_not_a_float_is_ignored():
    """Integers, bools, keys, and trees of nothing; names that are not watched too."""
    harmless = (jnp.array([-1, 2**31 - 1]), jnp.array([True]), jax.random.key(0), jax.random.split(jax.random.key(1)))
    assert int(nonfinite({"parameter": harmless, "reward": (), "episode/return": jnp.float32(jnp.nan)})) == 0
    assert int(nonfinite({"parameter": (*harmless, jnp.float32(jnp.inf))})) == 2 ** WATCHED.index("parameter")


def test_under_vmap_each_member_has_its_own():
    x = jnp.ones((3, 2)).at[1, 0].set(jnp.nan)
    y = jnp.ones(3).at[jnp.array([1, 2])].set(jnp.inf)
    bits = jax.jit(jax.vmap(lambda x, y: nonfinite({WATCHED[0]: x, WATCHED[3]: y})))(x, y)
    assert bits.tolist() == [0, 0b1001, 0b1000]


def test_the_first():
    assert first_nonfinite(0) is None
    for i, name in enumerate(WATCHED):
        assert first_nonfinite(1 << i) == name
        assert first_nonfinite(-1 << i & 2 ** len(WATCHED) - 1) == name  # and all that follow


# --- the first cause, as the trainer names it -------------------------------------------------------------------------


class Spoil(NamedTuple):
    """What is wrong with an environment; all of it may be traced, so that one program does for all."""

    step: int = 0  # counted from 0, in which the first copy
    obs: float = 0.0  # shows this, if it is not 0
    reward: float = 0.0  # or earns this, if it is not 0
    probability: float = 0.0  # of a NaN reward in any step, by the key
    truncated: float = 0.0  # shows this, if it is not 0, at the end of every truncated episode
    terminated: float = 0.0  # and this at the end of every terminated one, which nobody reads


def spoiled_by(env, spoil):
    """An environment that counts its steps."""

    def reset(keys):
        state, obs = env.reset(keys)
        return (state, jnp.zeros((), jnp.int32)), obs

    def step(keys, state, action):
        inner, count = state
        inner, result = env.step(keys, inner, action)
        now = (count == spoil.step) & (jnp.arange(env.num_envs) == 0)
        obs = jnp.where((now & (spoil.obs != 0))[:, None], spoil.obs, result.obs)
        reward = jnp.where(now & (spoil.reward != 0), spoil.reward, result.reward)
        final_obs = result.final_obs
        cut = result.truncated & ~result.terminated
        for ends, shown in ((cut, spoil.truncated), (result.terminated, spoil.terminated)):
            final_obs = jnp.where((ends & (shown != 0))[:, None], shown, final_obs)
        by_chance = jax.random.bernoulli(jax.random.fold_in(keys[0], 1), spoil.probability)
        reward = jnp.where(by_chance, jnp.nan, reward)
        # What an environment reports under the name of a quantity that is watched does not hide that quantity.
        info = {"observation": jnp.zeros(env.num_envs), "reward": jnp.zeros(env.num_envs)}
        return (inner, count + 1), result._replace(obs=obs, final_obs=final_obs, reward=reward, info=info)

    return env._replace(reset=reset, step=step)


class Programs:
    """A trainer's functions for a config, with what is wrong as an argument; compiled when first used."""

    def __init__(self, **changes):
        self.config = dataclasses.replace(CONFIG, **changes)
        self.init = jax.jit(lambda key: self.trainer(Spoil()).init(key, HP))
        self.update = jax.jit(self.make_update)

    def trainer(self, spoil):
        return trainer_from_config(self.config, spoiled_by(walk(E), spoil))

    def make_update(self, hp, runner, spoil):
        return self.trainer(spoil).update(hp, runner)


NORMALISED = {"normalize_observation": True, "normalize_reward": True}


@pytest.fixture(scope="module")
def plain():
    return Programs()


@pytest.fixture(scope="module")
def normalised():
    return Programs(**NORMALISED)


def first_cause(programs, spoil=Spoil(), hp=HP, change=lambda learner: learner):  # noqa: B008
    """The name that the first update gives, from a learner that was changed."""
    runner = programs.init(jax.random.key(0))
    runner = runner._replace(learner=change(runner.learner))
    _, metrics = programs.update(hp, runner, spoil)
    return first_nonfinite(int(metrics["nonfinite"]))


SPOILS = {
    "nothing": (None, Spoil()),
    "NaN observation": ("observation", Spoil(1, obs=np.nan)),
    "infinite observation": ("observation", Spoil(1, obs=-np.inf)),
    "very last observation": ("observation", Spoil(T - 1, obs=np.nan)),
    "last observation of a truncated episode": ("observation", Spoil(truncated=np.nan)),
    "last observation of a terminated episode": (None, Spoil(terminated=np.nan)),
    "NaN reward": ("reward", Spoil(1, reward=np.nan)),
    "infinite reward": ("reward", Spoil(1, reward=np.inf)),
    "very last reward": ("reward", Spoil(T - 1, reward=-np.inf)),
}


@pytest.mark.parametrize("kind", ["plain", "normalised"])
@pytest.mark.parametrize("cause", SPOILS)
def test_the_environments_fault_is_named(request, cause, kind):
    """And not what follows from it, which is everything; whether statistics take it up or not."""
    name, spoil = SPOILS[cause]
    assert first_cause(request.getfixturevalue(kind), spoil) == name


@pytest.mark.parametrize("spoil", [Spoil(1, reward=3e30), Spoil(1, obs=3e30)])
def test_a_normaliser_that_overflows_is_named(normalised, spoil):
    """Its square is beyond float32, and all that it divides would be 0 for ever."""
    assert first_cause(normalised, spoil) == "normalizer"


def bad_optimizer_state(learner):
    """One element of the second moments is NaN, in each parameter."""
    clip, (adam, *others) = learner.opt_state
    assert isinstance(adam, optax.ScaleByAdamState)
    nu = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), adam.nu)
    return learner._replace(opt_state=(clip, (adam._replace(nu=nu), *others)))


def steep_critic(learner):
    """A value of 0 everywhere, whose slope is so steep that its square overflows."""
    params = learner.params["params"]
    critic, value = params["MLPTorso_1"], params["Dense_0"]
    params = {**params, "MLPTorso_1": jax.tree.map(jnp.zeros_like, critic)}
    params["Dense_0"] = {"kernel": jnp.full_like(value["kernel"], 1e25), "bias": jnp.zeros_like(value["bias"])}
    return learner._replace(params={"params": params})


FAULTS = {
    "huge reward": ("loss/value", {"spoil": Spoil(1, reward=3e30)}),
    "steep critic": ("grad_norm", {"change": steep_critic}),
    "optimizer state": ("optimizer_state", {"change": bad_optimizer_state}),
    "huge learning rate": ("parameter", {"hp": dataclasses.replace(HP, learning_rate=jnp.float32(np.inf))}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_learners_fault_is_named(plain, fault):
    """With one gradient step, after which everything that follows from it is bad too."""
    name, setting = FAULTS[fault]
    assert first_cause(plain, **setting) == name


# --- the advice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("causes", "what", "advice"),
    [
        ([(1, "reward"), (1, "observation")], "observation and reward", "nothing had been learnt yet: check"),
        ([(1, "reward"), (2, "reward")], "reward", "comes from the environment: check .* lower learning_rate"),
        ([(1, "reward"), (1, "loss/value")], "loss/value and reward", r"\. Try a lower learning_rate"),
        ([(3, "parameter")] * 2, "parameter", r"\. Try a lower learning_rate"),
        ([], "the evaluation's return", "comes from the environment: check .* lower learning_rate"),
    ],
)
def test_when_every_run_diverged_the_causes_say_what_to_do(causes, what, advice):
    """The learner is blamed unless every cause is the environment's, and a policy only if one had learnt."""
    error = every_run_diverged([Cause(*cause) for cause in causes], "runs/x")
    assert str(error).startswith(f"every run diverged ({what} not finite); the results are in runs/x. ")
    assert re.search(advice, str(error))
    assert "\n" not in str(error)


# --- undone -----------------------------------------------------------------------------------------------------------

BAD_STEP = Spoil(2 * T + 1, reward=np.nan)  # in the third update


@pytest.fixture(scope="module")
def skipping():
    return Programs(**NORMALISED, on_nonfinite="skip")


@pytest.fixture(scope="module")
def states(normalised):
    """The states before the second, good, and the third, bad update; nothing is at its first value any more."""
    runner = normalised.init(jax.random.key(1))
    good = normalised.update(HP, runner, BAD_STEP)[0]
    return good, normalised.update(HP, good, BAD_STEP)[0]


def test_a_good_update_stays_as_it_is(normalised, skipping, states):
    good, _ = states
    runner, metrics = normalised.update(HP, good, BAD_STEP)
    same, same_metrics = skipping.update(HP, good, BAD_STEP)
    assert int(metrics["nonfinite"]) == 0
    assert state_sha256(same) == state_sha256(runner)
    assert state_sha256(same_metrics) == state_sha256(metrics)


def assert_undone(after, before):
    """But for the key and the count of updates, bit by bit."""
    assert state_sha256(after._replace(key=before.key, updates=before.updates)) == state_sha256(before)
    assert int(after.updates) == int(before.updates) + 1
    assert state_sha256(after.key) != state_sha256(before.key)


def test_a_bad_update_is_undone(normalised, skipping, states):
    """The metrics tell of it, and the key is the one that training goes on with; otherwise the NaN is everywhere."""
    _, bad = states
    runner, metrics = normalised.update(HP, bad, BAD_STEP)
    assert not is_finite(runner.learner)
    undone, same_metrics = skipping.update(HP, bad, BAD_STEP)
    assert_undone(undone, bad)
    assert state_sha256(undone.key) == state_sha256(runner.key)
    assert state_sha256(same_metrics) == state_sha256(metrics)
    assert first_nonfinite(int(metrics["nonfinite"])) == "reward"


def test_under_vmap_only_the_bad_member_is_undone(skipping, states):
    good, bad = states
    both = jax.tree.map(lambda *x: jnp.stack(x), good, bad)
    after, metrics = jax.jit(jax.vmap(skipping.make_update, in_axes=(None, 0, None)))(HP, both, BAD_STEP)
    first, second = (jax.tree.map(lambda x, i=i: x[i], after) for i in range(2))
    assert (metrics["nonfinite"] == 0).tolist() == [True, False]
    assert_undone(second, bad)
    alone, _ = skipping.update(HP, good, BAD_STEP)
    assert state_sha256(alone.learner) != state_sha256(good.learner)
    for x, y in zip(jax.tree.leaves(first.learner), jax.tree.leaves(alone.learner), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)  # not bit by bit, which vmap does not give


def test_a_reward_that_is_nan_now_and_then(skipping):
    """A fifth of 100 updates is undone, each followed by others that learn; every state is finite."""
    runner, skipped, learned = skipping.init(jax.random.key(2)), 0, 0
    for _ in range(100):
        before = state_sha256(runner.learner)
        runner, metrics = skipping.update(HP, runner, Spoil(probability=0.05))
        bad = int(metrics["nonfinite"])
        assert is_finite(runner.learner)
        assert first_nonfinite(bad) in (None, "reward")
        assert (state_sha256(runner.learner) == before) == (bad != 0)
        skipped, learned = skipped + (bad != 0), learned + (bad == 0)
    assert 8 <= skipped <= 32  # 1 - 0.95**4 = 0.19 of 100, and three standard deviations
    assert int(runner.updates) == skipped + learned == 100


def test_what_the_host_sees_to_is_left_to_it():
    """Only `skip` is the trainer's own doing."""
    assert [name for name, policy in NONFINITE_RULES.items() if policy.undo] == ["skip"]
