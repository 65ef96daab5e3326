"""Observations that are dicts of arrays, and pictures: who sees which key, and what a mask does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from probe_envs import shown

from purejaxppo.config import TrainConfig
from purejaxppo.core.check_env import check_env
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.types import Box, Discrete, VecEnv
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.evaluate import evaluate
from purejaxppo.policies.recurrent import gru
from purejaxppo.policies.registry import make_policy

N, ACTIONS = 6, 3
PICTURE = (4, 5, 2)
KINDS = {"feed-forward": make_policy, "gru": gru}
KIND = pytest.mark.parametrize("kind", KINDS)
SPACES = {"obs": Box((2,)), "critic": Box((3,)), "action_mask": Box((ACTIONS,)), "unseen": Box((4,))}


def spaces(space, actions=Discrete(ACTIONS)):  # noqa: B008 - immutable
    """An environment of which a policy may only look at the spaces."""
    return VecEnv(None, None, space, actions, N)


def draw(space, seed=0):
    """Random observations [N, 1, ...]: sequences of one step, which are rows to a policy without memory."""
    rng = np.random.default_rng(seed)
    if isinstance(space, dict):
        return {name: draw(box, seed + i) for i, (name, box) in enumerate(space.items())}
    return np.float32(rng.normal(size=(N, 1, *space.shape)))


def some(space=SPACES, seed=0):
    """Random observations with a mask that allows the first action, and others here and there."""
    mask = np.random.default_rng(seed).random((N, 1, ACTIONS)) < 0.5
    mask[..., 0] = True
    return {**draw(space, seed), "action_mask": mask}


@functools.cache
def cached(kind, keys, shapes, settings):
    config = TrainConfig(hidden_sizes=(4,), **dict(settings))
    boxes = [Box(shape) for shape in shapes]
    space = dict(zip(keys, boxes, strict=True)) if keys else boxes[0]
    policy = KINDS[kind](config, spaces(space))
    rows = jax.tree.map(lambda box: jnp.zeros((N, *box.shape)), space, is_leaf=lambda x: isinstance(x, Box))
    return policy, jax.eval_shape(policy.init, jax.random.key(0), rows)


def make(kind, space, seed=0, **settings):
    """(function of observations [N, 1, ...] alone to logits and values, parameters), all parameters random."""
    keys = tuple(space) if isinstance(space, dict) else ()
    boxes = space.values() if keys else [space]
    policy, shapes = cached(kind, keys, tuple(box.shape for box in boxes), tuple(settings.items()))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    memory = jax.tree.map(lambda x: x + 0.5, policy.initial_memory(N))

    def see(params, obs):
        pi, value = policy.evaluate(params, memory, obs, jnp.zeros((N, 1), bool))
        return pi.logits, value

    return see, params


def seen_by(kind, space, obs, **settings):
    see, params = make(kind, space, **settings)
    return jax.jit(see, compiler_options=QUICKLY)(params, obs)


@KIND
def test_who_sees_which_key(kind):
    """By the gradient with respect to each: `critic` reaches the value alone, a key without a meaning nothing."""
    see, params = make(kind, SPACES)
    obs = some()
    numbers = {name: x for name, x in obs.items() if name != "action_mask"}

    def spread(numbers):
        logits, value = see(params, {**obs, **numbers})
        allowed = jnp.where(obs["action_mask"], logits, 0.0)
        return jnp.sum(allowed * jnp.arange(1.0, 4.0)[None, None]), jnp.sum(value)

    of_logits, of_value = jax.jit(jax.jacrev(spread), compiler_options=QUICKLY)(numbers)
    assert np.all(of_logits["obs"] != 0)
    assert np.all(of_value["obs"] != 0)
    assert np.all(of_value["critic"] != 0)
    for gradient in (of_logits["critic"], of_logits["unseen"], of_value["unseen"]):
        assert not np.any(gradient)


@KIND
def test_a_dict_of_one_array_is_that_array(kind):
    space = Box((2,))
    obs = draw(space)
    plain = seen_by(kind, space, obs)
    jax.tree.map(np.testing.assert_array_equal, plain, seen_by(kind, {"obs": space}, {"obs": obs}))
    jax.tree.map(np.testing.assert_array_equal, plain, seen_by(kind, {"alone": space}, {"alone": obs}))


@KIND
def test_without_obs_everything_is_seen_in_the_order_of_the_keys(kind):
    """But for `critic` and the mask; whatever the order of the dict, and arrays of any shape."""
    space = {"z": Box((2,)), "critic": Box((1,)), "a": Box(()), "m": Box((2, 2)), "action_mask": Box((ACTIONS,))}
    obs = some(space)
    together = np.concatenate([obs[key].reshape(N, 1, -1) for key in ("a", "m", "z")], axis=-1)
    wanted = seen_by(
        kind,
        {"obs": Box((7,)), "critic": Box((1,)), "action_mask": Box((ACTIONS,))},
        {"obs": together, "critic": obs["critic"], "action_mask": obs["action_mask"]},
    )
    jax.tree.map(np.testing.assert_array_equal, wanted, seen_by(kind, space, obs))


# --- masks ------------------------------------------------------------------------------------------------------------


@KIND
def test_a_masked_action_is_as_if_it_did_not_exist(kind):
    """Never drawn, not the mode, and the rest is the distribution over the others; row by row in float64."""
    obs = some()
    old, new = (Categorical(seen_by(kind, SPACES, obs, seed=seed)[0]) for seed in (0, 1))
    free = seen_by(kind, SPACES, {**obs, "action_mask": np.ones((N, 1, ACTIONS), bool)})[0]
    mask = obs["action_mask"]
    assert 0 < mask[..., 1:].sum() < mask[..., 1:].size
    np.testing.assert_array_equal(np.isneginf(old.logits), ~mask)
    np.testing.assert_array_equal(np.asarray(old.logits)[mask], np.asarray(free)[mask])
    keys = jax.random.split(jax.random.key(0), 500)
    draws = jax.jit(jax.vmap(lambda key: old.sample(old.noise(key))))(keys)
    for row in range(N):
        allowed = np.flatnonzero(mask[row, 0])
        assert set(np.unique(draws[:, row, 0])) <= set(allowed)
        assert old.mode()[row, 0] in allowed
        log_p, log_q = (
            x - np.log(np.exp(x).sum()) for x in (np.float64(pi.logits[row, 0])[allowed] for pi in (old, new))
        )
        np.testing.assert_allclose(old.entropy()[row, 0], -np.sum(np.exp(log_p) * log_p), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(old.kl(new)[row, 0], np.sum(np.exp(log_p) * (log_p - log_q)), rtol=1e-4, atol=1e-5)


@KIND
@pytest.mark.parametrize("greedy", [False, True])
def test_an_evaluation_never_takes_a_masked_action(kind, greedy):
    """The environment pays 1 for each; with a mask that allows all, the same policy does take some."""
    env = shown(32, "dict", limit=8)
    config = TrainConfig(num_envs=32, hidden_sizes=(4,))

    def pays(env, show):
        def reset(keys):
            state, obs = env.reset(keys)
            return state, show(obs)

        def step(draws, state, action):
            state, result = env.step(draws, state, action)
            obs, final_obs = show(result.obs), show(result.final_obs)
            return state, result._replace(obs=obs, final_obs=final_obs, reward=result.info["forbidden"] * 1.0)

        return env._replace(reset=reset, step=step)

    policy = KINDS[kind](config, env)
    _, obs = jax.eval_shape(env.reset, jax.random.split(jax.random.key(0), 32))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(policy.init, jax.random.key(0), obs)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)

    def total(show):
        run = jax.jit(lambda key: evaluate(key, pays(env, show), policy, params, greedy), compiler_options=QUICKLY)
        return float(jnp.sum(run(jax.random.key(1)).episode_return))

    assert total(lambda obs: obs) == 0
    assert total(lambda obs: {**obs, "action_mask": jnp.ones_like(obs["action_mask"])}) > 0


# --- pictures ---------------------------------------------------------------------------------------------------------


@KIND
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("inside", ["array", "obs", "parts"])
def test_bytes_are_scaled(kind, scaled, inside):
    """By 255, unless scale_pixels is off; alone, under `obs`, or among other arrays. Numbers are as they are."""
    pixels = np.random.default_rng(0).integers(0, 256, (N, 1, *PICTURE)).astype(np.uint8)
    space, wrap = {
        "array": (Box(PICTURE), lambda x: x),
        "obs": ({"obs": Box(PICTURE), "critic": Box(PICTURE)}, lambda x: {"obs": x, "critic": x}),
        "parts": ({"a": Box(PICTURE), "b": Box((2,))}, lambda x: {"a": x, "b": np.ones((N, 1, 2), np.float32)}),
    }[inside]
    found = seen_by(kind, space, wrap(pixels), scale_pixels=scaled)
    wanted = seen_by(kind, space, wrap(np.float32(pixels) / np.float32(255 if scaled else 1)))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@KIND
def test_a_picture_beside_what_the_critic_sees_is_convolved(kind):
    """The privileged numbers are inputs of the first layer after the convolution, in the value's torso alone."""
    see, params = make(kind, {"obs": Box(PICTURE), "critic": Box((3,))})
    shapes = jax.tree.map(lambda x: x.shape, params["params"])
    positions = (PICTURE[0] - 2) * (PICTURE[1] - 2) * 16
    assert shapes["ConvTorso_0"]["Dense_0"]["kernel"] == (9 * PICTURE[2], 16)
    assert shapes["ConvTorso_0"]["MLPTorso_0"]["Dense_0"]["kernel"] == (positions, 4)
    assert shapes["ConvTorso_1"]["MLPTorso_0"]["Dense_0"]["kernel"] == (positions + 3, 4)
    assert jax.eval_shape(see, params, draw({"obs": Box(PICTURE), "critic": Box((3,))}))[1].shape == (N, 1)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_policy, gru])
def test_a_shared_torso_cannot_see_less_than_the_value_function(make):
    with pytest.raises(ConfigError, match=r"shared_torso is on.*\('critic'\); turn it off"):
        make(TrainConfig(hidden_sizes=(4,), shared_torso=True), spaces(SPACES))


@pytest.mark.parametrize("make", [make_policy, gru])
def test_a_policy_that_would_see_nothing(make):
    with pytest.raises(EnvError, match="nothing: its observations have the keys critic, action_mask"):
        make(TrainConfig(hidden_sizes=(4,)), spaces({"critic": Box((1,)), "action_mask": Box((ACTIONS,))}))


@pytest.mark.parametrize(
    ("shape", "continuous", "message"),
    [
        ((1,), False, r"'action_mask' of shape \[1\], but has 3 discrete actions"),
        ((2,), False, r"'action_mask' of shape \[2\], but has 3 discrete actions"),
        ((2,), True, r"'action_mask' of shape \[2\], but has continuous actions"),
    ],
)
def test_a_mask_that_does_not_have_an_element_for_each_action(shape, continuous, message):
    """One of a single element would mask all actions or none."""
    env = shown(2, "dict", continuous=continuous)
    space = {**env.observation_space, "action_mask": Box(shape)}
    with pytest.raises(EnvError, match=message):
        check_env(env._replace(observation_space=space))
