"""Actions that are impossible in some states: an environment whose observation has the key "action_mask".

A lattice walk from one corner of a grid to the opposite one, in which one may not step off the grid nor into walls. The
reward is the number on each square that is entered; a step that the mask forbids would end the episode with -100.

    purejaxppo train --plugin scripts/examples/masked_actions.py --env lattice
    purejaxppo train --plugin scripts/examples/masked_actions.py --env lattice --env-params masked=false
"""

import jax
import jax.numpy as jnp

import purejaxppo
from purejaxppo.core.types import Box, Discrete
from purejaxppo.envs.autoreset import autoreset

SIZE, LIMIT = 6, 40
MOVES = jnp.array([[0, 1], [1, 0], [0, -1], [-1, 0]])


def lattice(num_envs, masked=True):
    """Returns E walks over one grid with walls; `info["forbidden"]` counts steps that the mask does not allow.

    Unless they are `masked`, the policy has to find out by itself what is not allowed.
    """
    wall = jax.random.bernoulli(jax.random.key(3), 0.2, (SIZE, SIZE)).at[0].set(False).at[:, -1].set(False)
    number = jax.random.uniform(jax.random.key(4), (SIZE, SIZE))

    def allowed(place):  # bool [4]
        to = place[None] + MOVES
        inside = jnp.all((to >= 0) & (to < SIZE), axis=1)
        return inside & ~wall[tuple(jnp.clip(to, 0, SIZE - 1).T)]

    def observe(place):
        seen = {"obs": jax.nn.one_hot(place, SIZE).ravel()}
        return {**seen, "action_mask": allowed(place)} if masked else seen

    def reset(key):
        place = jnp.zeros(2, jnp.int32)
        return place, observe(place)

    def step(key, place, action):
        forbidden = ~allowed(place)[action]
        place = jnp.clip(place + MOVES[action], 0, SIZE - 1)
        arrived = jnp.all(place == SIZE - 1)
        reward = jnp.where(forbidden, -100.0, number[tuple(place)] - 1.0 + 5.0 * arrived)
        return place, observe(place), reward, arrived | forbidden, False, {"forbidden": forbidden}

    spaces = {"obs": Box((2 * SIZE,)), **({"action_mask": Box((4,))} if masked else {})}
    return autoreset(reset, step, spaces, Discrete(4), num_envs, step_limit=LIMIT)


purejaxppo.register_env("lattice", lattice)
