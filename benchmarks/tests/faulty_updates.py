"""Trainers with what an update should not have, to see that it is found; `workers/compile_worker.py` takes them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _metric(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a function that makes every update of a trainer change the first of its metrics."""

    def around(trainer: Any) -> Any:
        def update(hp: Any, runner: Any) -> Any:
            runner, metrics = trainer.update(hp, runner)
            name = min(metrics)
            return runner, {**metrics, name: change(metrics[name])}

        return trainer._replace(update=update)

    return around


def _told(x: Any) -> Any:
    jax.debug.callback(lambda _: None, x)
    return x


def _printed(x: Any) -> Any:
    jax.debug.print("{}", x)
    return x


callback = _metric(_told)
printed = _metric(_printed)
sort = _metric(lambda x: jnp.sort(x * jnp.cos(jnp.arange(64.0)))[7])
while_loop = _metric(lambda x: jax.lax.while_loop(lambda y: y > 1.0, lambda y: 0.5 * y, x))
