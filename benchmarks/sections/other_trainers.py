"""Training throughput of other PPO trainers and of ours: a process each, strictly alternating, in one session.

    python benchmarks/peers.py --out result.json            # installs what is missing, in environments of its own
    python benchmarks/peers.py --quick --out result.json    # under a minute; only what is installed already

The work is the same for all as far as each allows (adapters/protocol.py has the settings; what differs is in the
result), and a step is a step of one environment: num_envs x num_steps x updates. The learning rate is constant. A ratio
is made of two neighbouring blocks; only ratios are worth quoting. Blocks differ in length, each at least one update.
"""

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.children import call
from benchmarks.lib.intervals import median_interval
from benchmarks.lib.report import figure
from benchmarks.lib.worker_process import (
    NAMES,
    STEPPED_BY_PYTHON,
    PeerProcess,
    choose,
    end_peers_when_terminated,
    start,
)
from benchmarks.trainers.environments import PeerError

WARM_UP_BLOCKS = 2  # some compile in the first block, brax in the second one too
# Its two compilations would take a third of the time.
NOT_QUICK = {"brax": "left out of --quick"}
QUICK_SECONDS = 30.0  # after which no repetition begins
Row = dict[str, Any]


def updates_per_block(name: str, batch: int) -> int:
    """About half a second for any of them on two cores."""
    return max(1, min(10, 24_576 // batch) if name in STEPPED_BY_PYTHON else 100_000 // batch)


class Field:
    """The peers of one shape that are still in the race; those that are not are in `failed`, with the reason."""

    def __init__(self, stack: contextlib.ExitStack, shape: str, args: argparse.Namespace) -> None:
        self.args = args
        self.peers: dict[str, PeerProcess] = {}
        self.about: dict[str, Row] = {}
        self.failed = {name: why for name, why in NOT_QUICK.items() if args.quick and name in args.peers}
        self.shape = dict(zip(("num_envs", "num_steps"), map(int, shape.split("x")), strict=True))
        for name in choose(args.peers):
            self.attempt(name, lambda name=name: self.begin(stack, name))
            if not args.quick:
                self.attempt(name, lambda name=name: self.warm_up(name))
        if args.quick:  # side by side, so that there is time for all
            for name in list(self.peers):
                self.attempt(name, lambda name=name: self.warm_up(name))

    def attempt(self, name: str, action: Any) -> Any:
        """Its result, or None and the peer is out."""
        if name in self.failed:
            return None
        try:
            return action()
        except PeerError as error:
            self.peers.pop(name, None)
            self.failed[name] = str(error)
            print(f"{name}: {error}", flush=True)

    def begin(self, stack: contextlib.ExitStack, name: str) -> None:
        batch = self.shape["num_envs"] * self.shape["num_steps"]
        settings = {**self.shape, "updates_per_block": updates_per_block(name, batch)}
        self.peers[name] = stack.enter_context(start(name, not self.args.quick, self.args.install_limit, settings))

    def warm_up(self, name: str) -> None:
        peer = self.peers[name]
        self.about[name] = peer.ready(self.args.limit)
        blocks = [peer.ask({"do": "block"}, self.args.limit)["seconds"] for _ in range(WARM_UP_BLOCKS)]
        self.about[name]["warm_up_s"] = blocks

    def repetition(self, number: int, row: Row) -> None:
        """One block of each; every other time in the opposite order."""
        for name in list(self.peers)[:: -1 if number % 2 else 1]:
            answer = self.attempt(name, lambda name=name: self.peers[name].ask({"do": "block"}, self.args.limit))
            if answer:
                row[name] = {**answer, "env_steps_per_s": answer["env_steps"] / answer["seconds"]}


def measure(shape: str, args: argparse.Namespace) -> tuple[list[Row], Row]:
    """All repetitions of a shape, and what comes of them."""
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
    """Per peer the median speed and how many times as fast ours was, over the repetitions in which both answered."""
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
    """A line per peer, those that dropped out too."""
    lines = [f"{result['shape']:>14}  env steps/s  ours is that many times as fast  until trained twice"]
    for name, entry in result["summary"].items():
        about, ratio = result["peers"][name], entry["ours_over_it"]
        span = f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-"
        seconds = about["ready_s"] + sum(about["warm_up_s"])
        lines.append(f"{name:>14}  {entry['env_steps_per_s']:>11,.0f}  {span:>30}  {seconds:>17.1f} s")
    return "\n".join(lines + [f"{name:>14}  {reason}" for name, reason in result["failed"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64x128, few repetitions, installs nothing")
    parser.add_argument("--peers", nargs="+", default=list(NAMES), choices=NAMES, help="beside ours")
    parser.add_argument("--shapes", nargs="+", help="environments x steps [64x128 4x128]")
    parser.add_argument("--repetitions", type=int, help="[15; quick: 5]")
    parser.add_argument("--limit", type=float, default=120, help="seconds for an answer; later is a hang")
    parser.add_argument("--install-limit", type=float, default=900, help="seconds to install a peer")
    parser.add_argument("--out", type=Path, help="write every repetition as JSON")
    args = parser.parse_args()
    end_peers_when_terminated()
    args.shapes = args.shapes or (["64x128"] if args.quick else ["64x128", "4x128"])
    args.repetitions = args.repetitions or (5 if args.quick else 15)
    began, rows, results = time.perf_counter(), [], []
    for shape in args.shapes:
        more, result = measure(shape, args)
        rows += more
        results.append(result)
        if args.out:  # so that what there is survives an end by others
            args.out.write_text(json.dumps({"rows": rows}) + "\n")
        print(table(result), flush=True)
    figures = [
        {"shape": result["shape"], "peer": name, "figures": entry["figures"]}
        for result in results
        for name, entry in result["summary"].items()
        if name != "ours"
    ]
    if args.out:
        record = {"machine": call("machine_info"), "quick": args.quick, "seconds": time.perf_counter() - began}
        args.out.write_text(json.dumps({**record, "results": results, "rows": rows + figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
