"""What holds for every combination of policy, observation, action and update rule, at tiny sizes.

Training stays finite and begins with a ratio of 1; `jit` and `vmap` change nothing but rounding; a saved state goes on
with the same bits; and two devices do what one does.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from jax.flatten_util import ravel_pytree
from probe_envs import shown, spoiled, walk

from purejaxppo.algorithms import ALGORITHMS, make_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.devices import data_parallel, vectorize
from purejaxppo.evaluate import evaluate_runner
from purejaxppo.experiment.checkpoints.directory import list_steps
from purejaxppo.experiment.checkpoints.state import snapshot
from purejaxppo.experiment.checkpoints.store import load_step, save_step
from purejaxppo.policies.recurrent import gru
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import make_trainer

E, T = 4, 6
HP = Hyperparams(learning_rate=1e-2)
CONFIG = TrainConfig(
    num_envs=E,
    num_steps=T,
    sequence_length=3,
    num_shards=2,
    num_epochs=2,
    num_minibatches=2,
    total_timesteps=10 * E * T,
    hidden_sizes=(4,),
    cg_iterations=3,
    line_search_steps=3,
    normalize_observation=True,
    normalize_reward=True,
)
POLICIES = {"plain": make_policy, "gru": gru}
KINDS = [(policy, observation) for policy in POLICIES for observation in ("array", "dict", "picture")]
RULES, ACTIONS = ("ppo_clip", "ppo_kl", "trpo", "policy_gradient"), ("discrete", "box")
# Each kind of policy, observation and action, and each rule; the others are slow.
FEW = {
    ("plain", "dict", "discrete", "trpo"),
    ("plain", "picture", "box", "policy_gradient"),
    ("gru", "array", "box", "ppo_kl"),
    ("gru", "dict", "discrete", "ppo_clip"),
}
COMBINATIONS = [
    pytest.param(*case, marks=[] if case in FEW else pytest.mark.slow, id="-".join(case))
    for case in ((*kind, action, rule) for kind in KINDS for action in ACTIONS for rule in RULES)
]


def test_every_rule_takes_part():
    assert set(RULES) == set(ALGORITHMS)
    assert {rule for *_, rule in FEW} == set(RULES)


class LSTMLike:
    """A memory of several leaves and types: two states, which begin as one array, steps as int32, and a truth value."""

    def init(self, key, obs):
        return {"in": 0.5 * jax.random.normal(key, (2, 4)), "out": jnp.ones((4, 3)), "value": jnp.ones(4)}

    def initial_memory(self, num_envs):
        nothing = jnp.zeros((num_envs, 4))
        return {"state": (nothing, nothing), "steps": jnp.zeros(num_envs, jnp.int32), "odd": jnp.zeros(num_envs, bool)}

    def act(self, params, memory, obs, start):
        memory, (logits, _) = self.step(params, memory, obs, start)
        return memory, Categorical(logits)

    def step(self, params, memory, obs, start):
        cell, state = jax.tree.map(lambda x: jnp.where(start[:, None], 0.0, x), memory["state"])
        steps = jnp.where(start, 0, memory["steps"]) + 1
        cell = 0.9 * cell + jnp.tanh(obs @ params["in"] + state)
        state = jnp.tanh(cell) / steps[:, None]
        after = {"state": (cell, state), "steps": steps, "odd": steps % 2 == 1}
        return after, (state @ params["out"], state @ params["value"])

    def evaluate(self, params, memory, obs, start):
        _, outputs = jax.lax.scan(
            lambda memory, x: self.step(params, memory, *x), memory, (obs.swapaxes(0, 1), start.T)
        )
        logits, value = jax.tree.map(lambda x: x.swapaxes(0, 1), outputs)
        return Categorical(logits), value


POLICIES_AND_OWN = {**POLICIES, "lstm": lambda config, env: LSTMLike()}


@functools.cache
def parts(policy, observation, action="discrete", rule="ppo_clip", **settings):
    """(config, environment, policy, trainer) of a combination."""
    config = dataclasses.replace(CONFIG, algorithm=rule, **settings)
    env = shown(config.num_envs, observation, continuous=action == "box")
    made = POLICIES_AND_OWN[policy](config, env)
    return config, env, made, make_trainer(config, env, made, make_algorithm(config, made))


@functools.cache
def programs(trainer):
    """The trainer's init, as a function of (seed, hp), and its update, compiled once for all tests of this module."""
    init = jax.jit(lambda seed, hp: trainer.init(jax.random.key(seed), hp), compiler_options=QUICKLY)
    return init, jax.jit(trainer.update, compiler_options=QUICKLY)


def trained(trainer, hp=HP, seed=0, updates=2):
    """(runner, metrics with leaves [updates]) of a new run."""
    init, update = programs(trainer)
    runner, rows = init(seed, hp), []
    for _ in range(updates):
        runner, metrics = update(hp, runner)
        rows.append(metrics)
    return runner, jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *rows) if rows else {}


def key_data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def plain(tree):
    return [np.asarray(key_data(x)) for x in jax.tree.leaves(tree)]


def check_bits(one, two):
    for a, b in zip(plain(one), plain(two), strict=True):
        np.testing.assert_array_equal(a, b)


def check_close(one, two, tolerance=1e-5):
    """Leaf by leaf, relative to its largest number or to 1; also what is neither finite in one nor in the other."""
    for a, b in zip(plain(one), plain(two), strict=True):
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.max(np.abs(np.nan_to_num(a)), initial=1.0))


def check_sound(runner, metrics):
    """Finite, and with a ratio of 1 before the first gradient step of each update."""
    assert not np.any(metrics["nonfinite"])
    for x in plain((runner.learner, runner.memory)):
        assert np.all(np.isfinite(x))
    assert np.max(metrics["ratio/first_minibatch_deviation"]) < 3e-6


@pytest.mark.parametrize(("policy", "observation", "action", "rule"), COMBINATIONS)
def test_two_updates_are_sound(policy, observation, action, rule):
    _, _, _, trainer = parts(policy, observation, action, rule)
    runner, metrics = trained(trainer)
    check_sound(runner, metrics)
    assert np.all(metrics["grad_norm"] > 0)
    assert np.all(metrics["kl"] >= -1e-6)
    assert np.max(metrics["kl"]) > 0
    if observation == "dict" and action == "discrete":
        assert not np.any(metrics["step/forbidden"])
    begun, _ = trained(trainer, updates=0)
    for before, after in zip(plain(begun.learner.params), plain(runner.learner.params), strict=True):
        assert np.any(before != after)


@pytest.mark.parametrize(
    ("settings", "hp"),
    [
        ({"sequence_length": 1}, {}),
        ({"sequence_length": None, "num_minibatches": 1}, {}),
        ({"num_shards": 1, "num_minibatches": 4}, {"target_kl": 1e-6}),
        ({"value_target": "rewards_to_go", "normalize_advantage": "batch"}, {"vf_clip_eps": 0.2}),
        pytest.param(
            {"learning_rate_schedule": "kl_adaptive", "normalize_advantage": "off"}, {}, marks=pytest.mark.slow
        ),
    ],
    ids=["steps", "whole rollouts", "early stop", "rewards to go", "adaptive"],
)
def test_sequences_with_other_settings(settings, hp):
    _, _, _, trainer = parts("lstm", "array", **settings)
    runner, metrics = trained(trainer, dataclasses.replace(HP, **hp))
    check_sound(runner, metrics)
    assert runner.memory["steps"].dtype == np.int32
    if hp.get("target_kl"):
        # The first step is taken, as it starts from the policy that acted; the second is not.
        _, free = trained(trainer)  # the same settings without a target
        assert 0 < metrics["kl"][0] < free["kl"][0]


def test_sequences_of_one_step_without_memory_are_rows():
    """A policy whose memory has no effect learns what the same one without memory does, minibatch by minibatch."""

    class Idle:
        """A feed-forward policy that carries a number for nothing."""

        def __init__(self, policy):
            self.policy, self.init = policy, policy.init

        def initial_memory(self, num_envs):
            return jnp.zeros(num_envs)

        def act(self, params, memory, obs, start):
            return memory, self.policy.act(params, (), obs, start)[1]

        def evaluate(self, params, memory, obs, start):
            return self.policy.evaluate(params, (), obs, start)

    config, env, policy, trainer = parts("plain", "array", sequence_length=1)
    idle = Idle(policy)
    one = trained(trainer)
    two = trained(make_trainer(config, env, idle, make_algorithm(config, idle)))
    check_close(one[0]._replace(memory=()), two[0]._replace(memory=()))
    check_close(one[1], two[1])


@pytest.mark.slow
def test_an_update_without_jit_is_the_same():
    _, _, _, trainer = parts("gru", "dict", num_envs=2, num_steps=3, num_shards=1, num_epochs=1)
    compiled = trained(trainer, updates=1)
    runner = trainer.init(jax.random.key(0), HP)
    with jax.disable_jit():
        found = trainer.update(HP, runner)
    check_close(found[0], compiled[0])
    check_close(found[1], jax.tree.map(lambda x: x[0], compiled[1]), 1e-4)


@pytest.mark.parametrize("policy", [pytest.param("gru", marks=pytest.mark.slow), "lstm"])
def test_runs_side_by_side_are_runs_one_by_one(policy):
    """By `vmap` up to rounding, and by the layout of sweeps on a CPU too."""
    _, _, _, trainer = parts(policy, "array")
    hps, seeds = vectorize.grid(HP, [3], learning_rate=[1e-3, 1e-2])
    runs = [trained(trainer, jax.tree.map(lambda x: x[i], hps), seeds[i]) for i in range(2)]  # noqa: B023
    alone = jax.tree.map(lambda *xs: np.stack(xs), *jax.tree.map(lambda x: np.asarray(key_data(x)), runs))
    update = jax.jit(jax.vmap(trainer.update), compiler_options=QUICKLY)
    begun = vectorize.make_runs(trainer, hps, seeds)
    runner = begun.runner
    for i in range(2):
        runner, metrics = update(hps, runner)
        check_close(metrics, jax.tree.map(lambda x: x[:, i], alone[1]), 1e-4)  # noqa: B023
    check_close(runner, alone[0], 1e-4)
    swept, metrics = vectorize.advance_runs(trainer, hps, begun, 2)
    check_close((swept.runner, metrics), alone, 1e-4)


@pytest.mark.parametrize(("policy", "observation"), [("gru", "dict"), ("lstm", "array")])
def test_a_saved_state_goes_on_with_the_same_bits(tmp_path, policy, observation):
    """Through the files of a checkpoint, memory and observations included."""
    _, _, _, trainer = parts(policy, observation)
    _, update = programs(trainer)
    runner, _ = trained(trainer, updates=1)
    save_step(tmp_path, 24, snapshot(runner), {})
    shapes = jax.eval_shape(lambda: trainer.init(jax.random.key(0), HP))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    restored, _ = load_step(list_steps(tmp_path)[0], shapes)
    check_bits(restored, runner)
    check_bits(update(HP, restored), update(HP, runner))


@pytest.mark.parametrize(
    ("policy", "observation", "rule"),
    [
        ("gru", "dict", "ppo_clip"),
        pytest.param("lstm", "array", "trpo", marks=pytest.mark.slow),
        pytest.param("plain", "dict", "ppo_kl", marks=pytest.mark.slow),
    ],
)
def test_two_devices_do_what_one_does(monkeypatch, policy, observation, rule):
    """In the first update, within 1e-6 in the parameters' norm; trpo's linear solve makes ten times of it."""
    config, env, _, trainer = parts(policy, observation, rule=rule)
    monkeypatch.setattr(data_parallel, "make_policy", POLICIES_AND_OWN[policy])
    spread = data_parallel.spread_trainer(config, env, jax.devices()[:2])
    one, two = trained(trainer, updates=1), trained(spread, updates=1)
    vectors = [np.asarray(ravel_pytree(runner.learner.params)[0]) for runner, _ in (one, two)]
    assert np.linalg.norm(vectors[0] - vectors[1]) < (1e-5 if rule == "trpo" else 1e-6)
    rest = [runner._replace(learner=()) for runner, _ in (one, two)]
    check_close(*rest)
    check_close(one[1], two[1], 1e-4)
    for x in jax.tree.leaves((two[0].memory, two[0].obs)):
        assert x.sharding.shard_shape(x.shape) == (E // 2, *x.shape[1:])


def test_a_bad_update_leaves_the_memory_as_it_was():
    """With on_nonfinite = skip the next update sets out from the same environments, with what was known of them."""
    config = dataclasses.replace(CONFIG, on_nonfinite="skip", num_shards=1, normalize_reward=False)
    env = spoiled(walk(E), after=T)  # all is well in the first update
    policy = gru(config, env)
    trainer = make_trainer(config, env, policy, make_algorithm(config, policy))
    (one, _), (two, metrics) = (trained(trainer, updates=updates) for updates in (1, 2))
    assert list(metrics["nonfinite"] != 0) == [False, True]
    check_bits(two._replace(key=one.key, updates=one.updates), one)
    assert any(np.any(x) for x in plain(one.memory))


@pytest.mark.parametrize("policy", [pytest.param("gru", marks=pytest.mark.slow), "lstm"])
def test_an_evaluation_remembers(policy):
    """It is the loop in Python over `act`, with a memory that is cleared where an episode begins."""
    config, env, made, trainer = parts(policy, "array")
    runner, _ = trained(trainer)
    found = jax.jit(lambda key: evaluate_runner(key, config, env, made, runner), compiler_options=QUICKLY)(
        jax.random.key(5)
    )
    assert np.all(found.finished)
    _, key_reset = jax.random.split(jax.random.key(5))
    key = jax.random.split(jax.random.key(5))[0]
    state, obs = env.reset(jax.random.split(key_reset, E))
    mean, std = np.asarray(runner.normalizer.obs.mean), np.sqrt(np.asarray(runner.normalizer.obs.var) + 1e-8)
    memory, start = made.initial_memory(E), np.ones(E, bool)
    total, running = np.zeros(E), np.ones(E, bool)
    act, step = jax.jit(made.act), jax.jit(env.step)
    while running.any():
        key, _, key_env = jax.random.split(key, 3)
        seen = np.clip((np.asarray(obs) - mean) / std, -10, 10)
        memory, pi = act(runner.learner.params, memory, seen, start)
        state, result = step(jax.random.split(key_env, E), state, pi.mode())
        total += np.where(running, result.reward, 0.0)
        obs, start = result.obs, np.asarray(result.terminated | result.truncated)
        running &= ~start
    np.testing.assert_allclose(found.episode_return, total, rtol=1e-5)
