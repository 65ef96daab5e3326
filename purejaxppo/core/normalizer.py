"""Normalisation by running statistics: observations standardised, rewards scaled by the spread of discounted returns.

The statistics are frozen during a rollout and updated once from the whole of it. The loop over steps then knows nothing
of them, a minibatch's observations are those that the policy saw, and the ratio is 1 before the first gradient step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.observations import standardized_part, with_part
from purejaxppo.core.scan import scan_over_time
from purejaxppo.core.sums import Moments, centre, least_std, merged

NORMALIZER_CLIP = 10.0  # standard deviations
NORMALIZER_EPSILON = 1e-8  # added to a variance before its square root is taken


class RunningStats(NamedTuple):
    """Mean and variance, per element, of all rows so far."""

    mean: jax.Array
    var: jax.Array
    # float32, number of rows. It saturates near 2**24 times the rows of one update, after which the statistics are a
    # very slow moving average.
    rows: jax.Array


class Normalizer(NamedTuple):
    """The statistics of a run. What is not normalised is None."""

    obs: Any = None  # RunningStats of all observations so far, or a dict of them as `standardized_part` has it
    returns: RunningStats | None = None  # of all discounted returns so far
    discounted: jax.Array | None = None  # [E] discounted return of the running episode


def init_normalizer(obs: Any, normalize_observation: bool, normalize_reward: bool) -> Normalizer:
    """Returns the statistics before the first rollout.

    They centre observations on the mean of the first ones, obs [E, ...], and scale neither observations nor rewards;
    the clip to +-10 holds from the start.
    """

    def centred(x: jax.Array) -> RunningStats:
        nothing = empty_stats(x.shape[1:])
        return nothing._replace(mean=centre(x)[1].astype(nothing.mean.dtype))

    num_envs = len(jax.tree.leaves(obs)[0])
    return Normalizer(
        jax.tree.map(centred, standardized_part(obs)) if normalize_observation else None,
        empty_stats(()) if normalize_reward else None,
        jnp.zeros(num_envs) if normalize_reward else None,
    )


def normalized_obs(stats: Any, obs: Any) -> Any:
    """Returns observations [..., O] standardised by `Normalizer.obs`, or unchanged if that is None."""
    if stats is None:
        return obs
    part = standardized_part(obs)
    if isinstance(part, dict):  # without "critic", where a policy is used that was trained with it
        stats = {key: stats[key] for key in part}
    return with_part(obs, jax.tree.map(standardize_by, stats, part, is_leaf=_is_stats))


def scaled_reward(normalizer: Normalizer, reward: jax.Array) -> jax.Array:
    """Returns rewards divided by the standard deviation of the discounted returns so far, clipped to +-10.

    They are not shifted, and unchanged if rewards are not normalised.

    Source: Engstrom et al. 2020, "Implementation matters in deep policy gradients", arXiv:2005.12729, algorithm 1.
    """
    if normalizer.returns is None:
        return reward
    return jnp.clip(reward / _std(normalizer.returns), -NORMALIZER_CLIP, NORMALIZER_CLIP)


def update_normalizer(
    normalizer: Normalizer, obs: Any, returns: Moments | None, discounted: jax.Array | None, rows: int
) -> Normalizer:
    """Returns the statistics with those of a whole rollout added; what is not normalised is None.

    Args:
      normalizer: the statistics before it.
      obs: moments [S, ...] of its observations as the environments returned them, in the structure of `Normalizer.obs`.
      returns: moments [S] of its discounted returns.
      discounted: [E] of the running episodes, from `discounted_returns`.
      rows: how many there were of each, in all shards together.
    """

    def updated(stats: Any, shards: Any) -> Any:
        return jax.tree.map(lambda x, y: update_stats(x, merged(y), rows), stats, shards, is_leaf=_is_stats)

    return Normalizer(updated(normalizer.obs, obs), updated(normalizer.returns, returns), discounted)


def discounted_returns(
    reward: jax.Array, done: jax.Array, start: jax.Array, gamma: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns g_t = r_t + gamma g_{t-1} of the running episodes [T, E], and what the next rollout starts from [E].

    The return of an episode's last step is among them, and the next episode starts from 0.

    Args:
      reward: [T, E].
      done: bool [T, E], whether the step ended an episode.
      start: [E] the return of the running episodes before the first step.
      gamma: discount.
    """

    def step(before: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, done = now
        discounted = gamma * before + reward
        return jnp.where(done, 0.0, discounted), discounted

    following, discounted = scan_over_time(step, start, (reward, done), unroll=16)
    return discounted, following


def empty_stats(shape: tuple[int, ...]) -> RunningStats:
    """Returns the statistics of no rows: mean 0, and variance 1, so that division by them is defined."""
    return RunningStats(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))


def update_stats(stats: RunningStats, seen: Moments, count: int) -> RunningStats:
    """Returns the statistics with `count` rows of these moments added: those of all rows so far, up to rounding.

    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
    in weights rather than sums, so that no quantity grows with the number of rows.
    """
    rows = stats.rows + count
    weight = count / rows
    delta = seen.mean - stats.mean
    mean = stats.mean + weight * delta
    var = (1 - weight) * stats.var + weight * seen.var + weight * (1 - weight) * delta**2
    return RunningStats(mean, var, rows)


def standardize_by(stats: RunningStats, x: jax.Array) -> jax.Array:
    """Returns (x - mean) / std of x [..., O], with statistics [O], clipped to +-10."""
    mean, std = (jnp.broadcast_to(y, x.shape) for y in (stats.mean, _std(stats)))
    return jnp.clip((x - mean) / std, -NORMALIZER_CLIP, NORMALIZER_CLIP)


def _is_stats(x: Any) -> bool:
    return isinstance(x, RunningStats)


def _std(stats: RunningStats) -> jax.Array:
    """Returns the divisor sqrt(var + 1e-8), or the least that float32 can tell from rounding around the mean."""
    # In some programs XLA rewrites a division by a square root as a product with its reciprocal, which rounds
    # differently. It does not do so behind a maximum.
    return jnp.maximum(jnp.sqrt(stats.var + NORMALIZER_EPSILON), least_std(stats.mean))
