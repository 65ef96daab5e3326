"""Speed and peak memory against the number of environments, of runs, and against the budget.

Every point is a process of its own, so that each peak is its own. Memory must not grow with the budget.

    python -m benchmarks.sections.scaling [--quick] --out result.json
"""

import json
import statistics
from typing import Any

from benchmarks.lib.report import Row, figure, progress, rounded, section_parser, table, write
from benchmarks.lib.worker_process import WorkerError, call, end_workers_when_terminated, platform

NUM_STEPS = 128
# What grows -> its values, per platform (cpu or not) and quick or not.
POINTS: dict[str, dict[tuple[bool, bool], list[int]]] = {
    "num_envs": {
        (True, True): [16, 1024],
        (True, False): [4, 16, 64, 256, 1024, 4096],
        (False, True): [64, 2048],
        (False, False): [64, 2048, 32768],
    },
    "runs": {
        (True, True): [],  # the section on throughput has one
        (True, False): [1, 2, 4, 16, 64],
        (False, True): [16, 256],
        (False, False): [1, 16, 256, 1024],
    },
    "total_timesteps": {
        (True, True): [1 << 17, 1 << 19],
        (True, False): [1 << 17, 1 << 19, 1 << 21],
        (False, True): [1 << 20, 1 << 22],
        (False, False): [1 << 20, 1 << 22, 1 << 24],
    },
}
HEAD = ["what grows", "value", "env steps/s", "program MB", "device peak MB", "process peak MB"]


def measure(sweep: str, value: int, quick: bool) -> Row:
    """Returns one point, measured in a process of its own."""
    repetitions = 3 if quick else 5
    request = json.dumps({"sweep": sweep, "value": value, "repetitions": repetitions, "num_steps": NUM_STEPS})
    row: Row = {"name": f"{sweep} = {value}", "sweep": sweep, "value": value}
    try:
        # As the peak is wanted, an accelerator's memory is not to be taken as a whole.
        row |= call("scaling_worker", request, limit=240.0, env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    except WorkerError as error:
        return {**row, "error": str(error)}
    row["median_env_steps_per_s"] = statistics.median(row["env_steps_per_s"])
    figures = [figure(f"scaling, {row['name']}", "env steps/s", row["env_steps_per_s"])]
    if row["program_bytes"]:
        # The compiler's account is the same every time.
        figures.append(figure(f"program memory, {row['name']}", "bytes", [row["program_bytes"]] * 3, "lower"))
    return {**row, "figures": figures}


def cells(row: Row) -> list[str]:
    """Returns a row of the table."""
    if "error" in row:
        return [row["sweep"], f"{row['value']:,}", row["error"], "", "", ""]
    sizes: list[Any] = [row[name] for name in ("program_bytes", "device_peak_bytes", "process_peak_bytes")]
    mega = (rounded(size / 1e6) if size else "-" for size in sizes)
    return [row["sweep"], f"{row['value']:,}", rounded(row["median_env_steps_per_s"]), *mega]


def main() -> None:
    arguments = section_parser(__doc__).parse_args()
    end_workers_when_terminated()
    on_cpu = platform() == "cpu"
    rows = []
    for sweep, points in POINTS.items():
        for value in points[on_cpu, arguments.quick]:
            progress(f"{sweep} = {value:,}")
            rows.append(measure(sweep, value, arguments.quick))
            write(arguments.out, rows)
    print(table(HEAD, [cells(row) for row in rows]))


if __name__ == "__main__":
    main()
