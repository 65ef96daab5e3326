"""What every update rule promises, for each of them: called by itself, on a rollout made by hand."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from hand_batch import CONFIG, POLICIES, make_batch, make_policy, make_trajectory
from setting_values import FAR

from purejaxppo.algorithms import ALGORITHMS, make_algorithm
from purejaxppo.algorithms.adaptive_lr import kl_adaptive
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import ALGORITHMS_WITH
from purejaxppo.config.resolve import has_option
from purejaxppo.core import minibatch
from purejaxppo.core.optimizer import anneal
from purejaxppo.errors import ConfigError

# The optional ones are given, but not reached: with None they would be another program.
HP = Hyperparams(learning_rate=5e-2, gamma=0.9, gae_lambda=0.8, vf_clip_eps=1e3, target_kl=1e3, cg_damping=1e-2)
RULES = (*ALGORITHMS, "kl_adaptive")
# What the trainer turns into other hyperparameters, which are another argument of the same program.
SCHEDULES = {"ent_coef_schedule": "linear", "clip_eps_schedule": "linear"}
COMPILED = {"num_epochs": 1, "num_minibatches": 1, "normalize_advantage": "off"}
COUNTS_OF_TRPO = {"cg_iterations": 1, "line_search_steps": 1}
# The others descend the same surrogate as ppo_clip, and kl_adaptive is ppo_clip with a state of its own.
BY_PATH = ("ppo_clip", "trpo")
BY_STATE = ("ppo_kl", "trpo", "kl_adaptive")
METRICS = {
    "loss/value",
    "loss/policy",
    "entropy",
    "kl",
    "kl_k3",
    "ratio/mean",
    "ratio/std",
    "ratio/max",
    "ratio/effective_sample_size",
    "ratio/first_minibatch_deviation",
    "explained_variance",
}
OWN_METRICS = {
    "ppo_clip": {"grad_norm", "clip_fraction"},
    "ppo_kl": {"grad_norm", "kl_coef"},
    "policy_gradient": {"grad_norm"},
    "trpo": {"grad_norm", "step_fraction"},
    "kl_adaptive": {"grad_norm", "clip_fraction", "learning_rate"},
}


@pytest.fixture(autouse=True)
def _plain_shuffle(monkeypatch):
    """A sort, which compiles faster than the package's own shuffle (test_minibatch.py is about that one)."""
    monkeypatch.setattr(
        minibatch, "shuffled_indices", lambda key, size: jnp.argsort(jax.random.bits(key, (size,), jnp.uint32))
    )


def rest_slow(default, rules=RULES):
    """Each rule as a parameter; by default only these."""
    return pytest.mark.parametrize(
        "rule", [x if x in default else pytest.param(x, marks=pytest.mark.slow) for x in rules]
    )


def has(rule, name):
    name_of = "ppo_clip" if rule == "kl_adaptive" else rule
    return has_option(name_of, name)


def config_of(rule, **changes):
    algorithm = "ppo_clip" if rule == "kl_adaptive" else rule
    base = {"algorithm": algorithm, "cg_iterations": 4, "line_search_steps": 3}
    return dataclasses.replace(CONFIG, **{**base, **changes})


def hp_of(rule, **changes):
    """trpo's target_kl is in use, so it is one at which its first steps are too long."""
    base = {"target_kl": 0.3, "kl_coef": 1.0, "kl_min": 1e-2, "kl_max": 2e-2} if rule == "trpo" else {}
    return jax.tree.map(jnp.float32, dataclasses.replace(HP, **{**base, **changes}))


@functools.cache
def policy_of(policy="categorical"):
    return make_policy(policy)


@functools.cache
def trajectory_of(policy="categorical"):
    return make_trajectory(*policy_of(policy))


@functools.cache
def batch_of(policy="categorical"):
    """What the rules make of the trajectory, before they standardise advantages."""
    return make_batch(*policy_of(policy))


def begin(rule, hp, policy="categorical"):
    """The learner before the first update."""
    return built(rule, policy).init(jax.random.key(0), hp, policy_of(policy)[1])


@functools.cache
def built(rule, policy="categorical", **changes):
    algorithm = make_algorithm(config_of(rule, **changes), policy_of(policy)[0])
    return kl_adaptive(algorithm) if rule == "kl_adaptive" else algorithm


@functools.cache
def program(rule, policy="categorical"):
    """The update, compiled once per module, and quickly."""
    return jax.jit(built(rule, policy).update, compiler_options=QUICKLY)


def update(rule, hp=None, *, key=7, times=1, policy="categorical", config=None):
    """(learner, metrics) after `times` updates from the start; `config` is what the trainer makes of hp."""
    hp = hp or hp_of(rule)
    learner = begin(rule, hp, policy)
    if config is not None:
        hp = jax.tree.map(jnp.float32, anneal(config, hp, 2))
    for i in range(times):
        learner, metrics = program(rule, policy)(jax.random.key(key + i), hp, learner, trajectory_of(policy))
    return learner, metrics


@functools.cache
def changed(rule, hp=(), **changes):
    """One update by a program of its own."""
    hp = hp_of(rule, **dict(hp))
    update = jax.jit(built(rule, **changes).update, compiler_options=QUICKLY)
    return update(jax.random.key(7), hp, begin(rule, hp), trajectory_of())


@functools.cache
def base(rule):
    return update(rule, times=2)


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def same_bits(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(leaves(a), leaves(b), strict=True))


def distance(a, b):
    """Largest difference between two results' parameters."""
    pairs = zip(leaves(a[0].params), leaves(b[0].params), strict=True)
    return max(np.abs(x - y).max() for x, y in pairs)


def assert_close(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4)  # Adam's steps are 5e-2


def signature(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_state_is_arrays_and_keeps_its_types(rule):
    """What goes into an update comes out of it, to the weak type: it is the carry of a scan, and donated."""
    hp, (_, params) = hp_of(rule), policy_of()
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(begin(rule, hp)))
    start = jax.eval_shape(built(rule).init, jax.random.key(0), hp, params)
    after, metrics = jax.eval_shape(built(rule).update, jax.random.key(0), hp, start, trajectory_of())
    assert signature(after) == signature(start)
    assert {x.shape for x in metrics.values()} == {()}


@pytest.mark.parametrize("rule", RULES)
def test_state_has_those_types_for_plain_numbers_too(rule):
    """Hyperparams of Python's floats: `train` may be called without converting them."""
    key, params = jax.random.key(0), policy_of()[1]
    learner = jax.eval_shape(lambda params: built(rule).init(key, HP, params), params)
    assert signature(learner) == signature(jax.eval_shape(built(rule).init, key, hp_of(rule), params))


def _pairs():
    """Every rule with every policy; what a rule needs of a policy is its log-probability, and for some the KL."""
    for rule, policy in itertools.product(RULES, POLICIES):
        default = rule in BY_PATH or policy == "categorical" or (rule, policy) == ("ppo_kl", "gaussian")
        if default or rule != "kl_adaptive":
            yield pytest.param(rule, policy, marks=() if default else pytest.mark.slow)


@pytest.mark.parametrize(("rule", "policy"), list(_pairs()))
def test_every_distribution(rule, policy):
    """Finite, moved, and with the metrics that every rule has; nothing has moved before the first step."""
    learner, metrics = update(rule, policy=policy)
    assert metrics.keys() == METRICS | OWN_METRICS[rule]
    assert all(np.isfinite(x).all() for x in leaves((learner, metrics)))
    assert distance((learner,), (begin(rule, hp_of(rule), policy),)) > 1e-3
    assert metrics["ratio/first_minibatch_deviation"] < 1e-6
    assert metrics["kl"] > 1e-6
    assert metrics["kl_k3"] > 0
    assert 1 / 16 <= metrics["ratio/effective_sample_size"] < 1
    assert metrics["ratio/max"] > 1
    assert metrics["ratio/std"] > 0


@pytest.mark.parametrize("rule", RULES)
def test_drift_is_that_of_the_policy_after_the_update(rule):
    """Over the whole batch, not the mean of what the minibatches saw on the way."""
    learner, metrics = update(rule)
    pi, _ = policy_of()[0].evaluate(learner.params, (), batch_of().obs, batch_of().start)
    np.testing.assert_allclose(metrics["kl"], jnp.mean(batch_of().pi.kl(pi)), rtol=1e-4)
    ratio = np.exp(np.asarray(pi.log_prob(batch_of().action) - batch_of().log_prob, np.float64))
    np.testing.assert_allclose(metrics["ratio/max"], ratio.max(), rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio/effective_sample_size"], ratio.mean() ** 2 / (ratio**2).mean(), rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_explained_variance_is_that_of_the_critic_before_the_update(rule):
    error, target = (np.asarray(x, np.float64) for x in (batch_of().target - batch_of().value, batch_of().target))
    np.testing.assert_allclose(update(rule)[1]["explained_variance"], 1 - error.var() / target.var(), rtol=1e-4)


# --- transformations and keys -----------------------------------------------------------------------------------------


@rest_slow(BY_PATH)
def test_jit_is_no_jit(rule):
    """Nor does any operation make a NaN that a later one throws away."""
    hp = hp_of(rule)
    learner = begin(rule, hp)
    with jax.disable_jit(), jax.debug_nans(True):
        op_by_op = built(rule).update(jax.random.key(7), hp, learner, trajectory_of())
    assert_close(update(rule), op_by_op)


@rest_slow(BY_STATE)
def test_vmap_over_all_hyperparameters_is_a_loop(rule):
    """Each field an array, each run with a key of its own."""
    runs = 3
    names = [field.name for field in dataclasses.fields(Hyperparams)]
    factors = 1 + 0.5 * jax.random.uniform(jax.random.key(5), (runs, len(names)))
    factors = factors.at[:, names.index("kl_max")].add(1.0)
    start = hp_of(rule, **({} if rule == "trpo" else {"target_kl": 0.05}), vf_clip_eps=0.1)
    hps = Hyperparams(**{name: getattr(start, name) * factors[:, i] for i, name in enumerate(names)})
    keys = jax.random.split(jax.random.key(6), runs)

    def run(key, hp):
        return built(rule).update(key, hp, begin(rule, hp), trajectory_of())

    together = jax.jit(jax.vmap(run), compiler_options=QUICKLY)(keys, hps)
    for i in range(runs):
        hp = jax.tree.map(lambda x, i=i: x[i], hps)
        alone = program(rule)(keys[i], hp, begin(rule, hp), trajectory_of())
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone)


@pytest.mark.parametrize("rule", RULES)
def test_key_discipline(rule):
    """Same key, same bits; another key, another shuffle; no key is used twice, the caller's included."""
    assert same_bits(update(rule), update(rule))
    assert distance(update(rule), update(rule, key=8)) > 1e-6
    hp = hp_of(rule)
    learner = begin(rule, hp)
    with jax.debug_key_reuse(True):
        jax.make_jaxpr(lambda key: built(rule).update(key, hp, learner, trajectory_of()))(jax.random.key(0))


# --- every flag is alive, in its own rule alone -----------------------------------------------------------------------


def test_all_settings_are_accounted_for():
    assert FAR.keys() == {field.name for field in dataclasses.fields(Hyperparams)}
    fields = {field.name for kind in (TrainConfig, Hyperparams) for field in dataclasses.fields(kind)}
    assert ALGORITHMS_WITH.keys() <= fields
    assert {rule for rules in ALGORITHMS_WITH.values() for rule in rules} <= set(ALGORITHMS)
    assert ALGORITHMS_WITH.keys() <= {*FAR, *SCHEDULES, "value_target", *COUNTS_OF_TRPO}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", FAR)
def test_hyperparameters(rule, name):
    """After two updates, since what a rule carries from one to the next shows in the second."""
    # A KL below kl_min must not be above kl_max.
    wide = {"kl_max": 1e3} if name == "kl_min" else {}
    reference = update(rule, hp_of(rule, **wide), times=2) if wide else base(rule)
    result = update(rule, hp_of(rule, **wide, **{name: FAR[name]}), times=2)
    if has(rule, name):
        assert distance(result, reference) > 1e-5
    else:
        assert same_bits(result, reference)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(rule, name):
    config = config_of(rule, **{name: SCHEDULES[name]})
    # Large, so that a part of it matters.
    hp = hp_of(rule, ent_coef=0.5, clip_eps=0.02)
    result = update(rule, hp, times=2, config=config)
    plain = update(rule, hp, times=2, config=config_of(rule))
    if has(rule, name):
        assert distance(result, plain) > 1e-5
    else:
        assert same_bits(result, plain)


@pytest.mark.parametrize("rule", RULES)
def test_learning_rate_schedule(rule):
    """Linear for those that follow the configuration; the adaptive one follows the KL alone."""
    result = update(rule, times=2, config=config_of(rule, learning_rate_schedule="linear"))
    if rule == "kl_adaptive":
        assert same_bits(result, base(rule))
    else:
        assert distance(result, base(rule)) > 1e-5


def test_the_adaptive_schedule_is_alive():
    """Far below its aim it is the constant one (5e-2 is above its bound); far above, slower in the second update."""
    adaptive, constant = base("kl_adaptive"), base("ppo_clip")
    assert distance(adaptive, constant) < 1e-5
    slower = update("kl_adaptive", hp_of("kl_adaptive", target_kl=1e-5), times=2)
    assert distance(slower, constant) > 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_value_target(rule):
    """It is the critic that learns something else, so what every rule has of it is the value loss."""
    assert has(rule, "value_target")
    assert distance(changed(rule, value_target="rewards_to_go"), update(rule)) > 1e-5


@rest_slow(BY_PATH, ALGORITHMS)
@pytest.mark.parametrize("name", COMPILED)
def test_counts_and_normalisation(rule, name):
    assert distance(changed(rule, **{name: COMPILED[name]}), update(rule)) > 1e-5


@pytest.mark.parametrize("rule", ["ppo_clip", "trpo"])
def test_normalisation_per_batch(rule):
    """Another result than per minibatch, except for trpo, whose policy step has the whole batch anyway."""
    if rule == "trpo":
        assert distance(changed(rule, normalize_advantage="batch"), update(rule)) == 0
    else:
        assert distance(changed(rule, normalize_advantage="batch"), update(rule)) > 1e-5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", COUNTS_OF_TRPO)
def test_counts_of_trpo(rule, name):
    """Elsewhere they leave not a trace in the program."""
    if has(rule, name):
        far = {"cg_damping": 1e-3}  # so that the first length tried is too long
        result = changed(rule, tuple(far.items()), **{name: COUNTS_OF_TRPO[name]})
        assert distance(result, update(rule, hp_of(rule, **far))) > 1e-5
    else:
        hp = hp_of(rule)
        arguments = (jax.random.key(0), hp, begin(rule, hp), trajectory_of())
        programs = [jax.make_jaxpr(built(rule, **x).update)(*arguments) for x in ({}, {name: COUNTS_OF_TRPO[name]})]
        assert str(programs[0]) == str(programs[1])


@pytest.mark.parametrize("rule", ["ppo_clip", "ppo_kl", "policy_gradient"])
def test_target_kl_stops_an_update_early(rule):
    """The first step leaves any tiny target behind and is the last one that counts."""
    learner, _ = update(rule, hp_of(rule, target_kl=1e-6))
    counts = [int(x) for path, x in jax.tree_util.tree_leaves_with_path(learner.opt_state) if "count" in str(path)]
    assert counts[:1] == [1]


@pytest.mark.parametrize("rule", RULES)
def test_nothing_optional_is_needed(rule):
    """target_kl and vf_clip_eps may be None; what is not reached is the same result as none."""
    hp = dataclasses.replace(hp_of(rule), target_kl=None, vf_clip_eps=None)
    learner, metrics = jax.eval_shape(
        lambda hp: built(rule).update(jax.random.key(0), hp, begin(rule, hp), trajectory_of()), hp
    )
    assert metrics.keys() == METRICS | OWN_METRICS[rule]
    assert signature(learner)[0] == signature(base(rule)[0])[0]


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"ppo_lk.*ppo_clip, ppo_kl, trpo, policy_gradient.*Did you mean 'ppo_kl'"):
        make_algorithm(dataclasses.replace(CONFIG, algorithm="ppo_lk"), policy_of()[0])
