"""Measures how one run's speed grows with CPU devices, and with processes that have one each.

    python -m benchmarks.studies.scaling_devices

Strong scaling keeps the environments, weak scaling gives each device as many. Every device has one thread. As soon as
there are more devices than cores, they share these: what is left of the speed then shows the cost of the exchanges.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.report import parser, table

RESULT = Path(__file__).parent.parent / "results" / "devices-scaling.json"
STEPS, PER_DEVICE, SECONDS = 128, 64, 3.0


def train(envs: int, devices: int, processes: int, port: int, index: int) -> float:
    """Returns env steps per second of this process's run, which others may train with it."""
    os.environ["NPROC"] = "1"
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", devices // processes)
    import purejaxppo
    from purejaxppo.devices import processes as together

    if processes > 1:
        together.join(f"localhost:{port}", processes, index)
    config = purejaxppo.TrainConfig(
        "CartPole-v1", num_envs=envs, num_steps=STEPS, num_shards=8, total_timesteps=10**9, num_minibatches=4
    )
    hp = jax.tree.map(np.float32, purejaxppo.Hyperparams())
    trainer = purejaxppo.spread_trainer(config, devices=jax.devices())
    runner = jax.jit(trainer.init)(jax.random.key(0), hp)
    block = jax.jit(lambda hp, runner: purejaxppo.advance(trainer, hp, runner, 4), donate_argnums=1)
    runner, _ = jax.block_until_ready(block(hp, runner))
    speeds, blocks = [], max(1, int(SECONDS * 2**15 / (envs * STEPS)))
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(blocks):
            runner, metrics = block(hp, runner)
            jax.block_until_ready(metrics)
        speeds.append(4 * blocks * envs * STEPS / (time.perf_counter() - start))
    together.leave()
    return sorted(speeds)[2]


def measured(envs: int, devices: int, processes: int) -> float:
    """Returns env steps per second, measured by processes of their own."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    numbers = [envs, devices, processes, port]
    command = [sys.executable, "-m", "benchmarks.studies.scaling_devices", "--worker", *map(str, numbers)]
    started = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(processes)]
    said = [worker.communicate()[0] for worker in started]
    return float(said[0].split()[-1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--worker", nargs=5, type=int)
    arguments = options.parse_args()
    if arguments.worker:
        print(train(*arguments.worker))
        return
    rows: list[dict[str, Any]] = []
    for devices, processes in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2)):
        for kind, envs in (("strong", PER_DEVICE), ("weak", PER_DEVICE * devices)):
            speed = measured(envs, devices, processes)
            rows.append(
                {
                    "scaling": kind,
                    "devices": devices,
                    "processes": processes,
                    "num_envs": envs,
                    "env_steps_per_s": speed,
                }
            )
            print(rows[-1], flush=True)
    RESULT.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")
    columns = ["scaling", "devices", "processes", "num_envs"]
    lines = [[*(str(row[name]) for name in columns), f"{row['env_steps_per_s']:,.0f}"] for row in rows]
    print(table([*columns, "env steps/s"], lines))


if __name__ == "__main__":
    main()
