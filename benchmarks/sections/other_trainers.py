"""Training throughput of other PPO trainers and of ours: a process each, strictly alternating, in one session.

    python -m benchmarks.sections.other_trainers [--quick] --out result.json

It installs what is missing, in environments of its own; with --quick it takes under a minute and has what is installed.

The work is the same for all as far as each allows (trainers/protocol.py has the settings; what differs is in the
result), and a step is a step of one environment: num_envs x num_steps x updates. A ratio is made of two neighbouring
blocks; only ratios are worth quoting. Blocks differ in length, each at least one update.
"""

import argparse
import contextlib
import statistics
import time
from dataclasses import asdict, replace
from typing import Any

from benchmarks.lib.intervals import median_interval
from benchmarks.lib.report import Row, add_shapes, figure, section_parser, sizes, write
from benchmarks.lib.worker_process import WorkerError, WorkerProcess, call, end_workers_when_terminated
from benchmarks.trainers.environments import NAMES, STEPPED_BY_PYTHON, ours_first, start
from benchmarks.trainers.protocol import Settings

WARM_UP_BLOCKS = 2  # some compile in the first block, brax in the second one too
# Its two compilations would take a third of the time.
NOT_QUICK = {"brax": "left out of --quick"}
QUICK_SECONDS = 30.0  # after which no repetition begins


def updates_per_block(name: str, batch: int) -> int:
    """Returns a number of updates that takes any of the trainers about half a second on two cores."""
    return max(1, min(10, 24_576 // batch) if name in STEPPED_BY_PYTHON else 100_000 // batch)


class Field:
    """The trainers of one shape that are measured; those that have failed are in `failed`, with the reason."""

    def __init__(self, stack: contextlib.ExitStack, shape: str, args: argparse.Namespace) -> None:
        self.args = args
        self.workers: dict[str, WorkerProcess] = {}
        self.about: dict[str, Row] = {}
        self.failed = {name: why for name, why in NOT_QUICK.items() if args.quick and name in args.trainers}
        self.settings = Settings(**sizes(shape))
        for name in ours_first(args.trainers):
            self.attempt(name, lambda name=name: self.begin(stack, name))
            if not args.quick:
                self.attempt(name, lambda name=name: self.warm_up(name))
        if args.quick:  # after all have started, so that they compile at the same time
            for name in list(self.workers):
                self.attempt(name, lambda name=name: self.warm_up(name))

    def attempt(self, name: str, action: Any) -> Any:
        """Returns the result of an action; if that fails, takes the trainer out and returns None."""
        if name in self.failed:
            return None
        try:
            return action()
        except WorkerError as error:
            self.workers.pop(name, None)
            self.failed[name] = error.reason
            print(error, flush=True)
        return None

    def begin(self, stack: contextlib.ExitStack, name: str) -> None:
        """Starts a trainer's process."""
        settings = replace(self.settings, updates_per_block=updates_per_block(name, self.settings.env_steps))
        install_limit = None if self.args.quick else self.args.install_limit
        self.workers[name] = stack.enter_context(start(name, asdict(settings), install_limit))

    def warm_up(self, name: str) -> None:
        """Waits until the trainer is ready, and trains blocks that do not count."""
        self.about[name] = self.workers[name].ready(self.args.limit)
        blocks = [self.block(name)["seconds"] for _ in range(WARM_UP_BLOCKS)]
        self.about[name]["warm_up_s"] = blocks

    def block(self, name: str) -> Row:
        """Trains one block."""
        return self.workers[name].ask({"do": "train", "blocks": 1}, self.args.limit)

    def repetition(self, number: int, row: Row) -> None:
        """Adds one block of each to the row; every other time in the opposite order."""
        for name in list(self.workers)[:: -1 if number % 2 else 1]:
            answer = self.attempt(name, lambda name=name: self.block(name))
            if answer:
                row[name] = {**answer, "env_steps_per_s": answer["env_steps"] / answer["seconds"]}


def measure(shape: str, args: argparse.Namespace) -> tuple[list[Row], Row]:
    """Returns all repetitions of a shape, and their summary."""
    began, rows = time.perf_counter(), list[Row]()
    with contextlib.ExitStack() as stack:
        field = Field(stack, shape, args)
        for number in range(args.repetitions):
            if args.quick and number > 1 and time.perf_counter() - began > QUICK_SECONDS:
                break
            rows.append({"shape": shape, "repetition": number})
            field.repetition(number, rows[-1])
    return rows, {"shape": shape, "peers": field.about, "failed": field.failed, "summary": summarize(rows)}


def summarize(rows: list[Row]) -> dict[str, Row]:
    """Returns per trainer the median speed and how many times as fast ours was, where both answered."""
    summary = {}
    for name in NAMES:
        mine = [row for row in rows if name in row]
        if mine:
            speeds = [row[name]["env_steps_per_s"] for row in mine]
            both = [row for row in mine if "ours" in row]
            ours, theirs = ([row[key]["env_steps_per_s"] for row in both] for key in ("ours", name))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            ratio = median_interval(ratios)._asdict() if both else None
            summary[name] = {
                "env_steps_per_s": statistics.median(speeds),
                "ours_over_it": ratio,
                "figures": [figure(f"{mine[0]['shape']}: ours over {name}", "ratio", ratios)] if both else [],
            }
    return summary


def table(result: Row) -> str:
    """Returns a line per trainer, including those that failed."""
    lines = [f"{result['shape']:>14}  env steps/s  ours is that many times as fast  until trained twice"]
    for name, entry in result["summary"].items():
        about, ratio = result["peers"][name], entry["ours_over_it"]
        span = f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-"
        seconds = about["ready_s"] + sum(about["warm_up_s"])
        lines.append(f"{name:>14}  {entry['env_steps_per_s']:>11,.0f}  {span:>30}  {seconds:>17.1f} s")
    return "\n".join(lines + [f"{name:>14}  {reason}" for name, reason in result["failed"].items()])


def main() -> None:
    options = section_parser(__doc__)
    options.add_argument("--trainers", nargs="+", default=list(NAMES), choices=NAMES, help="beside ours")
    add_shapes(options)
    options.add_argument("--repetitions", type=int, help="[15; quick: 5]")
    options.add_argument("--limit", type=float, default=120, help="seconds for an answer; later is a hang")
    options.add_argument("--install-limit", type=float, default=900, help="seconds to install a trainer")
    args = options.parse_args()
    end_workers_when_terminated()
    shapes = args.shapes or (["64x128"] if args.quick else ["64x128", "4x128"])
    args.repetitions = args.repetitions or (5 if args.quick else 15)
    began, rows, results = time.perf_counter(), list[Row](), list[Row]()
    for name in shapes:
        more, result = measure(name, args)
        rows += more
        results.append(result)
        write(args.out, rows)  # so that what there is survives an end by others
        print(table(result), flush=True)
    figures = [
        {"shape": result["shape"], "peer": name, "figures": entry["figures"]}
        for result in results
        for name, entry in result["summary"].items()
        if name != "ours"
    ]
    record = {"machine": call("machine_info"), "quick": args.quick, "seconds": time.perf_counter() - began}
    write(args.out, rows + figures, **record, results=results)


if __name__ == "__main__":
    main()
