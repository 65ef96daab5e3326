"""Many runs at once: purejaxppo's `advance_runs` against `jit(vmap(train))` of the common shape (`common_shape.py`).

Each arm has a process of its own, since the number of CPU devices belongs to a process; they take turns, and only the
ratio of neighbouring blocks is worth quoting. NPROC=4 keeps the vmapped baseline from hanging on two cores.

    python benchmarks/many_runs.py --runs 16 --shape 4x128 --repetitions 11 --out result.json

On an accelerator it is purejaxppo alone, as `--arms purejaxppo --runs 1024` (both arms would share its memory).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BASELINE_ENV = {"NPROC": "4"}
ARMS = ("purejaxppo", "common shape")


def ours(runs: int, envs: int, steps: int, updates: int) -> tuple[Any, Any]:
    """First state of R runs, and the block of updates that carries it on."""
    import purejaxppo

    purejaxppo.use_all_cores()  # before anything else: gymnax computes when it is imported
    from throughput import SHARED, UPDATES_IN_SCHEDULE

    from purejaxppo import Hyperparams, TrainConfig, advance_runs, grid, make_runs, trainer_from_config

    shape: dict[str, Any] = {"num_envs": envs, "num_steps": steps}
    trainer = trainer_from_config(TrainConfig(total_timesteps=UPDATES_IN_SCHEDULE * envs * steps, **shape, **SHARED))
    hps, seeds = grid(Hyperparams(), range(runs))
    return make_runs(trainer, hps, seeds), lambda state: advance_runs(trainer, hps, state, updates)


def baseline(runs: int, envs: int, steps: int, updates: int) -> tuple[Any, Any]:
    """The same of the common shape."""
    import common_shape
    import jax
    import jax.numpy as jnp
    from throughput import SHARED, UPDATES_IN_SCHEDULE

    settings = common_shape.Settings(num_envs=envs, num_steps=steps, num_updates=UPDATES_IN_SCHEDULE, **SHARED)
    train = common_shape.make_train(settings)
    keys = jax.vmap(jax.random.key)(jnp.arange(runs))
    block = jax.jit(jax.vmap(lambda state: common_shape.advance(train, state, updates)), donate_argnums=0)
    return jax.jit(jax.vmap(train.init))(keys), block


def serve(arm: str, pipe: Connection, *shape: int) -> None:
    """Answers each request for a block with the seconds that it took; the first answer is that of compilation."""
    os.environ.update(BASELINE_ENV if arm == ARMS[1] else {})
    import jax

    state, block = (ours if arm == ARMS[0] else baseline)(*shape)
    while pipe.recv():
        start = time.perf_counter()
        state, metrics = block(state)
        jax.block_until_ready((state, metrics))
        pipe.send(time.perf_counter() - start)


def measure(arms: list[str], repetitions: int, *shape: int) -> dict[str, Any]:
    """Every repetition, and the medians."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for arm in arms:
        pipes[arm], theirs = context.Pipe()
        context.Process(target=serve, args=(arm, theirs, *shape), daemon=True).start()

    def block(arm: str) -> float:
        pipes[arm].send(True)
        if not pipes[arm].poll(600):
            raise SystemExit(f"{arm}: no block within 600 s; it hangs")
        return pipes[arm].recv()

    first = {arm: block(arm) for arm in arms}
    rows = [{arm: block(arm) for arm in arms} for _ in range(repetitions)]
    for pipe in pipes.values():
        pipe.send(False)
    runs, envs, steps, updates = shape
    env_steps = runs * envs * steps * updates
    result = {
        "runs": runs, "num_envs": envs, "num_steps": steps, "updates_per_block": updates, "seconds": rows,
        "first_call_s": first,
        "median_env_steps_per_s": {arm: env_steps / statistics.median(row[arm] for row in rows) for arm in arms},
    }  # fmt: skip
    if len(arms) > 1:
        ratios = [row[ARMS[1]] / row[ARMS[0]] for row in rows]
        result["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[16])
    parser.add_argument("--shape", default="4x128", help="environments x steps")
    parser.add_argument("--updates", type=int, default=50, help="per timed block")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--out", type=Path, help="write every repetition as JSON")
    arguments = parser.parse_args()
    envs, steps = map(int, arguments.shape.split("x"))
    results = []
    for runs in arguments.runs:
        results.append(measure(arguments.arms, arguments.repetitions, runs, envs, steps, arguments.updates))
        speeds = ", ".join(f"{arm} {x:,.0f} /s" for arm, x in results[-1]["median_env_steps_per_s"].items())
        ratio = results[-1].get("ratio")
        ratio = f", ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        print(f"{runs} runs of {arguments.shape}: {speeds}{ratio}", flush=True)
    if arguments.out:
        from facts import machine

        arguments.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
