"""Learning against the clock: seconds from the start of a process until its policy balances the pole of CartPole-v1.

    python benchmarks/clock.py --out result.json            # five seeds; a claim needs ten: --seeds 10
    python benchmarks/clock.py --quick --out result.json    # one seed, under 30 seconds, what is installed already

Imports, compilation (nothing is kept from before) and training count; evaluations do not. After every second update the
policy plays 64 greedy episodes, in the same NumPy code for everyone, until their mean return is 475. Everyone has the
hyperparameters of our CartPole preset as far as it allows; what differs is in the result. A run that does not arrive in
its budget of steps or seconds is kept, and counts as slower than any that does.
"""

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.children import PLATFORM_VARIABLE, call
from benchmarks.lib.report import figure
from benchmarks.lib.worker_process import NAMES, PeerProcess, choose, end_peers_when_terminated, start
from benchmarks.trainers.environments import PeerError
from purejaxppo.presets import TARGETS, preset

ENV, EPISODES, UPDATES_PER_BLOCK = "CartPole-v1", 64, 2
QUICK_SECONDS, LEAST_SECONDS = 24.0, 4.0  # for all; and without as much left, a peer is not begun
NOT_QUICK = {"brax": "left out of --quick", "sbx": "left out of --quick"}
TICKS = (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300)
Row = dict[str, Any]


def settings_of(seed: int) -> dict[str, Any]:
    """The preset in the words of the protocol."""
    values = preset(ENV)
    batch = values["num_envs"] * values["num_steps"]
    values["total_updates"] = values.pop("total_timesteps") // batch
    return {**values, "seed": seed, "updates_per_block": UPDATES_PER_BLOCK}


def learn(peer: PeerProcess, row: Row, blocks: int, limit: float) -> None:
    """Fills the row while the peer trains, until it arrives; raises PeerError if it dies or hangs."""
    row["about"] = peer.ready(limit)
    row["ready_s"], watching, steps = row["about"]["ready_s"], 0.0, 0
    for number in range(blocks):
        left = limit - (time.perf_counter() - peer.started - watching)
        steps += peer.ask({"do": "block"}, left)["env_steps"]
        trained = peer.answered
        request = {"do": "evaluate", "episodes": EPISODES, "seed": 1000 * row["seed"] + number}
        score = peer.ask(request, limit)["return_mean"]
        row["curve"].append([trained - peer.started - watching, steps, score])
        watching += peer.answered - trained
        row["evaluation_s"] = watching
        if score >= TARGETS[ENV]:
            row["reached_s"] = row["curve"][-1][0]
            return
    row["why_not"] = f"not in {steps:,} env steps"


def run(name: str, seed: int, args: argparse.Namespace, limit: float) -> Row:
    """One run of one peer, whatever becomes of it."""
    row: Row = {"peer": name, "seed": seed, "reached_s": None, "curve": [], "limit_s": limit}
    if args.quick and name in NOT_QUICK:
        return {**row, "skipped": NOT_QUICK[name]}
    if args.quick and limit < LEAST_SECONDS:
        return {**row, "skipped": "no time left in --quick"}
    settings = settings_of(seed)
    try:
        peer = start(name, not args.quick, args.install_limit, settings)
    except PeerError as error:
        return {**row, "skipped": str(error)}
    with peer:
        try:
            learn(peer, row, settings["total_updates"] // UPDATES_PER_BLOCK, limit)
        except PeerError as error:
            late = time.perf_counter() - peer.started - row.get("evaluation_s", 0.0) >= limit
            row["why_not"] = f"not in {limit:.0f} s" if late else str(error)
    return row


def all_runs(args: argparse.Namespace) -> list[Row]:
    """A seed of each peer in turn; one that cannot be run at all is not tried again."""
    began, rows = time.perf_counter(), list[Row]()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in choose(args.peers):
            if any(row["peer"] == name and "skipped" in row for row in rows):
                continue
            left = QUICK_SECONDS - (time.perf_counter() - began)
            rows.append(run(name, seed, args, min(args.limit, left) if args.quick else args.limit))
            print(line(rows[-1]), flush=True)
            if args.out:  # so that what there is survives an end by others
                args.out.write_text(json.dumps({"rows": rows}) + "\n")
    return rows


def line(row: Row) -> str:
    """A run in words."""
    head = f"{row['peer']:>14}  seed {row['seed']}  "
    if row["reached_s"] is None:
        return head + (row.get("skipped") or f"{TARGETS[ENV]:g} not reached: {row['why_not']}")
    seconds, steps, _ = row["curve"][-1]
    return head + f"{seconds:6.1f} s, of which {row['ready_s']:.1f} until ready; {steps:,} env steps"


def summarize(rows: list[Row]) -> dict[str, Row]:
    """Per peer the median and range of the seconds; None where it is not finite."""
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
    """A line per peer."""

    def text(seconds: float | None) -> str:
        return "never" if seconds is None else f"{seconds:.1f}"

    lines = [f"{'':>14}  median s  range            until ready  reached"]
    for name, entry in summary.items():
        span = f"{text(entry['min_s'])} to {text(entry['max_s'])}"
        lines.append(f"{name:>14}  {text(entry['median_s']):>8}  {span:<15}  {text(entry['median_ready_s']):>11}  "
                     f"{entry['reached']} of {entry['runs']}")  # fmt: skip
    return "\n".join(lines)


def figures(rows: list[Row]) -> list[Row]:
    """What is compared between two files: the seconds of the peers whose every run arrived."""
    found = []
    for name in NAMES:
        seconds = [row["reached_s"] for row in rows if row["peer"] == name and "skipped" not in row]
        if seconds and None not in seconds:
            found.append(
                {"peer": name, "curve": [], "figures": [figure(f"{name} to {TARGETS[ENV]:g}", "s", seconds, "lower")]}
            )
    return found


def draw(rows: list[Row], path: Path, subtitle: str = "") -> None:
    """Evaluation return against seconds, a line per run and a colour per peer."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    drawn = set()
    for row in rows:
        if row["curve"]:
            name = row["peer"]
            seconds, _, returns = zip(*row["curve"], strict=True)
            label = name.replace("_", " ") if name not in drawn else None
            axes.plot(seconds, returns, color=f"C{NAMES.index(name)}", label=label, linewidth=1.2, alpha=0.8)
            axes.plot(seconds[-1:], returns[-1:], "o", color=f"C{NAMES.index(name)}", markersize=4)
            drawn.add(name)
    axes.axhline(TARGETS[ENV], color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(left=0.8 * min((row["curve"][0][0] for row in rows if row["curve"]), default=TICKS[0]))
    left, right = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if left <= tick <= right], minor=False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("seconds since the process was started, evaluations left out")
    axes.set_ylabel(f"mean return of {EPISODES} greedy episodes")
    axes.set_title("\n".join(filter(None, [f"{ENV} until {TARGETS[ENV]:g}", subtitle])), fontsize=11)
    if drawn:
        axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, installs nothing")
    parser.add_argument("--peers", nargs="+", default=list(NAMES), choices=NAMES, help="beside ours")
    parser.add_argument("--seeds", type=int, help="[5; quick: 1]")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=120, help="seconds for a run")
    parser.add_argument("--install-limit", type=float, default=900, help="seconds to install a peer")
    parser.add_argument("--out", type=Path, help="write every run as JSON, and the picture beside it")
    args = parser.parse_args()
    end_peers_when_terminated()
    args.seeds = args.seeds or (1 if args.quick else 5)
    began = time.perf_counter()
    rows = all_runs(args)
    summary = summarize(rows)
    print(table(summary))
    if args.out:
        record = {"machine": call("machine_info"), "quick": args.quick, "seconds": time.perf_counter() - began}
        record |= {"settings": settings_of(0), "target": TARGETS[ENV], "episodes": EPISODES, "greedy": True}
        args.out.write_text(json.dumps({**record, "summary": summary, "rows": rows + figures(rows)}, indent=1) + "\n")
        if PLATFORM_VARIABLE not in os.environ:  # bench.py draws it beside its own file
            picture = args.out.with_suffix(".png")
            draw(rows, picture)
            print(f"picture: {picture}")


if __name__ == "__main__":
    main()
