"""The time from the command to the first update of `purejaxppo train`, with an empty and a filled compilation cache.

Seconds from the start of the process until the first row of metrics is on the disk, CartPole-v1 with its preset cut to
two updates, so that there is a first update to see before a whole chunk of them is done. Every cold start has an empty
cache directory of its own; the warm starts that follow it share it.

    python -m benchmarks.sections.startup [--quick] --out result.json
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lib.report import Row, figure, progress, rounded, section_parser, table, write
from benchmarks.lib.worker_process import WorkerError, environment

ENV = "CartPole-v1"
UPDATES = 2
LIMIT = 120.0  # seconds
TRAIN = "from purejaxppo.cli.main import main; raise SystemExit(main())"
HELP = [sys.executable, "-c", TRAIN, "--help"]


def train_command(out: Path) -> list[str]:
    """Returns the command line's own entry point, in this interpreter."""
    from purejaxppo.envs.presets import preset

    config, _ = preset(ENV)
    budget = str(UPDATES * config.batch_size)
    return [sys.executable, "-c", TRAIN, "train", "--env", ENV, "--total-timesteps", budget, "--out", str(out)]


def first_update(out: Path, cache: Path) -> float:
    """Returns the seconds until the first row of metrics; raises WorkerError if there is none."""
    env = environment(XDG_CACHE_HOME=str(cache))
    start = time.perf_counter()
    process = subprocess.Popen(
        train_command(out), env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    rows, seconds = out / "metrics.jsonl", None
    while seconds is None and process.poll() is None and time.perf_counter() - start < LIMIT:
        time.sleep(0.005)
        if rows.exists() and rows.stat().st_size:
            seconds = time.perf_counter() - start
    if seconds is None:
        process.kill()
    _, errors = process.communicate()
    if seconds is None or process.returncode:
        raise WorkerError("train", f"exit code {process.returncode}: {' '.join(errors.strip().splitlines()[-1:])}")
    return seconds


def measure(colds: int, warms: int) -> dict[str, list[float]]:
    """Returns all repetitions of each kind of start."""
    seconds: dict[str, list[float]] = {"--help": [], "train, cold": [], "train, warm": []}
    with tempfile.TemporaryDirectory() as directory:
        for cold in range(colds):
            cache = Path(directory) / f"cache-{cold}"
            for number in range(1 + warms):
                progress(f"start {cold * (1 + warms) + number + 1} of {colds * (1 + warms)}")
                kind = "train, warm" if number else "train, cold"
                seconds[kind].append(first_update(Path(directory) / f"run-{cold}-{number}", cache))
            start = time.perf_counter()
            subprocess.run(HELP, check=True, env=environment(), stdout=subprocess.DEVNULL)
            seconds["--help"].append(time.perf_counter() - start)
    return seconds


def rows_of(seconds: dict[str, list[float]]) -> list[Row]:
    """Returns a row per kind of start."""
    return [
        {
            "name": name,
            "median_s": statistics.median(values),
            "figures": [figure(f"start: {name}", "s", values, "lower")],
        }
        for name, values in seconds.items()
    ]


def main() -> None:
    options = section_parser(__doc__)
    options.add_argument("--colds", type=int, help="cold starts")
    options.add_argument("--warms", type=int, help="warm starts after each of them")
    arguments = options.parse_args()
    colds, warms = (1, 1) if arguments.quick else (3, 4)
    rows = rows_of(measure(arguments.colds or colds, arguments.warms or warms))
    write(arguments.out, rows)
    cells = [[row["name"], rounded(row["median_s"]), *(_range(row))] for row in rows]
    print(table(["until the first update", "median s", "from", "to"], cells))


def _range(row: Row) -> tuple[str, str]:
    samples = row["figures"][0]["samples"]
    return rounded(min(samples)), rounded(max(samples))


if __name__ == "__main__":
    main()
