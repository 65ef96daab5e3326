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
    """Returns the speed of a block of updates, and what its compiled program needs."""
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

    from purejaxppo import Hyperparams, TrainConfig, spread_trainer
    from purejaxppo.experiment.chunked_loop import Hooks, Rows, train_in_chunks
    from purejaxppo.experiment.metrics_log import JsonLines

    config = TrainConfig(ENV, total_timesteps=total_timesteps, num_envs=MANY_ENVS, num_steps=num_steps)
    trainer, hp = spread_trainer(config), Hyperparams()
    program: list[int] = []
    with tempfile.TemporaryDirectory() as directory, JsonLines(Path(directory) / "metrics.jsonl") as log:
        hooks = Hooks(Rows(config, [log]), program.append)
        first = partial(jax.jit(trainer.init), jax.random.key(0), hp)
        _, timing = train_in_chunks(config, trainer, hp, first, hooks)
    return {"env_steps_per_s": [timing.env_steps_per_second], "program_bytes": program[0]}


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
