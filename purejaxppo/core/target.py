"""The kind of device that a program is traced for.

A few choices depend on it: what is fast on a CPU is slow on an accelerator, and the other way round. They are made
while a program is traced, and change its speed and its rounding, never what it computes.
"""

import contextlib
from collections.abc import Iterator

import jax

_target: str | None = None


def platform() -> str:
    """Returns the platform of the program that is being traced, as JAX calls it: cpu, gpu or tpu."""
    return _target or jax.default_backend()


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Makes programs that are traced within the context those for a platform (cpu, gpu, tpu), which need not be there.

    A function that was traced before is not traced again by `jax.jit`: use a process, or functions, of its own.
    """
    global _target
    before, _target = _target, target
    try:
        yield
    finally:
        _target = before
