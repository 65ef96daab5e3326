"""A loop over time, as every kind of device runs it best."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

Carry = TypeVar("Carry")


def scan_over_time(
    step: Callable[[Carry, Any], tuple[Carry, Any]], start: Carry, xs: Any, *, unroll: int, reverse: bool = False
) -> tuple[Carry, Any]:
    """Returns what `jax.lax.scan` does, but with `unroll` steps in each iteration unless the device is a CPU.

    On an accelerator an iteration costs a number of launches, each of some microseconds whatever it computes; several
    steps side by side share theirs. A CPU gains nothing, and would compile a longer program. Which it is, is decided
    when the program is lowered for a platform: compiling for another one than the default works too.
    """

    def loop(unroll: int) -> Callable[[Carry, Any], tuple[Carry, Any]]:
        return lambda start, xs: jax.lax.scan(step, start, xs, unroll=unroll, reverse=reverse)

    return jax.lax.platform_dependent(start, xs, cpu=loop(1), default=loop(unroll))
