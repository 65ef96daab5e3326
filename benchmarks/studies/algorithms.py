"""Steady-state training throughput of each algorithm against ppo_clip's, alternating in one process.

python benchmarks/algorithms.py --shapes 64x128 --repetitions 15 --out result.json
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.lib.work import Block, Work, ours
from benchmarks.workers.machine_info import facts
from purejaxppo.algorithms import ALGORITHMS

REFERENCE = "ppo_clip"


def measure(shape: str, repetitions: int, seconds: float) -> dict[str, Any]:
    """All repetitions of one shape, e.g. 64x128."""
    envs, steps = map(int, shape.split("x"))
    work = Work("CartPole-v1", envs, steps)
    trial = max(1, 100_000 // (envs * steps))
    updates = max(1, round(seconds * trial / Block(ours(work, 1), trial).time()))
    arms = {name: Block(ours(work, algorithm=name), updates) for name in ALGORITHMS}
    rows = [{name: arm.time() for name, arm in arms.items()} for _ in range(repetitions)]
    block = envs * steps * updates
    print(f"{shape}, {updates} updates per block")
    summary = {}
    for name in ALGORITHMS:
        speed = block / statistics.median(row[name] for row in rows)
        ratios = [row[REFERENCE] / row[name] for row in rows]
        summary[name] = {"env_steps_per_s": speed, "ratio": statistics.median(ratios)}
        print(f"{name:>16} {speed:>10,.0f} env steps/s  {statistics.median(ratios):.3f} of {REFERENCE}'s "
              f"({min(ratios):.2f}..{max(ratios):.2f})", flush=True)  # fmt: skip
    return {"shape": shape, "updates_per_block": updates, "seconds": rows, "summary": summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["64x128"], help="environments x steps")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="per timed block of ppo_clip")
    parser.add_argument("--out", type=Path, help="write every repetition as JSON")
    arguments = parser.parse_args()
    results = [measure(shape, arguments.repetitions, arguments.seconds) for shape in arguments.shapes]
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": facts(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
