"""The trainer as a whole: environments with known answers, determinism, and every flag alive."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from probe_envs import (
    action_to_reward,
    both_flags,
    choose,
    constant_reward,
    discount,
    endless,
    far_bounds,
    limit_as_death,
    limit_as_next_episode,
    match,
    spoiled,
    value_from_observation,
    walk,
)
from setting_values import FAR

from purejaxppo.algorithms import ALGORITHMS, make_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.resolve import has_option
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.types import Algorithm, Discrete, LearnerState
from purejaxppo.envs.wrappers import action_bound
from purejaxppo.errors import ConfigError
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import advance, make_trainer, train, trainer_from_config

E, T = 4, 4
CONFIG = TrainConfig(
    num_envs=E,
    num_steps=T,
    num_epochs=2,
    num_minibatches=2,
    hidden_sizes=(4,),
    total_timesteps=5 * E * T,
)
# The two optional ones are given, but never reached: with None they would be another program.
HP = jax.tree.map(jnp.float32, Hyperparams(vf_clip_eps=1e3, target_kl=1e3, learning_rate=3e-2))
# What the other algorithms have is in algorithms/test_registry.py.
CHANGED = {name: value for name, value in FAR.items() if has_option("ppo_clip", name)}


def host(tree):
    """The tree as NumPy, keys as their data."""

    def copy(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(copy, tree)


def leaves(tree):
    """Every array of a tree as NumPy, keys as their data."""
    return jax.tree.leaves(host(tree))


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(leaves(a), leaves(b), strict=True))


def assert_close(a, b, atol):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol)


def take(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def with_field(hp, name, value):
    return dataclasses.replace(hp, **{name: jnp.float32(value)})


@pytest.fixture(scope="module")
def trainer():
    return trainer_from_config(CONFIG, walk(E))


@pytest.fixture(scope="module")
def programs(trainer):
    """The jitted functions of the trainer, each compiled once for the whole module."""

    class Programs:
        init = jax.jit(trainer.init)
        update = jax.jit(trainer.update)
        scan2 = jax.jit(lambda hp, runner: advance(trainer, hp, runner, 2))
        scan4 = jax.jit(lambda hp, runner: advance(trainer, hp, runner, 4))
        init_runs = jax.jit(jax.vmap(trainer.init))
        update_runs = jax.jit(jax.vmap(trainer.update))

    return Programs


@pytest.fixture(scope="module")
def start(programs):
    """A state after one update, so that nothing in it is at its first value."""
    return programs.update(HP, programs.init(jax.random.key(0), HP))[0]


# --- environments with known answers ----------------------------------------------------------------------------------

PROBES = (
    constant_reward,
    value_from_observation,
    discount,
    action_to_reward,
    match,
    both_flags,
    endless,
    limit_as_death,
    limit_as_next_episode,
)
GAMMA = 0.9


@pytest.fixture(scope="module")
def probed():
    """Name -> (P(action 1) [3], value [3]) at the observations -1, 0, 1, after training; one program for all."""
    config = TrainConfig(num_envs=8, num_steps=16, num_minibatches=2, hidden_sizes=(), total_timesteps=150 * 8 * 16)
    hp = jax.tree.map(jnp.float32, Hyperparams(gamma=GAMMA, learning_rate=0.05, ent_coef=0.0))

    def run(index, key):
        env = choose(PROBES, index, config.num_envs)
        policy = make_policy(config, env)
        trainer = make_trainer(config, env, policy, make_algorithm(config, policy))
        runner, _ = advance(trainer, hp, trainer.init(key, hp), config.num_updates)
        obs = jnp.array([[-1.0], [0.0], [1.0]])
        pi, value = policy.evaluate(runner.learner.params, (), obs, jnp.ones(3, bool))
        return jax.nn.softmax(pi.logits)[:, 1], value

    keys = jax.random.split(jax.random.key(1), len(PROBES))
    results = jax.device_get(jax.jit(jax.vmap(run), compiler_options=QUICKLY)(jnp.arange(len(PROBES)), keys))
    return {make.__name__: take(results, i) for i, make in enumerate(PROBES)}


@pytest.mark.parametrize(
    ("probe", "at_minus_1", "at_0", "at_1"),
    [
        ("constant_reward", None, 1.0, None),
        ("value_from_observation", -1.0, None, 1.0),
        ("discount", GAMMA, None, 1.0),
        ("both_flags", None, 1.0, None),
        ("endless", 0.0, None, 1 / (1 - GAMMA)),
    ],
)
def test_value_is_learned_exactly(probed, probe, at_minus_1, at_0, at_1):
    """What each environment's docstring promises; `endless` is the time limit that is no death."""
    _, value = probed[probe]
    for got, wanted in zip(value, (at_minus_1, at_0, at_1), strict=True):
        if wanted is not None:
            assert got == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("wrong", ["limit_as_death", "limit_as_next_episode"])
def test_the_time_limit_probe_notices_both_mistakes(probed, wrong):
    """With the mistake built into the environment the value stays far below 1 / (1 - gamma) = 10."""
    _, value = probed[wrong]
    assert value[2] < 8
    if wrong == "limit_as_death":
        assert value[2] < 5


def test_rewarded_action_is_learned(probed):
    probability, _ = probed["action_to_reward"]
    assert probability[1] > 0.95


def test_action_is_matched_to_the_observation(probed):
    probability, _ = probed["match"]
    assert probability[0] < 0.05
    assert probability[2] > 0.95


def test_actions_are_learned_wherever_their_bounds_are():
    """Far from [-1, 1], or narrow: from the middle to the best action, within a tenth of half the range."""
    config = TrainConfig(num_envs=16, num_steps=16, num_minibatches=2, hidden_sizes=(), total_timesteps=40 * 16 * 16)
    hp = Hyperparams(learning_rate=0.02, ent_coef=0.0)
    env = far_bounds(config.num_envs)
    policy = make_policy(config, env)
    trainer = make_trainer(config, env, policy, make_algorithm(config, policy))

    def run(key):
        return advance(trainer, hp, trainer.init(key, hp), 40)

    runner, metrics = jax.jit(run, compiler_options=QUICKLY)(jax.random.key(0))
    _, pi = policy.act(runner.learner.params, (), jnp.zeros((1, 1)), jnp.ones(1, bool))
    low, high = action_bound(config, env.action_space)(pi.mode())[0]
    assert abs(low - 170) < 5
    assert abs(high - 0.003) < 0.0005
    assert metrics["episode/return"][0] < -0.8 < -0.2 < metrics["episode/return"][-1]


# --- the first minibatch ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def continuous():
    """Policy -> (final state, metrics [3]) of three normalised updates with continuous actions."""

    def run(policy, key):
        config = dataclasses.replace(
            CONFIG, action_distribution=policy, normalize_observation=True, normalize_reward=True
        )
        trainer = trainer_from_config(config, walk(E, continuous=True))
        return advance(trainer, HP, trainer.init(key, HP), 3)

    def run_both(key):
        return {policy: run(policy, key) for policy in ("gaussian", "tanh_gaussian")}

    return jax.jit(run_both, compiler_options=QUICKLY)(jax.random.key(0))


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_ratio_is_1_in_the_first_minibatch_while_the_normalisers_move(continuous, policy):
    """In every update, not only the first: what was stored is what the policy saw."""
    runner, metrics = continuous[policy]
    assert float(runner.normalizer.obs.rows) == 3 * T * E  # the normaliser did move
    assert np.all(np.asarray(metrics["ratio/first_minibatch_deviation"]) < 1e-6)
    assert np.all(np.asarray(metrics["kl"]) > 1e-6)  # and so did the policy, afterwards
    assert all(np.isfinite(x).all() for x in leaves(runner))


def test_policy_is_alive(continuous):
    """The two continuous policies, from the same key, do and learn different things."""
    gaussian, tanh_gaussian = continuous["gaussian"][1], continuous["tanh_gaussian"][1]
    assert not np.allclose(gaussian["entropy"], tanh_gaussian["entropy"])
    assert not np.allclose(gaussian["loss/value"], tanh_gaussian["loss/value"])


def test_ratio_is_1_in_the_first_minibatch_of_discrete_actions(programs, start):
    _, metrics = programs.scan4(HP, start)
    assert np.all(np.asarray(metrics["ratio/first_minibatch_deviation"]) < 1e-6)
    assert np.all(np.asarray(metrics["kl"]) > 1e-6)


# --- masked actions ---------------------------------------------------------------------------------------------------


class MaskingNetwork:
    """Three actions, of which the first is masked by -inf at observation 1 and the last at observation -1."""

    def init(self, key, obs):
        return {"policy": 0.1 * jax.random.normal(key, (2, 3)), "value": jnp.zeros((2, 1))}

    def apply(self, params, obs):
        features = jnp.concatenate([obs, jnp.ones_like(obs)], axis=-1)
        mask = obs * jnp.array([1.0, 0.0, -1.0]).reshape((1,) * (obs.ndim - 1) + (-1,)) > 0
        return Categorical(jnp.where(mask, -jnp.inf, features @ params["policy"])), (features @ params["value"])[..., 0]


def with_a_forbidden_action(env):
    """`match` with three actions, of which the one that `MaskingNetwork` masks earns NaN."""

    def step(key, state, action):
        following, result = env.step(key, state, jnp.minimum(action, 1))
        forbidden = jnp.where(state > 0, 0, 2)  # the state is the observation
        return following, result._replace(reward=jnp.where(action == forbidden, jnp.nan, result.reward))

    return env._replace(step=step, action_space=Discrete(3))


# The loss of policy_gradient has nothing that those of the others have not.
@pytest.mark.parametrize(
    "algorithm",
    [pytest.param(x, marks=pytest.mark.slow) if x == "policy_gradient" else x for x in ALGORITHMS],
)
def test_a_network_that_masks_actions_trains(algorithm):
    """No metric is anything but finite, the policy moves, and no masked action is ever taken, as its reward tells."""
    config = dataclasses.replace(CONFIG, algorithm=algorithm, cg_iterations=2, line_search_steps=2)
    policy = FeedForward(MaskingNetwork())
    trainer = make_trainer(config, with_a_forbidden_action(match(E)), policy, make_algorithm(config, policy))
    hp = dataclasses.replace(HP, ent_coef=jnp.float32(0.1), target_kl=jnp.float32(0.05))

    def run(key, hp):
        before = trainer.init(key, hp)
        return before, advance(trainer, hp, before, 3)

    before, (after, metrics) = jax.jit(run, compiler_options=QUICKLY)(jax.random.key(0), hp)
    assert all(np.isfinite(x).all() for x in leaves((after, metrics)))
    assert metrics["nonfinite"].tolist() == [0, 0, 0]
    assert np.any(np.asarray(metrics["kl"]) > 0)  # trpo may refuse a step
    assert np.all((np.asarray(metrics["entropy"]) > 0) & (np.asarray(metrics["entropy"]) <= np.log(2) + 1e-6))
    assert np.all(np.asarray(after.learner.params["policy"] != before.learner.params["policy"]))


# --- determinism ------------------------------------------------------------------------------------------------------


def test_same_key_same_bits(programs):
    def run(seed):
        return programs.scan4(HP, programs.init(jax.random.key(seed), HP))

    assert same_bits(run(3), run(3))
    assert not same_bits(run(3)[0].learner.params, run(4)[0].learner.params)


def test_scan_of_4_is_twice_scan_of_2_is_4_updates(programs, start):
    """Bit by bit, state and metrics: how often the host looks changes nothing."""
    runner, metrics = programs.scan4(HP, start)

    halves, rows = start, []
    for _ in range(2):
        halves, half = programs.scan2(HP, halves)
        rows.append(half)
    assert same_bits(runner, halves)
    assert same_bits(metrics, jax.tree.map(lambda *x: jnp.concatenate(x), *rows))

    single, rows = start, []
    for _ in range(4):
        single, row = programs.update(HP, single)
        rows.append(row)
    assert same_bits(runner, single)
    assert same_bits(metrics, jax.tree.map(lambda *x: jnp.stack(x), *rows))


def test_one_compilation_for_any_number_of_chunks(programs):
    """The state that comes out has the types, shapes and weak types of the state that goes in."""
    runner = programs.init(jax.random.key(0), HP)
    for i in range(5):
        runner, _ = programs.scan2(with_field(HP, "learning_rate", 1e-3 * (i + 1)), runner)
    assert programs.scan2._cache_size() == 1
    programs.init(jax.random.key(1), with_field(HP, "gamma", 0.3))
    assert programs.init._cache_size() == 1


def test_vmap_over_keys_and_all_hyperparameters_is_a_loop(programs):
    """Each field an array [R], each run with a key of its own: the first update to 1e-5."""
    runs = 1 + len(CHANGED)  # as many as below: one compilation
    names = [field.name for field in dataclasses.fields(Hyperparams)]
    factors = np.float32(1 + 0.5 * np.random.default_rng(5).uniform(size=(runs, len(names))))
    base = dataclasses.replace(HP, learning_rate=3e-3, gamma=0.6, gae_lambda=0.6, vf_clip_eps=0.1, target_kl=0.02)
    hps = Hyperparams(**{name: np.float32(getattr(base, name)) * factors[:, i] for i, name in enumerate(names)})
    keys = jax.random.split(jax.random.key(6), runs)
    together = host(programs.update_runs(hps, programs.init_runs(keys, hps)))
    for i in range(runs):
        alone = programs.update(take(hps, i), programs.init(keys[i], take(hps, i)))
        assert_close(take(together, i), alone, atol=1e-5)


# --- every flag is alive ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_field(programs, start):
    """Field -> (state, metrics) of an update in which that field alone is changed; `None` is the update with none."""
    names = [field.name for field in dataclasses.fields(Hyperparams)]
    assert set(CHANGED) == {name for name in names if has_option("ppo_clip", name)}
    hps = [HP, *(with_field(HP, name, value) for name, value in CHANGED.items())]
    stacked = jax.tree.map(lambda *x: np.stack(x), *hps)
    starts = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x, (len(hps), *x.shape)), tree))(start)
    results = host(programs.update_runs(stacked, starts))
    return {name: take(results, i) for i, name in enumerate([None, *CHANGED])}


def distance(a, b):
    """Largest difference of two runs' parameters."""
    pairs = zip(leaves(a[0].learner.params), leaves(b[0].learner.params), strict=True)
    return max(np.abs(x - y).max() for x, y in pairs)


@pytest.mark.parametrize("name", CHANGED)
def test_every_hyperparameter_changes_what_is_learned(by_field, name):
    assert distance(by_field[name], by_field[None]) > 1e-5


def test_hyperparameters_do_what_they_say(by_field):
    (runner, base), metrics = by_field[None], {name: result[1] for name, result in by_field.items()}
    assert metrics["clip_eps"]["clip_fraction"] > base["clip_fraction"]
    assert metrics["ent_coef"]["entropy"] > base["entropy"]
    assert metrics["vf_clip_eps"]["loss/value"] > base["loss/value"]  # the larger of two losses
    assert float(metrics["learning_rate"]["learning_rate"]) == pytest.approx(0.8 * CHANGED["learning_rate"])
    # A smaller discount or lambda leaves less to be learned from rewards far away.
    assert not np.allclose(metrics["gamma"]["explained_variance"], base["explained_variance"])
    assert not np.allclose(metrics["gae_lambda"]["explained_variance"], base["explained_variance"])
    assert int(runner.updates) == 2


def test_target_kl_skips_the_rest_of_the_update(by_field, start):
    """The first gradient step moves the policy beyond any tiny target, and is the last one that counts."""
    stopped, metrics = by_field["target_kl"]
    full, base = by_field[None]
    steps_before = adam_steps(start)
    assert adam_steps(full) - steps_before == CONFIG.num_epochs * CONFIG.num_minibatches
    assert adam_steps(stopped) - steps_before == 1
    assert float(metrics["kl"]) < 0.5 * float(base["kl"])


def adam_steps(runner):
    counts = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(runner.learner.opt_state) if "count" in str(path)
    ]
    return int(counts[0])


TOGGLES = {
    "activation": {"activation": "relu"},
    "normalize_observation": {"normalize_observation": True},
    "normalize_reward": {"normalize_reward": True},
    "learning_rate_schedule": {"learning_rate_schedule": "constant"},
    "ent_coef_schedule": {"ent_coef_schedule": "linear"},
    "clip_eps_schedule": {"clip_eps_schedule": "linear"},
    "value_target": {"value_target": "rewards_to_go"},
    "total_timesteps": {"total_timesteps": 50 * E * T},
    "shared_torso": {"shared_torso": True},
}
# algorithms/test_registry.py has these for each update rule by itself.
TOGGLES_OF_RULES = {
    "num_epochs": {"num_epochs": 1},
    "normalize_advantage=batch": {"normalize_advantage": "batch"},
    "normalize_advantage=off": {"normalize_advantage": "off"},
}


def one_update(env=None, **changes):
    """(state, metrics) of one update, compiled quickly."""
    trainer = trainer_from_config(dataclasses.replace(CONFIG, **changes), env or walk(E))

    def run(key, hp):
        # Not at update 0, where every schedule is at its start, and normalisers have seen nothing.
        runner = trainer.init(key, hp)
        normalizer = jax.tree.map(lambda x: x + 1, runner.normalizer)
        return trainer.update(hp, runner._replace(updates=jnp.int32(2), normalizer=normalizer))

    return jax.jit(run, compiler_options=QUICKLY)(jax.random.key(0), HP)


# An update rule that learns nothing, and keeps what there is to learn from. Others are in algorithms/test_registry.py.
KEEPING = Algorithm(
    lambda key, hp, params: LearnerState(params, (), ()),
    lambda key, hp, learner, trajectory: (learner._replace(algo_state=(hp, trajectory)), {}),
)


def collecting(env):
    """(key, hp) -> (state, metrics) of one update with all normalisers by the rule `KEEPING`; not compiled."""
    config = dataclasses.replace(CONFIG, normalize_observation=True, normalize_reward=True)
    trainer = make_trainer(config, env, make_policy(config, env), KEEPING)
    return lambda key, hp: trainer.update(hp, trainer.init(key, hp)._replace(updates=jnp.int32(2)))


def op_by_op(env):
    """(state, metrics) of `collecting`: what the Python code says, operation by operation."""
    with jax.disable_jit():
        return collecting(env)(jax.random.key(0), HP)


@pytest.fixture(scope="module")
def unchanged():
    return one_update()


def test_jit_is_no_jit():
    """From the first key to the trajectory, the new statistics and the annealed hyperparameters."""
    compiled = jax.jit(collecting(walk(E)), compiler_options=QUICKLY)(jax.random.key(0), HP)
    assert_close(compiled, op_by_op(walk(E)), atol=1e-5)


@pytest.mark.parametrize("name", [*TOGGLES, *(pytest.param(name, marks=pytest.mark.slow) for name in TOGGLES_OF_RULES)])
def test_every_toggle_changes_the_result(unchanged, name):
    result = one_update(**(TOGGLES | TOGGLES_OF_RULES)[name])
    assert all(np.isfinite(x).all() for x in leaves(result[0]))
    if name == "shared_torso":
        assert len(leaves(result[0].learner.params)) == len(leaves(unchanged[0].learner.params)) - 2
    else:
        assert distance(result, unchanged) > 1e-5
    if name == "learning_rate_schedule":
        assert float(result[1]["learning_rate"]) == pytest.approx(float(HP.learning_rate))
        assert float(unchanged[1]["learning_rate"]) == pytest.approx(0.6 * float(HP.learning_rate))


def test_counts_are_alive():
    """num_steps of the environments, num_epochs * num_minibatches gradient steps."""
    changes = {"num_steps": T // 2, "num_minibatches": 1, "num_epochs": 3}
    runner, _ = one_update(spoiled(walk(E), after=10**6), **changes)
    assert int(runner.env_state[1]) == T // 2
    assert adam_steps(runner) == 3


def test_sizes_are_those_of_the_config():
    """num_envs and hidden_sizes show in the shapes of the state."""
    config = dataclasses.replace(CONFIG, num_envs=6, num_steps=2, hidden_sizes=(7, 3))
    state = jax.eval_shape(trainer_from_config(config, walk(6)).init, jax.random.key(0), HP)
    assert state.obs.shape == (6, 2)
    widths = sorted(x.shape for x in jax.tree.leaves(state.learner.params) if x.ndim == 2)
    assert widths == sorted(2 * [(2, 7), (7, 3)] + [(3, 1), (3, 2)])


def test_unknown_algorithm_is_refused_with_a_suggestion():
    config = dataclasses.replace(CONFIG, algorithm="ppo_clap")
    with pytest.raises(ConfigError, match=r"ppo_clap.*Did you mean 'ppo_clip'"):
        trainer_from_config(config, walk(E))


# --- shape and memory -------------------------------------------------------------------------------------------------


def test_metrics_are_one_scalar_per_update(trainer):
    state = jax.eval_shape(trainer.init, jax.random.key(0), HP)
    for n in (3, 300):
        after, metrics = jax.eval_shape(lambda hp, state, n=n: advance(trainer, hp, state, n), HP, state)
        assert {x.shape for x in metrics.values()} == {(n,)}
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert {
        "episode/return",
        "episode/length",
        "episode/count",
        "loss/policy",
        "loss/value",
        "entropy",
        "kl",
        "kl_k3",
        "ratio/effective_sample_size",
        "clip_fraction",
        "explained_variance",
        "grad_norm",
        "learning_rate",
    } <= metrics.keys()


def test_memory_does_not_grow_with_the_number_of_updates(programs, start):
    """Beyond the scalars of the metrics, two more updates need nothing."""
    two, four = (program.lower(HP, start).compile().memory_analysis() for program in (programs.scan2, programs.scan4))
    _, metrics = jax.eval_shape(programs.scan2, HP, start)
    row = 4 * len(metrics)
    assert four.output_size_in_bytes - two.output_size_in_bytes == 2 * row
    assert four.temp_size_in_bytes - two.temp_size_in_bytes <= 4 * row


def test_no_finished_episode_is_nan_and_a_healthy_run_passes_debug_nans():
    """Not 0, which would be a return; and where any NaN is taken for an error, the same bits but for another mark."""
    trainer = trainer_from_config(CONFIG, walk(E, limit=9, target=1e6))  # an episode ends in every third update
    run = [
        jax.jit(lambda key, hp: advance(trainer, hp, trainer.init(key, hp), 3), compiler_options=QUICKLY)
        for _ in range(2)
    ]
    state, metrics = run[0](jax.random.key(0), HP)
    with jax.debug_nans(True):
        same_state, same_metrics = run[1](jax.random.key(0), HP)
    ended = np.asarray(metrics["episode/count"]) > 0
    assert ended.tolist() == [False, False, True]
    for name in ("episode/return", "episode/length"):
        assert np.isnan(metrics[name]).tolist() == np.isneginf(same_metrics[name]).tolist() == (~ended).tolist()
        np.testing.assert_array_equal(metrics[name][ended], same_metrics[name][ended])
    others = metrics.keys() - {"episode/return", "episode/length"}
    assert same_bits([state, *(metrics[x] for x in others)], [same_state, *(same_metrics[x] for x in others)])


def test_debug_nans_finds_nothing_in_any_operation():
    """Operation by operation: no NaN is made that a later one then throws away."""
    with jax.debug_nans(True):
        _, metrics = op_by_op(walk(E, limit=50, target=1e6))
    assert float(metrics["episode/return"]) == -np.inf


def test_debug_nans_still_finds_what_is_wrong():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        op_by_op(spoiled(walk(E), after=0))


def test_runner_state_holds_arrays_only(start):
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(start))
    # A function in the tree's static part would be another one in every new trainer.
    again = trainer_from_config(CONFIG, walk(E))
    assert jax.tree.structure(jax.eval_shape(again.init, jax.random.key(0), HP)) == jax.tree.structure(start)


def test_environment_with_another_number_of_copies_is_refused():
    env = walk(E + 1)
    policy = make_policy(CONFIG, env)
    with pytest.raises(ConfigError, match="5 copies, but num_envs = 4"):
        make_trainer(CONFIG, env, policy, make_algorithm(CONFIG, policy))


def test_train_by_name_under_jit_and_vmap_over_seeds():
    """Also shows that env and env_params arrive: after every second step an episode ends."""
    config = dataclasses.replace(
        CONFIG, env="CartPole-v1", env_params={"max_steps_in_episode": 2}, total_timesteps=2 * E * T
    )
    keys = jax.random.split(jax.random.key(0), 2)
    runner, metrics = jax.jit(jax.vmap(lambda key: train(config, HP, key)), compiler_options=QUICKLY)(keys)
    assert runner.updates.tolist() == [2, 2]
    assert runner.obs.shape == (2, E, 4)
    assert {x.shape for x in metrics.values()} == {(2, 2)}
    np.testing.assert_array_equal(metrics["episode/count"], E * T / 2)
    np.testing.assert_array_equal(metrics["episode/length"], 2)
    np.testing.assert_array_equal(metrics["episode/return"], 2)
    assert not np.array_equal(*leaves(runner.obs)[0])
