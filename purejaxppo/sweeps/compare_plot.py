"""The picture of a comparison: learning curves, and below them how far each algorithm moves from its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.experiment.plots import COLOURS, draw_runs, format_steps, save_figure
from purejaxppo.sweeps.scoring import Result

_FAMILY = ("ppo_clip", "ppo_kl", "trpo", "policy_gradient")
_PANELS = (
    ("episode/return", "return of finished episodes"),
    ("kl", "KL(old || new), nats"),
    ("ratio/effective_sample_size", "effective sample size / N"),
)


def plot_comparison(results: Sequence[Result], env: str, target: float | None, out: Path) -> Path:
    """Interquartile mean over the runs and its 95 % bootstrap band, per algorithm; no bands for a single run.

    Runs that diverged are left out, and counted in the legend: the curves would end with the first of them.

    Raises CheckpointError if the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 8.4), layout="constrained")
    panels = figure.subplots(len(_PANELS), sharex=True, height_ratios=[2, 1, 1])
    for axes, (name, label) in zip(panels, _PANELS, strict=True):
        for result, colour in zip(results, _colours(results), strict=True):
            _draw(axes, result, name, colour)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    returns, kl, _ = panels
    if target is not None:
        returns.axhline(target, color="#6b7280", linestyle=":", linewidth=1, label=f"target {target:g}")
    runs = len(results[0].seeds)
    returns.set_title(
        f"{env}: {runs} runs each, interquartile mean and 95 % band" if runs > 1 else f"{env}: one run each"
    )
    returns.legend(loc="best", framealpha=0.85, edgecolor="none")
    if any((line.get_ydata() > 0).any() for line in kl.lines):
        kl.set_yscale("log")
    panels[-1].set_xlabel("environment steps")
    panels[-1].xaxis.set_major_formatter(format_steps)
    return save_figure(figure, out)


def _draw(axes: Any, result: Result, name: str, colour: str) -> None:
    alive = np.isfinite(result.returns)
    label = result.algorithm if alive.all() else f"{result.algorithm} ({(~alive).sum()} diverged)"
    values = result.metrics.get(name, np.empty((0, len(alive))))[:, alive]
    draw_runs(axes, result.env_steps, values, colour, label)


def _colours(results: Sequence[Result]) -> list[str]:
    """The same colour for an algorithm in every picture, as far as it is one of ours."""
    others = [result.algorithm for result in results if result.algorithm not in _FAMILY]
    order = [*_FAMILY, *others]
    return [COLOURS[order.index(result.algorithm) % len(COLOURS)] for result in results]
