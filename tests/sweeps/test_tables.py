"""The tables of a sweep, read from its files, against numbers worked out by hand."""

import csv
import json
import math

import numpy as np
import pytest
from sample_sweeps import BATCH, curves_of, outcome_of, sweep_of

from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.statistics import bootstrap_interval
from purejaxppo.sweeps.scoring import markdown_table, steps_to_target
from purejaxppo.sweeps.tables import (
    Curve,
    read_causes,
    read_curves,
    run_columns,
    run_rows,
    setting_rows,
    settings_table,
)

HEAD = ["run", "seed", "clip_eps", "update", "env_steps", "kl", "episode/return", "episode/count"]


def write(path, rows, head=HEAD):
    """Writes rows of run, update, return and count."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for run, update, value, count in rows:
            writer.writerow([run, 0, 0.1, update, BATCH * update, 0.5, value, count])
    return path


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_by_hand(tmp_path):
    """Blocks are interleaved. Run 3 diverged after its first update; run 1 has no episode before its second."""
    sweep = sweep_of([{"clip_eps": 0.1}, {}], updates=3)
    rows = [(0, 1, 2.0, 3), (0, 2, 4.0, 1), (1, 1, "", 0), (1, 2, -1.5, 2), (2, 1, 7.0, 1), (2, 2, "", 0)]
    rows += [(3, 1, 1.0, 1), (0, 3, 0.5, 4), (1, 3, 10.0, 1), (2, 3, 8.0, 2)]
    first, second = read_curves(write(tmp_path / "metrics.csv", rows), sweep)
    for curve in (first, second):
        np.testing.assert_array_equal(curve.env_steps, [8, 16, 24])
    np.testing.assert_array_equal(first.total, [[6, 4, 2], [0, -3, 10]])
    np.testing.assert_array_equal(first.count, [[3, 1, 4], [0, 2, 1]])
    np.testing.assert_array_equal(second.total, [[7, 0, 16], [1, 0, 0]])
    np.testing.assert_array_equal(second.count, [[1, 0, 2], [1, 0, 0]])


def test_what_an_environment_reports_is_weighted_by_episodes(tmp_path):
    """As the return is; where it is not finite it makes what it is added to NaN, and nothing else."""
    sweep = sweep_of([{"clip_eps": 0.1}], updates=3)
    path = tmp_path / "metrics.csv"
    head = "run,seed,clip_eps,update,env_steps,episode/count,episode/length,episode/return,"
    head += "episode/speed,episode/won,step/won"
    rows = ["0,5,0.1,1,8,2,4,1.0,0.5,1.0,9", "0,5,0.1,2,16,0,,,,,9", "0,5,0.1,3,24,3,4,1.0,,0.5,9"]
    path.write_text("\n".join([head, *rows, ""]))
    (curve,) = read_curves(path, sweep)
    assert curve.reported.keys() == {"speed", "won"}
    np.testing.assert_array_equal(curve.reported["won"], [[2, 0, 1.5], [0, 0, 0]])
    np.testing.assert_array_equal(curve.reported["speed"], [[1, 0, math.nan], [0, 0, 0]])


def test_table_of_what_an_environment_reports():
    """The mean over the runs that did not diverge, each over the episodes of its last tenth: two updates of 20."""
    sweep = sweep_of([{"clip_eps": 0.1}, {"clip_eps": 0.2}], seeds=(0, 1, 2), updates=20)
    count = np.ones((3, 20), int)
    count[0, -2:] = [3, 1]
    won, odd = np.zeros((3, 20)), np.full((3, 20), math.nan)
    won[:, -2:] = [[3.0, 0.2], [0.4, 0.6], [9.0, 9.0]]
    steps = BATCH * np.arange(1, 21)
    curves = [Curve(steps, 0.0 * count, count, {"odd": odd, "won": won}), Curve(steps, 0.0 * count, 0 * count)]
    rows = setting_rows(sweep, outcome_of([[5.0, 4.0, math.nan], [1.0, 1.0, 1.0]], env_steps=20 * BATCH), curves)
    assert [row["setting"] for row in rows] == [1, 0]
    assert "info" not in rows[0]
    assert rows[1]["info"] == {"odd": None, "won": pytest.approx((0.8 + 0.5) / 2)}
    head, first, second = settings_table(rows, sweep)
    assert (head[-2:], first[-2:], second[-2:]) == (["odd", "won"], ["-", "-"], ["-", "0.65"])


def test_what_a_run_reported_before_it_was_dropped():
    """Its own last tenth counts, not that of the budget."""
    sweep = sweep_of([{"clip_eps": 0.1}], seeds=(0,), updates=20)
    won = np.zeros((1, 20))
    won[0, 9] = 7.0
    curves = [Curve(BATCH * np.arange(1, 21), won, (np.arange(20) < 10)[None].astype(int), {"won": won})]
    rows = setting_rows(sweep, outcome_of([[1.0]], env_steps=10 * BATCH), curves)
    assert rows[0]["info"] == {"won": 7.0}


def test_causes_of_divergence(tmp_path):
    """They are those of the rows that have one, in order."""
    path = tmp_path / "metrics.csv"
    path.write_text("run,update,kl,nonfinite\n0,1,0.1,\n0,2,,reward\n3,1,,loss/value\n1,1,0.2,\n")
    assert read_causes(path) == [(2, "reward"), (1, "loss/value")]
    for broken in ("run,kl\n0,1\n", "run,update,nonfinite\n0,one,reward\n"):
        path.write_text(broken)
        with pytest.raises(CheckpointError, match=f"cannot read {path}"):
            read_causes(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_causes(tmp_path / "absent.csv")


@pytest.mark.parametrize("updates", [400, 401, 999, 1000])
def test_long_runs_come_in_400_bins_of_consecutive_updates(tmp_path, updates):
    sweep = sweep_of([{}], seeds=[0], updates=updates)
    (curve,) = read_curves(write(tmp_path / "metrics.csv", [(0, u, u, 1) for u in range(1, updates + 1)]), sweep)
    ends = curve.env_steps // BATCH
    assert (len(ends), ends[-1]) == (400, updates)
    sizes = np.diff(ends, prepend=0)
    assert set(sizes) <= {updates // 400, -(-updates // 400)}
    np.testing.assert_array_equal(curve.count[0], sizes)
    np.testing.assert_array_equal(np.cumsum(curve.total[0]), ends * (ends + 1) // 2)  # 1 + 2 + ... + the bin's last


def test_settings_of_their_own_lengths(tmp_path):
    """With fewer environments there are more updates of fewer steps."""
    sweep = sweep_of([{"num_envs": 2}, {"num_envs": 1}], seeds=[0], updates=3)
    rows = [(0, 3, 1.0, 1), (1, 3, 2.0, 1), (1, 6, 3.0, 1)]
    long, short = read_curves(write(tmp_path / "metrics.csv", rows), sweep)
    np.testing.assert_array_equal(long.env_steps, [8, 16, 24])
    np.testing.assert_array_equal(short.env_steps, [4, 8, 12, 16, 20, 24])
    np.testing.assert_array_equal(short.total, [[0, 0, 2, 0, 0, 3]])


def test_a_return_that_is_not_finite_is_left_out(tmp_path):
    sweep = sweep_of([{}], seeds=[0])
    rows = [(0, 1, 2.0, 1), (0, 2, "inf", 1), (0, 3, "nan", 1)]
    (curve,) = read_curves(write(tmp_path / "metrics.csv", rows), sweep)
    assert (curve.total.sum(), curve.count.sum()) == (2, 1)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([(0, 1, 1.0, 1), (2, 1, 1.0, 1)], 3),  # there are two runs
        ([(-1, 1, 1.0, 1)], 2),
        ([(0, 7, 1.0, 1)], 2),  # of six updates
        ([(0, 0, 1.0, 1)], 2),
        ([(0, 2, 1.0, 1), (1, 1, 1.0, 1), (0, 2, 1.0, 1)], 4),  # twice
        ([(0, 1, "one", 1)], 2),
        ([(0, 1, 1.0, "")], 2),
        ([("", 1, 1.0, 1)], 2),
    ],
)
def test_broken_metrics_are_named_by_their_line(tmp_path, rows, line):
    with pytest.raises(CheckpointError, match=rf"metrics\.csv, line {line}, is not of this sweep"):
        read_curves(write(tmp_path / "metrics.csv", rows), sweep_of([{}]))


def test_torn_empty_and_missing_metrics(tmp_path):
    path = write(tmp_path / "metrics.csv", [(0, 1, 1.0, 1), (1, 1, 1.0, 1)])
    path.write_text(path.read_text()[:-6])
    with pytest.raises(CheckpointError, match="line 3"):
        read_curves(path, sweep_of([{}]))
    with pytest.raises(CheckpointError, match="line 1"):
        read_curves(write(path, [], head=["run", "update"]), sweep_of([{}]))
    path.write_text("")
    with pytest.raises(CheckpointError, match="line 0"):
        read_curves(path, sweep_of([{}]))
    with pytest.raises(CheckpointError, match="cannot read"):
        read_curves(tmp_path / "other.csv", sweep_of([{}]))


def test_no_rows_are_curves_without_episodes(tmp_path):
    (curve,) = read_curves(write(tmp_path / "metrics.csv", []), sweep_of([{}]))
    assert not curve.count.any()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_best_first():
    """Each has four runs, and the interquartile mean is that of the inner two."""
    sweep = sweep_of([{"clip_eps": e} for e in (0.1, 0.2, 0.3)], seeds=(5, 6, 7, 8))
    returns = [[1.0, 2.0, 3.0, 50.0], [9.0, 4.0, 5.0, 0.0], [8.0, math.nan, 3.0, 2.0]]
    rows = setting_rows(sweep, outcome_of(returns, [[48] * 4, [48] * 4, [48, 24, 48, 48]]), curves_of(sweep))
    assert [row["setting"] for row in rows] == [1, 0, 2]
    assert [row["return_iqm"] for row in rows] == [4.5, 2.5, 2.5]  # equal: by number
    assert [row["best_run"] for row in rows] == [4, 3, 8]
    assert [row["diverged"] for row in rows] == [0, 0, 1]
    assert {row["runs"] for row in rows} == {4}
    assert {row["env_steps"] for row in rows} == {48}
    assert rows[0]["values"] == {"clip_eps": 0.2}
    assert (rows[0]["return_low"], rows[0]["return_high"]) == bootstrap_interval(np.array(returns[1]))
    assert rows[2]["return_low"] is None  # two draws of the diverged run and more are no rarity
    assert not {"steps_to_target", "runs_at_target", "rung"} & rows[0].keys()


def test_the_furthest_rung_comes_first():
    """The return does not matter, as the others were trained for less."""
    sweep = sweep_of([{"clip_eps": e} for e in (0.1, 0.2, 0.3)], halving=2)
    outcome = outcome_of([[9, 9], [1, math.nan], [2, 2]], [[8, 8], [48, 16], [24, 24]], [[0, 0], [2, 0], [1, 1]])
    rows = setting_rows(sweep, outcome, curves_of(sweep))
    assert [(row["setting"], row["rung"], row["env_steps"]) for row in rows] == [(1, 2, 48), (2, 1, 24), (0, 0, 8)]
    assert [row["return_iqm"] for row in rows] == [None, 2.0, 9.0]


def test_one_seed_has_no_interval():
    sweep = sweep_of([{"clip_eps": 0.1}], seeds=[3])
    (row,) = setting_rows(sweep, outcome_of([2.0]), curves_of(sweep))
    assert (row["return_iqm"], row["return_low"], row["return_high"]) == (2.0, None, None)


def test_nothing_but_diverged_runs_is_json_all_the_same():
    sweep = sweep_of([{"clip_eps": 0.1}, {"target_kl": None}], target=1.0)
    rows = setting_rows(sweep, outcome_of([[math.nan] * 2, [-3.0, math.nan]]), curves_of(sweep, 5.0))
    json.dumps(rows, allow_nan=False)
    assert [row["setting"] for row in rows] == [1, 0]  # both -inf: by how many are alive
    assert [row["best_run"] for row in rows] == [2, None]
    assert [row["env_steps"] for row in rows] == [48, None]
    assert [(row["steps_to_target"], row["runs_at_target"]) for row in rows] == [(48 - 8, 1), (None, 0)]


def test_steps_to_target_are_the_medians():
    """The mean of 5 updates reaches 4 at once for 4 4 4 4 4 4, after six for 0 4 4 4 4 4, else never."""
    sweep = sweep_of([{}], seeds=(1, 2, 3, 4), target=4.0)
    returns = np.array([[[4.0] * 6, [0.0] + [4.0] * 5, [0.0] * 6, [4.0] * 6]])
    (row,) = setting_rows(sweep, outcome_of([1, 1, 1, 1]), curves_of(sweep, returns))
    assert (row["steps_to_target"], row["runs_at_target"]) == (40, 3)
    (row,) = setting_rows(sweep, outcome_of([1, 1, 1, math.nan]), curves_of(sweep, returns))
    assert (row["steps_to_target"], row["runs_at_target"]) == (48, 2)  # the diverged run did not, whatever it had


def test_a_dropped_run_reaches_nothing_after_its_end():
    """It has returns 0 0 5 5 5 of 3 episodes each; windows beyond its end would hold the good ones alone."""
    sweep = sweep_of([{}], seeds=[0], updates=10, target=4.0)
    total = np.array([[0.0, 0, 15, 15, 15, 0, 0, 0, 0, 0]])
    count = np.array([[3, 3, 3, 3, 3, 0, 0, 0, 0, 0]])
    curves = [Curve(BATCH * np.arange(1, 11), total, count)]
    assert steps_to_target(*curves[0][:3], 4.0) == 56
    (row,) = setting_rows(sweep, outcome_of([1.0], env_steps=40), curves)
    assert row["steps_to_target"] is None


def test_a_run_dropped_within_a_bin():
    """Two of 800 updates make a bin; the run was dropped after 23 of them, in a bin that ends with the 24th."""
    sweep = sweep_of([{}], seeds=[0], updates=800, target=4.0)
    total = np.zeros((1, 400))
    total[0, 10:12] = 100.0
    curves = [Curve(2 * BATCH * np.arange(1, 401), total, np.where(np.arange(400) < 12, 2, 0)[None])]
    (row,) = setting_rows(sweep, outcome_of([1.0], env_steps=21 * BATCH), curves)  # 100 over 8 bins of 2 are 6.25
    assert row["steps_to_target"] == 21 * BATCH
    curves[0].total[0, 10] = 0.0
    (row,) = setting_rows(sweep, outcome_of([1.0], env_steps=23 * BATCH), curves)
    assert row["steps_to_target"] == 23 * BATCH


def test_bins_find_the_same_window_as_updates():
    """2 % are 80 of 4000 updates and 8 of 400 bins; the window is full 80 updates after the step at 2000."""
    returns = np.where(np.arange(1, 4001) > 2000, 1.0, 0.0)
    assert steps_to_target(np.arange(1, 4001), returns, np.ones(4000), 1.0) == 2080
    bins = returns.reshape(400, 10).sum(axis=1)
    assert steps_to_target(10 * np.arange(1, 401), bins, np.full(400, 10), 1.0) == 2080


# --- results.csv and the table ----------------------------------------------------------------------------------------


def test_rows_of_the_runs():
    sweep = sweep_of([{"clip_eps": 0.1, "target_kl": None}, {"clip_eps": 0.2}], target=4.0, halving=2)
    outcome = outcome_of([[1.5, math.nan], [2.0, 3.0]], [[48, 16], [24, 24]], [[1, 1], [0, 0]])
    returns = np.array([[[4.0] * 6] * 2, [[0.0] * 6, [4.0] * 6]])
    rows = list(run_rows(sweep, outcome, curves_of(sweep, returns)))
    assert {tuple(row) for row in rows} == {tuple(run_columns(sweep))}
    columns = ["run", "setting", "seed", "clip_eps", "target_kl", "env_steps"]
    assert run_columns(sweep) == [*columns, "evaluation_return", "diverged_at", "rung", "steps_to_target"]
    assert [tuple(row.values()) for row in rows] == [
        (0, 0, 5, "0.1", "None", 48, 1.5, 0, 1, 40),
        (1, 0, 6, "0.1", "None", 16, None, 3, 1, None),
        (2, 1, 5, "0.2", "", 24, 2.0, 0, 0, None),
        (3, 1, 6, "0.2", "", 24, 3.0, 0, 0, None),  # 4 is reached at 40, of which it did 24
    ]


def test_table():
    sweep = sweep_of([{"learning_rate": 0.000123456, "hidden_sizes": (64, 32)}, {"hidden_sizes": (8,)}], target=5)
    rows = setting_rows(sweep, outcome_of([[1.0, math.nan], [2.0, 2.0]]), curves_of(sweep, 7.0))
    assert settings_table(rows, sweep) == [
        ["rank", "learning_rate", "hidden_sizes", "runs", "IQM", "95 % interval", "steps to 5", "reached"],
        ["1", "-", "8", "2", "2", "2 to 2", "40", "2 of 2"],
        ["2", "0.0001235", "64 32", "2 (1 diverged)", "-", "-", "40", "1 of 2"],
    ]
    assert markdown_table(settings_table(rows, sweep)).splitlines()[1:3] == [
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | - | 8 | 2 | 2 | 2 to 2 | 40 | 2 of 2 |",
    ]


@pytest.mark.parametrize(("rung", "column"), [([[0, 0], [1, 1]], True), ([[1, 1], [1, 1]], False)])
def test_env_steps_are_told_where_settings_were_dropped(rung, column):
    sweep = sweep_of([{"clip_eps": 0.1}, {"clip_eps": 0.2}], halving=2)
    outcome = outcome_of([[1, 1], [2, 2]], [[1600, 1600], [4800, 4800]], rung)
    head, *rows = settings_table(setting_rows(sweep, outcome, curves_of(sweep)), sweep)
    assert (head[-1] == "env steps") == column
    assert [row[-1] for row in rows] == (["4,800", "1,600"] if column else ["2 to 2", "1 to 1"])


def test_table_of_seeds_alone():
    sweep = sweep_of([{}])
    rows = setting_rows(sweep, outcome_of([1.0, 2.0]), curves_of(sweep))
    assert settings_table(rows, sweep) == [["rank", "runs", "IQM", "95 % interval"], ["1", "2", "1.5", "1 to 2"]]
