"""Steady-state training throughput of purejaxppo, against the common shape (`common_shape.py`) where that can train.

Each arm has a process of its own; they take turns, block by block, and only the median of the ratios of neighbouring
blocks is worth quoting: what else runs on the machine hits both. Compilation and the first call are timed apart.

    python benchmarks/throughput.py [--quick] [--shapes 64x128 4x128 --runs 1 16 --repetitions 15] --out result.json
"""

import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.lib.children import Child, ChildError, platform
from benchmarks.lib.intervals import median_interval
from benchmarks.lib.report import Row, figure, parser, progress, rounded, table, write
from benchmarks.lib.work import ARMS, Work, environment

OURS, BASELINE = ARMS
CARTPOLE = "CartPole-v1"
# The convolutional network of the MinAtar presets.
MINATAR = (("hidden_sizes", (128,)), ("activation", "relu"), ("shared_torso", True))
LIMIT = 240.0  # seconds that a block may take before it counts as hanging
HEAD = ["work", "env steps/s", "baseline", "ratio", "95 % interval", "compile s", "first call s"]


def works(where: str, quick: bool) -> list[Work]:
    """What is measured on a platform."""
    breakout = Work("Breakout-MinAtar", 64, 128, 1, MINATAR)
    pendulum = Work("Pendulum-v1", 32, 64)
    if where == "cpu" and quick:
        return [Work(CARTPOLE, 64, 128), Work(CARTPOLE, 4, 128, 16)]
    shapes = [Work(CARTPOLE, 4, 128), Work(CARTPOLE, 64, 128), Work(CARTPOLE, 2048, 32), Work(CARTPOLE, 2048, 128)]
    runs = [Work(CARTPOLE, 4, 128, n) for n in ([16, 64] if where == "cpu" else [16, 256, 1024])]
    return [*shapes, *runs, breakout, pendulum]


def arms_for(work: Work) -> list[str]:
    """The baseline trains CartPole alone, and holds every step of every run in memory."""
    return [OURS, BASELINE] if work.env == CARTPOLE and work.num_runs <= 16 else [OURS]


def updates_per_call(work: Work, where: str) -> int:
    """So many that a call is long beside its launch, and short enough for several to a block.

    At least two: a loop that runs once is no loop to the compiler, which makes another, often slower program of it.
    """
    env_steps = 1 << (20 if where != "cpu" else 15 if work.env == CARTPOLE else 13)
    return max(2, min(64, env_steps // work.env_steps))


def turns(arms: Sequence[str], number: int) -> Sequence[str]:
    """The order in a repetition: each arm is first every other time, since a machine warms up and slows down."""
    return arms[::-1] if number % 2 else arms


def measure(work: Work, arms: Sequence[str], updates: int, repetitions: int, seconds: float) -> Row:
    """Every repetition of one piece of work."""
    with ExitStack() as stack:
        children = {
            arm: Child("train_worker", arm, json.dumps(work), env=environment(arm, work.num_runs > 1)) for arm in arms
        }
        for child in children.values():
            stack.callback(child.close)
        settled = {arm: child.receive(LIMIT) for arm, child in children.items()}
        # One after the other: compiling takes all cores.
        started = {arm: child.ask({"updates": updates}, LIMIT) for arm, child in children.items()}
        once = max(child.ask({"calls": 1}, LIMIT)["seconds"] for child in children.values())
        calls = max(1, round(seconds / once))
        times = [
            {arm: children[arm].ask({"calls": calls}, LIMIT)["seconds"] for arm in turns(arms, number)}
            for number in range(repetitions)
        ]
    block = work.env_steps * updates * calls
    row: Row = {
        "name": work.name, **work._asdict(), "env_steps_per_block": block, "seconds": times,
        "arms": {arm: {**settled[arm], **started[arm]} for arm in arms},
        "env_steps_per_s": {arm: block / statistics.median(time[arm] for time in times) for arm in arms},
        "figures": [
            figure(work.name, "env steps/s", [block / time[OURS] for time in times]),
            figure(f"{work.name} compilation", "s", [started[OURS]["compile_s"]], "lower"),
        ],
    }  # fmt: skip
    if BASELINE in arms:
        ratios = [time[BASELINE] / time[OURS] for time in times]
        row["ratio"] = median_interval(ratios)._asdict()
        row["figures"].append(figure(f"{work.name} against the common shape", "ratio", ratios))
    return row


def cells(row: Row) -> list[str]:
    """A row of the table."""
    if "error" in row:
        return [row["name"], row["error"], *[""] * (len(HEAD) - 2)]
    speed, ratio, own = row["env_steps_per_s"], row.get("ratio"), row["arms"][OURS]
    interval = f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else "-"
    return [
        row["name"], rounded(speed[OURS]), rounded(speed.get(BASELINE)), f"{ratio['value']:.2f}" if ratio else "-",
        interval, f"{own['compile_s']:.1f}", rounded(own["first_call_s"]),
    ]  # fmt: skip


def selected(arguments: Any, where: str) -> list[Work]:
    """What the options ask for."""
    if not (arguments.shapes or arguments.runs):
        return works(where, arguments.quick)
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes or ["4x128"]]
    return [Work(CARTPOLE, envs, steps, runs) for envs, steps in shapes for runs in arguments.runs or [1]]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", help="CartPole alone, environments x steps, such as 64x128")
    options.add_argument("--runs", type=int, nargs="+", help="runs of each shape side by side")
    options.add_argument("--repetitions", type=int, help="pairs of blocks")
    arguments = options.parse_args()
    where = platform()
    repetitions = arguments.repetitions or (5 if arguments.quick else 11 if where == "cpu" else 7)
    seconds = 0.5 if where == "cpu" and not arguments.quick else 0.3
    rows = []
    for work in selected(arguments, where):
        progress(work.name)
        try:
            updates = updates_per_call(work, where)
            rows.append(measure(work, arms_for(work), updates, repetitions, seconds))
        except ChildError as error:
            rows.append({"name": work.name, **work._asdict(), "error": str(error)})
        write(arguments.out, rows)  # after each, so that what there is survives
    print(table(HEAD, [cells(row) for row in rows]))


if __name__ == "__main__":
    main()
