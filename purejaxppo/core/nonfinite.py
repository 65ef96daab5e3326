"""Detection of NaN and infinity on the device, once per update; what the trainer does about it, and advice to users."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import Hyperparams
from purejaxppo.config.fields import OnNonfinite
from purejaxppo.core.types import Metrics, RunnerState, Trainer
from purejaxppo.errors import DivergedError

# Quantities checked for NaN and infinity, causes before consequences: the first one that is set is reported.
WATCHED = (
    "observation",
    "reward",
    "normalizer",
    "loss/policy",
    "loss/value",
    "entropy",
    "grad_norm",
    "optimizer_state",
    "parameter",
    "kl",  # between the policies before and after the update
)
# The quantities that depend on the environment's outputs alone, and on nothing that is learnt.
_FROM_ENVIRONMENT = frozenset({"observation", "reward", "normalizer"})


class Cause(NamedTuple):
    """Why a run diverged."""

    update: int  # counted from 1, in which the run diverged
    quantity: str  # the first of WATCHED that was not finite


def no_value() -> float:
    """Returns the value of a metric that is undefined: NaN, or -inf under `jax.debug_nans`, which raises at any NaN.

    JAX does not retrace a function when that mode is switched, so the mode at the function's first call counts.
    """
    return -math.inf if jax.config.jax_debug_nans else math.nan  # type: ignore[attr-defined]


def nonfinite(quantities: Mapping[str, Any]) -> jax.Array:
    """Returns an int32 bit mask: bit i is set if the pytree quantities[WATCHED[i]] holds a NaN or an infinity."""
    bits = [jnp.where(_all_finite(quantities[name]), 0, 1 << i) for i, name in enumerate(WATCHED) if name in quantities]
    return jnp.sum(jnp.stack(bits)).astype(jnp.int32)


def marks(shards: jax.Array) -> jax.Array:
    """Returns 0 for each shard of x [S, ...], or NaN if one of its numbers is not finite, which `nonfinite` finds."""
    finite = jnp.all(jnp.isfinite(shards.reshape(len(shards), -1)), axis=1)
    return jnp.where(finite, 0.0, no_value())


def _all_finite(tree: Any) -> jax.Array:
    # One vector, since a reduction for each leaf would be two small operations for each.
    floats = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.isfinite(jnp.concatenate(floats))) if floats else jnp.array(True)


def first_nonfinite(bits: int) -> str | None:
    """Returns the first of WATCHED whose bit is set, or None."""
    return next((name for i, name in enumerate(WATCHED) if bits >> i & 1), None)


def advice(quantities: Collection[str], learnt: bool) -> str:
    """Returns what a user should do about quantities of WATCHED that were not finite.

    Args:
      quantities: the first one of each update or run; empty if it was the rewards of an evaluation.
      learnt: whether the policy that acted had been trained at all; otherwise only the environment can be the cause.
    """
    if not _FROM_ENVIRONMENT.issuperset(quantities):
        return "Try a lower learning_rate, or normalize_observation and normalize_reward."
    if not learnt:
        return (
            "This comes from the environment, as nothing had been learnt yet: check what its reset and step return, "
            "and its env_params."
        )
    return (
        "This comes from the environment: check what its step returns. If that is sound whatever the actions, the "
        "policy may have gone too far: try a lower learning_rate."
    )


def every_run_diverged(causes: Collection[Cause], directory: str) -> DivergedError:
    """Returns the error for a batch of runs all of which diverged, with their causes and where their results are."""
    quantities = sorted({cause.quantity for cause in causes})
    what = " and ".join(quantities) or "the evaluation's return"
    learnt = {cause.update for cause in causes} != {1}
    return DivergedError(
        f"every run diverged ({what} not finite); the results are in {directory}. {advice(quantities, learnt)}"
    )


def keep_if_finite(metrics: Metrics, old: Any, new: Any) -> Any:
    """Returns the tree `new` of an update whose metrics say that every number was finite, else `old`, leaf by leaf."""
    bad = metrics["nonfinite"] != 0
    return jax.tree.map(lambda old, new: jnp.where(bad, old, new), old, new)


class NonfiniteRule(NamedTuple):
    """What `on_nonfinite` does about updates with numbers that are not finite."""

    undo: bool = False  # leave the state as it was before the update, and go on
    most_in_a_row: int = 0  # bad updates in a row with which training still goes on
    rollbacks: int = 0  # times that a run then goes back to one and the same checkpoint


NONFINITE_RULES: dict[OnNonfinite, NonfiniteRule] = {
    "stop": NonfiniteRule(),
    "skip": NonfiniteRule(undo=True, most_in_a_row=9),
    "rollback": NonfiniteRule(rollbacks=3),
}


def undo_nonfinite(trainer: Trainer) -> Trainer:
    """Returns a trainer whose bad updates leave the state as it was, but for the key and the count of updates.

    The next update thus sets out from the same environments with other random numbers.
    """

    def update(hp: Hyperparams, runner: RunnerState) -> tuple[RunnerState, Metrics]:
        updated, metrics = trainer.update(hp, runner)
        undone = runner._replace(key=updated.key, updates=updated.updates)
        return keep_if_finite(metrics, undone, updated), metrics

    return trainer._replace(update=update)


class NonfiniteLimit:
    """Counts bad updates in a row, on the host, and ends a run that has more of them than its policy bears.

    Args:
      policy: the run's `on_nonfinite`.
      in_a_row: bad updates at the end of what was trained before.
    """

    def __init__(self, policy: OnNonfinite, in_a_row: int = 0) -> None:
        self._most = NONFINITE_RULES[policy].most_in_a_row
        self._in_a_row = in_a_row

    def check(self, quantity: str | None, update: int, env_steps: int) -> None:
        """Takes the next update: the first of WATCHED that was not finite in it, or None.

        Raises:
          DivergedError: there have been too many in a row.
        """
        self._in_a_row = self._in_a_row + 1 if quantity else 0
        if quantity and self._in_a_row > self._most:
            times = f" in {self._in_a_row} updates in a row, each undone" if self._in_a_row > 1 else ""
            raise DivergedError(
                f"{quantity} is not finite at update {update} ({env_steps} env steps){times}. "
                f"{advice([quantity], learnt=self._in_a_row < update)}",
                update,
            )
