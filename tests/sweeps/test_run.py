"""A sweep on the host: its runs equal single runs whatever interrupts it, and its tables are right."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import pickle
import shutil
import time
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from compiled_once import compiled_once
from rich.console import Console

from purejaxppo.cli import main as cli
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.errors import CheckpointError, ConfigError, DivergedError, OutOfMemoryError, RunDirInUseError
from purejaxppo.evaluate import Episodes
from purejaxppo.experiment import directory as run_dirs
from purejaxppo.experiment.checkpoints.directory import list_steps
from purejaxppo.experiment.checkpoints.store import CheckpointChoice
from purejaxppo.experiment.directory import RunSettings
from purejaxppo.experiment.lock import locked
from purejaxppo.experiment.run import evaluate_saved, resume_experiment, run_experiment
from purejaxppo.sweeps import plan as planning
from purejaxppo.sweeps.compiled_group import CompiledGroup
from purejaxppo.sweeps.directory import Sizes, survey_batches
from purejaxppo.sweeps.extract import extract_member, load_member
from purejaxppo.sweeps.plots import plot_sweep
from purejaxppo.sweeps.run import resume_sweep, run_sweep
from purejaxppo.sweeps.spec import SweepSettings

UPDATES = 9
CONFIG = TrainConfig(
    env_params={"max_steps_in_episode": 6},
    num_envs=4,
    num_steps=8,
    num_epochs=1,
    num_minibatches=2,
    hidden_sizes=(4,),
    learning_rate_schedule="constant",
    total_timesteps=32 * UPDATES,
)
OPTIONS = RunOptions(eval_episodes=4, checkpoint_seconds=1000)
TABLES = ("metrics.csv", "results.csv", "table.md", "plots/learning_curves.png", "plots/marginals.png")


def sweep_of(points, seeds=(5, 7), **options):
    """Returns a sweep over points, each of fields of TrainConfig and Hyperparams."""
    statics = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = tuple(
        (
            dataclasses.replace(CONFIG, **{k: v for k, v in point.items() if k in statics}),
            Hyperparams(**{k: v for k, v in point.items() if k not in statics}),
        )
        for point in points
    )
    axes = tuple(dict.fromkeys(name for point in points for name in point))
    return SweepSettings(axes, tuple(points), settings, tuple(seeds), OPTIONS, **options)


# Two programs, one of them for two settings and the other for one, of another number of updates.
POINTS = (
    {"learning_rate": 1e-3, "num_envs": 4},
    {"learning_rate": 1e-2, "num_envs": 4},
    {"learning_rate": 1e-3, "num_envs": 8},
)


RATES = tuple({"learning_rate": x} for x in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1))


ELAPSED = []  # seconds of the sweep that is not to be changed
COMPILED = []  # settings and number of runs of the programs that the sweep with halving has compiled


class Quiet(Console):
    """A console that keeps what is printed in `text`."""

    def __init__(self):
        super().__init__(file=io.StringIO(), width=1000)

    @property
    def text(self):
        return self.file.getvalue()


class Interruption:
    """A request to stop that comes when it is asked for the n-th time."""

    def __init__(self, after=math.inf):
        self.left = after

    def __call__(self):
        self.left -= 1
        return "SIGTERM" if self.left < 0 else None

    def ending_at_once(self, stop_message, code=None):
        """Returns a context in which nothing is ended at once."""
        return io.StringIO()


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def short_chunks():
    """Makes calls of two updates, so that a batch has several; their programs serve all tests."""
    with compiled_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("purejaxppo.experiment.chunked_loop._CHUNK_UPDATES", 2)
        yield


@pytest.fixture(scope="module", autouse=True)
def drawn_once(tmp_path_factory):
    """Draws equal pictures once, and copies them where they are wanted again."""
    drawn = tmp_path_factory.mktemp("drawn")

    def plot_once(*given):
        *what, directory = given
        pictures = drawn / hashlib.sha256(pickle.dumps(what)).hexdigest()
        if not pictures.exists():
            plot_sweep(*what, pictures)
        shutil.copytree(pictures, directory, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("purejaxppo.sweeps.run.plot_sweep", plot_once)
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Returns directory, sweep, summary and console text of a sweep; not to be changed."""
    out, console = tmp_path_factory.mktemp("sweep") / "out", Quiet()
    sweep = sweep_of(POINTS, target=4.0)
    began = time.perf_counter()
    summary = run_sweep(sweep, out=out, console=console)
    ELAPSED[:] = [time.perf_counter() - began]
    return out, sweep, summary, console.text


# --- what is there ----------------------------------------------------------------------------------------------------


def test_files_and_what_was_said(swept):
    out, _, summary, text = swept
    names = {"command.txt", "metrics.csv", "parts", "plots", "results.csv", "run.lock", "summary.json", "sweep.json"}
    assert {path.name for path in out.iterdir()} == names | {"table.md", "versions.json"}
    assert {path.name for path in (out / "plots").iterdir()} == {"learning_curves.png", "marginals.png", "heat_map.png"}
    assert json.loads((out / "summary.json").read_text()) == {k: v for k, v in summary.items() if k != "out"}
    for batch in (
        "6 = 3 settings x 2 seeds",
        "1,664 in all",
        "programs to compile",
        "num_envs 8",
        "2 devices",
        str(out),
    ):
        assert batch in text


def test_the_settings_and_the_seconds_are_told(swept):
    _, _, summary, text = swept
    assert text.splitlines()[0].startswith("settings: the tuned preset of CartPole-v1, but for ")
    phases = {"setup", "compilation", "training", "saving", "evaluation", "tables and pictures"}
    assert summary["seconds"].keys() == phases
    assert sum(summary["seconds"].values()) == pytest.approx(ELAPSED[0], abs=0.2)
    assert "unfinished" not in summary


def test_episodes_that_were_broken_off_are_counted(swept, tmp_path, capfd):
    """They are summed over all batches."""
    out = shutil.copytree(swept[0], tmp_path / "out")
    (out / "summary.json").unlink()
    for batch in sorted((out / "parts").iterdir()):
        content = json.loads((batch / "result.json").read_text())
        (batch / "result.json").write_text(json.dumps(content | {"unfinished": 600}))
    assert cli.run(["resume", str(out)]) == 0
    assert "1,200 episodes of the evaluation were broken off unfinished" in capfd.readouterr().out
    assert json.loads((out / "summary.json").read_text())["unfinished"] == 1200


def test_a_groups_evaluation_counts_what_was_broken_off():
    """They are counted per run, but not for a run that diverged, which has no return either."""
    episodes = Episodes(np.array([[1, 2], [3, 5], [7, 9]]), np.ones((3, 2)), np.array([[1, 0], [0, 0], [0, 1]], bool))
    group = SimpleNamespace(_evaluators={3: lambda seeds, runs: episodes})
    returns, unfinished = CompiledGroup.evaluate(group, np.arange(3), SimpleNamespace(diverged=np.array([0, 0, 4])))
    np.testing.assert_array_equal(returns, [1.5, 4, np.nan])
    assert unfinished.tolist() == [1, 2, 0]


def test_summary_is_that_of_the_rows(swept):
    out, _, summary, _ = swept
    results = rows_of(out / "results.csv")
    assert [int(row["run"]) for row in results] == list(range(6))
    assert [int(row["seed"]) for row in results] == [5, 7] * 3
    assert summary["runs"] == 6
    assert summary["env_steps"] == sum(int(row["env_steps"]) for row in results) == 1664
    ranks = [row["return_iqm"] for row in summary["settings"]]
    assert ranks == sorted(ranks, reverse=True)
    for row in summary["settings"]:
        mine = [float(r["evaluation_return"]) for r in results if int(r["setting"]) == row["setting"]]
        assert row["return_iqm"] == np.mean(mine)
    best = results[summary["best_run"]]
    assert float(best["evaluation_return"]) == max(
        float(r["evaluation_return"]) for r in results if int(r["setting"]) == summary["settings"][0]["setting"]
    )


@pytest.mark.parametrize("number", [3, *(pytest.param(i, marks=pytest.mark.slow) for i in (0, 5))])
def test_each_run_is_the_single_run(swept, tmp_path, number):
    """Metrics, evaluation and state are bitwise identical, which they are on a CPU."""
    out, sweep, _, _ = swept
    setting, i = divmod(number, 2)
    config, hp = sweep.settings[setting]
    single = run_experiment(config, hp, sweep.seeds[i], options=OPTIONS, out=tmp_path / "run", console=Quiet())
    result = rows_of(out / "results.csv")[number]
    assert float(result["evaluation_return"]) == single["evaluation"]["return_mean"]
    made = extract_member(out, str(number), tmp_path / "member")
    assert (made["seed"], made["env_steps"], made["diverged_at"]) == (sweep.seeds[i], config.env_steps, None)
    summary = resume_experiment(tmp_path / "member", console=Quiet())
    assert summary["state_sha256"] == single["state_sha256"]
    rows, its = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("member", "run")
    )
    assert rows == [{k: v for k, v in row.items() if k != "seconds"} for row in its]
    assert run_dirs.read_run_settings(tmp_path / "member") == RunSettings(config, hp, sweep.seeds[i], OPTIONS)


# --- members ----------------------------------------------------------------------------------------------------------


def test_the_best_member_is_that_of_the_summary(swept, tmp_path):
    out, _, summary, _ = swept
    best, other = load_member(out, "best"), load_member(out, str(summary["best_run"]))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), best.runner, other.runner))
    assert evaluate_saved(best, episodes=4) == evaluate_saved(other, episodes=4)
    assert extract_member(out, "best", tmp_path / "out")["member"] == summary["best_run"]


def test_a_member_goes_on_to_the_longer_run(swept, tmp_path):
    """It equals `train` with the longer budget, as no schedule depends on that."""
    out, sweep, _, _ = swept
    extract_member(out, "0", tmp_path / "member")
    config, hp = sweep.settings[0]
    settings = RunSettings(dataclasses.replace(config, total_timesteps=32 * 15), hp, 5, OPTIONS)
    there = resume_experiment(tmp_path / "member", settings=settings, console=Quiet())
    here = run_experiment(settings.config, hp, 5, options=OPTIONS, out=tmp_path / "run", console=Quiet())
    assert there["state_sha256"] == here["state_sha256"]


@pytest.mark.parametrize("member", ["6", "-1", "worst", "", "1.0", "٣"])
def test_an_unknown_member(swept, tmp_path, member):
    with pytest.raises(ConfigError, match=r"is unknown; it is best, or a run's number from 0 to 5\."):
        load_member(swept[0], member)
    with pytest.raises(ConfigError):
        extract_member(swept[0], member, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_runs_directory_is_no_sweeps_and_the_reverse(swept, tmp_path):
    run_experiment(CONFIG, Hyperparams(), 0, options=OPTIONS, out=tmp_path / "run", console=Quiet())
    for f in (lambda d: load_member(d, "0"), lambda d: extract_member(d, "0", tmp_path / "x"), resume_sweep):
        with pytest.raises(CheckpointError, match="is a run's directory, not a sweep's"):
            f(tmp_path / "run")
    for f in (run_dirs.read_run_settings, resume_experiment):
        with pytest.raises(CheckpointError, match="is a sweep's directory, not a run's"):
            f(swept[0])


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """Returns directory, sweep and summary of five settings in successive halving; not to be changed."""
    out = tmp_path_factory.mktemp("halved") / "out"
    sweep = sweep_of(RATES, halving=2, target=4.0)
    real = CompiledGroup.program

    def program(self, size, updates):
        if (size, updates) not in self._programs:
            COMPILED.append((self.settings, size))
        return real(self, size, updates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledGroup, "program", program)
        return out, sweep, run_sweep(sweep, out=out, console=Quiet())


def assert_same_tables(directory, other):
    for name in TABLES:
        assert (directory / name).read_bytes() == (other / name).read_bytes(), name
    summaries = [json.loads((path / "summary.json").read_text()) for path in (directory, other)]
    for summary in summaries:
        del summary["train_seconds"], summary["env_steps_per_second"], summary["seconds"]
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("after", [0, 3, 6])
def test_stopped_and_resumed_is_uninterrupted(halved, tmp_path, after):
    """Its files are the same byte for byte, although it is stopped again and again, each time after more checks."""
    out, sweep, _ = halved
    summary = run_sweep(sweep, out=tmp_path / "out", console=Quiet(), stop=Interruption(after))
    assert summary["exit_reason"] == "SIGTERM"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_reason"] == "SIGTERM"
    summary = resume_sweep(tmp_path / "out", console=Quiet(), stop=Interruption(after + 3))
    if summary["exit_reason"] != "finished":
        with pytest.raises(CheckpointError, match="no best member: the sweep is not finished"):
            load_member(tmp_path / "out", "best")
        summary = resume_sweep(tmp_path / "out", console=Quiet(), stop=Interruption())
    assert_same_tables(tmp_path / "out", out)
    assert resume_sweep(tmp_path / "out", console=Quiet()) == summary  # finished, and left alone


def test_a_member_of_an_unfinished_sweep(halved, tmp_path):
    """It has the newest checkpoint of its batch."""
    _, sweep, _ = halved
    run_sweep(sweep, out=tmp_path / "out", console=Quiet(), stop=Interruption(1))
    assert load_member(tmp_path / "out", "1").meta["env_steps"] == 96  # the end of the first batch
    assert evaluate_saved(load_member(tmp_path / "out", "9"), episodes=4)["env_steps"] == 96
    run_sweep(sweep_of(POINTS), out=tmp_path / "two", console=Quiet(), stop=Interruption(1))
    with pytest.raises(CheckpointError, match="has no checkpoint of run 5;"):  # of the program that comes later
        load_member(tmp_path / "two", "5")


def test_a_damaged_checkpoint_is_passed_over(halved, tmp_path):
    """As there is no older one, the batch begins again; with --strict it is an error."""
    whole, sweep, _ = halved
    run_sweep(sweep, out=tmp_path / "out", console=Quiet(), stop=Interruption(2))
    batch = next((tmp_path / "out" / "parts").iterdir())
    (step,) = list_steps(batch)
    (step.path / "COMMIT").write_text("nonsense")
    with pytest.raises(CheckpointError, match="does not have the hash in COMMIT"):
        resume_sweep(tmp_path / "out", console=Quiet(), strict=True)
    console = Quiet()
    resume_sweep(tmp_path / "out", console=console)
    assert f"every checkpoint of {batch.name} is damaged" in console.text
    assert_same_tables(tmp_path / "out", whole)


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_the_damaged_end_of_a_rung_is_trained_again(halved, tmp_path, rung):
    """This is so although the sweep was finished; later batches and their rows stay as they are."""
    out = shutil.copytree(halved[0], tmp_path / "out")
    (step, *_) = list_steps(out / "parts" / f"rung{rung}_program1_batch1")
    (step.path / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"meta.json is missing; leave --strict out"):
        resume_sweep(out, console=Quiet(), strict=True)
    resume_sweep(out, console=Quiet())
    assert_same_tables(out, halved[0])
    assert not any(row["fault"] for row in survey_batches(out))


def test_pictures_that_are_missing_are_drawn_again(swept, tmp_path):
    out = shutil.copytree(swept[0], tmp_path / "out")
    shutil.rmtree(out / "plots")
    resume_sweep(out, console=Quiet())
    assert_same_tables(out, swept[0])


def test_metrics_of_other_columns_are_not_touched(swept, tmp_path):
    out = shutil.copytree(swept[0], tmp_path / "out")
    (out / "summary.json").unlink()
    content = "run,seed,other\n" + (out / "metrics.csv").read_text()
    (out / "metrics.csv").write_text(content)
    with pytest.raises(CheckpointError, match="has other columns than this sweep"):
        resume_sweep(out, console=Quiet())
    assert (out / "metrics.csv").read_text() == content


DAMAGES = ("{", "{}", '{"metrics_bytes": "9"}', None)


@pytest.mark.parametrize(
    ("damage", "finished"),
    [  # half of them by default, each damage once
        pytest.param(damage, finished, marks=[pytest.mark.slow] if finished == (i % 2 == 0) else [])
        for i, damage in enumerate(DAMAGES)
        for finished in (False, True)
    ],
)
def test_a_lost_result_of_an_early_batch_is_found_again(swept, tmp_path, damage, finished):
    """The batch's final checkpoint is evaluated again; the rows of later batches stay."""
    out = shutil.copytree(swept[0], tmp_path / "out")
    if not finished:
        (out / "summary.json").unlink()
    result = out / "parts" / "rung0_program1_batch1" / "result.json"
    result.unlink() if damage is None else result.write_text(damage)
    resume_sweep(out, console=Quiet())
    assert_same_tables(out, swept[0])


@pytest.mark.parametrize("damage", ["empty", "missing", "torn", "garbage"])
def test_lost_rows_are_made_again(swept, tmp_path, damage):
    """This is so although the sweep was finished."""
    out = shutil.copytree(swept[0], tmp_path / "out")
    path = out / "metrics.csv"
    content = path.read_text()
    changed = {"empty": "", "torn": content[:-300], "garbage": content.replace("\n1,", "\ngarbage,1,", 1)}
    path.unlink() if damage == "missing" else path.write_text(changed[damage])
    console = Quiet()
    assert resume_sweep(out, console=console)["exit_reason"] == "finished"
    assert "metrics.csv has lost rows" in console.text
    assert_same_tables(out, swept[0])


@pytest.mark.parametrize("name", ["table.md", "results.csv"])
def test_tables_that_are_missing_are_made_again(swept, tmp_path, name):
    out = shutil.copytree(swept[0], tmp_path / "out")
    (out / name).unlink()
    resume_sweep(out, console=Quiet())
    assert_same_tables(out, swept[0])


def test_a_changed_sweep_is_refused(halved, tmp_path):
    _, sweep, _ = halved
    out = tmp_path / "out"
    run_sweep(sweep, out=out, console=Quiet(), stop=Interruption(2))
    content = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(json.dumps({**content, "seeds": [5, 8]}))
    with pytest.raises(CheckpointError, match="has been changed since"):
        resume_sweep(out, console=Quiet())
    with locked(out), pytest.raises(RunDirInUseError):
        resume_sweep(out, console=Quiet())
    (out / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="keeps its evaluation"):
        resume_sweep(out, console=Quiet(), options=dataclasses.replace(OPTIONS, eval_episodes=5))
    with pytest.raises(ConfigError, match=r"eval_every = 64: a sweep .* not while they train"):
        resume_sweep(out, console=Quiet(), options=dataclasses.replace(OPTIONS, eval_every=64))


def test_on_another_number_of_devices(server, tmp_path):
    """A sweep of four runs that was begun on two devices is read on one and finished on four."""
    sweep = sweep_of(POINTS[:2])
    whole = run_sweep(sweep, out=tmp_path / "whole", console=Quiet())
    run_sweep(sweep, out=tmp_path / "out", console=Quiet(), stop=Interruption(2))
    (batch,) = (tmp_path / "out" / "parts").iterdir()
    assert 0 < list_steps(batch)[0].env_steps < 32 * UPDATES
    for devices, *argv in (
        (1, "evaluate", tmp_path / "whole", "--member", "best", "--json"),
        (4, "resume", tmp_path / "out"),
    ):
        code, said = server.run(tmp_path / "log", *argv, faults=[f"cpu_devices={devices}"], fill_cache=True)
        assert code == 0, said
    assert whole["exit_reason"] == "finished"
    assert_same_tables(tmp_path / "out", tmp_path / "whole")


# --- successive halving -----------------------------------------------------------------------------------------------


def test_halving_keeps_the_best_and_gives_them_the_budget(halved):
    """Five settings are trained, then two, then one; the budget doubles with each rung."""
    out, _, summary = halved
    results = rows_of(out / "results.csv")
    steps = {0: math.ceil(UPDATES / 4) * 32, 1: math.ceil(UPDATES / 2) * 32, 2: UPDATES * 32}
    rungs = [int(row["rung"]) for row in results]
    assert sorted(rungs) == [0] * 6 + [1] * 2 + [2] * 2
    assert [int(row["env_steps"]) for row in results] == [steps[rung] for rung in rungs]
    assert [row["rung"] for row in summary["settings"]] == [2, 1, 0, 0, 0]
    batches = {path.name: json.loads((path / "result.json").read_text()) for path in (out / "parts").iterdir()}
    first = np.array(batches["rung0_program1_batch1"]["returns"]).reshape(5, 2).mean(axis=1)
    assert {s for s in range(5) if rungs[2 * s] > 0} == set(sorted(range(5), key=lambda s: (-first[s], s))[:2])


def test_who_goes_on_is_the_single_run(halved, tmp_path):
    """A run loses nothing of its state from rung to rung."""
    out, sweep, summary = halved
    number = summary["best_run"]
    config, hp = sweep.settings[number // 2]
    seed = sweep.seeds[number % 2]
    single = run_experiment(config, hp, seed, options=OPTIONS, out=tmp_path / "run", console=Quiet())
    extract_member(out, "best", tmp_path / "member")
    assert resume_experiment(tmp_path / "member", console=Quiet())["state_sha256"] == single["state_sha256"]


def test_one_compilation_for_each_number_of_runs(halved):
    """It does not depend on chunks, batches and rungs."""
    assert [(tuple(range(5)), size) for size in (10, 4, 2)] == COMPILED


# --- memory -----------------------------------------------------------------------------------------------------------


def test_too_large_for_memory_is_split_into_batches(swept, tmp_path, monkeypatch):
    """The tables are the same. The last batch is filled up, so that one program serves all of them."""
    out, sweep, _, _ = swept
    monkeypatch.setattr(CompiledGroup, "estimated_size", lambda group, devices: 3)
    console = Quiet()
    run_sweep(sweep, out=tmp_path / "out", console=console)
    assert "4 runs in 2 batches of 2" in console.text
    for name in ("results.csv", "table.md"):
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()
    rows, its = (sorted((path / "metrics.csv").read_text().splitlines()) for path in (out, tmp_path / "out"))
    assert rows == its


def test_a_first_size_that_does_not_fit_is_reduced(monkeypatch):
    """The compiler's own analysis says whether it fits."""
    sweep = sweep_of([{"learning_rate": 1e-3}], seeds=range(4))
    plan = planning.make_plan(sweep)
    assert plan.sizes == Sizes((4,), 2)
    (whole,) = (program["predicted_bytes"] for program in planning.plan_record(plan)["programs"])
    monkeypatch.setattr(CompiledGroup, "estimated_size", lambda group, devices: 4)
    monkeypatch.setattr(planning, "available_bytes", lambda devices: whole - 1)
    smaller = planning.make_plan(sweep)
    assert smaller.sizes.runs == (2,)
    assert planning.plan_record(smaller)["programs"][0]["predicted_bytes"] < whole
    monkeypatch.setattr(planning, "available_bytes", lambda devices: 100)
    with pytest.raises(OutOfMemoryError, match=r"out of memory: .*compiled program.*; try --num-envs"):
        planning.make_plan(sweep)


# --- divergence -------------------------------------------------------------------------------------------------------


def test_a_diverged_run_harms_no_other(swept, tmp_path):
    """It is frozen, named with its update, and counts as the worst."""
    out, _, _, _ = swept
    sweep = sweep_of([POINTS[0], {**POINTS[1], "learning_rate": 1e30}])
    summary = run_sweep(sweep, out=tmp_path / "out", console=Quiet())
    results, before = rows_of(tmp_path / "out" / "results.csv"), rows_of(out / "results.csv")
    assert [row["evaluation_return"] for row in results[:2]] == [row["evaluation_return"] for row in before[:2]]
    assert summary["diverged"] == 2
    assert [row["diverged"] for row in summary["settings"]] == [0, 2]
    assert summary["settings"][1]["return_iqm"] is None
    metrics = rows_of(tmp_path / "out" / "metrics.csv")
    for row in results[2:]:
        at = int(row["diverged_at"])
        assert at >= 1
        assert row["evaluation_return"] == ""
        assert int(row["env_steps"]) == (at - 1) * 32
        mine = [r for r in metrics if r["run"] == row["run"]]
        assert len(mine) == at
        assert [bool(r["nonfinite"]) for r in mine] == [False] * (at - 1) + [True]
    notes = []
    saved = load_member(tmp_path / "out", "2", CheckpointChoice(note=notes.append))
    assert saved.meta["env_steps"] == int(results[2]["env_steps"])
    assert "diverged at update" in notes[0]


def test_every_run_diverged(tmp_path):
    """The tables are written, but the command fails."""
    sweep = sweep_of([{"learning_rate": 1e30}], seeds=[0, 1])
    for run in (partial(run_sweep, sweep, out=tmp_path / "out"), partial(resume_sweep, tmp_path / "out")):
        with pytest.raises(DivergedError, match=r"every run diverged \(.*loss/value.*\. Try a lower learning_rate"):
            run(console=Quiet())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["diverged"], summary["best_run"]) == (2, None)
    with pytest.raises(CheckpointError, match="no run has a return"):
        load_member(tmp_path / "out", "best")


# --- on the command line ----------------------------------------------------------------------------------------------


def test_commands_take_a_sweep(swept, tmp_path, capfd, monkeypatch):
    out, _, summary, _ = swept
    argv = ["evaluate", str(out), "--member", "best", "--episodes", "4", "--json"]
    assert cli.run(argv) == 0
    assert json.loads(capfd.readouterr().out) == evaluate_saved(load_member(out, "best"), episodes=4)
    assert cli.run(["export", str(out), "--member", "0", "--out", str(tmp_path / "policy")]) == 0
    assert "policy of 288 env steps" in capfd.readouterr().out
    assert cli.run(["extract", str(out), "--member", "5", "--out", str(tmp_path / "run"), "--json"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made == {"run_dir": str(tmp_path / "run"), "member": 5, "seed": 7, "env_steps": 256, "diverged_at": None}
    assert cli.run(["verify", str(out)]) == 0
    assert "rung0_program2_batch1/step_000000000256" in capfd.readouterr().out
    monkeypatch.setattr(cli, "_prepare", lambda *_, **__: pytest.fail("a finished sweep needs no JAX"))
    assert cli.run(["resume", str(out)]) == 0
    said = capfd.readouterr()
    assert "finished already" in said.err
    assert f"results in {summary['out']}" in said.out


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ("evaluate {sweep}", 4, "is a sweep's directory, not a run's"),
        ("export {sweep} --out {new}", 4, "is a sweep's directory, not a run's"),
        ("plot {sweep} --out {new}.png", 4, "is a sweep's directory, not a run's"),
        ("evaluate {sweep} --member worst", 2, "member 'worst' is unknown"),
        ("evaluate {sweep} --member 6", 2, "member '6' is unknown"),
        ("evaluate {sweep} --member 0 --step 3", 4, "no checkpoint of 3 env steps"),
        ("extract {sweep} --out {new}", 2, "--member"),
        ("extract {new} --member best", 4, "not a sweep's directory"),
        ("resume {sweep} --total-timesteps 1000", 2, "--total-timesteps"),
        ("resume {sweep} --eval-episodes 7", 2, "keeps its evaluation"),
    ],
)
def test_refusals_on_the_command_line(swept, tmp_path, capfd, argv, code, says):
    """Each gives one line, and nothing is written."""
    words = argv.format(sweep=swept[0], new=tmp_path / "new").split()
    assert cli.run(words) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
