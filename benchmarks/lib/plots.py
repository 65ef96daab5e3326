"""Draws the results of `run.py`, next to its file: throughput, parts of an update, scaling, learning.

python -m benchmarks.lib.plots benchmarks/results/benchmark-NAME.json
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.lib.report import Row
from benchmarks.trainers.environments import NAMES

OURS, BASELINE = "purejaxppo", "common shape"
COLOURS = "#0072b2", "#999999"  # Okabe and Ito's blue, told apart in grey as well
PART_COLOURS = "#009e73", "#56b4e9", "#f0e442", "#0072b2", "#cc79a7", "#999999"
UPDATE_PARTS = "rollout", "other loops", "gradient steps", "outside loops"
TICKS = (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300)  # seconds
GROWING = {
    "num_envs": "environments",
    "runs": "runs of 4 environments",
    "total_timesteps": "budget (env steps, 64 environments)",
}


def throughput(content: Row, subtitle: str, path: Path) -> None:
    """Draws bars of both arms, with the ratio where both were measured."""
    rows = [row for row in content["rows"] if "env_steps_per_s" in row][::-1]
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


def breakdown(content: Row, subtitle: str, path: Path) -> None:
    """Draws one bar of parts for each shape, beside the time that the machine's limits leave."""
    rows = content["rows"]
    shapes = [row for row in rows if "limit_env_steps_per_s" in row][::-1]
    _, axes = plt.subplots(figsize=(9, 2.2 + 0.9 * len(shapes)), layout="constrained")
    for i, limit in enumerate(shapes):
        per_step = {
            row["part"]: row["ns_per_env_step"] for row in rows if row.get("shape") == limit["shape"] and "part" in row
        }
        left = 0.0
        parts = [part for part in per_step if part not in ("one gradient step", "whole update")]
        for part, colour in zip(parts, PART_COLOURS, strict=True):
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


def scaling(content: Row, subtitle: str, path: Path) -> None:
    """Draws speed above, memory below, for each thing that grows; all axes logarithmic."""
    sweeps = {name: [r for r in content["rows"] if r["sweep"] == name and "error" not in r] for name in GROWING}
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


def time_to_target(content: Row, subtitle: str, path: Path) -> None:
    """Draws evaluation return against seconds, a line per run and a colour per trainer."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    drawn = set()
    curves = [(row["peer"], row["curve"]) for row in content["rows"] if row["curve"]]
    for name, curve in curves:
        seconds, _, returns = zip(*curve, strict=True)
        colour = f"C{NAMES.index(name)}"
        label = name.replace("_", " ") if name not in drawn else None
        axes.plot(seconds, returns, color=colour, label=label, linewidth=1.2, alpha=0.8)
        axes.plot(seconds[-1:], returns[-1:], "o", color=colour, markersize=4)
        drawn.add(name)
    axes.axhline(content["target"], color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(left=0.8 * min((curve[0][0] for _, curve in curves), default=TICKS[0]))
    left, right = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if left <= tick <= right], minor=False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("seconds since the process was started, evaluations left out")
    axes.set_ylabel(f"mean return of {content['episodes']} greedy episodes")
    title = f"CartPole-v1 until {content['target']:g}"
    axes.set_title("\n".join(filter(None, [title, subtitle])), fontsize=11)
    if drawn:
        axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def compiled(content: Row, subtitle: str, path: Path) -> None:
    """Draws the launches of an update by the part that they belong to, with the modelled speed; of a TPU the bytes."""
    launches = content["compiler"] == "cuda"
    rows = [row for row in content["rows"] if "error" not in row][::-1]
    _, axes = plt.subplots(figsize=(9, 1.9 + 0.5 * len(rows)), layout="constrained")
    widths = [_by_part(row["loops"], launches) for row in rows]
    lengths = sorted(sum(width.values()) for width in widths)
    # One bar that is much longer than all others is cut, or nothing would be seen of them.
    longest = 1.2 * lengths[-2] if len(lengths) > 1 and lengths[-1] > 3 * lengths[-2] else lengths[-1]
    for i, (row, width) in enumerate(zip(rows, widths, strict=True)):
        left = 0.0
        for part, colour in zip(UPDATE_PARTS, PART_COLOURS, strict=False):
            label = part if i == len(rows) - 1 else None
            seen = max(0.0, min(width[part], longest - left))
            axes.barh(i, seen, 0.6, left=left, color=colour, edgecolor="white", label=label)
            left += width[part]
        if launches:
            text = f"{left:,.0f}: {row['env_steps_per_s'] / 1e6:.3g} M env steps/s"
        else:
            text = f"{left:,.0f} MB: {row['bytes_ms_per_update']:.3g} ms"
        cut = "... cut, " if left > longest else ""
        axes.text(
            min(left, longest) + 0.01 * longest, i, f"{cut}{text}", va="center", fontsize=9,
            backgroundcolor="white" if cut else "none",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{row['name']}\n{row['work']}" for row in rows], fontsize=8)
    axes.set_xlim(0, 1.6 * longest)
    axes.set_xlabel("launches per update" if launches else "megabytes per update to and from the chip's main memory")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    what = "What an update would launch, and a model of its speed" if launches else "What an update would move"
    _finish(axes, f"{what}: compiled, not run\n{subtitle}", path)


def _by_part(loops: list[Row], launches: bool) -> dict[str, float]:
    """Returns the launches, or megabytes, of each part of an update.

    The first loop in an update collects the rollout; of the others, that which moves most makes the gradient steps.
    """
    starts = [i for i, loop in enumerate(loops) if loop["depth"] == 2]
    groups = [range(start, end) for start, end in zip(starts, [*starts[1:], len(loops)], strict=True)]
    most = max(groups[1:], key=lambda group: sum(loops[i]["per_update"] * loops[i]["bytes"] for i in group), default=())
    parts = {i: "rollout" if group is groups[0] else "other loops" for group in groups for i in group}
    parts |= dict.fromkeys(most, "gradient steps")
    width = dict.fromkeys(UPDATE_PARTS, 0.0)
    for i, loop in enumerate(loops):
        each = loop["kernels"] + loop["copies"] if launches else loop["bytes"] / 1e6
        width[parts.get(i, "outside loops")] += loop["per_update"] * each
    return width


def _short(value: float) -> str:
    """Writes 16, 512, 131 k or 2.1 M."""
    size, unit = (1e6, " M") if value >= 1e6 else (1e3, " k") if value >= 1e4 else (1, "")
    return f"{value / size:.3g}{unit}" if unit else f"{value:g}"


def _finish(axes: Axes, title: str, path: Path) -> None:
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure: Any = axes.figure
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


DRAW: dict[str, Callable[[Row, str, Path], None]] = {
    "throughput": throughput,
    "breakdown": breakdown,
    "scaling": scaling,
    "clock": time_to_target,
    "compiled": compiled,
}


def draw(result: dict[str, Any], out: Path) -> list[Path]:
    """Draws the pictures of all sections that have something to show, and returns their paths."""
    machine = result["machine"]
    jax = f"jax {machine['versions']['jax']}"
    paths = []
    for name, picture in DRAW.items():
        content = result["sections"].get(name, {"rows": []})
        if any("error" not in row for row in content["rows"]):
            paths.append(out.with_name(f"{out.stem}-{name}.png"))
            cores = [] if name == "compiled" else [f"{machine['cpu_cores']} CPU cores"]  # which have not run it
            picture(content, ", ".join([machine["device"], *cores, jax]), paths[-1])
    return paths


if __name__ == "__main__":
    file = Path(sys.argv[1])
    for drawn in draw(json.loads(file.read_text()), file):
        print(f"drawn {drawn.name}")
