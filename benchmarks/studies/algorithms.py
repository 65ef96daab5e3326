"""Steady-state training throughput of each algorithm against ppo_clip's, alternating in one process.

python -m benchmarks.studies.algorithms --shapes 64x128 --repetitions 15 --out result.json
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lib.report import add_shapes, parser, sizes
from benchmarks.trainers.ours import warm_block
from benchmarks.trainers.protocol import Settings
from benchmarks.workers.machine_info import machine_info
from purejaxppo.algorithms import ALGORITHMS

REFERENCE = "ppo_clip"


def measure(shape: str, repetitions: int, seconds: float) -> dict[str, Any]:
    """Returns all repetitions of one shape, e.g. 64x128."""
    work = Settings(**sizes(shape))
    trial = max(1, 100_000 // work.env_steps)
    updates = max(1, round(seconds * trial / warm_block(replace(work, updates_per_block=trial)).time()))
    work = replace(work, updates_per_block=updates)
    arms = {name: warm_block(replace(work, config={"algorithm": name})) for name in ALGORITHMS}
    rows = [{name: arm.time() for name, arm in arms.items()} for _ in range(repetitions)]
    print(f"{shape}, {updates} updates per block")
    summary = {}
    for name in ALGORITHMS:
        speed = work.block_steps / statistics.median(row[name] for row in rows)
        ratios = [row[REFERENCE] / row[name] for row in rows]
        summary[name] = {"env_steps_per_s": speed, "ratio": statistics.median(ratios)}
        print(f"{name:>16} {speed:>10,.0f} env steps/s  {statistics.median(ratios):.3f} of {REFERENCE}'s "
              f"({min(ratios):.2f}..{max(ratios):.2f})", flush=True)  # fmt: skip
    return {"shape": shape, "updates_per_block": updates, "seconds": rows, "summary": summary}


def main() -> None:
    options = parser(__doc__)
    add_shapes(options, ["64x128"])
    options.add_argument("--repetitions", type=int, default=15)
    options.add_argument("--seconds", type=float, default=0.5, help="per timed block of ppo_clip")
    options.add_argument("--out", type=Path, help="write every repetition as JSON")
    arguments = options.parse_args()
    results = [measure(name, arguments.repetitions, arguments.seconds) for name in arguments.shapes]
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine_info(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
