"""A comparison: its runs equal single runs, its files tell what happened, and bad requests are refused in one line."""

import csv
import dataclasses
import io
import json
import math
import re
import time

import numpy as np
import pytest
from rich.console import Console

from purejaxppo.cli import main as cli
from purejaxppo.cli import parse
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.core.nonfinite import WATCHED, Cause
from purejaxppo.errors import CheckpointError, ConfigError, DivergedError, EnvError
from purejaxppo.experiment.chunked_loop import Chunk
from purejaxppo.experiment.run import run_experiment
from purejaxppo.sweeps import compare
from purejaxppo.sweeps.compare import plot_comparison
from purejaxppo.sweeps.scoring import Result, comparison_table, markdown_table, steps_to_target

UPDATES = 3
CONFIG = TrainConfig(
    env_params={"max_steps_in_episode": 6},
    num_envs=4,
    num_steps=8,
    num_epochs=1,
    num_minibatches=2,
    hidden_sizes=(4,),
    cg_iterations=2,
    line_search_steps=2,
    total_timesteps=32 * UPDATES,
)
HP = Hyperparams(learning_rate=1e-3)
SEEDS = (3, 4)
FILES = {
    "command.txt",
    "comparison.png",
    "comparison.json",
    "curves.csv",
    "results.csv",
    "summary.json",
    "table.md",
    "versions.json",
}


def settings(algorithm, **hp):
    return dataclasses.replace(CONFIG, algorithm=algorithm), dataclasses.replace(HP, **hp)


def run(runs, seeds, out, **options):
    """Runs `compare` quietly; what its console prints goes to `run.text`."""
    console = Console(file=io.StringIO())
    try:
        return compare.compare(runs, seeds, out=out, eval_episodes=5, console=console, **options)
    finally:
        run.text = console.file.getvalue()


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Returns directory, summary and console text of a comparison of ppo_clip and trpo."""
    out = tmp_path_factory.mktemp("compare") / "out"
    began = time.perf_counter()
    summary = run([settings("ppo_clip"), settings("trpo")], SEEDS, out, target=4.0)
    run.elapsed = time.perf_counter() - began
    return out, summary, run.text


def test_files(compared):
    out, summary, text = compared
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "table.md").read_text() == markdown_table(comparison_table(summary["algorithms"], 4.0))
    config = json.loads((out / "comparison.json").read_text())
    assert config["seeds"] == list(SEEDS)
    assert [record["algorithm"] for record in config["runs"]] == ["ppo_clip", "trpo"]
    assert config["runs"][0]["env_params"] == {"max_steps_in_episode": 6}
    curves = rows_of(out / "curves.csv")
    keys = [(row["algorithm"], int(row["seed"]), int(row["update"]), int(row["env_steps"])) for row in curves]
    assert keys == [
        (name, seed, u, 32 * u) for name in ("ppo_clip", "trpo") for seed in SEEDS for u in range(1, UPDATES + 1)
    ]
    assert "step_fraction" in curves[0]  # a column of one is a column of all
    assert curves[0]["step_fraction"] == ""
    for batch in ("CartPole-v1", "ppo_clip 96", "seeds 3 to 4", "device", str(out)):
        assert batch in text.splitlines()[0]


@pytest.mark.parametrize(("algorithm", "seed"), [("ppo_clip", 4), pytest.param("trpo", 3, marks=pytest.mark.slow)])
def test_each_run_is_the_single_run_of_its_seed(compared, tmp_path, algorithm, seed):
    """Curves and evaluation are bitwise identical, which they are on a CPU."""
    out, _, _ = compared
    console = Console(file=io.StringIO())
    options = RunOptions(eval_episodes=5)
    single = run_experiment(*settings(algorithm), seed, options=options, out=tmp_path / "run", console=console)
    (result,) = (
        row for row in rows_of(out / "results.csv") if (row["algorithm"], row["seed"]) == (algorithm, str(seed))
    )
    assert float(result["evaluation_return"]) == single["evaluation"]["return_mean"]
    mine = [row for row in rows_of(out / "curves.csv") if (row["algorithm"], row["seed"]) == (algorithm, str(seed))]
    its = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(mine) == len(its) == UPDATES
    for here, there in zip(mine, its, strict=True):
        for name in there.keys() - {"seconds"}:
            assert (float(here[name]) if here[name] else None) == there[name], name


def test_the_settings_and_the_seconds_are_told(compared):
    _, summary, text = compared
    assert text.splitlines()[1].startswith("settings: the tuned preset of CartPole-v1, but for ")
    phases = ["setup", "compilation", "training", "evaluation", "tables", "picture"]
    assert list(summary["seconds"]) == phases
    assert sum(summary["seconds"].values()) == pytest.approx(run.elapsed, abs=0.2)


def test_seeds_are_different_runs(compared):
    rows = rows_of(compared[0] / "curves.csv")
    entropies = {(row["algorithm"], row["seed"]): row["entropy"] for row in rows if row["update"] == "3"}
    assert entropies["ppo_clip", "3"] != entropies["ppo_clip", "4"] != entropies["trpo", "4"]


def test_summary_is_that_of_the_results(compared):
    out, summary, _ = compared
    results = rows_of(out / "results.csv")
    assert {row["diverged_at"] for row in results} == {"0"}
    for row in summary["algorithms"]:
        returns = [float(result["evaluation_return"]) for result in results if result["algorithm"] == row["algorithm"]]
        assert (row["runs"], row["diverged"]) == (2, 0)
        assert row["return_iqm"] == np.mean(returns)
        assert (row["return_low"], row["return_high"]) == (min(returns), max(returns))
        assert row["env_steps_per_second"] > 0


@pytest.mark.slow
def test_diverged_runs_are_counted_and_left_out(tmp_path):
    """A learning rate that ends in NaN does not affect the runs of the other algorithms."""
    with pytest.raises(DivergedError):
        run([settings("policy_gradient", learning_rate=1e30)], SEEDS, tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["algorithms"]
    assert (row["runs"], row["diverged"]) == (2, 2)
    assert row["return_iqm"] is row["return_low"] is row["return_high"] is None
    results = rows_of(tmp_path / "out" / "results.csv")
    assert [(row["diverged_at"], row["evaluation_return"]) for row in results] == 2 * [("1", "")]
    assert "2 (2 diverged) | - | -" in (tmp_path / "out" / "table.md").read_text()


# --- what is made of the results --------------------------------------------------------------------------------------


def result_of(config, seeds, returns, causes=()):
    """Returns a result whose training returns are 1, 2, ... per update, times the run's number from 1."""
    updates = np.arange(1.0, 21.0)
    curves = updates[:, None] * np.arange(1.0, len(seeds) + 1)
    metrics = dict.fromkeys(("episode/return", "kl", "ratio/effective_sample_size", "loss/policy"), curves)
    metrics["episode/count"] = np.ones_like(curves)
    diverged_at = np.isnan(returns) * 7
    env_steps = 32 * updates.astype(int)
    return Result(config.algorithm, seeds, env_steps, metrics, np.array(returns), diverged_at, 1234.56, causes=causes)


@pytest.fixture
def scripted(monkeypatch):
    """Returns a function: scripted(returns) replaces training by hand-made results, the same for each algorithm.

    The picture is an empty file unless it is asked for.
    """

    def use(*returns, unfinished=0, causes=(), drawn=False):
        def train_all(plan, group, console, phases):
            return result_of(group.config, plan.sweep.seeds, returns, causes)._replace(unfinished=unfinished)

        monkeypatch.setattr(compare, "_train_algorithm", train_all)
        monkeypatch.setattr(compare, "plot_comparison", plot_comparison if drawn else lambda *given: given[-1].touch())

    return use


def test_one_run_has_no_interval_and_no_band(scripted, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bands = []
    monkeypatch.setattr(Axes, "fill_between", lambda *_, **__: bands.append(1))
    scripted(7.0, drawn=True)
    summary = run([settings("ppo_clip")], [5], tmp_path / "one")
    (row,) = summary["algorithms"]
    assert (row["return_iqm"], row["return_low"], row["return_high"]) == (7.0, None, None)
    assert "steps_to_target" not in row
    assert not bands
    assert "no intervals, no bands" in run.text
    assert (tmp_path / "one" / "table.md").read_text().splitlines()[2] == "| ppo_clip | 1 | 7 | - | 1,235 |"
    scripted(7.0, 8.0, drawn=True)
    run([settings("ppo_clip")], [5, 6], tmp_path / "two")
    assert len(bands) == 3  # one in each panel


def test_a_diverged_run_among_others(scripted, tmp_path):
    """It counts as the worst, even if it had reached the target before; the interquartile mean of four omits it."""
    scripted(1.0, math.nan, 3.0, 5.0)
    row = run([settings("ppo_clip")], [0, 1, 2, 3], tmp_path / "a", target=20.0)["algorithms"][0]
    assert (row["runs"], row["diverged"], row["return_iqm"]) == (4, 1, 2.0)
    assert row["return_low"] is None  # two draws of it and more are no rarity
    # The mean of five updates reaches 20 at update 22 of x (never), 9 of 3 x and 7 of 4 x; 2 x diverged.
    assert (row["steps_to_target"], row["runs_at_target"]) == (9 * 32, 2)
    assert [r["steps_to_target"] for r in rows_of(tmp_path / "a" / "results.csv")] == ["", "", "288", "224"]
    assert [r["diverged_at"] for r in rows_of(tmp_path / "a" / "results.csv")] == ["0", "7", "0", "0"]
    scripted(math.nan, 3.0)
    row = run([settings("ppo_clip")], [0, 1], tmp_path / "b")["algorithms"][0]
    assert (row["diverged"], row["return_iqm"], row["return_low"]) == (1, None, None)


def test_an_interruption_names_the_results_that_stay(tmp_path, monkeypatch, capfd):
    """Before there is a directory nothing is lost; afterwards the message names it."""

    def interrupt(*_):
        raise KeyboardInterrupt

    argv = ["compare", "--num-envs", "4", "--num-steps", "8", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(compare, "_train_algorithm", interrupt)
    assert cli.run(argv) == 130
    assert f"interrupted; {tmp_path / 'out'} has the results of the algorithms" in capfd.readouterr().err
    monkeypatch.setattr(compare, "Plan", interrupt)
    assert cli.run(argv) == 130
    assert (
        capfd.readouterr().err == "purejaxppo: error: interrupted; nothing had been written yet, so nothing is lost.\n"
    )


def test_every_run_diverged(scripted, tmp_path):
    """The results are written, but the command fails, and names the environment if that was the cause."""
    scripted(math.nan, math.nan, causes=[Cause(1, "reward"), Cause(1, "reward")])
    with pytest.raises(DivergedError, match=r"every run diverged \(reward not finite\).* from the environment"):
        run([settings("ppo_clip")], [0, 1], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_causes_are_those_of_the_runs_that_there_are():
    """Copies that fill up the devices, and updates beyond the budget, are left out; a chunk is [runs, updates]."""
    curves = compare._Curves(CONFIG, 3, lambda *_: None)
    reward, loss = (1 << WATCHED.index(name) for name in ("reward", "loss/value"))
    for first, bits in (
        (1, [[0, 0], [0, reward | loss], [0, 0], [loss, 0]]),
        (3, [[loss, 0], [0, 0], [0, loss], [0, 0]]),
    ):
        ones = np.ones((4, 2), np.float32)
        metrics = {"learning_rate": ones, "episode/return": ones, "nonfinite": np.array(bits, np.int32)}
        curves.add(Chunk(first, 0.0, 1.0, metrics))
    assert sorted(curves.causes()) == [(2, "reward"), (3, "loss/value")]
    assert set(curves.collected()) == {"learning_rate", "episode/return"}


@pytest.mark.parametrize(
    ("runs", "seeds", "options", "says"),
    [
        ([], [0], {}, "none"),
        ([settings("ppo_clip")], [], {}, "at least one setting and one seed"),
        ([settings("ppo_clip")], [1, 1], {}, "seed 1 is given twice"),
        ([settings("ppo_clip")], [2**32], {}, "seed = 4294967296"),
        ([settings("ppo_clip")], [0], {"target": math.inf}, "target = inf"),
        ([settings("ppo_clip"), (TrainConfig(env="Acrobot-v1", algorithm="trpo"), HP)], [0], {}, "different env"),
    ],
)
def test_python_callers_are_told_too(tmp_path, runs, seeds, options, says):
    with pytest.raises(ConfigError, match=says):
        compare.compare(runs, seeds, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_built_leaves_nothing_behind(tmp_path):
    config = dataclasses.replace(CONFIG, env="CartPole-v2", algorithm="trpo")
    with pytest.raises(EnvError):
        run([(config, HP)], [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("returns", "target", "steps"),
    [
        # The window is 5 updates of 10 steps each, or the whole of a shorter run.
        pytest.param([0, 0, 0, 0, 0, 10, 10, 10, 10, 10], 10.0, 100, id="when-the-window-is-full-of-it"),
        pytest.param([0, 0, 0, 0, 0, 10, 10, 10, 10, 10], 4.0, 70, id="when-two-of-five-have-it"),
        pytest.param([5, 0, 0, 0, 0, 0], 5.0, math.inf, id="one-lucky-update"),
        pytest.param([5, 5, 5, 5, 5, 5], 5.0, 50, id="at-once"),
        pytest.param([1, 2, 3], 4.0, math.inf, id="never"),
        pytest.param([math.nan, math.nan, 7, math.nan], 7.0, 40, id="where-no-episode-ended"),
        pytest.param([math.nan, math.nan], -5.0, math.inf, id="no-episode-at-all"),
        pytest.param([-9, -9, -9, -9, -9, -1, -1], -6.0, 70, id="negative"),
    ],
)
def test_steps_to_target_by_hand(returns, target, steps):
    """Each update in which any episode ended has five episodes."""
    count = np.where(np.isnan(returns), 0, 5)
    total = np.nan_to_num(returns) * count
    assert steps_to_target(10 * np.arange(1, len(returns) + 1), total, count, target) == steps


def test_steps_to_target_counts_episodes_not_updates():
    """Nine episodes of 0 outweigh one of 10; fewer than five are not enough for a mean."""
    total = np.array([[10.0, 0, 0, 0, 0], [90.0, 0, 0, 0, 0], [40.0, 0, 0, 0, 0]])
    count = np.array([[1, 9, 0, 0, 0], [9, 1, 0, 0, 0], [4, 0, 0, 0, 0]])
    np.testing.assert_array_equal(steps_to_target(np.arange(1, 6), total, count, 2.0), [math.inf, 5, math.inf])
    np.testing.assert_array_equal(steps_to_target(np.arange(1, 6), total, count, 9.0), [math.inf, 5, math.inf])


def test_window_is_2_percent_of_a_long_run():
    """Of 1000 updates the window is 20; after a step at 500 it is full of the new return 20 updates later."""
    returns = np.where(np.arange(1, 1001) > 500, 1.0, 0.0)
    assert steps_to_target(np.arange(1, 1001), returns, np.ones(1000), 1.0) == 520


def test_markdown_table():
    row = {"algorithm": "trpo", "runs": 4, "diverged": 0, "return_iqm": 1.0, "return_low": 0.5, "return_high": 1.5}
    row |= {"env_steps_per_second": 12345.6, "steps_to_target": 2500.0, "runs_at_target": 3}
    assert markdown_table(comparison_table([row], None)).splitlines() == [
        "| algorithm | runs | IQM | 95 % interval | steps/s |",
        "| --- | --- | --- | --- | --- |",
        "| trpo | 4 | 1 | 0.5 to 1.5 | 12,346 |",
    ]
    nobody = {**row, "steps_to_target": None, "runs_at_target": 0, "diverged": 1}
    assert markdown_table(comparison_table([nobody], 475)).splitlines()[0] == (
        "| algorithm | runs | IQM | 95 % interval | steps to 475 | reached | steps/s |"
    )
    assert markdown_table(comparison_table([nobody], 475)).splitlines()[2] == (
        "| trpo | 4 (1 diverged) | 1 | 0.5 to 1.5 | - | 0 of 4 | 12,346 |"
    )


def test_picture_of_runs_in_which_nothing_ended(tmp_path):
    """An algorithm without a finished episode is left out, instead of failing after hours of training."""
    steps, nothing = np.arange(4.0), np.full((4, 2), math.nan)
    some = {"episode/return": np.ones((4, 2)), "kl": np.ones((4, 2)), "ratio/effective_sample_size": np.ones((4, 2))}
    none = {**some, "episode/return": nothing, "kl": nothing}
    own = {"episode/return": np.ones((4, 2))}  # an update rule of one's own may report nothing else
    results = [Result(str(i), [0, 1], steps, m, np.ones(2), np.zeros(2), 1.0) for i, m in enumerate((none, some, own))]
    results.append(Result("diverged", [0, 1], steps, some, np.full(2, math.nan), np.ones(2), 1.0))
    out = plot_comparison(results, "X-v0", 1.0, tmp_path / "a.png")
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_picture_of_no_kl_at_all(tmp_path):
    """A logarithmic axis cannot show it; matplotlib would warn."""
    metrics = {name: np.zeros((4, 2)) for name in ("episode/return", "kl", "ratio/effective_sample_size")}
    plot_comparison(
        [Result("trpo", [0, 1], np.arange(4.0), metrics, np.ones(2), np.zeros(2), 1.0)],
        "X-v0",
        None,
        tmp_path / "a.png",
    )


def test_a_directory_that_holds_anything_is_never_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not an empty directory"):
        run([settings("ppo_clip")], [0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_unknown_algorithm_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'trpo'"):
        run([settings("ppo_clip"), settings("trop")], [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("train --algorithm trpo --clip-eps 0.1", "clip_eps is an option of ppo_clip, not of trpo"),
        ("train --kl-coef 2", "kl_coef is an option of ppo_kl, not of ppo_clip"),
        ("train --algorithm trpo --vf-coef 1", "option of ppo_clip, ppo_kl, policy_gradient, not of trpo"),
        (
            "train --algorithm policy_gradient --clip-eps-schedule linear",
            "clip_eps_schedule is an option of ppo_clip",
        ),
        ("train --algorithm ppo_kl --cg-damping=1", "cg_damping is an option of trpo, not of ppo_kl"),
        ("compare --algorithms ppo_clip ppo_kl --cg-iterations 3", "option of trpo, not of ppo_clip, ppo_kl"),
        ("compare --algorithms ppo_clip trop", "'trop' is unknown; choose from ppo_clip, ppo_kl, trpo"),
        ("compare --algorithms ppo_clip trop", "Did you mean 'trpo'?"),
        ("train --algorithm ppo_lk --total-timesteps 8192", "Did you mean 'ppo_kl'?"),
        ("compare --algorithms ppo_clip ppo_clip", "takes different ones"),
        ("compare --algorithms", "--algorithms"),
        ("compare --seeds 0", "--seeds 0"),
        ("compare --seeds -3", "--seeds -3"),
        ("compare --seed -1", "seed = -1"),
        ("compare --seed 4294967295 --seeds 2", "beyond 2**32 - 1"),
        ("compare --eval-episodes 0", "eval_episodes = 0"),
        ("compare --algorithm trpo", "--algorithms, with all of their names"),
        ("compare --algorithm=trpo", "--algorithms, with all of their names"),
        ("train --algorithm ppo_kl --kl-min 0.02 --kl-max 0.02", "kl_min = 0.02 is not below kl_max = 0.02"),
        ("compare --kl-min 1", "kl_min = 1.0 is not below kl_max"),
        ("train --target-kl 0", "target_kl = 0.0"),
        ("train --algorithm trpo --target-kl -0.1", "target_kl = -0.1"),
        ("compare --target-kl 0", "target_kl = 0.0"),
        ("train --algorithm ppo_kl --kl-coef-factor 0.5", "kl_coef_factor = 0.5"),
        ("train --algorithm trpo --shared-torso", "trpo needs separate torsos"),
        ("compare --shared-torso", "trpo needs separate torsos"),
        ("train --algorithm trpo --learning-rate-schedule kl_adaptive", "trpo's line search"),
        ("compare --learning-rate-schedule kl_adaptive", "trpo's line search"),
        ("compare --num-envs 3 --num-steps 5", "not divisible"),
        ("compare --target high", "high"),
        ("compare --target nan", "target = nan"),
    ],
)
def test_refusals(capfd, tmp_path, monkeypatch, argv, says):
    """Each gives one line on standard error and exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert cli.run(argv.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("purejaxppo: error: ")
    assert err.count("\n") == 1
    assert "internal error" not in err
    assert says in err
    assert not list(tmp_path.iterdir())


def test_each_algorithm_has_its_own_settings():
    """A flag of one algorithm goes to it alone, a flag of all to all of them; flags override the file."""
    command = parse.parse(
        ["compare", "--algorithms", "trpo", "ppo_clip", "--cg-damping", "0.5", "--learning-rate", "0.25"]
    )
    (trpo, trpo_hp), (clip, clip_hp) = command.resolved
    assert (trpo.algorithm, clip.algorithm) == ("trpo", "ppo_clip")
    assert trpo_hp.cg_damping == 0.5
    assert trpo_hp.learning_rate == clip_hp.learning_rate == 0.25
    assert trpo.env == clip.env == "CartPole-v1"


def test_configuration_file_of_a_comparison(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"env": "Acrobot-v1", "seed": 7, "gamma": 0.5, "num_envs": 3, "cg_iterations": 4}))
    command = parse.parse(["compare", "--config", str(path), "--num-envs", "5"])
    assert command.seed == 0  # of a run, not of a comparison
    assert [config.cg_iterations for config, _ in command.resolved] == [10, 10, 4, 10]
    assert [config.algorithm for config, _ in command.resolved] == ["ppo_clip", "ppo_kl", "trpo", "policy_gradient"]
    for config, hp in command.resolved:
        assert (config.env, config.num_envs, hp.gamma) == ("Acrobot-v1", 5, 0.5)


def test_command_prints_what_it_wrote(scripted, capfd, tmp_path, monkeypatch):
    """The target is the published one unless another is given; --json prints nothing else to standard output."""
    monkeypatch.chdir(tmp_path)
    scripted(7.0, 8.0)
    argv = ["compare", "--algorithms", "trpo", "ppo_kl", "--seeds", "2", "--seed", "3"]
    assert cli.run([*argv, "--json", "--out", "out"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["target"], summary["seeds"]) == (475, [3, 4])
    assert cli.run([*argv, "--target", "5"]) == 0
    out = capfd.readouterr().out
    assert "ppo_kl" in out
    assert re.search(r"^\d+\.\d s in all: start \d+\.\d s", out, re.MULTILINE)
    assert "broken off" not in out
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.startswith("CartPole-v1__compare__")
    assert str(directory.relative_to(tmp_path)) in out.replace("\n", "")
    assert json.loads((directory / "summary.json").read_text())["target"] == 5.0


def test_episodes_that_were_broken_off_are_told(scripted, capfd, tmp_path, monkeypatch):
    """They are in the row of each algorithm, and summed on the terminal."""
    monkeypatch.chdir(tmp_path)
    scripted(7.0, 8.0, unfinished=1500)
    assert cli.run(["compare", "--algorithms", "trpo", "ppo_kl", "--seeds", "2", "--out", "out"]) == 0
    assert "3,000 episodes of the evaluation were broken off unfinished" in capfd.readouterr().out
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["algorithms"]
    assert [row["unfinished"] for row in rows] == [1500, 1500]
