"""Plots of learning curves, from the metrics in run directories."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.directory import refuse_others
from purejaxppo.experiment.metrics_log import read_metrics, reported
from purejaxppo.experiment.progress import Terminal, say
from purejaxppo.experiment.statistics import bootstrap_interval, interquartile_mean

_POINTS = 200  # of a curve that is drawn from several runs
_DRAWS = 500  # bootstrap resamples per band
_MOST_REPORTED = 4  # curves of what an environment reports
_LINE, _HANDLE = 85, 10  # width of their legend, and of the line before a name, in letters
_SAME_SIZE = 20  # times as large as another may be a curve that is drawn in the same units
COLOURS = ("#3b6fb6", "#d1782b", "#3f9b57", "#a34fa5", "#b0413e", "#6b7280")
Curve = tuple[np.ndarray, np.ndarray]  # env_steps [n], returns [n]


class NoEpisodeError(CheckpointError):
    """The error for a run in which no episode has finished, so that there is nothing to draw."""


def plot_runs(run_dirs: AnyPath | Sequence[AnyPath], out: AnyPath) -> Path:
    """Plots the return over env steps: of a single run with its evaluations, of several runs their mean and range.

    Under the return of a single run is what its environment reports of finished episodes, if it does, up to four lines.

    Runs with the same environment and algorithm form a group, which is one curve. A run without a finished episode is
    left out, with a message on standard error.

    Args:
      run_dirs: one run directory or several.
      out: the picture; its suffix is the format, by default PNG.

    Returns:
      The path of the picture.

    Raises:
      CheckpointError: a run directory has no metrics, no run has a finished episode, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    if isinstance(run_dirs, str | os.PathLike):
        run_dirs = [run_dirs]
    groups = _groups([Path(run_dir) for run_dir in run_dirs])
    out = Path(out)
    out = out if out.suffix else out.with_suffix(".png")

    (single,) = groups.values() if len(groups) == 1 else ([],)
    info = _reported_curves(single[0][0]) if len(single) == 1 else {}
    if info:
        figure = Figure(figsize=(7, 5.6), layout="constrained")
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1.2))
        _draw_reported(below, info)
    else:
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = below = figure.subplots()
    for colour, (label, runs) in zip(COLOURS * len(groups), groups.items(), strict=False):
        curves = [curve for _, curve in runs]
        if len(curves) == 1:
            _draw_run(axes, curves[0], runs[0][0], colour, label)
        else:
            _draw_group(axes, curves, colour, f"{label}  mean and range of {len(curves)} runs")
    below.set_xlabel("environment steps")
    axes.set_ylabel("return of finished episodes")
    axes.xaxis.set_major_formatter(format_steps)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    return save_figure(figure, out)


def _groups(run_dirs: Sequence[Path]) -> dict[str, list[tuple[Path, Curve]]]:
    """Returns the runs that have a curve, by environment and algorithm. Raises CheckpointError if none has one."""
    groups: dict[str, list[tuple[Path, Curve]]] = {}
    without_curve: list[NoEpisodeError] = []
    for run_dir in run_dirs:
        refuse_others(run_dir)
        config = read_json(run_dir / "config.json")
        if not {"env", "algorithm"} <= config.keys():
            raise CheckpointError(f"{run_dir / 'config.json'} is not a run's configuration.")
        try:
            curve = learning_curve(run_dir)
        except NoEpisodeError as error:
            without_curve.append(error)
        else:
            groups.setdefault(f"{config['env']}  {config['algorithm']}", []).append((run_dir, curve))
    if without_curve and not groups:
        raise without_curve[0]
    for missing in without_curve:
        say(Terminal(), f"left out: {missing}")
    return groups


def format_steps(x: float, _: object) -> str:
    """Formats a tick of the axis of env steps, as 150 k or 2 M; a formatter of Matplotlib's."""
    return f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k"


def save_figure(figure: Any, out: Path) -> Path:
    """Writes a figure and returns its path. Raises CheckpointError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot write the picture {out}: {error}") from error
    return out


def learning_curve(run_dir: AnyPath) -> Curve:
    """Returns env_steps [n] and episode/return [n] of the updates in which an episode finished.

    Raises NoEpisodeError if there is no such update.
    """
    rows = [row for row in read_metrics(Path(run_dir) / "metrics.jsonl") if row.get("episode/return") is not None]
    if not rows:
        raise NoEpisodeError(
            f"{run_dir} has no finished episode to plot; train it for longer, unless it has diverged, as the losses in "
            f"its metrics.jsonl tell."
        )
    return np.array([r["env_steps"] for r in rows], float), np.array([r["episode/return"] for r in rows], float)


def group_curves(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a grid of env steps [n] on which all curves exist, and the smoothed curves at its points, [runs, n]."""
    start, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.linspace(start, end, _POINTS) if end > start else np.array([start])
    return grid, np.stack([np.interp(grid, steps, smooth(returns)) for steps, returns in curves])


def smooth(returns: np.ndarray) -> np.ndarray:
    """Returns the moving average [n] over a centred window of about 2 % of the curve, truncated at its ends."""
    half = len(returns) // 100
    total = np.concatenate([[0.0], np.cumsum(returns)])
    index = np.arange(len(returns))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(returns))
    return (total[high] - total[low]) / (high - low)


def draw_runs(axes: Any, env_steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """Draws the interquartile mean over runs and its 95 % bootstrap band.

    A single run has no band. Without any value only the legend's entry is made.

    Args:
      axes: Matplotlib's axes to draw on.
      env_steps: [U].
      values: [U, runs], not finite where a run has none.
      colour: of the line and the band.
      label: in the legend.
    """
    aligned = bring_together(env_steps, values)
    if aligned is None:
        axes.plot([], [], color=colour, label=label)
        return
    grid, curves = aligned
    if len(curves) > 1:
        draw_band(axes, grid, *bootstrap_interval(curves.T, draws=_DRAWS), colour)
    draw_curve(axes, grid, interquartile_mean(curves.T), color=colour, label=label)


def draw_curve(axes: Any, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """Draws a line through points [n]; a single point, which has no visible line, becomes a dot."""
    axes.plot(x, y, marker="o" if len(x) == 1 else None, **style)


def draw_band(axes: Any, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """Shades the band between two curves [n]; at a single point it is a vertical line."""
    if len(x) == 1:
        axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=3)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def bring_together(env_steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns a grid [n] and the smoothed curves [runs, n] of values [U, runs], or None if no value is finite.

    A run without a finite value has no curve. If all values are finite, the curves are thinned to the resolution of the
    plot; otherwise they are interpolated.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    if not finite.all():
        return group_curves([(env_steps[f], v[f]) for v, f in zip(values.T, finite.T, strict=True) if f.any()])
    keep = np.unique(np.linspace(0, len(env_steps) - 1, _POINTS).round().astype(int))
    return env_steps[keep], np.stack([smooth(run)[keep] for run in values.T])


def _draw_run(axes: Any, curve: Curve, run_dir: Path, colour: str, label: str) -> None:
    steps, returns = curve
    axes.plot(steps, returns, color=colour, alpha=0.3, linewidth=0.8)
    draw_curve(axes, steps, smooth(returns), color=colour, label=label)
    _draw_evaluations(axes, run_dir, colour)
    summary = run_dir / "summary.json"
    result = read_json(summary) if summary.is_file() else {}
    evaluation = result.get("evaluation")
    if evaluation and evaluation["return_mean"] is not None:
        axes.errorbar(
            [result["env_steps"]],
            [evaluation["return_mean"]],
            yerr=[evaluation["return_std"] or 0.0],
            fmt="D",
            color=colour,
            capsize=3,
            label=f"final evaluation, {evaluation['episodes']} episodes: {evaluation['return_mean']:.4g}",
        )


def _draw_evaluations(axes: Any, run_dir: Path, colour: str) -> None:
    """Draws the evaluations of a run while it trained, if it has any: a dashed line through open circles."""
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if row.get("evaluation/return") is not None]
    if rows:
        axes.plot(
            [row["env_steps"] for row in rows],
            [row["evaluation/return"] for row in rows],
            color=colour,
            linestyle="--",
            linewidth=1,
            marker="o",
            markerfacecolor="white",
            markersize=5,
            label=f"evaluations while training, {rows[-1]['evaluation/episodes']} episodes each",
        )


def _reported_curves(run_dir: Path) -> dict[str, Curve]:
    """Returns what a run's environment reports of finished episodes, by its names there, where there is a number."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    curves: dict[str, Any] = {}
    for metric, name in reported(rows[-1]).items():
        found = [row for row in rows if row.get(metric) is not None]
        if found:
            curves[name] = tuple(np.array([row[key] for row in found], float) for key in ("env_steps", metric))
    return curves


def _draw_reported(axes: Any, curves: dict[str, Curve]) -> None:
    """Draws the first four curves; if their sizes are too different for one axis, each in units of its largest."""
    shown = dict(list(curves.items())[:_MOST_REPORTED])
    sizes = {name: float(np.abs(smooth(values)).max()) for name, (_, values) in shown.items()}
    largest = max(sizes.values())
    scaled = any(0 < size < largest / _SAME_SIZE for size in sizes.values())
    for colour, (name, (steps, values)) in zip(COLOURS[1:], shown.items(), strict=False):
        unit = sizes[name] if scaled and sizes[name] else 1.0
        label = f"{name} / {unit:.3g}" if scaled else name
        draw_curve(axes, steps, smooth(values) / unit, color=colour, linewidth=1.2, label=label)
    if len(curves) > len(shown):
        axes.plot([], [], " ", label=f"{len(curves) - len(shown)} more in metrics.jsonl")
    axes.set_ylabel("at their ends")
    labels = [line.get_label() for line in axes.get_lines()]
    columns = len(labels) if sum(_HANDLE + len(label) for label in labels) <= _LINE else 2
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=columns, fontsize="small")


def _draw_group(axes: Any, curves: Sequence[Curve], colour: str, label: str) -> None:
    grid, returns = group_curves(curves)
    draw_band(axes, grid, returns.min(axis=0), returns.max(axis=0), colour)
    draw_curve(axes, grid, returns.mean(axis=0), color=colour, label=label)
