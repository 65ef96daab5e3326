"""The pictures of a sweep: learning curves of the best settings, marginals of each swept field, and a heat map."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.experiment.plots import COLOURS, bring_together, draw_curve, draw_runs, format_steps, save_figure
from purejaxppo.experiment.statistics import interquartile_mean, stratified_interval
from purejaxppo.sweeps.scoring import worst_if_diverged
from purejaxppo.sweeps.spec import SweepSettings, value_text
from purejaxppo.sweeps.tables import Curve, Outcome

_COLOURS = (*COLOURS[:5], "#1f9a9a")  # of the best settings: grey is for all others
_GREY, _DARK = "#c9cdd4", "#6b7280"
_MAX_OTHERS = 200  # grey lines; more would be one grey area, and take minutes
_DRAWS = 500  # of the bootstrap
_MAX_VALUES = 12  # of an axis that has a point with an interval per value; with more it has a point per setting
_MAX_CELLS = 20  # of a heat map along one axis
_LOG_FACTOR = 10  # positive values that differ by more than this factor may have a logarithmic axis
_LABEL_LETTERS = 46  # that all labels of one panel's axis may have without being rotated
_LEGEND_LETTERS = 100  # in a line of the legend


def plot_sweep(
    sweep: SweepSettings,
    outcome: Outcome,
    rows: Sequence[dict[str, Any]],
    curves: Sequence[Curve],
    directory: Path,
) -> list[Path]:
    """Draws the pictures of a sweep and returns their paths.

    There is always learning_curves.png, marginals.png if a field varies, and heat_map.png if exactly two fields do and
    their values form a grid.

    Args:
      sweep: its settings.
      outcome: how its runs ended.
      rows: all `setting_rows`, the best first.
      curves: of each setting, by its number.
      directory: for the pictures.

    Raises CheckpointError if a picture cannot be written.
    """
    scores = worst_if_diverged(outcome.returns).reshape(len(sweep.settings), len(sweep.seeds))
    paths = [_plot_curves(sweep, rows, curves, np.isfinite(scores), directory / "learning_curves.png")]
    varied = [axis for axis in sweep.axes if len(_distinct(sweep, axis)) > 1]
    if varied:
        paths.append(_plot_marginals(sweep, varied, scores, rows, directory / "marginals.png"))
    if len(varied) == 2 and _is_grid(sweep, varied):
        paths.append(_plot_map(sweep, varied, scores, rows, directory / "heat_map.png"))
    return paths


# --- learning curves --------------------------------------------------------------------------------------------------


def _plot_curves(
    sweep: SweepSettings, rows: Sequence[dict[str, Any]], curves: Sequence[Curve], alive: np.ndarray, out: Path
) -> Path:
    """Draws the best settings in colour and the others behind them in grey.

    Diverged runs are left out, and counted in the legend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    axes = figure.subplots()
    drawn = [row for row in rows if alive[row["setting"]].any()]
    best, others = drawn[: len(_COLOURS)], drawn[len(_COLOURS) :]
    shown = others[:: -(-len(others) // _MAX_OTHERS) or 1]
    for row in shown:
        brought = bring_together(*_means(curves[row["setting"]], alive[row["setting"]]))
        if brought is not None:
            draw_curve(axes, brought[0], interquartile_mean(brought[1].T), color=_GREY, linewidth=0.7, zorder=1)
    if shown:
        how_many = "the" if len(shown) == len(others) else f"{len(shown)} of the"
        axes.plot([], [], color=_GREY, linewidth=0.7, label=f"{how_many} {len(others)} others")
    for row, colour in zip(best, _COLOURS, strict=False):
        draw_runs(axes, *_means(curves[row["setting"]], alive[row["setting"]]), colour, _label(sweep, row))
    if sweep.target is not None:
        axes.axhline(sweep.target, color=_DARK, linestyle=":", linewidth=1, label=f"target {sweep.target:g}")
    if dead := len(rows) - len(drawn):
        axes.plot([], [], linewidth=0, label=f"{dead} setting{'s' * (dead > 1)} of which every run diverged")
    each_of = "1 run" if len(sweep.seeds) == 1 else f"{len(sweep.seeds)} runs, interquartile mean and 95 % band"
    settings = "1 setting" if len(rows) == 1 else f"{len(rows)} settings"
    axes.set_title(f"{sweep.env}: {settings} of {each_of}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return of finished episodes")
    axes.xaxis.set_major_formatter(format_steps)
    _tidy(axes)
    handles, labels = axes.get_legend_handles_labels()
    if handles:  # the best first, whatever was drawn first
        order = sorted(range(len(labels)), key=lambda i: labels[i].endswith(" others"))
        columns = 1 if max(map(len, labels)) > _LEGEND_LETTERS // 2 else 2
        figure.legend(
            [handles[i] for i in order],
            [textwrap.fill(labels[i], _LEGEND_LETTERS) for i in order],
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize="small",
        )
    return save_figure(figure, out)


def _means(curve: Curve, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns env steps [B] and mean returns [B, runs] of the runs that did not diverge; NaN where no episode ended."""
    total, count = curve.total[alive], curve.count[alive]
    return curve.env_steps, np.where(count > 0, total / np.maximum(count, 1), math.nan).T


def _label(sweep: SweepSettings, row: dict[str, Any]) -> str:
    """Returns a setting's label: its values of the fields that vary, and how many of its runs diverged."""
    varied = [axis for axis in sweep.axes if axis in row["values"] and len(_distinct(sweep, axis)) > 1]
    values = ", ".join(f"{axis} {value_text(row['values'][axis])}" for axis in varied or row["values"])
    label = values or ("all seeds" if row["runs"] > 1 else "the run")
    return f"{label} ({row['diverged']} of {row['runs']} diverged)" if row["diverged"] else label


# --- one field at a time ----------------------------------------------------------------------------------------------


def _plot_marginals(
    sweep: SweepSettings, varied: Sequence[str], scores: np.ndarray, rows: Sequence[dict[str, Any]], out: Path
) -> Path:
    """Draws a panel per swept field: the scores of all runs with each of its values, over all values of the others."""
    from matplotlib.figure import Figure

    columns = min(3, len(varied))
    lines = -(-len(varied) // columns)
    figure = Figure(figsize=(max(5.6, 3.4 * columns), 3.1 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel().tolist()
    for axes, axis in zip(panels, varied, strict=False):
        if _is_scattered(sweep, axis):
            _draw_settings(axes, sweep, axis, scores, rows[0]["setting"])
        else:
            _draw_values(axes, sweep, axis, scores)
        axes.set_xlabel(axis)
        axes.tick_params(labelleft=bool(np.isfinite(scores).any()))
        _tidy(axes)
    for axes in panels[len(varied) :]:
        axes.set_axis_off()
    for axes in panels[: len(varied) : columns]:
        axes.set_ylabel("final evaluation, IQM")
    figure.suptitle(_marginal_title(sweep, varied), fontsize=11)
    _legend(figure, panels)
    return save_figure(figure, out)


def _marginal_title(sweep: SweepSettings, varied: Sequence[str]) -> str:
    band = ", 95 % interval" if len(sweep.seeds) > 1 else ""
    scattered = [_is_scattered(sweep, axis) for axis in varied]
    what = "every setting" if all(scattered) else f"all runs of each value{band}"
    if any(scattered) and not all(scattered):
        what += ", or every setting where the values are many"
    return f"{sweep.env}: {what}" + (
        "" if sweep.halving is None else "\nevaluated when halving dropped them, or at the end"
    )


def _draw_values(axes: Any, sweep: SweepSettings, axis: str, scores: np.ndarray) -> None:
    """Draws one point with an interval per value; a lower end of -inf, for diverged runs, is an arrow to the bottom."""
    values = _distinct(sweep, axis)
    places = _set_ticks(axes, values)
    middles, ends = [], []
    for value in values:
        mine = scores[[point.get(axis, _MISSING) == value for point in sweep.points]]
        middles.append(float(interquartile_mean(mine.ravel())))
        with np.errstate(invalid="ignore"):  # infinities among the draws
            low, high = stratified_interval(mine, draws=_DRAWS) if mine.shape[1] > 1 else (middles[-1], middles[-1])
        ends.append((float(low), float(high)))
    fine = np.isfinite(middles)
    colour = _COLOURS[0]
    if fine.sum() > 1 and all(map(_is_number, values)):
        axes.plot(np.array(places)[fine], np.array(middles)[fine], color=colour, alpha=0.35, linewidth=1)
    for place, middle, (low, high) in zip(places, middles, ends, strict=True):
        if not math.isfinite(middle):
            _mark_diverged(axes, [place])
            continue
        axes.plot([place], [middle], "o", color=colour, markersize=5)
        top = high if math.isfinite(high) else middle
        if math.isfinite(low):
            axes.vlines(place, low, top, color=colour, linewidth=1.6)
        else:
            axes.vlines(place, middle, top, color=colour, linewidth=1.6)
            axes.plot([], [], ":", color=colour, label="down to diverged runs")
            axes.annotate(
                "",
                (place, 0),
                (place, middle),
                xycoords=axes.get_xaxis_transform(),
                textcoords="data",
                arrowprops={"arrowstyle": "->", "color": colour, "linestyle": ":"},
            )


def _draw_settings(axes: Any, sweep: SweepSettings, axis: str, scores: np.ndarray, best: int) -> None:
    """Draws one point per setting, for a field with many numbers as values."""
    values = np.array([point.get(axis, math.nan) for point in sweep.points], float)
    middles = interquartile_mean(scores)
    fine, has = np.isfinite(middles), np.isfinite(values)
    axes.plot(values[fine & has], middles[fine & has], "o", color=_COLOURS[0], alpha=0.55, markersize=4, linewidth=0)
    _mark_diverged(axes, values[~fine & has])
    if fine[best] and has[best]:
        axes.plot(
            [values[best]], [middles[best]], "D", color=_COLOURS[1], markersize=6, label="best setting", linewidth=0
        )
    if _is_wide(values[has]):
        _set_log(axes, values[has])


def _set_log(axes: Any, values: np.ndarray) -> None:
    """Makes the x axis logarithmic, with labels at 1 and 3 in each decade, or at 1 alone if there are many decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if values.max() < 300 * values.min() else (1,)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mark_diverged(axes: Any, places: Sequence[float] | np.ndarray) -> None:
    """Draws crosses on the bottom line, in place of interquartile means that are not finite."""
    if len(places):
        axes.plot(
            places,
            np.zeros(len(places)),
            "x",
            color=COLOURS[4],
            markersize=6,
            linewidth=0,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
            label="more than a quarter of the runs diverged",
        )


def _set_ticks(axes: Any, values: Sequence[Any]) -> list[float]:
    """Sets the ticks of the x axis, and returns the position of each value along it.

    Numbers are at their own positions, unless the labels of two would overlap; all else is evenly spaced.
    """
    texts = [value_text(value) for value in values]
    numbers = [float(value) for value in values] if all(map(_is_number, values)) else []
    wide = _is_wide(np.array(numbers))
    scaled = np.log(numbers) if wide else np.array(numbers)
    room = 1.3 * max(map(len, texts)) / _LABEL_LETTERS
    if numbers and np.diff(scaled).min() >= room * np.ptp(scaled):
        axes.set_xscale("log" if wide else "linear")
        axes.margins(x=0.12)
        places = numbers
    else:
        places = [float(i) for i in range(len(values))]
        axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xticks(places, texts)
    axes.set_xticks([], minor=True)
    if sum(map(len, texts)) + 2 * len(texts) > _LABEL_LETTERS:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    return places


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """Draws one legend for all panels, with each label of any panel once."""
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)


# --- two fields -------------------------------------------------------------------------------------------------------


def _plot_map(
    sweep: SweepSettings, varied: Sequence[str], scores: np.ndarray, rows: Sequence[dict[str, Any]], out: Path
) -> Path:
    """Draws a heat map: the interquartile mean for every pair of values, with a frame around the best setting."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    down, across = varied
    vertical, horizontal = _distinct(sweep, down), _distinct(sweep, across)
    texts = [value_text(value) for value in horizontal]
    cells: dict[tuple[int, int], list[int]] = {}
    for s, point in enumerate(sweep.points):
        cells.setdefault((vertical.index(point[down]), horizontal.index(point[across])), []).append(s)
    image = np.full((len(vertical), len(horizontal)), math.nan)
    for cell, mine in cells.items():
        middle = interquartile_mean(scores[mine].ravel())
        image[cell] = middle if np.isfinite(middle) else math.nan

    inches = max(0.9, 0.085 * max(map(len, texts)))
    size = (max(4.4, inches * len(horizontal) + 2.4), max(3.2, 0.55 * len(vertical) + 1.6))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    shade = axes.imshow(np.ma.masked_invalid(image), cmap="viridis", aspect="auto", origin="lower")
    fine = image[np.isfinite(image)]
    if fine.size:
        shade.set_clim(fine.min(), fine.max())
        figure.colorbar(shade, ax=axes, label="final evaluation, IQM")
    for (i, j), mine in cells.items():
        diverged = int(np.isneginf(scores[mine]).sum())
        lines = [f"{image[i, j]:.4g}"] if np.isfinite(image[i, j]) else []
        lines += [f"{diverged} diverged"] if diverged else []
        if not np.isfinite(image[i, j]):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_GREY, edgecolor="white"))
        dark = image[i, j] < fine.min() + 0.6 * np.ptp(fine) if fine.size else False  # False for NaN
        colour = "white" if dark else "black"
        axes.text(j, i, "\n".join(lines), ha="center", va="center", color=colour, fontsize=8)
    point = sweep.points[rows[0]["setting"]]
    if rows[0]["return_iqm"] is not None:
        corner = horizontal.index(point[across]) - 0.5, vertical.index(point[down]) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.5, clip_on=False))
    axes.set_xticks(range(len(horizontal)), texts)
    axes.set_yticks(range(len(vertical)), [value_text(value) for value in vertical])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(f"{sweep.env}: {_runs_per_cell(sweep, cells)}", fontsize=11)
    axes.spines[:].set_visible(False)
    return save_figure(figure, out)


def _runs_per_cell(sweep: SweepSettings, cells: dict[tuple[int, int], list[int]]) -> str:
    most = max(map(len, cells.values())) * len(sweep.seeds)
    return "1 run per cell" if most == 1 else f"{most} runs per cell"


def _is_grid(sweep: SweepSettings, varied: Sequence[str]) -> bool:
    """Returns whether the settings fill more than half of the cells of a grid that is small enough to be read."""
    pairs = {tuple(value_text(point[axis]) for axis in varied) for point in sweep.points if point.keys() >= set(varied)}
    sizes = [len(_distinct(sweep, axis)) for axis in varied]
    complete = all(point.keys() >= set(varied) for point in sweep.points)
    return complete and max(sizes) <= _MAX_CELLS and 2 * len(pairs) > math.prod(sizes)


# --- values -----------------------------------------------------------------------------------------------------------


_MISSING = object()  # equal to no value


def _distinct(sweep: SweepSettings, axis: str) -> list[Any]:
    """Returns the different values of an axis: numbers in ascending order, others in that of their appearance."""
    values: list[Any] = []
    texts = set()
    for point in sweep.points:
        if axis in point and repr(point[axis]) not in texts:
            texts.add(repr(point[axis]))
            values.append(point[axis])
    return sorted(values) if all(map(_is_number, values)) else values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_scattered(sweep: SweepSettings, axis: str) -> bool:
    """Returns whether an axis has so many numbers, as from random sampling, that few settings share one."""
    values = _distinct(sweep, axis)
    return len(values) > _MAX_VALUES and all(map(_is_number, values))


def _is_wide(values: np.ndarray) -> bool:
    """Returns whether an axis should be logarithmic: it spans a large factor, and most values are in its lower half."""
    if not values.size or values.min() <= 0 or values.max() <= _LOG_FACTOR * values.min():
        return False
    return bool(np.mean(values < (values.min() + values.max()) / 2) > 0.6)


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
