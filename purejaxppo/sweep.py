"""Many runs as one trainer."""

from collections.abc import Callable
from typing import Any

import jax

from purejaxppo.config import Hyperparams
from purejaxppo.types import Metrics, RunnerState, Trainer

# f(x, ...) -> f over the leading axis of x, ...
Batching = Callable[[Callable[..., Any]], Callable[..., Any]]


def over_seeds(trainer: Trainer, batching: Batching) -> Trainer:
    """The trainer of R runs that differ in their key: `init` takes keys [R], and all else has [R] in front."""

    def init(keys: jax.Array, hp: Hyperparams) -> RunnerState:
        return batching(lambda key: trainer.init(key, hp))(keys)

    def update(hp: Hyperparams, runners: RunnerState) -> tuple[RunnerState, Metrics]:
        return batching(lambda runner: trainer.update(hp, runner))(runners)

    return Trainer(init, update)


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """Batching without `vmap`: run after run, each with the very bits that it has alone."""
    return lambda *xs: jax.lax.map(lambda x: f(*x), xs)


def batching_for(backend: str) -> Batching:
    """`one_by_one` on a CPU, where it is the faster of the two, `jax.vmap` on an accelerator."""
    return one_by_one if backend == "cpu" else jax.vmap
