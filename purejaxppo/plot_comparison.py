"""The picture of a comparison: learning curves, and below them how far each algorithm moves from its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.plot import COLOURS, Curve, format_steps, group_curves, save_figure
from purejaxppo.stats import bootstrap_interval, interquartile_mean

_DRAWS = 500
_PANELS = (
    ("episode/return", "return of finished episodes"),
    ("kl", "KL(old || new), nats"),
    ("ratio/effective_sample_size", "effective sample size / N"),
)
# (algorithm, env_steps [U], metrics each [U, R])
Curves = tuple[str, np.ndarray, dict[str, np.ndarray]]


def plot_comparison(results: Sequence[Curves], env: str, target: float | None, out: Path) -> Path:
    """Interquartile mean over the runs and its 95 % bootstrap band, per algorithm; no bands for a single run.

    Raises CheckpointError if the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 8.4), layout="constrained")
    panels = figure.subplots(len(_PANELS), sharex=True, height_ratios=[2, 1, 1])
    for axes, (name, label) in zip(panels, _PANELS, strict=True):
        for colour, (algorithm, env_steps, metrics) in zip(COLOURS * len(results), results, strict=False):
            _draw(axes, _finite_curves(env_steps, metrics[name]), colour, algorithm)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    returns, kl, _ = panels
    if target is not None:
        returns.axhline(target, color="#6b7280", linestyle=":", linewidth=1, label=f"target {target:g}")
    runs = next(iter(results[0][2].values())).shape[1]
    returns.set_title(
        f"{env}: {runs} runs each, interquartile mean and 95 % band" if runs > 1 else f"{env}: one run each"
    )
    returns.legend(frameon=False, loc="best")
    kl.set_yscale("log")
    panels[-1].set_xlabel("environment steps")
    panels[-1].xaxis.set_major_formatter(format_steps)
    return save_figure(figure, out)


def _finite_curves(env_steps: np.ndarray, values: np.ndarray) -> list[Curve]:
    """One curve per run, of the updates in which it has a value; a run without any has none."""
    finite = np.isfinite(values)
    return [(env_steps[f], v[f]) for v, f in zip(values.T, finite.T, strict=True) if f.any()]


def _draw(axes: Any, curves: Sequence[Curve], colour: str, label: str) -> None:
    if not curves:
        return
    grid, values = group_curves(curves)
    if len(curves) > 1:
        low, high = bootstrap_interval(values.T, draws=_DRAWS)
        axes.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(grid, interquartile_mean(values.T), color=colour, label=label)
