"""A loop over time, with the steps per iteration that the kind of device wants."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from purejaxppo.core.target import platform

Carry = TypeVar("Carry")


def scan_over_time(
    step: Callable[[Carry, Any], tuple[Carry, Any]], start: Carry, xs: Any, *, unroll: int, reverse: bool = False
) -> tuple[Carry, Any]:
    """Returns what `jax.lax.scan` does, with `unroll` steps in each iteration on an accelerator, and one on a CPU.

    On an accelerator an iteration is a number of launches, each of some microseconds whatever it computes, and steps
    side by side share theirs. A CPU gains nothing, and compiles a longer program.
    """
    return jax.lax.scan(step, start, xs, reverse=reverse, unroll=1 if platform() == "cpu" else unroll)
