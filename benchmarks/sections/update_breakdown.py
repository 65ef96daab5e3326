"""The time of each part of an update, against a bound from the limits of this machine.

The parts (`workers/breakdown_worker.py`) are compiled apart and timed in turn. The limits, measured in the same minutes
(`workers/hardware_limits.py`), are turned into a bound by the model in `lib/flop_model.py`. A gradient step, with its
share of shuffling and gathering, is the difference between four epochs and one, divided by the steps between them.
"Rest of learning" is what the learning phase takes beyond its gradient steps, such as the measures of drift over the
whole batch; "everything else" is what the whole takes beyond its parts, below zero where the compiler saves by fusing.

    python -m benchmarks.sections.update_breakdown [--quick] [--shapes 64x128 2048x32] --out result.json
"""

import statistics
from typing import Any

from benchmarks.lib.flop_model import limit, per_step
from benchmarks.lib.report import Row, add_shapes, figure, progress, rounded, section_parser, table, write
from benchmarks.lib.worker_process import WorkerError, call, end_workers_when_terminated, platform
from benchmarks.trainers.protocol import Settings

MINIBATCHES = Settings.num_minibatches
GRADIENT_STEPS = Settings.num_epochs * MINIBATCHES
CARTPOLE = 4, 2  # observation, actions
# What an update is made of, in order; together they are the whole.
PARTS = ["environment", "policy in the rollout", "advantage", "gradient steps", "rest of learning", "everything else"]


def split(times: dict[str, float]) -> dict[str, float]:
    """Turns one repetition of the worker into the seconds of each part of an update."""
    between = GRADIENT_STEPS - MINIBATCHES
    step = (times["epochs"] - times["one epoch"]) / between
    parts = {
        "environment": times["environment"],
        "policy in the rollout": times["rollout"] - times["environment"],
        "advantage": times["advantage"],
        "one gradient step": step,
        "gradient steps": GRADIENT_STEPS * step,
        "rest of learning": times["epochs"] - GRADIENT_STEPS * step,
        "everything else": times["whole update"] - times["rollout"] - times["advantage"] - times["epochs"],
    }
    return {**parts, "whole update": times["whole update"]}


def part_rows(shape: str, measured: Row) -> list[Row]:
    """Returns a row for each part of an update."""
    split_times = [split(times) for times in measured["seconds"]]
    whole = statistics.median(times["whole update"] for times in split_times)
    rows = []
    for name in split_times[0]:
        seconds = [times[name] for times in split_times]
        middle = statistics.median(seconds)
        row: Row = {
            "name": f"{shape} {name}", "shape": shape, "part": name, "seconds": seconds, "median_s": middle,
            "share": middle / whole, "ns_per_env_step": 1e9 * middle / measured["env_steps_per_update"],
        }  # fmt: skip
        if name in ("environment", "one gradient step", "whole update"):  # the others are differences, mostly noise
            row["figures"] = [figure(row["name"], "s", seconds, "lower")]
        rows.append(row)
    return rows


def limit_row(shape: str, measured: Row, machine: Row, where: str) -> Row:
    """Returns a row with the limit of a shape, and the share of it that is achieved."""
    size = measured["env_steps_per_update"]
    kernels = measured["kernels_per_update"] / size if where != "cpu" else 0.0
    bound = limit(per_step(*CARTPOLE), machine, kernels)
    achieved = size / statistics.median(times["whole update"] for times in measured["seconds"])
    ns = {f"{name}_ns": 1e9 * seconds for name, seconds in bound._asdict().items()}
    return {
        "name": f"{shape} limit", "shape": shape, **ns, "limit_env_steps_per_s": bound.env_steps_per_s,
        "env_steps_per_s": achieved, "achieved": achieved / bound.env_steps_per_s,
        "kernels_per_update": measured["kernels_per_update"],
    }  # fmt: skip


def print_tables(parts: list[Row], machines: list[Row], limits: list[Row]) -> None:
    """Prints the tables of parts, of the machine's limits, and of the bounds."""
    head = ["part", "ms per update", "ns per env step", "share"]
    cells = [
        [row["name"], rounded(1e3 * row["median_s"]), rounded(row["ns_per_env_step"]), f"{row['share']:.0%}"]
        for row in parts
    ]
    print(table(head, cells), end="\n\n")
    head = ["limit of this machine", "GFLOP/s", "Gtanh/s", "GB/s", "us per small kernel"]
    names = "matmul_flop_per_s", "tanh_per_s", "bytes_per_s"
    cells = [
        [row["name"], *(rounded(row[name] / 1e9) for name in names), rounded(1e6 * row["kernel_s"])] for row in machines
    ]
    print(table(head, cells), end="\n\n")
    head = ["ns per env step", "compute", "memory", "kernels", "(unfused)", "limit /s", "achieved /s", "achieved"]
    kinds = "compute_ns", "memory_ns", "chain_ns", "memory_unfused_ns", "limit_env_steps_per_s", "env_steps_per_s"
    cells = [[row["name"], *(rounded(row[kind]) for kind in kinds), f"{row['achieved']:.0%}"] for row in limits]
    print(table(head, cells))


def measure_limits(where: str, quick: bool) -> list[Row]:
    """Returns the limits of all cores, and on a CPU, unless quick, also those of one thread."""
    modes: dict[str, dict[str, str]] = {"all cores": {}} if where == "cpu" else {where: {}}
    if where == "cpu" and not quick:
        modes = {"one thread": {"NPROC": "1"}, **modes}
    return [{"name": name, **call("hardware_limits", env=env)} for name, env in modes.items()]


def main() -> None:
    options = section_parser(__doc__)
    add_shapes(options)
    options.add_argument("--repetitions", type=int)
    arguments = options.parse_args()
    end_workers_when_terminated()
    where = platform()
    shapes = ["64x128"] if arguments.quick else ["64x128", "2048x32"]
    shapes = arguments.shapes or (shapes if where == "cpu" else ["2048x128"])
    repetitions = arguments.repetitions or (5 if arguments.quick else 11)
    parts: list[Row] = []
    bounds: list[Row] = []
    failed: list[Any] = []
    progress("the limits of this machine")
    machines = measure_limits(where, arguments.quick)
    for name in shapes:
        progress(f"the parts of an update, {name}")
        try:
            measured = call("breakdown_worker", name, "--repetitions", str(repetitions), limit=300.0)
        except WorkerError as error:
            failed.append({"name": name, "error": str(error)})
            continue
        parts += part_rows(name, measured)
        bounds.append(limit_row(name, measured, machines[-1], where))
    write(arguments.out, [*parts, *machines, *bounds, *failed])
    print_tables(parts, machines, bounds)
    for row in failed:
        print(f"{row['name']}: {row['error']}")


if __name__ == "__main__":
    main()
