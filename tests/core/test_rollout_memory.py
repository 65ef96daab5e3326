"""What a policy remembers, over rollouts with ends of every kind at known places, against a loop in Python.

The policy is made by hand: it counts the steps since the episode began and adds up the observations, and its value is a
function of both and of the observation, so that a memory of the wrong moment shows in every number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.minibatch import cut
from purejaxppo.core.types import Algorithm, Box, Discrete, EnvStep, LearnerState, VecEnv
from purejaxppo.train import advance, make_trainer

E, T, ROLLOUTS = 4, 6, 3
STEPS = T * ROLLOUTS
NONE, DIES, CUT, BOTH = range(4)
# The end of each environment's steps, one row for each: cut off thrice in a row, at a rollout's last step and at the
# first of the next; dead there; both flags; and an episode that goes on over all rollouts.
ENDS = np.zeros((E, STEPS), int)
ENDS[0, [2, 3, 4, 5, 6, 13]] = CUT
ENDS[1, [1, 5, 9, 12]] = DIES
ENDS[2, [0, 4, 8, 11, 14]] = [BOTH, CUT, DIES, CUT, BOTH]
# The same with four steps between two truncations at least, as an environment with a time limit has them.
APART = ENDS.copy()
APART[0] = 0
APART[0, [1, 5, 9, 13, 17]] = CUT
APART[2, [0, 4, 8, 11]], APART[2, 15] = [BOTH, CUT, DIES, NONE], CUT
TABLES = {1: ENDS, 4: APART}  # truncation_gap -> ends
GAPS = pytest.mark.parametrize("gap", TABLES)

_RNG = np.random.default_rng(0)
OBS = _RNG.normal(size=(E, STEPS + 1)).astype(np.float32)  # before each step
LAST = _RNG.normal(size=(E, STEPS)).astype(np.float32)  # the last observation of the episode that a step ends


def scripted(gap):
    """The environment of the tables; its state is (own number [E], steps so far [E])."""
    ends = jnp.asarray(TABLES[gap])

    def reset(keys):
        state = jnp.arange(E, dtype=jnp.int32), jnp.zeros(E, jnp.int32)
        return state, jnp.asarray(OBS)[:, :1]

    def step(keys, state, action):
        env, time = state
        end = ends[env, time]
        following = jnp.asarray(OBS)[env, time + 1][:, None]
        final_obs = jnp.where(end[:, None] > 0, jnp.asarray(LAST)[env, time][:, None], following)
        reward = jnp.sin(time + 7.0 * env)
        result = EnvStep(following, final_obs, reward, (end == DIES) | (end == BOTH), (end == CUT) | (end == BOTH), {})
        return (env, time + 1), result

    return VecEnv(reset, step, Box((1,)), Discrete(2), E, truncation_gap=gap)


class Adds:
    """The policy of this module. Its memory has two leaves of different types, and more axes than one."""

    def init(self, key, obs):
        return jnp.zeros(())

    def initial_memory(self, num_envs):
        # Not 0: it is what a start has to clear.
        return {"count": jnp.full((num_envs,), 100, jnp.int32), "total": jnp.full((num_envs, 1, 1), -50.0)}

    def after(self, memory, obs, start):
        count = jnp.where(start, 0, memory["count"]) + 1
        return {
            "count": count,
            "total": jnp.where(start, 0.0, memory["total"][:, 0, 0])[:, None, None] + obs[..., None],
        }

    def of(self, memory, obs):
        """(logits, value) after obs [E, 1] has been seen."""
        count, total = memory["count"].astype(jnp.float32), memory["total"][:, 0, 0]
        value = jnp.sin(count) + 2.0 * total + 5.0 * obs[:, 0]
        return jnp.stack([value, -value], axis=-1), value

    def act(self, params, memory, obs, start):
        memory = self.after(memory, obs, start)
        return memory, Categorical(self.of(memory, obs)[0])

    def evaluate(self, params, memory, obs, start):
        def step(memory, now):
            memory = self.after(memory, *now)
            return memory, self.of(memory, now[0])

        _, outputs = jax.lax.scan(step, memory, (obs.swapaxes(0, 1), start.T))
        logits, value = jax.tree.map(lambda x: x.swapaxes(0, 1), outputs)
        return Categorical(logits), value


def reporting(key, hp, learner, trajectory):
    """An update that learns nothing, and reports the trajectory that it was given."""
    return learner, {"trajectory": trajectory}


CONFIG = TrainConfig(num_envs=E, num_steps=T, num_minibatches=1, total_timesteps=E * STEPS)


@functools.cache
def played(gap):
    """(last runner, trajectories [ROLLOUTS * T, E, ...]) of a training run with all its rollouts."""
    algorithm = Algorithm(lambda key, hp, params: LearnerState(params, (), ()), reporting)
    trainer = make_trainer(CONFIG, scripted(gap), Adds(), algorithm)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(key):
        return advance(trainer, Hyperparams(), trainer.init(key, Hyperparams()), ROLLOUTS)

    runner, metrics = jax.device_get(run(jax.random.key(0)))
    return runner, jax.tree.map(lambda x: x.reshape(STEPS, *x.shape[2:]), metrics["trajectory"])


def value_of(count, total, obs):
    return np.sin(float(count)) + 2.0 * total + 5.0 * obs


@functools.cache
def expected(gap):
    """Python's own loop: memory before each step as (count, total), start, value and next_value, all [STEPS, E]."""
    ends = TABLES[gap]
    count, total, start, value, next_value = (np.zeros((STEPS, E)) for _ in range(5))
    for env in range(E):
        seen, memory = [], (100, -50.0)
        for time in range(STEPS):
            begins = time == 0 or ends[env, time - 1] != NONE
            count[time, env], total[time, env], start[time, env] = *memory, begins
            seen = ([] if begins else seen) + [float(OBS[env, time])]
            memory = len(seen), sum(seen)
            value[time, env] = value_of(*memory, seen[-1])
            if ends[env, time] in (NONE, CUT):
                successor = float((LAST if ends[env, time] == CUT else OBS[:, 1:])[env, time])
                next_value[time, env] = value_of(len(seen) + 1, sum(seen) + successor, successor)
    return count, total, start, value, next_value


def test_the_tables_keep_what_they_promise():
    for gap, ends in TABLES.items():
        for row in ends:
            assert np.diff(np.flatnonzero(row == CUT)).min(initial=STEPS) >= gap


@GAPS
def test_memory_and_start(gap):
    """The memory before each observation, not yet cleared where an episode begins, over all rollouts."""
    _, trajectory = played(gap)
    count, total, start, _, _ = expected(gap)
    np.testing.assert_array_equal(trajectory.start, start)
    np.testing.assert_array_equal(trajectory.memory["count"], count)
    np.testing.assert_allclose(trajectory.memory["total"][..., 0, 0], total, rtol=1e-5, atol=1e-5)
    assert trajectory.memory["count"].dtype == np.int32
    # An episode that never ends is remembered from beginning to end.
    assert trajectory.memory["count"][-1, 3] == STEPS - 1


@GAPS
def test_values_of_steps_and_of_their_successors(gap):
    """Where an episode is cut off, its last observation is seen with the memory of that moment."""
    _, trajectory = played(gap)
    _, _, _, value, next_value = expected(gap)
    np.testing.assert_allclose(trajectory.value, value, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(trajectory.next_value, next_value, rtol=1e-5, atol=1e-4)


@GAPS
def test_the_state_goes_on_from_the_last_step(gap):
    runner, _ = played(gap)
    begins = np.array([np.flatnonzero(row != NONE)[-1] + 1 if row.any() else 0 for row in TABLES[gap]])
    # Memory is cleared when the next episode's first observation is seen, so it is still that of the last step.
    ended = begins == STEPS
    np.testing.assert_array_equal(runner.episodes.length, np.where(ended, 0, STEPS - begins))
    np.testing.assert_array_equal(runner.memory["count"][~ended], (STEPS - begins)[~ended])
    for env in np.flatnonzero(~ended):
        np.testing.assert_allclose(runner.memory["total"][env, 0, 0], OBS[env, begins[env] : -1].sum(), rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, None])
def test_sequences_begin_with_the_memory_of_their_first_step(length):
    """A policy evaluated on the sequences of the batch gives what it gave in the rollout."""
    _, steps = played(1)
    trajectory = jax.tree.map(lambda x: x[T : 2 * T], steps)
    config = TrainConfig(num_envs=E, num_steps=T, sequence_length=length)
    number = jnp.arange(T * E, dtype=jnp.float32).reshape(T, E)
    batch = cut(config, trajectory, number, -number, extra={"own": trajectory.obs})
    size = length or T
    assert batch.advantage.shape == (E * T // size, size)
    assert jax.tree.map(lambda x: x.shape[0], batch.memory) == {"count": E * T // size, "total": E * T // size}
    np.testing.assert_array_equal(batch.extra["own"], batch.obs)
    np.testing.assert_array_equal(batch.target, -batch.advantage)
    # Environment by environment, so that a shard's are contiguous.
    np.testing.assert_array_equal(batch.advantage.reshape(E, T), number.T)
    pi, value = Adds().evaluate(jnp.zeros(()), batch.memory, batch.obs, batch.start)
    np.testing.assert_allclose(value, batch.value, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(pi.log_prob(batch.action), batch.log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value.reshape(E, T), trajectory.value.T, rtol=1e-5, atol=1e-4)
