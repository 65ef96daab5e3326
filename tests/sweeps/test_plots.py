"""Pictures of a sweep: which are drawn, that they show the right numbers, and that diverged runs do not break them."""

import math

import numpy as np
import pytest
from sample_sweeps import curves_of, outcome_of, sweep_of

from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.statistics import stratified_interval
from purejaxppo.sweeps import plots
from purejaxppo.sweeps.plots import plot_sweep
from purejaxppo.sweeps.tables import Curve, setting_rows

GRID = [{"learning_rate": a, "clip_eps": b} for a in (1e-4, 1e-3, 1e-2) for b in (0.1, 0.3)]


@pytest.fixture
def figures(monkeypatch):
    """Returns the figures that were saved, by the names of their files."""
    saved = {}

    def save(figure, out):
        saved[out.stem] = figure
        figure.canvas.draw()
        return out

    monkeypatch.setattr(plots, "save_figure", save)
    return saved


def draw(directory, points, returns, seeds=(5, 6), curve=1.0, **options):
    sweep = sweep_of(points, seeds=seeds, **options)
    outcome = outcome_of(returns)
    curves = curves_of(sweep, curve)
    return [path.name for path in plot_sweep(sweep, outcome, setting_rows(sweep, outcome, curves), curves, directory)]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def points_of(axes, marker="o"):
    return [tuple(map(float, xy)) for line in axes.lines if line.get_marker() == marker for xy in line.get_xydata()]


PICTURES = [
    ([{}], ["learning_curves"]),
    ([{"clip_eps": 0.1}, {"clip_eps": 0.2}], ["learning_curves", "marginals"]),
    ([{"clip_eps": 0.1, "gamma": 0.9}, {"clip_eps": 0.2, "gamma": 0.9}], ["learning_curves", "marginals"]),
    (GRID, ["learning_curves", "marginals", "heat_map"]),
    (GRID[:-1], ["learning_curves", "marginals", "heat_map"]),
    ([{"clip_eps": e / 10, "gamma": e / 10} for e in range(1, 5)], ["learning_curves", "marginals"]),
    ([{"algorithm": "trpo"}, {"algorithm": "ppo_clip", "clip_eps": 0.1}], ["learning_curves", "marginals"]),
]


@pytest.mark.parametrize(
    ("points", "names", "seeds"),
    [  # half of them by default: each of the points, with one seed or with two
        pytest.param(*case, seeds, marks=[pytest.mark.slow] if (i + len(seeds)) % 2 else [])
        for i, case in enumerate(PICTURES)
        for seeds in ((5,), (5, 6))
    ],
)
def test_which_pictures_there_are(tmp_path, points, names, seeds):
    returns = np.arange(len(points) * len(seeds))
    out = tmp_path / "new"
    assert draw(out, points, returns, seeds, target=2.0) == [f"{name}.png" for name in names]
    assert sorted(path.stem for path in out.iterdir()) == sorted(names)
    for path in out.iterdir():
        assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("points", [[{}], GRID, [{"clip_eps": float(e)} for e in range(1, 20)]])
@pytest.mark.parametrize("diverged", ["all", "all-but-one", "none-ended"])
def test_diverged_runs_break_nothing(tmp_path, points, diverged):
    returns = np.full(2 * len(points), 1.0 if diverged == "none-ended" else math.nan)
    returns[0] = math.nan if diverged == "all" else 1.0
    sweep = sweep_of(points)
    outcome, curves = outcome_of(returns), curves_of(sweep)
    if diverged == "none-ended":
        curves = [curve._replace(count=0 * curve.count) for curve in curves]
    plot_sweep(sweep, outcome, setting_rows(sweep, outcome, curves), curves, tmp_path)


def test_six_settings_in_colour_best_first(tmp_path, figures):
    """The others are behind them in grey; a setting all of whose runs diverged has no line."""
    returns = [[s, s] for s in range(9)]
    returns[8] = [math.nan, math.nan]
    returns[7] = [7, math.nan]
    curve = np.arange(9.0)[:, None, None]
    draw(tmp_path, [{"clip_eps": s / 10} for s in range(1, 10)], returns, curve=curve, target=3.5)
    (legend,) = figures["learning_curves"].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "clip_eps 0.7"
    dead = "1 setting of which every run diverged"
    assert labels[-4:] == ["clip_eps 0.2", "target 3.5", dead, "the 2 others"]
    assert len(labels) == 9
    by_label = {line.get_label(): set(line.get_ydata()) for line in figures["learning_curves"].axes[0].lines}
    assert by_label["clip_eps 0.7"] == {6.0}
    assert "clip_eps 0.9" not in by_label
    heights = {y for line in figures["learning_curves"].axes[0].lines for y in line.get_ydata()}
    assert heights == {*map(float, range(8)), 3.5}


@pytest.mark.parametrize("seeds", [(5,), (5, 6)])
def test_a_single_update_is_seen_of_every_setting(tmp_path, figures, seeds):
    """Of eight settings two are grey. A line through one point could not be seen."""
    sweep = sweep_of([{"clip_eps": s / 10} for s in range(1, 9)], seeds=seeds)
    outcome = outcome_of(np.arange(8 * len(seeds)))
    curves = [Curve(c.env_steps[:1], c.total[:, :1], c.count[:, :1]) for c in curves_of(sweep, 3.0)]
    plot_sweep(sweep, outcome, setting_rows(sweep, outcome, curves), curves, tmp_path)
    assert points_of(figures["learning_curves"].axes[0]) == [(float(curves[0].env_steps[0]), 3.0)] * 8


def test_diverged_runs_are_counted_in_the_legend(tmp_path, figures):
    draw(tmp_path, [{"clip_eps": 0.1}], [1.0, 2.0, math.nan], seeds=(1, 2, 3))
    (text,) = figures["learning_curves"].legends[0].get_texts()
    assert text.get_text() == "clip_eps 0.1 (1 of 3 diverged)"


def test_marginals_by_hand(tmp_path, figures):
    """The runs of clip_eps 0.1 have scores 0 2, 4 6 and 8 10; the inner four have the mean 5."""
    returns = [[0, 2], [1, 1], [4, 6], [1, 1], [8, 10], [1, 1]]
    draw(tmp_path, GRID, returns)
    rates, clips = figures["marginals"].axes
    assert points_of(clips) == [(0.1, 5.0), (0.3, 1.0)]
    assert points_of(rates) == [(1e-4, 1.0), (1e-3, 2.5), (1e-2, 4.5)]  # 1 1 4 6: the inner two
    assert (rates.get_xscale(), clips.get_xscale()) == ("log", "linear")
    bars = [tuple(path.vertices[:, 1]) for lines in clips.collections for path in lines.get_paths()]
    expected = stratified_interval(np.array(returns[::2], float), draws=500)
    assert bars == [tuple(map(float, expected)), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("values", "places"),
    [
        pytest.param([0.2, 0.1, 0.3], [0.1, 0.2, 0.3], id="numbers-where-they-belong"),
        pytest.param([0.9, 0.99, 0.995, 0.999], [0, 1, 2, 3], id="too-close-side-by-side"),
        pytest.param([None, 0.1, 0.2], [0, 1, 2], id="not-all-numbers"),
        pytest.param([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], id="zero-is-on-no-logarithmic-axis"),
    ],
)
def test_places_of_values(tmp_path, figures, values, places):
    draw(tmp_path, [{"target_kl": value} for value in values], np.arange(2 * len(values)))
    (axes,) = figures["marginals"].axes
    assert [x for x, _ in points_of(axes)] == places
    assert axes.get_xscale() == "linear"
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == [f"{v:g}" if v is not None else "None" for v in (values if None in values else sorted(values))]


def test_many_numbers_are_a_scatter_of_settings(tmp_path, figures):
    values = np.geomspace(1e-4, 1e-2, 15)
    returns = np.repeat(np.arange(15.0), 2)
    returns[0] = math.nan
    draw(tmp_path, [{"learning_rate": float(v)} for v in values], returns)
    (axes,) = figures["marginals"].axes
    assert axes.get_xscale() == "log"
    assert points_of(axes) == [(v, s) for s, v in enumerate(values) if s]
    assert points_of(axes, "x") == [(values[0], 0.0)]
    assert points_of(axes, "D") == [(values[14], 14.0)]


def test_heat_map_by_hand(tmp_path, figures):
    """The last pair of values is missing; one pair has lost one of two runs, and so has no interquartile mean."""
    draw(tmp_path, GRID[:-1], [[0, 2], [1, 1], [4, math.nan], [3, 3], [8, 10]])
    axes = figures["heat_map"].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("learning_rate", "clip_eps")
    assert texts(axes) == ["1", "1", "1 diverged", "3", "9"]
    image = axes.images[0].get_array().filled(math.nan)
    np.testing.assert_array_equal(image, [[1, 1], [math.nan, 3], [9, math.nan]])
    grey, frame = axes.patches
    assert grey.get_xy() == (-0.5, 0.5)
    assert frame.get_xy() == (-0.5, 1.5)


def test_thousands_of_settings_are_thinned(tmp_path, figures):
    draw(tmp_path, [{"gamma": g / 1000} for g in range(1, 401)], np.arange(400), seeds=(0,))
    axes = figures["learning_curves"].axes[0]
    assert len(axes.lines) == 197 + 6 + 1  # every second, and what the legend is of
    assert "197 of the 394 others" in [text.get_text() for text in figures["learning_curves"].legends[0].get_texts()]


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the picture"):
        draw(tmp_path / "file", [{}], [1.0, 2.0])
