"""Draws what `bench.py` has found, next to its file: throughput, where the time goes, scaling, learning.

python benchmarks/bench_pictures.py benchmarks/results/benchmark-NAME.json
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.lib.report import Row
from benchmarks.sections.time_to_target import draw as clock
from benchmarks.sections.update_breakdown import PARTS

OURS, BASELINE = "purejaxppo", "common shape"
COLOURS = "#0072b2", "#999999"  # Okabe and Ito's blue, told apart in grey as well
PART_COLOURS = "#009e73", "#56b4e9", "#f0e442", "#0072b2", "#cc79a7", "#999999"
GROWING = {
    "num_envs": "environments",
    "runs": "runs of 4 environments",
    "total_timesteps": "budget (env steps, 64 environments)",
}


def throughput(rows: Sequence[Row], subtitle: str, path: Path) -> None:
    """Bars of both arms, with the ratio where both were measured."""
    rows = [row for row in rows if "env_steps_per_s" in row][::-1]
    _, axes = plt.subplots(figsize=(9, 1.6 + 0.6 * len(rows)), layout="constrained")
    for i, row in enumerate(rows):
        for arm, shift, colour in ((OURS, 0.2, COLOURS[0]), (BASELINE, -0.2, COLOURS[1])):
            speed = row["env_steps_per_s"].get(arm)
            if speed is None:
                continue
            axes.barh(i + shift, speed, 0.38, color=colour, label=arm if i == len(rows) - 1 else None)
            ratio = f"  ({row['ratio']['value']:.2f} x)" if arm == OURS and "ratio" in row else ""
            axes.text(speed, i + shift, f" {speed / 1000:,.0f} k{ratio}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel("environment steps per second, updates included")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, 1.25 * max(max(row["env_steps_per_s"].values()) for row in rows))
    _finish(axes, f"Steady-state training\n{subtitle}", path)


def breakdown(rows: Sequence[Row], subtitle: str, path: Path) -> None:
    """One bar of parts for each shape, beside the time that the machine's limits leave."""
    shapes = [row for row in rows if "limit_env_steps_per_s" in row][::-1]
    _, axes = plt.subplots(figsize=(9, 2.2 + 0.9 * len(shapes)), layout="constrained")
    for i, limit in enumerate(shapes):
        per_step = {
            row["part"]: row["ns_per_env_step"] for row in rows if row.get("shape") == limit["shape"] and "part" in row
        }
        left = 0.0
        for part, colour in zip(PARTS, PART_COLOURS, strict=True):
            width = max(0.0, per_step[part])  # a difference of two measurements may be negative
            axes.barh(i, width, 0.4, left=left, color=colour, edgecolor="white", label=part if i == 0 else None)
            left += width
        bound = 1e9 / limit["limit_env_steps_per_s"]
        whole = per_step["whole update"]
        for x, text, style in ((bound, "limit", "--"), (whole, "whole", "-")):
            axes.plot([x, x], [i - 0.28, i + 0.28], style, color="black", linewidth=1.2)
            axes.text(x, i + 0.3, f"{text} {x:,.0f}", ha="center", va="bottom", fontsize=9)
    axes.set_yticks(range(len(shapes)), [f"CartPole\n{row['shape'].replace('x', ' x ')}" for row in shapes])
    axes.set_ylim(-0.5, len(shapes) - 0.3)
    axes.set_xlabel("nanoseconds per environment step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.08)
    _finish(axes, f"Where the time of an update goes\n{subtitle}", path)


def scaling(rows: Sequence[Row], subtitle: str, path: Path) -> None:
    """Speed above, memory below, for each thing that grows; all axes logarithmic."""
    sweeps = {name: [r for r in rows if r["sweep"] == name and "error" not in r] for name in GROWING}
    sweeps = {name: points for name, points in sweeps.items() if points}
    figure, grid = plt.subplots(
        2, len(sweeps), figsize=(4 * len(sweeps), 6), layout="constrained", sharex="col", sharey="row", squeeze=False
    )
    kinds = {"program": "program_bytes", "device, peak": "device_peak_bytes", "process, peak": "process_peak_bytes"}
    for column, (name, points) in enumerate(sweeps.items()):
        x = [point["value"] for point in points]
        top, bottom = grid[0, column], grid[1, column]
        top.loglog(x, [point["median_env_steps_per_s"] for point in points], "o-", color=COLOURS[0])
        for (label, kind), marker in zip(kinds.items(), ("o-", "^-", "s--"), strict=True):
            if all(point.get(kind) for point in points):
                bottom.loglog(x, [point[kind] / 1e6 for point in points], marker, label=label)
        bottom.set_xlabel(GROWING[name])
        bottom.set_xticks(x, [_short(value) for value in x])
        bottom.minorticks_off()
        for axes in (top, bottom):
            axes.grid(True, which="major", alpha=0.3)
    speeds = [point["median_env_steps_per_s"] for points in sweeps.values() for point in points]
    grid[0, 0].set_ylim(10 ** math.floor(math.log10(min(speeds))), 10 ** math.ceil(math.log10(max(speeds))))
    grid[0, 0].set_ylabel("environment steps per second")
    grid[1, 0].set_ylabel("memory (MB)")
    figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Speed and memory as things grow\n{subtitle}", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _short(value: float) -> str:
    """16, 512, 131 k or 2.1 M."""
    size, unit = (1e6, " M") if value >= 1e6 else (1e3, " k") if value >= 1e4 else (1, "")
    return f"{value / size:.3g}{unit}" if unit else f"{value:g}"


def _finish(axes: Axes, title: str, path: Path) -> None:
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure: Any = axes.figure
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


DRAW: dict[str, Callable[[Sequence[Row], str, Path], None]] = {
    "throughput": throughput,
    "breakdown": breakdown,
    "scaling": scaling,
    "clock": lambda rows, subtitle, path: clock([row for row in rows if "figures" not in row], path, subtitle),
}


def draw(result: dict[str, Any], out: Path) -> list[Path]:
    """The pictures of all sections that have something to show."""
    machine = result["machine"]
    subtitle = f"{machine['device']}, {machine['cpu_cores']} CPU cores, jax {machine['versions']['jax']}"
    paths = []
    for name, picture in DRAW.items():
        rows = result["sections"].get(name, {}).get("rows", [])
        if any("error" not in row for row in rows):
            paths.append(out.with_name(f"{out.stem}-{name}.png"))
            picture(rows, subtitle, paths[-1])
    return paths


if __name__ == "__main__":
    file = Path(sys.argv[1])
    for drawn in draw(json.loads(file.read_text()), file):
        print(f"drawn {drawn.name}")
