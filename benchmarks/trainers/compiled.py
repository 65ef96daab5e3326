"""A training in JAX as a compiled block of updates; ours and the common shape are run this way."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks.trainers.protocol import Settings, Trainer


class Training(NamedTuple):
    """A first state, and a function (state, static number of updates) -> (state, metrics)."""

    state: Any
    step: Callable[[Any, int], tuple[Any, Any]]


class CompiledBlock:
    """A training that is compiled for blocks of `updates` updates and carried from block to block.

    Attributes:
      compile_s: seconds of tracing, lowering and compiling.
    """

    def __init__(self, training: Training, updates: int) -> None:
        self.state = jax.block_until_ready(training.state)
        start = time.perf_counter()
        program = jax.jit(training.step, static_argnums=1, donate_argnums=0)
        self.program = program.lower(training.state, updates).compile()
        self.compile_s = time.perf_counter() - start

    def time(self, calls: int = 1) -> float:
        """Returns the seconds that `calls` more blocks take, the metrics of each included."""
        start = time.perf_counter()
        for _ in range(calls):
            self.state, metrics = self.program(self.state)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


class CompiledTrainer(Trainer):
    """A trainer whose blocks are one compiled program."""

    def __init__(self, training: Training, settings: Settings) -> None:
        self.compiled = CompiledBlock(training, settings.updates_per_block)
        self.device = jax.devices()[0].device_kind
        self.threads = os.environ.get("NPROC")  # importing purejaxppo may change it

    def train(self, blocks: int) -> None:
        """Trains `blocks` blocks."""
        self.compiled.time(blocks)

    def describe(self) -> dict[str, Any]:
        """Returns devices and threads, and the compilation time and memory of the program."""
        from purejaxppo.devices.memory import program_bytes  # not earlier, for the same reason

        return {
            "devices": len(jax.devices()),
            "NPROC": self.threads,
            "compile_s": self.compiled.compile_s,
            "program_bytes": program_bytes(self.compiled.program),
        }
