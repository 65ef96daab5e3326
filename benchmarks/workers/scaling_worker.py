"""One point of `scaling.py`: its speed and its memory, as one line of JSON.

python benchmarks/scaling_point.py '{"sweep": "runs", "value": 16, "repetitions": 5, "num_steps": 128}'
"""

import json
import resource
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib.work import SHARED, Block, Work, ours

ENV = "CartPole-v1"
FEW_ENVS, MANY_ENVS = 4, 64  # of one run among many, and of a run by itself


def block_of(work: Work, repetitions: int) -> dict[str, Any]:
    """Speed of an arm of the benchmark, and what its compiled program needs."""
    from purejaxppo.memory import program_bytes

    block = Block(ours(work), updates := max(2, min(64, (1 << 15) // work.env_steps)))
    speeds = [work.env_steps * updates / block.time() for _ in range(repetitions)]
    return {"env_steps_per_s": speeds, "program_bytes": program_bytes(block.program)}


def whole_run(total_timesteps: int, num_steps: int) -> dict[str, Any]:
    """A run of `purejaxppo train`'s own loop with its file of metrics, without evaluation and pictures."""
    import purejaxppo

    purejaxppo.use_all_cores()
    import jax

    from purejaxppo import Hyperparams, TrainConfig, spread_trainer
    from purejaxppo.host_loop import Hooks, Rows, train_in_chunks
    from purejaxppo.logger import JsonLines

    config = TrainConfig(ENV, total_timesteps=total_timesteps, num_envs=MANY_ENVS, num_steps=num_steps, **SHARED)
    trainer, hp = spread_trainer(config), Hyperparams()
    program: list[int] = []
    with tempfile.TemporaryDirectory() as directory, JsonLines(Path(directory) / "metrics.jsonl") as log:
        hooks = Hooks(Rows(config, [log]), program.append)
        first = partial(jax.jit(trainer.init), jax.random.key(0), hp)
        _, timing = train_in_chunks(config, trainer, hp, first, hooks)
    return {"env_steps_per_s": [timing.env_steps_per_second], "program_bytes": program[0]}


def measure(sweep: str, value: int, repetitions: int, num_steps: int) -> dict[str, Any]:
    """The point's figures and the peaks of this process."""
    if sweep == "total_timesteps":
        measured = whole_run(value, num_steps)
    elif sweep == "runs":
        measured = block_of(Work(ENV, FEW_ENVS, num_steps, value), repetitions)
    else:
        measured = block_of(Work(ENV, value, num_steps), repetitions)

    import jax

    stats = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        **measured,
        "device_peak_bytes": stats.get("peak_bytes_in_use"),
        "process_peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
