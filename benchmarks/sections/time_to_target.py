"""Learning against the clock: seconds from the start of a process until its policy balances the pole of CartPole-v1.

    python -m benchmarks.sections.time_to_target [--quick] --out result.json

It runs five seeds of each trainer; a claim needs ten (--seeds 10). With --quick it is one seed of what is installed, in
under 30 seconds.

Imports, compilation (nothing is kept from before) and training count; evaluations do not. After every second update the
policy plays 64 greedy episodes, in the same NumPy code for everyone, until their mean return is 475. Everyone has the
hyperparameters of our CartPole preset as far as it allows; what differs is in the result. A run that does not arrive in
its budget of steps or seconds is kept, and counts as slower than any that does.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.lib.report import Row, figure, section_parser, write
from benchmarks.lib.worker_process import (
    PLATFORM_VARIABLE,
    WorkerError,
    WorkerProcess,
    call,
    end_workers_when_terminated,
)
from benchmarks.trainers.environments import NAMES, ours_first, start
from purejaxppo.config.presets import TARGETS, tuned_settings

ENV, EPISODES, UPDATES_PER_BLOCK = "CartPole-v1", 64, 2
QUICK_SECONDS, LEAST_SECONDS = 24.0, 4.0  # for all; and without as much left, a trainer is not begun
NOT_QUICK = {"brax": "left out of --quick", "sbx": "left out of --quick"}


def settings_of(seed: int) -> dict[str, Any]:
    """Returns the preset in the words of the protocol."""
    values = tuned_settings(ENV, "ppo_clip")
    batch = values["num_envs"] * values["num_steps"]
    values["total_updates"] = values.pop("total_timesteps") // batch
    return {**values, "seed": seed, "updates_per_block": UPDATES_PER_BLOCK}


def learn(worker: WorkerProcess, row: Row, blocks: int, limit: float) -> None:
    """Fills the row while a trainer trains, until it arrives; raises WorkerError if it dies or hangs."""
    row["about"] = worker.ready(limit)
    row["ready_s"], watching, steps = row["about"]["ready_s"], 0.0, 0
    for number in range(blocks):
        left = limit - (time.perf_counter() - worker.started - watching)
        steps += worker.ask({"do": "train", "blocks": 1}, left)["env_steps"]
        trained = worker.answered
        request = {"do": "evaluate", "episodes": EPISODES, "seed": 1000 * row["seed"] + number}
        score = worker.ask(request, limit)["return_mean"]
        row["curve"].append([trained - worker.started - watching, steps, score])
        watching += worker.answered - trained
        row["evaluation_s"] = watching
        if score >= TARGETS[ENV]:
            row["reached_s"] = row["curve"][-1][0]
            return
    row["why_not"] = f"not in {steps:,} env steps"


def run(name: str, seed: int, args: argparse.Namespace, limit: float) -> Row:
    """Returns one run of one trainer, also if it fails."""
    row: Row = {"peer": name, "seed": seed, "reached_s": None, "curve": [], "limit_s": limit}
    if args.quick and name in NOT_QUICK:
        return {**row, "skipped": NOT_QUICK[name]}
    if args.quick and limit < LEAST_SECONDS:
        return {**row, "skipped": "no time left in --quick"}
    settings = settings_of(seed)
    try:
        worker = start(name, settings, None if args.quick else args.install_limit)
    except WorkerError as error:
        return {**row, "skipped": error.reason}
    with worker:
        try:
            learn(worker, row, settings["total_updates"] // UPDATES_PER_BLOCK, limit)
        except WorkerError as error:
            late = time.perf_counter() - worker.started - row.get("evaluation_s", 0.0) >= limit
            row["why_not"] = f"not in {limit:.0f} s" if late else error.reason
    return row


def runs(args: argparse.Namespace) -> Iterator[Row]:
    """Yields a seed of each trainer in turn; one that cannot be run at all is not tried again."""
    began, skipped = time.perf_counter(), set[str]()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in ours_first(args.trainers):
            if name in skipped:
                continue
            left = QUICK_SECONDS - (time.perf_counter() - began)
            row = run(name, seed, args, min(args.limit, left) if args.quick else args.limit)
            if "skipped" in row:
                skipped.add(name)
            yield row


def line(row: Row) -> str:
    """Returns a run in words."""
    head = f"{row['peer']:>14}  seed {row['seed']}  "
    if row["reached_s"] is None:
        return head + (row.get("skipped") or f"{TARGETS[ENV]:g} not reached: {row['why_not']}")
    seconds, steps, _ = row["curve"][-1]
    return head + f"{seconds:6.1f} s, of which {row['ready_s']:.1f} until ready; {steps:,} env steps"


def summarize(rows: list[Row]) -> dict[str, Row]:
    """Returns per trainer the median and range of the seconds; None where it is not finite."""
    summary = {}
    for name in NAMES:
        runs = [row for row in rows if row["peer"] == name and "skipped" not in row]
        if runs:
            seconds = sorted(math.inf if row["reached_s"] is None else row["reached_s"] for row in runs)
            figures = {"median_s": statistics.median(seconds), "min_s": seconds[0], "max_s": seconds[-1]}
            ready = [row["ready_s"] for row in runs if "ready_s" in row]
            summary[name] = {
                "runs": len(runs),
                "reached": sum(map(math.isfinite, seconds)),
                **{key: value if math.isfinite(value) else None for key, value in figures.items()},
                "median_ready_s": statistics.median(ready) if ready else None,
            }
    return summary


def table(summary: dict[str, Row]) -> str:
    """Returns a line per trainer."""

    def text(seconds: float | None) -> str:
        return "never" if seconds is None else f"{seconds:.1f}"

    lines = [f"{'':>14}  median s  range            until ready  reached"]
    for name, entry in summary.items():
        span = f"{text(entry['min_s'])} to {text(entry['max_s'])}"
        lines.append(f"{name:>14}  {text(entry['median_s']):>8}  {span:<15}  {text(entry['median_ready_s']):>11}  "
                     f"{entry['reached']} of {entry['runs']}")  # fmt: skip
    return "\n".join(lines)


def figures(rows: list[Row]) -> list[Row]:
    """Returns the figures to be compared between files: the seconds of the trainers all of whose runs arrived."""
    found = []
    for name in NAMES:
        seconds = [row["reached_s"] for row in rows if row["peer"] == name and "skipped" not in row]
        if seconds and None not in seconds:
            found.append(
                {"peer": name, "curve": [], "figures": [figure(f"{name} to {TARGETS[ENV]:g}", "s", seconds, "lower")]}
            )
    return found


def record(args: argparse.Namespace) -> Row:
    """Returns what is needed to understand the rows."""
    what = {"env": ENV, "settings": settings_of(0), "target": TARGETS[ENV], "episodes": EPISODES, "greedy": True}
    return {"machine": call("machine_info"), "quick": args.quick, **what}


def main() -> None:
    options = section_parser(__doc__)
    options.add_argument("--trainers", nargs="+", default=list(NAMES), choices=NAMES, help="beside ours")
    options.add_argument("--seeds", type=int, help="[5; quick: 1]")
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--limit", type=float, default=120, help="seconds for a run")
    options.add_argument("--install-limit", type=float, default=900, help="seconds to install a trainer")
    args = options.parse_args()
    end_workers_when_terminated()
    args.seeds = args.seeds or (1 if args.quick else 5)
    about, began, rows = record(args), time.perf_counter(), list[Row]()
    for row in runs(args):
        rows.append(row)
        print(line(row), flush=True)
        write(args.out, rows, **about)  # so that what there is survives an end by others
    summary = summarize(rows)
    print(table(summary))
    about |= {"seconds": time.perf_counter() - began, "summary": summary}
    write(args.out, rows + figures(rows), **about)
    if args.out and PLATFORM_VARIABLE not in os.environ:  # run.py draws it beside its own file
        from benchmarks.lib import plots

        picture = args.out.with_suffix(".png")
        plots.time_to_target({**about, "rows": rows}, "", picture)
        print(f"picture: {picture}")


if __name__ == "__main__":
    main()
