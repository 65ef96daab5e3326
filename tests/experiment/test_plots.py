"""Learning curves: real pictures, the right numbers under them, and clear errors."""

import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from purejaxppo.errors import CheckpointError
from purejaxppo.experiment import plots
from purejaxppo.experiment.plots import COLOURS, draw_runs, group_curves, learning_curve, plot_runs

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def make_run(tmp_path):
    """Yields a function: make_run(name, returns, ...) makes a run with one row per return, None for no episode."""

    def make(name, returns, env="CartPole-v1", evaluation=True, batch=32, evaluations=None):
        run_dir = tmp_path / name
        run_dir.mkdir()
        (run_dir / "config.json").write_text(json.dumps({"env": env, "algorithm": "ppo_clip"}))
        rows = [{"update": i, "env_steps": batch * i, "episode/return": x} for i, x in enumerate(returns, start=1)]
        for update, value in (evaluations or {}).items():
            rows[update - 1] |= {"evaluation/return": value, "evaluation/episodes": 32}
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if evaluation:
            result = {"episodes": 4, "return_mean": 3.0, "return_std": 1.0}
            (run_dir / "summary.json").write_text(json.dumps({"env_steps": batch * len(returns), "evaluation": result}))
        return run_dir

    return make


def is_picture(path):
    return path.read_bytes()[:8] == PNG and path.stat().st_size > 5_000


def test_one_run_with_its_evaluation(make_run, tmp_path):
    out = tmp_path / "new" / "curve.png"
    assert plot_runs([make_run("a", [None, 1.0, 2.0, None, 3.0])], out) == out
    assert is_picture(out)


def test_evaluations_while_training_are_a_curve_of_their_own(make_run, tmp_path, monkeypatch):
    """It has their points alone, without those that are not finite, and says how many episodes each has."""
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, out: saved.append(figure))
    runs = {"with": {2: 7.0, 4: None, 5: 8.0}, "bad": {2: None}, "without": None}
    for name, evaluations in runs.items():
        plot_runs(make_run(name, [1.0, 2.0, None, 3.0, 4.0], evaluations=evaluations), tmp_path / "curve.png")
    found = []
    for figure in saved:
        lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
        found.append({label: points for label, points in lines.items() if "while training" in label})
    assert found == [{"evaluations while training, 32 episodes each": [[64.0, 7.0], [160.0, 8.0]]}, {}, {}]


def test_runs_with_and_without_evaluations_together(make_run, tmp_path):
    """Several runs of a kind are drawn by their training, so their rows need not have the same fields."""
    pictures = []
    for name, evaluations in (("a", {1: 2.0}), ("b", None)):
        runs = [make_run(name, [1.0, 2.0], evaluations=evaluations), make_run(f"{name}2", [2.0, 3.0])]
        plot_runs(runs, tmp_path / f"{name}.png")
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1]


def reporting(run_dir, **reported):
    """Adds what the environment reports to the rows of a run."""
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {f"episode/{name}": values[i] for name, values in reported.items()}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """panels(*runs): of each panel of their picture, label -> points."""

    def draw(*run_dirs):
        saved = []
        monkeypatch.setattr(plots, "save_figure", lambda figure, out: saved.append(figure))
        plot_runs(run_dirs, tmp_path / "curve.png")
        return [
            {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines() if line.get_label()[0] != "_"}
            for axes in saved[0].axes
        ]

    return draw


def test_what_the_environment_reports_is_a_panel_under_the_return(make_run, panels):
    """With the points of the numbers alone. Several runs together have none, nor has a run that reports nothing."""
    run = reporting(make_run("a", [1.0, None, 2.0]), won=[0.5, None, 1.0], length=[9, 9, 9], lost=[None] * 3)
    above, below = panels(run)
    assert any("ppo_clip" in label for label in above)
    assert below == {"won": [[32, 0.5], [96, 1.0]]}
    assert len(panels(run, make_run("b", [1.0, 2.0]))) == 1
    assert len(panels(make_run("c", [1.0, 2.0]))) == 1


def test_at_most_four_of_them_and_in_units_of_their_own_where_sizes_differ(make_run, panels, tmp_path):
    numbers = {"a": [100.0, 200.0], "b": [-0.5, 0.25], "c": [0.0, 0.0], "d": [3.0, 3.0], "e": [1.0, 1.0]}
    run = reporting(make_run("a", [1.0, 2.0]), **numbers)
    _, below = panels(run)
    assert below == {
        "a / 200": [[32, 0.5], [64, 1]],
        "b / 0.5": [[32, -1], [64, 0.5]],
        "c / 1": [[32, 0], [64, 0]],
        "d / 3": [[32, 1], [64, 1]],
        "1 more in metrics.jsonl": [],
    }


def test_that_panel_is_drawn(make_run, tmp_path):
    plain, run = make_run("a", [1.0, 2.0]), reporting(make_run("b", [1.0, 2.0]), won=[0.5, 1.0])
    assert plot_runs(plain, tmp_path / "a.png").read_bytes() != plot_runs(run, tmp_path / "b.png").read_bytes()
    assert is_picture(tmp_path / "b.png")


@pytest.mark.parametrize("as_given", [str, lambda path: [str(path)], lambda path: (path,)])
def test_runs_and_picture_by_whatever_names_them(make_run, tmp_path, as_given):
    """They may be text or paths, and a single run needs no list around it."""
    run_dir = make_run("a", [1.0, 2.0])
    out = plot_runs(as_given(run_dir), str(tmp_path / "curve"))
    assert out == tmp_path / "curve.png"
    assert is_picture(out)
    assert learning_curve(str(run_dir))[1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("content", [None, '{"evaluation": null}'])
def test_one_run_without_an_evaluation(make_run, tmp_path, content):
    """A stopped or unfinished run leaves such a directory."""
    run_dir = make_run("a", [1.0, 2.0], evaluation=False)
    if content:
        (run_dir / "summary.json").write_text(content)
    plot_runs([run_dir], tmp_path / "curve.png")
    assert is_picture(tmp_path / "curve.png")


def test_several_runs_and_several_kinds(make_run, tmp_path):
    runs = [make_run("a", [1.0, 2.0]), make_run("b", [2.0, 4.0]), make_run("c", [5.0], env="Catch-bsuite")]
    plot_runs(runs, tmp_path / "curves.png")
    assert is_picture(tmp_path / "curves.png")


def test_the_picture_shows_the_runs_it_was_given(make_run, tmp_path):
    """Other numbers give another picture, and the same ones the same picture."""
    pictures = []
    for name, returns in (("a", [1.0, 2.0]), ("b", [2.0, 1.0]), ("c", [1.0, 2.0])):
        plot_runs([make_run(name, returns)], tmp_path / f"{name}.png")
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] != pictures[1]
    assert pictures[0] == pictures[2]


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_other_formats(make_run, tmp_path, ending):
    out = plot_runs([make_run("a", [1.0, 2.0])], tmp_path / f"curve.{ending}")
    assert out.read_bytes()[:4] in (b"%PDF", b"<?xm")


def test_curve_is_where_episodes_finished(make_run):
    steps, returns = learning_curve(make_run("a", [None, 1.0, None, 3.0]))
    np.testing.assert_array_equal(steps, [64, 128])
    np.testing.assert_array_equal(returns, [1, 3])


def ink(axes, colour):
    """Returns the number of pixels of about this colour in the plot, without its legend."""
    if axes.get_legend():
        axes.get_legend().remove()
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    box = axes.get_window_extent()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3][int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
    return int((np.abs(pixels / 255 - to_rgb(colour)).max(axis=-1) < 0.1).sum())


@pytest.mark.parametrize("runs", [[[3.0]], [[None, 3.0, None]], [[3.0], [5.0]]], ids=["one", "one-of-three", "group"])
def test_a_single_point_is_seen(make_run, tmp_path, monkeypatch, runs):
    """No line runs through it: it is of one run without an evaluation, or of several runs."""
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, out: saved.append(figure))
    plot_runs([make_run(f"r{i}", returns, evaluation=False) for i, returns in enumerate(runs)], tmp_path / "a.png")
    assert ink(saved[0].axes[0], COLOURS[0]) > 15


@pytest.mark.parametrize("values", [[[4.0]], [[4.0, 6.0, 5.0]]], ids=["one-run", "three-runs"])
def test_a_single_update_is_seen_in_a_comparison(values):
    axes = Figure().subplots()
    draw_runs(axes, np.array([32.0]), np.array(values), COLOURS[1], "trpo")
    assert ink(axes, COLOURS[1]) > 15


def test_group_is_interpolated_where_all_runs_exist():
    """Straight lines stay straight; the grid is the range that the runs have in common."""
    curves = [(np.array([0.0, 100.0]), np.array([0.0, 10.0])), (np.array([20.0, 60.0]), np.array([1.0, 3.0]))]
    grid, returns = group_curves(curves)
    assert (grid[0], grid[-1]) == (20, 60)
    np.testing.assert_allclose(returns[0], grid / 10)
    np.testing.assert_allclose(returns[1], grid / 20)


def test_group_of_runs_with_nothing_in_common():
    curves = [(np.array([0.0, 10.0]), np.array([0.0, 1.0])), (np.array([20.0, 30.0]), np.array([2.0, 3.0]))]
    grid, returns = group_curves(curves)
    assert grid.shape == (1,)
    assert returns.shape == (2, 1)


def test_smoothing_keeps_a_constant_and_a_line():
    """The window is about 2 % of the curve; the ends are included."""
    x = np.arange(1000.0)
    constant, line = (group_curves([(x, y)])[1][0] for y in (np.full(1000, 7.0), x))
    np.testing.assert_allclose(constant, 7)
    np.testing.assert_allclose(line[20:-20], np.linspace(0, 999, 200)[20:-20], rtol=1e-9)


@pytest.mark.parametrize("returns", [[], [None, None]])
def test_no_finished_episode_is_a_clear_error(make_run, tmp_path, returns):
    run_dir = make_run("a", returns)
    with pytest.raises(CheckpointError, match="no finished episode"):
        plot_runs([run_dir], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_a_run_without_a_finished_episode_is_left_out(make_run, tmp_path, capsys):
    a, b, c = make_run("a", [1.0, 2.0]), make_run("b", [None]), make_run("c", [2.0, 3.0])
    plot_runs([a, b, c], tmp_path / "with.png")
    errors = capsys.readouterr().err
    assert errors.startswith(f"left out: {b}")
    assert "diverged" in errors
    assert errors.count("\n") == 1
    plot_runs([a, c], tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "without.png").read_bytes()


def test_no_picture_if_no_run_is_left(make_run, tmp_path):
    with pytest.raises(CheckpointError, match="no finished episode"):
        plot_runs([make_run("a", [None]), make_run("b", [])], tmp_path / "curves.png")


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plot_runs([tmp_path], tmp_path / "curve.png")


@pytest.mark.parametrize("content", ["{}", "[]", '{"env": "CartPole-v1"}', "3"])
def test_a_config_that_is_no_runs(make_run, tmp_path, content):
    run_dir = make_run("a", [1.0])
    (run_dir / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plot_runs([run_dir], tmp_path / "curve.png")


def test_a_run_without_metrics(make_run, tmp_path):
    run_dir = make_run("a", [1.0])
    (run_dir / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        plot_runs([run_dir], tmp_path / "curve.png")


@pytest.mark.parametrize("out", ["a/config.json/curve.png", "curve.xyz"])
def test_a_picture_that_cannot_be_written(make_run, tmp_path, out):
    run_dir = make_run("a", [1.0, 2.0])
    with pytest.raises(CheckpointError, match="cannot write"):
        plot_runs([run_dir], tmp_path / out)


def test_the_path_returned_is_the_one_written(make_run, tmp_path):
    """Matplotlib appends a suffix of its own to a name without one."""
    assert is_picture(plot_runs([make_run("a", [1.0, 2.0])], tmp_path / "curve"))
