"""Many runs as one program: each is the run alone, rests by itself, and never touches another.

ppo_kl keeps a hyperparameter in its state, and trpo takes no gradient step for its policy; ppo_clip is in
test_vectorize_layout.py. `spoiled` gives each run's environments a counter in the state, by which a test says when its
reward becomes NaN.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import collectives
from probe_envs import spoiled, walk

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.nonfinite import WATCHED
from purejaxppo.core.rollout import rollout
from purejaxppo.core.types import Actors
from purejaxppo.devices.vectorize import advance_runs, grid, layout_for, make_runs
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.errors import ConfigError
from purejaxppo.policies.normalized import Normalized
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import advance, trainer_from_config

E, T = 4, 4
UPDATES = 6
NEVER = 10**6
SEEDS = (0, 1, 7, 2**32 - 1)
AXES = {"ppo_kl": {"kl_coef": (0.5, 1.0, 4.0)}, "trpo": {"target_kl": (1e-3, 1e-2, 0.1)}}
R = 12
CHUNK = {"exact": 2, "vmap": 1}  # updates per call


# --- grid -------------------------------------------------------------------------------------------------------------


def test_grid_has_every_combination_with_the_seeds_fastest():
    """Leaves [R], float32, also of what is not swept; what is left out stays out."""
    hps, seeds = grid(Hyperparams(vf_coef=0.3), [5, 2**32 - 1], gamma=[0.9, 0.8], learning_rate=[1e-3, 2e-3, 3e-3])
    gammas, rates = [0.9] * 6 + [0.8] * 6, [1e-3, 1e-3, 2e-3, 2e-3, 3e-3, 3e-3] * 2
    assert hps.gamma.tolist() == np.float32(gammas).tolist()
    assert hps.learning_rate.tolist() == np.float32(rates).tolist()
    assert hps.vf_coef.tolist() == [np.float32(0.3)] * 12
    assert hps.target_kl is None
    assert hps.vf_clip_eps is None
    assert seeds.dtype == np.uint32
    assert seeds.tolist() == [5, 2**32 - 1] * 6
    assert {(x.dtype, x.shape) for x in jax.tree.leaves(hps)} == {(np.dtype(np.float32), (12,))}
    assert len(jax.tree.leaves(hps)) == len(dataclasses.fields(hps)) - 2


def test_grid_without_an_axis_is_its_seeds():
    hps, seeds = grid(Hyperparams(), [3, 1, 2])
    assert seeds.tolist() == [3, 1, 2]
    assert hps.gamma.tolist() == [np.float32(0.99)] * 3


def test_optional_hyperparameters_are_axes_too():
    hps, _ = grid(Hyperparams(vf_clip_eps=0.2), [0], target_kl=[0.01, 0.02])
    assert hps.target_kl.tolist() == np.float32([0.01, 0.02]).tolist()
    assert hps.vf_clip_eps.tolist() == [np.float32(0.2)] * 2


def test_grid_takes_the_values_and_seeds_of_arrays():
    """Of NumPy and of JAX, and seeds that are whole floats."""
    hps, seeds = grid(Hyperparams(vf_coef=jnp.float32(0.5)), jnp.arange(2), learning_rate=np.float32([1e-3, 2e-3]))
    same, same_seeds = grid(Hyperparams(), [0.0, np.int64(1)], learning_rate=[float(np.float32(1e-3)), 2e-3])
    assert seeds.tolist() == same_seeds.tolist() == [0, 1, 0, 1]
    assert [x.tobytes() for x in jax.tree.leaves(hps)] == [x.tobytes() for x in jax.tree.leaves(same)]


def test_values_are_judged_together():
    """Two axes beyond the default of one another, and one that is None everywhere; what is not swept is judged too."""
    hps, _ = grid(Hyperparams(), [0], kl_min=[0.1], kl_max=[0.2, 0.3], target_kl=[None])
    assert hps.kl_max.tolist() == np.float32([0.2, 0.3]).tolist()
    assert hps.target_kl is None
    with pytest.raises(ConfigError, match="gamma = 7"):
        grid(Hyperparams(gamma=7.0), [0])


@pytest.mark.parametrize(
    ("seeds", "axes", "says"),
    [
        ([0], {"gamma": [0.9, 1.5]}, r"gamma = 1\.5 is outside"),
        ([0], {"learning_rate": [1e-3], "gae_lambda": [float("nan")]}, "gae_lambda = nan is outside"),
        ([0], {"learning_rate": [1e-3, float("inf")]}, "learning_rate = inf is outside"),
        ([0], {"target_kl": [0.1, -0.1]}, r"target_kl = -0\.1 is outside"),
        ([0], {"clip_eps": [0.1, "wide"]}, "clip_eps = 'wide' is not a number"),
        ([0], {"target_kl": [None, 0.1]}, "target_kl is None in some runs and a number in others"),
        ([0], {"kl_min": [0.001, 0.015], "kl_max": [0.01]}, r"kl_min = 0\.015 is not below kl_max = 0\.01"),
        ([0], {"gamma": []}, "gamma has no value"),
        ([], {}, "seeds has no value"),
        ([0, -1], {}, "seed = -1 is not"),
        ([2**32], {"gamma": [0.9]}, "seed = 4294967296 is not"),
        ([0, 1.5], {}, r"seed = 1\.5 is not"),
    ],
)
def test_grid_refuses_what_is_out_of_range(seeds, axes, says):
    """Wherever among the values it is."""
    with pytest.raises(ConfigError, match=says):
        grid(Hyperparams(), seeds, **axes)


# --- programs, each compiled once -------------------------------------------------------------------------------------


def host(tree):
    """A copy as NumPy, which survives that the memory of the arrays is given away; keys as their data."""

    def copy(x):
        return np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(copy, tree)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


def take(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


@functools.cache
def trainer(algorithm):
    config = TrainConfig(
        algorithm=algorithm,
        num_envs=E,
        num_steps=T,
        num_epochs=1,
        num_minibatches=2,
        hidden_sizes=(4,),
        cg_iterations=2,
        line_search_steps=2,
        total_timesteps=UPDATES * E * T,
    )
    return trainer_from_config(config, spoiled(walk(E), after=NEVER))


@functools.cache
def programs(algorithm):
    """A run alone: (init, one update), jitted."""
    one = trainer(algorithm)
    return jax.jit(one.init), jax.jit(lambda hp, runner: advance(one, hp, runner, 1))


def settings(algorithm):
    """Hyperparameters and seeds of 3 x 4 runs, of which no two share a learning rate."""
    hps, seeds = grid(Hyperparams(), SEEDS, **AXES[algorithm])
    return dataclasses.replace(hps, learning_rate=np.linspace(1e-3, 4e-3, R, dtype=np.float32)), seeds


def layout(kind):
    """Two devices, each with half of the runs; new every time, as a caller makes it."""
    default = layout_for(R)
    return default if kind == "exact" else default._replace(batching=jax.vmap)


def spread(tree, kind):
    """Arrays [R] where the layout has them."""
    return jax.device_put(tree, layout(kind).sharding)


def alone(algorithm, i, hps=None):
    """(state after 0, 1, ... 6 updates, metrics of each) of a run alone."""
    init, step = programs(algorithm)
    default, seeds = settings(algorithm)
    hp = take(hps or default, i)
    runner = init(jax.random.key(int(seeds[i])), hp)
    states, rows = [host(runner)], []
    for _ in range(UPDATES):
        runner, metrics = step(hp, runner)
        states.append(host(runner))
        rows.append(take(host(metrics), 0))
    return states, rows


def counting_from(runner, counter):
    """The state with another counter of the environments' steps."""
    assert runner.env_state[1].dtype == counter.dtype
    return runner._replace(env_state=(runner.env_state[0], counter))


def before(update, step=0):
    """The counter with which the reward becomes NaN in an update (from 1), in a certain step."""
    return NEVER - (update - 1) * T - step


def begin(algorithm, kind, hps=None, stop_at=NEVER, counters=None):
    """R runs that have not been trained."""
    args = spread((hps or settings(algorithm)[0], settings(algorithm)[1], np.broadcast_to(np.int32(stop_at), R)), kind)
    runs = make_runs(trainer(algorithm), *args, layout(kind))
    return runs if counters is None else runs._replace(runner=counting_from(runs.runner, spread(counters, kind)))


def go_on(algorithm, kind, runs, hps=None, where=None):
    """(the runs after each chunk, metrics [R, 6], the runs) of six updates; `where` is another layout."""
    where = where or layout(kind)
    hps = jax.device_put(hps or settings(algorithm)[0], where.sharding)
    after, rows = [], []
    for _ in range(UPDATES // CHUNK[kind]):
        runs, metrics = advance_runs(trainer(algorithm), hps, runs, CHUNK[kind], where)
        after.append(host(runs))
        rows.append(host(metrics))
    return after, jax.tree.map(lambda *x: np.concatenate(x, axis=1), *rows), runs


def stacked(members):
    """What `reference` says, of runs that were alone."""
    states = [jax.tree.map(lambda *x: np.stack(x), *states) for states in zip(*(m[0] for m in members), strict=True)]
    rows = [jax.tree.map(lambda *x: np.stack(x), *rows) for rows in zip(*(m[1] for m in members), strict=True)]
    return states, jax.tree.map(lambda *x: np.stack(x, axis=1), *rows)


@functools.cache
def reference(algorithm, kind):
    """(states [R] after 0, 1, ... 6 updates, metrics [R, 6]) where nothing is wrong and no run rests.

    What every run is alone; under vmap, whose rounding is its own, what such a sweep is.
    """
    if kind == "exact":
        return stacked([alone(algorithm, i) for i in range(R)])
    runs = begin(algorithm, kind)
    start = host(runs.runner)
    after, metrics, _ = go_on(algorithm, kind, runs)
    return [start, *(x.runner for x in after)], metrics


KINDS = pytest.mark.parametrize("kind", CHUNK)


# --- each run is the run alone ----------------------------------------------------------------------------------------


# That of trpo is compiled from the same code around another update.
@pytest.mark.parametrize("algorithm", ["ppo_kl", pytest.param("trpo", marks=pytest.mark.slow)])
def test_one_by_one_each_run_has_the_bits_that_it_has_alone(algorithm):
    """State and metrics, at the start and after every chunk, over two devices; and no two runs are alike."""
    states, metrics = reference(algorithm, "exact")
    runs = begin(algorithm, "exact")
    assert same_bits(host(runs.runner), states[0])
    after, found, runs = go_on(algorithm, "exact", runs)
    for chunk, x in enumerate(after):
        assert same_bits(x.runner, states[CHUNK["exact"] * (chunk + 1)])
    assert same_bits(found, metrics)
    assert runs.diverged.tolist() == [0] * R
    assert runs.learner is runs.runner.learner
    assert len({take(metrics["loss/value"], i).tobytes() for i in range(R)}) == R


@pytest.mark.parametrize(
    ("num_envs", "num_steps", "normalize"),
    [
        pytest.param(8, 32, ["observation"], id="8x32", marks=pytest.mark.slow),
        pytest.param(7, 9, ["observation", "reward"], id="7x9"),
    ],
)
def test_exact_is_exact_in_an_optimised_program_with_normalisers(num_envs, num_steps, normalize):
    """State and metrics; the other tests' programs are not optimised, and so do without fused multiply-adds."""
    config = TrainConfig(
        num_envs=num_envs,
        num_steps=num_steps,
        num_epochs=1,
        num_minibatches=1,
        hidden_sizes=(8,),
        **{f"normalize_{what}": True for what in normalize},
    )
    one, optimized = trainer_from_config(config, walk(num_envs)), {"xla_backend_optimization_level": 3}
    hps, seeds = grid(Hyperparams(), [0, 1])
    hp, exact = take(hps, 1), layout_for(2, exact=True)
    update = jax.jit(lambda hp, runner: advance(one, hp, runner, 2))
    runner = jax.jit(one.init)(jax.random.key(1), hp)
    alone = host(update.lower(hp, runner).compile(optimized)(hp, runner))
    hps = jax.device_put(hps, exact.sharding)
    runs = make_runs(one, hps, seeds, layout=exact)
    runs, metrics = advance_runs.lower(one, hps, runs, 2, exact).compile(optimized)(hps, runs)
    assert same_bits(take((host(runs.runner), host(metrics)), 1), alone)


def test_over_two_devices_observations_are_normalised_as_alone():
    """Bit by bit, as the policy sees them: no operation is there that XLA replaces in one of the programs alone.

    The values are computed behind the loop, in a fusion of its own in each program, and are the same to rounding.
    """
    config = TrainConfig(num_envs=8, hidden_sizes=(8,), normalize_observation=True)
    env, hp = walk(8), Hyperparams()
    policy = make_policy(config, env)
    runner = jax.jit(trainer_from_config(config, env).init)(jax.random.key(0), hp)

    def collect(params, stats, env_state, obs):
        wrapped, actors = bound_action(config, env), Actors(env_state, obs, (), start=jnp.ones(len(obs), bool))
        acting = Normalized(policy, stats)
        last, trajectory = rollout(jax.random.key(1), wrapped, acting, params, actors, jnp.arange(len(obs)), 32)
        return last, trajectory

    def seen(collected):
        last, trajectory = collected
        return last, trajectory.obs, trajectory.action, trajectory.pi

    stats = jax.tree.map(lambda x: x + 0.3, runner.normalizer.obs)  # a variance whose root is not exact
    args = runner.learner.params, stats, runner.env_state, runner.obs
    alone = jax.jit(collect)(*args)
    twice = jax.device_put(jax.tree.map(lambda x: jnp.stack([x, x]), args), layout_for(2).sharding)
    together = jax.jit(layout_for(2).over_runs(collect))(*twice)
    assert same_bits(take(host(seen(together)), 1), host(seen(alone)))
    np.testing.assert_allclose(together[1].value[1], alone[1].value, rtol=1e-6, atol=1e-6)


def test_under_vmap_the_first_update_is_that_of_each_run_alone():
    """To rounding, which later updates make grow."""
    (start, first, *_), metrics = reference("ppo_kl", "vmap")
    (alone_start, alone_first, *_), alone_metrics = reference("ppo_kl", "exact")
    assert same_bits((start.key, start.updates), (alone_start.key, alone_start.updates))
    pairs = [
        (start.learner, alone_start.learner),
        (first.learner.params, alone_first.learner.params),
        (first.obs, alone_first.obs),
        (take(jax.tree.map(np.transpose, metrics), 0), take(jax.tree.map(np.transpose, alone_metrics), 0)),
    ]
    for found, wanted in pairs:
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, wanted)


# --- the program ------------------------------------------------------------------------------------------------------


@KINDS
def test_nothing_is_exchanged_and_nothing_moves(kind):
    """No collective in what XLA made of it; and what comes out lies where it came from, a half on each device."""
    runs = begin("ppo_kl", kind)
    wanted = [x.sharding for x in jax.tree.leaves(runs)]
    assert set(wanted) == {layout(kind).sharding}
    hps, seeds = spread(settings("ppo_kl"), kind)
    make = jax.jit(make_runs, static_argnames=("trainer", "layout"))
    made = make.lower(trainer("ppo_kl"), hps, seeds, runs.stop_at, layout(kind)).compile()
    advanced = advance_runs.lower(trainer("ppo_kl"), hps, runs, CHUNK[kind], layout(kind)).compile()
    for compiled in (made, advanced):
        assert "num_partitions=2" in compiled.as_text()
        assert collectives(compiled) == []
    after, metrics = advance_runs(trainer("ppo_kl"), hps, runs, CHUNK[kind], layout(kind))
    assert [x.sharding for x in jax.tree.leaves(after)] == wanted
    for x in jax.tree.leaves((after, metrics)):
        assert [shard.data.shape[0] for shard in x.addressable_shards] == [R // 2] * 2


def test_a_run_that_rests_costs_nothing_one_by_one():
    """The program has a branch for it; under vmap it computes, and throws away."""
    branches = {}
    for kind, chunk in CHUNK.items():
        hps, _ = spread(settings("ppo_kl"), kind)
        lowered = advance_runs.lower(trainer("ppo_kl"), hps, begin("ppo_kl", kind), chunk, layout(kind))
        branches[kind] = "conditional(" in lowered.compile().as_text()
    assert branches == {"exact": True, "vmap": False}


@KINDS
def test_the_memory_of_the_runs_is_given_away(kind):
    """All of it, and that of the hyperparameters is not."""
    hps, _ = spread(settings("ppo_kl"), kind)
    runs = begin("ppo_kl", kind)
    after, _ = advance_runs(trainer("ppo_kl"), hps, runs, CHUNK[kind], layout(kind))
    assert all(x.is_deleted() for x in jax.tree.leaves(runs))
    assert not any(x.is_deleted() for x in jax.tree.leaves((after, hps)))


def test_one_device_gives_the_bits_of_two_and_one_compilation_does_for_any_number_of_chunks(caplog):
    """With a run that rests and one that diverges among them; other hyperparameters are the same program, too."""
    counters, stop_at = np.zeros(R, np.int32), np.full(R, NEVER)
    counters[3], stop_at[8] = before(4), 3
    two = go_on("ppo_kl", "exact", begin("ppo_kl", "exact", stop_at=stop_at, counters=counters))
    single = layout_for(R, exact=True)
    runs = jax.device_put(begin("ppo_kl", "exact", stop_at=stop_at, counters=counters), single.sharding)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        one = go_on("ppo_kl", "exact", runs, where=single)
        hps, _ = settings("ppo_kl")
        changed = dataclasses.replace(hps, gamma=hps.gamma * np.float32(0.5))
        go_on("ppo_kl", "exact", one[2]._replace(diverged=jnp.zeros_like(one[2].diverged)), changed, single)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert sum("advance_runs" in message for message in compiled) == 1
    assert one[0][-1].diverged.tolist() == [0, 0, 0, 4, *[0] * 8]
    assert same_bits(one[:2], two[:2])


def test_layout_and_stop_at_by_default():
    """`layout_for(R)`, and never; one number is every run's."""
    hps, seeds = spread(settings("ppo_kl"), "exact")
    runs = make_runs(trainer("ppo_kl"), hps, seeds)
    assert same_bits(host(runs.runner), host(begin("ppo_kl", "exact").runner))
    assert runs.stop_at.tolist() == [2**31 - 1] * R
    assert runs.diverged.tolist() == [0] * R
    assert {x.dtype for x in (runs.stop_at, runs.diverged)} == {jnp.dtype(jnp.int32)}
    shapes = jax.eval_shape(lambda hps, seeds: make_runs(trainer("ppo_kl"), hps, seeds, 5), hps, seeds)
    assert shapes.stop_at.shape == (R,)
    texts = [advance_runs.lower(trainer("ppo_kl"), hps, runs, 1, x).as_text() for x in (None, layout("exact"))]
    assert texts[0] == texts[1]


# --- rest -------------------------------------------------------------------------------------------------------------


def assert_rows(found, wanted, done):
    """Run i reports what it should in done[i] updates, and nothing afterwards."""
    assert found.keys() == wanted.keys()
    assert any(x.dtype == np.int32 for x in found.values())
    for name, x in found.items():
        for i in range(R):
            assert x[i, : done[i]].tobytes() == wanted[name][i, : done[i]].tobytes(), (name, i)
            rest = x[i, done[i] :]
            assert np.all(np.isnan(rest) if x.dtype == np.float32 else rest == 0), (name, i)


@KINDS
def test_each_run_rests_after_its_own_number_of_updates(kind):
    """From none to more than there are, within a chunk too; and goes on from there, as if nothing had been."""
    stop_at = np.array([0, 1, 2, 3, 4, 5, 6, 7, 3, 1, 0, NEVER])
    done = np.minimum(stop_at, UPDATES)
    states, metrics = reference("ppo_kl", kind)
    after, found, runs = go_on("ppo_kl", kind, begin("ppo_kl", kind, stop_at=stop_at))
    assert_rows(found, metrics, done)
    for i in range(R):
        assert same_bits(take(after[-1].runner, i), take(states[done[i]], i))
    assert after[-1].stop_at.tolist() == stop_at.tolist()
    assert runs.diverged.tolist() == [0] * R

    after, _, _ = go_on("ppo_kl", kind, runs._replace(stop_at=spread(np.full(R, UPDATES, np.int32), kind)))
    assert same_bits(after[-1].runner, states[UPDATES])


def test_resting_passes_debug_nans():
    """The metrics of a run that rests are marked by another number than NaN while that is refused."""
    config = TrainConfig(num_envs=E, num_steps=T, num_minibatches=1, hidden_sizes=(), total_timesteps=E * T)
    hps, seeds = grid(Hyperparams(), SEEDS[:2])
    with jax.debug_nans(True):
        trainer = trainer_from_config(config, walk(E))
        _, metrics = advance_runs(trainer, hps, make_runs(trainer, hps, seeds, np.array([0, 1])), 2)
    assert np.isneginf(metrics["loss/value"]).tolist() == [[True, True], [False, True]]


# --- divergence -------------------------------------------------------------------------------------------------------


@KINDS
def test_a_run_that_diverges_is_frozen_as_it_was_and_no_other_one_notices(kind):
    """In the first update, within a chunk, in the last one, in its last step; run 7 rests before its reward is NaN."""
    bad = {1: before(1), 4: before(4, step=T - 1), 6: before(3, step=2), 11: before(6), 7: before(5)}
    diverged = np.array([0, 1, 0, 0, 4, 0, 3, 0, 0, 0, 0, 6])
    stop_at = np.full(R, NEVER)
    stop_at[7] = 4
    counters = np.zeros(R, np.int32)
    counters[list(bad)] = list(bad.values())
    done = np.where(diverged > 0, diverged - 1, np.minimum(stop_at, UPDATES))

    states, metrics = reference("ppo_kl", kind)
    after, found, _ = go_on("ppo_kl", kind, begin("ppo_kl", kind, stop_at=stop_at, counters=counters))
    assert after[-1].diverged.tolist() == diverged.tolist()
    for i in range(R):
        wanted = take(states[done[i]], i)
        wanted = counting_from(wanted, wanted.env_state[1] + counters[i])
        assert same_bits(take(after[-1].runner, i), wanted), i
    reported = {name: x.copy() for name, x in metrics.items()}
    for i in np.flatnonzero(diverged):
        row = take(found, (i, done[i]))  # of the update that went wrong, as it was
        assert row["nonfinite"] & 1 << WATCHED.index("reward")
        assert not row["nonfinite"] & 1 << WATCHED.index("observation")
        assert np.isfinite(row["learning_rate"])
        for name, x in reported.items():
            x[i, done[i]] = row[name]
    assert_rows(found, reported, np.where(diverged > 0, diverged, done))


def test_a_run_that_diverges_by_its_hyperparameters_is_frozen_in_the_same_update_as_alone():
    """A learning rate with which the loss overflows; its neighbours have the bits that they have without it."""
    hps, _ = settings("ppo_kl")
    hps.learning_rate[5] = 1e30
    states, rows = alone("ppo_kl", 5, hps)
    bits = [int(row["nonfinite"]) for row in rows]
    update = 1 + next(i for i, x in enumerate(bits) if x)
    after, found, _ = go_on("ppo_kl", "exact", begin("ppo_kl", "exact", hps), hps)
    assert after[-1].diverged.tolist() == [*[0] * 5, update, *[0] * 6]
    assert same_bits(take(after[-1].runner, 5), states[update - 1])
    assert found["nonfinite"][5].tolist() == [*bits[:update], *[0] * (UPDATES - update)]
    neighbours = np.delete(np.arange(R), 5)
    wanted_states, wanted_metrics = reference("ppo_kl", "exact")
    assert same_bits(take(after[-1].runner, neighbours), take(wanted_states[-1], neighbours))
    assert same_bits(take(found, neighbours), take(wanted_metrics, neighbours))
