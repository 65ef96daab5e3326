"""Tiny environments whose right answer is known, for tests: one wrong sign or flag in the trainer misses the number.

All of them share their shapes (observation [E, 1], two actions, state int32 [E]), so that one compiled program can
hold them all: `choose` picks one by an index that may be traced.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from purejaxppo.core.types import Box, Discrete, EnvStep, VecEnv

Make = Callable[[int], VecEnv]
OBSERVATION = Box((1,))
ACTIONS = Discrete(2)


def constant_reward(num_envs: int) -> VecEnv:
    """Reward 1 and the end, at every step: the value is 1."""
    return _one_step(num_envs, _nothing(num_envs), lambda obs, action: jnp.ones(num_envs))


def value_from_observation(num_envs: int) -> VecEnv:
    """The reward is the observation, -1 or 1: so is the value."""
    return _one_step(num_envs, _coin(num_envs), lambda obs, action: obs)


def action_to_reward(num_envs: int) -> VecEnv:
    """Action 1 earns 1, action 0 nothing."""
    return _one_step(num_envs, _nothing(num_envs), lambda obs, action: action.astype(jnp.float32))


def match(num_envs: int) -> VecEnv:
    """Action 1 earns 1 at observation 1, action 0 at observation -1; nothing otherwise."""
    return _one_step(num_envs, _coin(num_envs), lambda obs, action: ((obs > 0) == (action == 1)).astype(jnp.float32))


def far_bounds(num_envs: int) -> VecEnv:
    """One step with two actions, in [100, 200] and [0, 0.01]; the best are 170 and 0.003, at the reward 0.

    Measured in halves of their range, the squared distance to the best is what an action costs.
    """

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        distance = (action - jnp.array([[170.0, 0.003]])) / jnp.array([[50.0, 0.005]])
        obs, yes = jnp.zeros((num_envs, 1)), jnp.ones(num_envs, bool)
        return state, EnvStep(obs, obs, -jnp.sum(distance**2, axis=1), yes, ~yes, {})

    actions = Box((2,), (100.0, 0.0), (200.0, 0.01))
    start = jnp.zeros(num_envs, jnp.int32), jnp.zeros((num_envs, 1))
    return VecEnv(lambda keys: start, step, OBSERVATION, actions, num_envs)


def both_flags(num_envs: int) -> VecEnv:
    """Reward 1, then termination and truncation at once: the value is 1, nothing is bootstrapped."""
    env = constant_reward(num_envs)

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        state, result = env.step(keys, state, action)
        return state, result._replace(truncated=jnp.ones(num_envs, bool))

    return env._replace(step=step, step_limit=1)


def discount(num_envs: int) -> VecEnv:
    """Two steps, observed as -1 and 1, and reward 1 at the second: the values are gamma and 1."""

    def observe(state: jax.Array) -> jax.Array:
        return (2.0 * state - 1.0)[:, None]

    def reset(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jnp.zeros(num_envs, jnp.int32)
        return state, observe(state)

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        last = state == 1
        following = 1 - state
        final_obs = jnp.ones((num_envs, 1))
        return following, EnvStep(observe(following), final_obs, last * 1.0, last, jnp.zeros(num_envs, bool), {})

    return VecEnv(reset, step, OBSERVATION, ACTIONS, num_envs)


def endless(num_envs: int, limit: int = 5) -> VecEnv:
    """Two worlds without an end, cut off every `limit` steps; each new episode lies in a random one of them.

    In the world observed as 1 every step earns 1, so its value is 1 / (1 - gamma); in the one observed as -1 nothing
    does. A time limit taken for death gives the first less than `limit`; a bootstrap from the next episode's first
    observation mixes the two. The environments' clocks start apart, so that they are cut off at different times.
    """

    def world(keys: jax.Array) -> jax.Array:
        return jnp.where(jax.vmap(jax.random.bernoulli)(keys), 1, -1).astype(jnp.int32)

    def observe(state: jax.Array) -> jax.Array:
        return jnp.sign(state).astype(jnp.float32)[:, None]

    def reset(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = world(keys) * (1 + jnp.arange(num_envs, dtype=jnp.int32) % limit)
        return state, observe(state)

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        # The state is the number of the step to come, from 1 on, with the world as its sign.
        truncated = jnp.abs(state) >= limit
        following = jnp.where(truncated, world(keys), state + jnp.sign(state))
        reward = (state > 0) * 1.0
        result = EnvStep(observe(following), observe(state), reward, jnp.zeros(num_envs, bool), truncated, {})
        return following, result

    return VecEnv(reset, step, OBSERVATION, ACTIONS, num_envs, step_limit=limit, truncation_gap=limit)


def limit_as_death(num_envs: int, limit: int = 5) -> VecEnv:
    """`endless` with the mistake built in: what a trainer sees that takes a time limit for death."""
    env = endless(num_envs, limit)

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        state, result = env.step(keys, state, action)
        return state, result._replace(terminated=result.truncated, truncated=result.terminated)

    return env._replace(step=step)


def limit_as_next_episode(num_envs: int, limit: int = 5) -> VecEnv:
    """`endless` with the other mistake: bootstrapped from the next episode's first observation."""
    env = endless(num_envs, limit)

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        state, result = env.step(keys, state, action)
        return state, result._replace(final_obs=result.obs)

    return env._replace(step=step)


def choose(makers: Sequence[Make], index: jax.Array, num_envs: int) -> VecEnv:
    """The environment at `index`, which may be traced: one program for all of them under vmap."""
    envs = [make(num_envs) for make in makers]

    def reset(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.switch(index, [env.reset for env in envs], keys)

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        return jax.lax.switch(index, [env.step for env in envs], keys, state, action)

    gap = min(env.truncation_gap for env in envs)
    return VecEnv(reset, step, OBSERVATION, ACTIONS, num_envs, truncation_gap=gap)


def walk(num_envs: int, *, continuous: bool = False, limit: int = 3, target: float = 2.0) -> VecEnv:
    """A noisy walk on a line that ends beyond +-target and is cut off after `limit` steps.

    Both kinds of end occur, observations and rewards have a scale, and actions matter: nothing that a trainer does is
    without effect here. The state is (position [E], time int32 [E]).
    """

    def fresh(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        position = jax.vmap(lambda key: jax.random.uniform(key, minval=-1.0, maxval=1.0))(keys)
        return position, jnp.zeros(len(keys), jnp.int32)

    def observe(position: jax.Array, time: jax.Array) -> jax.Array:
        return jnp.stack([3.0 * position, 5.0 + time], axis=1)

    def reset(keys: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        state = fresh(keys)
        return state, observe(*state)

    def step(keys: jax.Array, state: tuple[jax.Array, jax.Array], action: jax.Array) -> tuple[object, EnvStep]:
        position, time = state
        key_noise, key_fresh = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        push = jnp.sum(action, axis=1) if continuous else 2.0 * action - 1.0
        position = position + push + 0.3 * jax.vmap(jax.random.normal)(key_noise)
        time = time + 1
        terminated, truncated = jnp.abs(position) > target, time >= limit
        done = terminated | truncated
        following = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh(key_fresh), (position, time))
        result = EnvStep(observe(*following), observe(position, time), 4.0 - position**2, terminated, truncated, {})
        return following, result

    actions = Box((2,), (-0.5, -0.5), (0.5, 1.0)) if continuous else ACTIONS
    return VecEnv(reset, step, Box((2,)), actions, num_envs, step_limit=limit, truncation_gap=limit)


def spoiled(env: VecEnv, after: int, reward: float = jnp.nan) -> VecEnv:
    """An environment whose rewards become `reward` from step `after` on; its state is (inner, steps so far)."""

    def reset(keys: jax.Array) -> tuple[object, jax.Array]:
        state, obs = env.reset(keys)
        return (state, jnp.zeros((), jnp.int32)), obs

    def step(keys: jax.Array, state: tuple[object, jax.Array], action: jax.Array) -> tuple[object, EnvStep]:
        inner, count = state
        inner, result = env.step(keys, inner, action)
        return (inner, count + 1), result._replace(reward=jnp.where(count >= after, reward, result.reward))

    return env._replace(reset=reset, step=step)


def _one_step(
    num_envs: int,
    observe: Callable[[jax.Array], jax.Array],
    reward: Callable[[jax.Array, jax.Array], jax.Array],
) -> VecEnv:
    """Episodes of a single step: observe(keys) -> [E], reward(obs [E], action [E]) -> [E]. The state is the obs."""

    def reset(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        obs = observe(keys)
        return obs.astype(jnp.int32), obs[:, None]

    def step(keys: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, EnvStep]:
        following, obs = reset(keys)
        shown = state.astype(jnp.float32)
        yes = jnp.ones(num_envs, bool)
        return following, EnvStep(obs, shown[:, None], reward(shown, action), yes, ~yes, {})

    return VecEnv(reset, step, OBSERVATION, ACTIONS, num_envs)


def _nothing(num_envs: int) -> Callable[[jax.Array], jax.Array]:
    return lambda keys: jnp.zeros(num_envs)


def _coin(num_envs: int) -> Callable[[jax.Array], jax.Array]:
    return lambda keys: jnp.where(jax.vmap(jax.random.bernoulli)(keys), 1.0, -1.0)


def shown(num_envs: int, observation: str = "array", *, continuous: bool = False, limit: int = 3) -> VecEnv:
    """`walk` with three discrete actions, or its continuous ones, and its observation x in another form.

    "array" is x itself. "dict" shows the position to policy and value function, the time to the value function alone,
    masks some of the discrete actions, and has x once more under a key without a meaning. "parts" is a dict in which no
    key has a meaning: the position, and the time as a whole number. "picture" is a board of uint8. The environment
    reports as `forbidden` whether the action was one that "dict" masks.
    """
    inner = walk(num_envs, continuous=continuous, limit=limit)

    def possible(x: jax.Array) -> jax.Array:
        """The first action always, the second at even times, the third to the right of the middle."""
        return jnp.stack([jnp.ones(len(x), bool), x[:, 1] % 2 == 0, x[:, 0] > 0], axis=1)

    def show(x: jax.Array) -> object:
        position, time = x[:, :1], x[:, 1:]
        if observation == "dict":
            masks = {} if continuous else {"action_mask": possible(x)}
            return {"obs": position, "critic": time, "raw": x, **masks}
        if observation == "parts":
            return {"place": position, "clock": time.astype(jnp.int32)}
        if observation == "picture":
            row = time[..., None, None] - 5.0 == jnp.arange(4.0)[None, :, None, None]
            brightness = jnp.clip(128.0 + 20.0 * position[..., None, None], 0.0, 255.0)
            return jnp.broadcast_to(jnp.where(row, brightness, 0.0), (len(x), 4, 4, 1)).astype(jnp.uint8)
        return x

    def reset(keys: jax.Array) -> tuple[object, object]:
        state, x = inner.reset(keys)
        return (state, x), show(x)

    def step(keys: jax.Array, state: tuple[object, jax.Array], action: jax.Array) -> tuple[object, EnvStep]:
        state, x = state
        forbidden = jnp.zeros(len(x), bool)
        if not continuous:
            forbidden = ~jnp.take_along_axis(possible(x), action[:, None], axis=1)[:, 0]
        state, result = inner.step(keys, state, action if continuous else jnp.minimum(action, 1))
        following, info = result.obs, {"forbidden": forbidden}
        return (state, following), result._replace(obs=show(following), final_obs=show(result.final_obs), info=info)

    spaces = {
        "array": Box((2,)),
        "dict": {"obs": Box((1,)), "critic": Box((1,)), "raw": Box((2,))},
        "parts": {"place": Box((1,)), "clock": Box((1,))},
        "picture": Box((4, 4, 1)),
    }
    space = spaces[observation]
    if observation == "dict" and not continuous:
        space = {**spaces["dict"], "action_mask": Box((3,))}
    actions = inner.action_space if continuous else Discrete(3)
    return inner._replace(reset=reset, step=step, observation_space=space, action_space=actions)
