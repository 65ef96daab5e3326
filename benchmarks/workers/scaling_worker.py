"""Answers with one point of `sections/scaling.py`: its speed and its memory.

python -m benchmarks.workers.scaling_worker '{"sweep": "runs", "value": 16, "repetitions": 5, "num_steps": 128}'
"""

import json
import resource
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib.worker_process import answer_channel
from benchmarks.trainers.protocol import Settings

ENV = "CartPole-v1"
FEW_ENVS, MANY_ENVS = 4, 64  # of one run among many, and of a run by itself


def block_of(work: Settings, repetitions: int) -> dict[str, Any]:
    """Returns the speed of a block of updates, and the memory of its compiled program."""
    from benchmarks.trainers.ours import warm_block
    from purejaxppo.devices.memory import program_bytes

    work = replace(work, updates_per_block=max(2, min(64, (1 << 15) // work.env_steps)))
    block = warm_block(work)
    speeds = [work.block_steps / block.time() for _ in range(repetitions)]
    return {"env_steps_per_s": speeds, "program_bytes": program_bytes(block.program)}


def whole_run(total_timesteps: int, num_steps: int) -> dict[str, Any]:
    """Measures a run of `purejaxppo train`'s own loop with its file of metrics, without evaluation and pictures."""
    import purejaxppo

    purejaxppo.use_all_cores()
    import jax
    import jax.numpy as jnp

    from purejaxppo import Hyperparams, TrainConfig, spread_trainer
    from purejaxppo.core.nonfinite import NonfiniteLimit
    from purejaxppo.devices.memory import program_bytes
    from purejaxppo.experiment.chunked_loop import advance_in_chunks, chunk_lengths, compile_chunks, steady_speed
    from purejaxppo.experiment.metrics_log import JsonLines
    from purejaxppo.experiment.training import RunRows

    config = TrainConfig(ENV, total_timesteps=total_timesteps, num_envs=MANY_ENVS, num_steps=num_steps)
    trainer = spread_trainer(config)
    hp = jax.tree.map(jnp.float32, Hyperparams())
    runner = jax.jit(trainer.init)(jax.random.key(0), hp)
    lengths = chunk_lengths(config, runner.learner.params, jax.default_backend())
    programs = compile_chunks(trainer, hp, runner, lengths)
    calls = {length: partial(program, hp) for length, program in programs.items()}
    first = chunk = None
    with tempfile.TemporaryDirectory() as directory, JsonLines(Path(directory) / "metrics.jsonl") as log:
        rows = RunRows(config, [log], NonfiniteLimit(config.on_nonfinite))
        for chunk in advance_in_chunks(calls, lengths, runner, updates=0):
            rows.write(chunk)
            first = first or chunk
    speed = steady_speed(first, chunk, config.batch_size)
    return {"env_steps_per_s": [speed], "program_bytes": max(map(program_bytes, programs.values()))}


def measure(sweep: str, value: int, repetitions: int, num_steps: int) -> dict[str, Any]:
    """Returns the point's figures and the peaks of this process."""
    if sweep == "total_timesteps":
        measured = whole_run(value, num_steps)
    elif sweep == "runs":
        measured = block_of(Settings(ENV, FEW_ENVS, num_steps, value), repetitions)
    else:
        measured = block_of(Settings(ENV, value, num_steps), repetitions)

    import jax

    stats = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        **measured,
        "device_peak_bytes": stats.get("peak_bytes_in_use"),
        "process_peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    answer_channel()(measure(**json.loads(sys.argv[1])))
