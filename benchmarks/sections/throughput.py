"""Steady-state training throughput of purejaxppo, against the common shape (`trainers/common_shape.py`) where that can
train.

Each has a process of its own. They take turns, block by block, and only the median of the ratios of neighbouring blocks
is worth quoting: what else runs on the machine hits both. Compilation and the first call are timed apart. For a
GPU beside eight or more cores everything is compiled at the same time, before anything is measured.

    python -m benchmarks.sections.throughput [--quick] --out result.json
    python -m benchmarks.sections.throughput --shapes 64x128 4x128 --runs 1 16 --repetitions 15
"""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

from benchmarks.lib.intervals import median_interval
from benchmarks.lib.report import Row, add_shapes, figure, progress, rounded, section_parser, sizes, table, write
from benchmarks.lib.worker_process import (
    WorkerError,
    WorkerProcess,
    end_workers_when_terminated,
    platform,
    safe_threads,
)
from benchmarks.trainers.environments import start
from benchmarks.trainers.protocol import Settings

OURS, BASELINE = "purejaxppo", "common shape"  # as the results call them
TRAINERS = {OURS: "ours", BASELINE: "common_shape"}
CARTPOLE = "CartPole-v1"
# The convolutional network of the MinAtar presets.
MINATAR = {"hidden_sizes": (128,), "activation": "relu", "shared_torso": True}
LIMIT = 240.0  # seconds that a block may take before it counts as hanging
HEAD = ["work", "env steps/s", "baseline", "ratio", "95 % interval", "compile s", "first call s"]


def cartpole(num_envs: int, num_steps: int, num_runs: int = 1) -> Settings:
    """Returns the settings of so many runs of CartPole."""
    return Settings(CARTPOLE, num_envs, num_steps, num_runs)


def works(where: str, quick: bool) -> list[Settings]:
    """Returns the settings that are measured on a platform."""
    breakout = Settings("Breakout-MinAtar", 64, 128, config=MINATAR)
    pendulum = Settings("Pendulum-v1", 32, 64)
    if where == "cpu" and quick:
        return [cartpole(64, 128), cartpole(4, 128, 16)]
    shapes = [cartpole(4, 128), cartpole(64, 128), cartpole(2048, 32), cartpole(2048, 128)]
    runs = [cartpole(4, 128, n) for n in ([16, 64] if where == "cpu" else [16, 256, 1024])]
    everywhere = [*shapes, *runs, breakout, pendulum]
    if where == "cpu":
        return everywhere
    return [*everywhere, replace(breakout, num_envs=2048), Settings(num_envs=2048, config={"policy": "gru"})]


def arms_for(work: Settings) -> list[str]:
    """Returns the trainers: the baseline trains CartPole alone, and holds every step of every run in memory."""
    return [OURS, BASELINE] if work.env == CARTPOLE and work.num_runs <= 16 and not work.config else [OURS]


def updates_per_call(work: Settings, where: str) -> int:
    """Returns a number of updates for which a call is long beside its launch, and several fit into a block.

    It is at least two: XLA removes a loop of one iteration, and what it makes then is another, often slower program.
    """
    env_steps = 1 << (20 if where != "cpu" else 15 if work.env == CARTPOLE else 13)
    return max(2, min(64, env_steps // work.env_steps))


def turns(arms: Sequence[str], number: int) -> Sequence[str]:
    """Returns the order in a repetition: each is first every other time, as a machine warms up and slows down."""
    return arms[::-1] if number % 2 else arms


def compiled_together(where: str) -> bool:
    """Returns whether all programs are compiled at once, a minute each, rather than one after the other."""
    return where == "gpu" and (os.cpu_count() or 1) >= 8  # a TPU belongs to one process at a time


def start_arm(arm: str, work: Settings) -> WorkerProcess:
    """Starts an arm, which compiles its program.

    JAX chooses the number of threads for the baseline too, but where that may hang.
    """
    threads = safe_threads() if arm == BASELINE and work.num_runs > 1 else {}
    return start(TRAINERS[arm], asdict(work), threads=threads)


def measure(work: Settings, started: Mapping[str, WorkerProcess], repetitions: int, seconds: float) -> Row:
    """Returns every repetition of one piece of work, by the arms that have been started and those that have not."""
    arms = arms_for(work)

    def train(arm: str, blocks: int) -> float:
        return workers[arm].ask({"do": "train", "blocks": blocks}, LIMIT)["seconds"]

    with ExitStack() as stack:
        workers: dict[str, WorkerProcess] = {}
        described: Row = {}
        for arm in arms:  # one after the other, as compiling takes all cores
            workers[arm] = stack.enter_context(started.get(arm) or start_arm(arm, work))
            workers[arm].ready(LIMIT)
            described[arm] = workers[arm].ask({"do": "describe"}, LIMIT)
            described[arm]["first_call_s"] = train(arm, 1)
        calls = max(1, round(seconds / max(train(arm, 1) for arm in arms)))
        times = [{arm: train(arm, calls) for arm in turns(arms, number)} for number in range(repetitions)]
    block = work.block_steps * calls
    row: Row = {
        **head(work), "env_steps_per_block": block, "seconds": times, "arms": described,
        "env_steps_per_s": {arm: block / statistics.median(time[arm] for time in times) for arm in arms},
        "figures": [
            figure(work.name, "env steps/s", [block / time[OURS] for time in times]),
            figure(f"{work.name} compilation", "s", [described[OURS]["compile_s"]], "lower"),
        ],
    }  # fmt: skip
    if BASELINE in arms:
        ratios = [time[BASELINE] / time[OURS] for time in times]
        row["ratio"] = median_interval(ratios)._asdict()
        row["figures"].append(figure(f"{work.name} against the common shape", "ratio", ratios))
    return row


def head(work: Settings) -> Row:
    """Returns the beginning of a row: its name and the settings that are trained."""
    what = {name: getattr(work, name) for name in ("env", "num_envs", "num_steps", "num_runs")}
    return {"name": work.name, **what, "settings": list(work.config.items())}


def cells(row: Row) -> list[str]:
    """Returns a row of the table."""
    if "error" in row:
        return [row["name"], row["error"], *[""] * (len(HEAD) - 2)]
    speed, ratio, own = row["env_steps_per_s"], row.get("ratio"), row["arms"][OURS]
    interval = f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else "-"
    return [
        row["name"], rounded(speed[OURS]), rounded(speed.get(BASELINE)), f"{ratio['value']:.2f}" if ratio else "-",
        interval, f"{own['compile_s']:.1f}", rounded(own["first_call_s"]),
    ]  # fmt: skip


def selected(arguments: argparse.Namespace, where: str) -> list[Settings]:
    """Returns the settings that the options ask for."""
    if not (arguments.shapes or arguments.runs):
        return works(where, arguments.quick)
    shapes = arguments.shapes or ["4x128"]
    return [cartpole(**sizes(shape), num_runs=runs) for shape in shapes for runs in arguments.runs or [1]]


def main() -> None:
    options = section_parser(__doc__)
    add_shapes(options)
    options.add_argument("--runs", type=int, nargs="+", help="runs of each shape at once")
    options.add_argument("--repetitions", type=int, help="pairs of blocks")
    arguments = options.parse_args()
    end_workers_when_terminated()
    where = platform()
    repetitions = arguments.repetitions or (5 if arguments.quick else 11 if where == "cpu" else 7)
    seconds = 0.5 if where == "cpu" and not arguments.quick else 0.3
    rows = []
    selected_works = [replace(w, updates_per_block=updates_per_call(w, where)) for w in selected(arguments, where)]
    with ExitStack() as stack:
        started: list[dict[str, WorkerProcess]] = [{} for _ in selected_works]
        if compiled_together(where):
            progress("compiling all programs")
            started = [
                {arm: stack.enter_context(start_arm(arm, work)) for arm in arms_for(work)} for work in selected_works
            ]
            for worker in (worker for workers in started for worker in workers.values()):
                worker.wait(2 * LIMIT)  # while one compiles, no other one is measured
        for work, workers in zip(selected_works, started, strict=True):
            progress(work.name)
            try:
                rows.append(measure(work, workers, repetitions, seconds))
            except WorkerError as error:
                rows.append({**head(work), "error": str(error)})
            write(arguments.out, rows)  # after each, so that what there is survives
    print(table(HEAD, [cells(row) for row in rows]))


if __name__ == "__main__":
    main()
