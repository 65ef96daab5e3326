"""Measures the host loop: training in chunks with progress and metrics.jsonl, against one uninterrupted jitted scan.

Both arms compile, make the same updates from the same seed, and alternate. Compilation, the checkpoint, the evaluation
and the plot are left out of both.

    python -m benchmarks.studies.host_loop_overhead --shapes 64x128 4x128 2048x32 --repetitions 7
"""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks.lib.report import add_shapes, parser, sizes
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.nonfinite import NonfiniteLimit
from purejaxppo.core.types import RunnerState, Trainer
from purejaxppo.experiment.chunked_loop import advance_in_chunks, chunk_lengths, compile_chunks
from purejaxppo.experiment.metrics_log import JsonLines
from purejaxppo.experiment.progress import ProgressDisplay
from purejaxppo.experiment.training import RunRows
from purejaxppo.train import advance, trainer_from_config


def uninterrupted_scan(config: TrainConfig, trainer: Trainer, hp: Hyperparams, seed: int) -> tuple[float, RunnerState]:
    """Returns the seconds for all updates in one call of a freshly compiled program, and the state it ends in."""
    # Arrays, as in the host loop: constants would let the compiler make another program of it.
    hp = jax.tree.map(jnp.float32, hp)
    runner = jax.block_until_ready(jax.jit(trainer.init)(jax.random.key(seed), hp))
    scan = jax.jit(lambda hp, runner: advance(trainer, hp, runner, config.num_updates), donate_argnums=1)
    program = scan.lower(hp, runner).compile()
    start = time.perf_counter()
    runner, _ = jax.block_until_ready(program(hp, runner))
    return time.perf_counter() - start, runner


def host_loop(config: TrainConfig, trainer: Trainer, hp: Hyperparams, seed: int) -> tuple[float, RunnerState]:
    """Returns the seconds of the host loop of `purejaxppo train` after its compilation, and the state it ends in."""
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "terminal").open("w") as terminal:
        # A terminal gets a bar that is redrawn all the time: the dearer of the two displays.
        console = Console(file=terminal, force_terminal=True)
        with (
            JsonLines(Path(directory) / "metrics.jsonl") as log,
            ProgressDisplay(console, config.env_steps) as progress,
        ):
            rows = RunRows(config, [log, progress], NonfiniteLimit(config.on_nonfinite))
            hp = jax.tree.map(jnp.float32, hp)
            runner = jax.jit(trainer.init)(jax.random.key(seed), hp)
            lengths = chunk_lengths(config, runner.learner.params, jax.default_backend())
            programs = compile_chunks(trainer, hp, runner, lengths)
            calls = {length: partial(program, hp) for length, program in programs.items()}
            progress.start_clock()
            start = time.perf_counter()
            for chunk in advance_in_chunks(calls, lengths, runner, updates=0):
                rows.write(chunk)
            return time.perf_counter() - start, chunk.state


def measure(shape: str, env_steps: int, repetitions: int) -> None:
    """Prints one row of the table."""
    config, hp = TrainConfig("CartPole-v1", total_timesteps=env_steps, **sizes(shape)), Hyperparams()
    trainer = trainer_from_config(config)
    pairs, identical = [], True
    for seed in range(repetitions):
        scan_s, scan_end = uninterrupted_scan(config, trainer, hp, seed)
        loop_s, loop_end = host_loop(config, trainer, hp, seed)
        pairs.append((scan_s, loop_s))
        ends = zip(*(jax.tree.leaves(end.learner.params) for end in (scan_end, loop_end)), strict=True)
        identical &= all(bool(jnp.array_equal(a, b)) for a, b in ends)
    ratios = [loop_s / scan_s for scan_s, loop_s in pairs]
    scan_s, loop_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    chunks = len(chunk_lengths(config, loop_end.learner.params, jax.default_backend()))
    print(
        f"{shape:>8} {config.num_updates:>8} {chunks:>7} {scan_s:>8.3f} {loop_s:>8.3f}",
        f"{statistics.median(ratios):>6.3f}  {min(ratios):.3f}..{max(ratios):.3f}  {'yes' if identical else 'NO'}",
        flush=True,
    )


def main() -> None:
    options = parser(__doc__)
    add_shapes(options, ["64x128", "4x128", "2048x32"])
    options.add_argument("--env-steps", type=int, default=2**19, help="per run")
    options.add_argument("--repetitions", type=int, default=7)
    arguments = options.parse_args()
    print(jax.devices()[0].device_kind, jax.__version__)
    print("   shape  updates  chunks   scan s   loop s  ratio  min..max      same state")
    for name in arguments.shapes:
        measure(name, arguments.env_steps, arguments.repetitions)


if __name__ == "__main__":
    main()
