"""A whole run on the host: chunks, the run directory, determinism, signals and divergence."""

import dataclasses
import functools
import io
import json
import math
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import compiled_once
from hypothesis import given
from hypothesis import strategies as st
from probe_envs import spoiled, walk
from rich.console import Console

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.errors import CheckpointError, ConfigError, DivergedError
from purejaxppo.experiment import run as experiment_run
from purejaxppo.experiment import training
from purejaxppo.experiment.directory import read_run_settings
from purejaxppo.experiment.load_run import load_run
from purejaxppo.experiment.metrics_log import mean_return
from purejaxppo.experiment.run import evaluate_saved, resume_experiment, run_experiment

HP = Hyperparams(learning_rate=1e-3)
SMALL = {"num_envs": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2, "hidden_sizes": (4,)}
UPDATES = 6
CONFIG = TrainConfig(env_params={"max_steps_in_episode": 6}, total_timesteps=32 * UPDATES + 5, **SMALL)
FEW = RunOptions(eval_episodes=5)
METRICS = {
    "update",
    "env_steps",
    "seconds",
    "episode/return",
    "episode/length",
    "episode/count",
    "loss/policy",
    "loss/value",
    "entropy",
    "kl",
    "kl_k3",
    "ratio/mean",
    "ratio/std",
    "ratio/max",
    "ratio/effective_sample_size",
    "ratio/first_minibatch_deviation",
    "clip_fraction",
    "explained_variance",
    "grad_norm",
    "learning_rate",
}
SUMMARY = {
    "env",
    "algorithm",
    "seed",
    "env_steps",
    "updates",
    "compile_seconds",
    "train_seconds",
    "env_steps_per_second",
    "train_return",
    "evaluation",
    "state_sha256",
    "exit_reason",
    "seconds",
}


def run(config=CONFIG, out=None, seed=3, **options):
    """Calls run_experiment; its console's text goes to `run.text`."""
    console = Console(file=io.StringIO())
    try:
        return run_experiment(
            config, HP, seed, options=RunOptions(eval_episodes=5), out=out, console=console, **options
        )
    finally:
        run.text = console.file.getvalue()


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    with compiled_once():
        yield


@functools.cache
def endless_walk(num_envs, spoilt_reward=math.nan):
    """Its episodes never end, and from the fifth update on a reward is not finite."""
    return spoiled(walk(num_envs, limit=1000, target=1e6), after=36, reward=spoilt_reward)


@functools.cache
def infinite_walk(num_envs):
    """The same with an infinite reward."""
    return endless_walk(num_envs, math.inf)


@pytest.fixture
def walking(monkeypatch):
    """Yields a function: walking(make) puts an environment make(num_envs) in the place of gymnax's."""

    def use(make):
        monkeypatch.setattr(
            experiment_run, "make_env", lambda config, num_envs=None, **_: make(num_envs or config.num_envs)
        )

    return use


@pytest.fixture
def short_chunks(monkeypatch):
    """Yields a function: short_chunks(2, 4) makes the host loop run CONFIG's updates in chunks of these lengths."""

    def use(*lengths):
        assert sum(lengths) == UPDATES
        monkeypatch.setattr(training, "chunk_lengths", lambda *_: list(lengths))

    return use


def without_time(row):
    """Returns rows without the clock and without NaN, which is not equal to itself, so that they can be compared."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items() if k != "seconds"}


# --- a run on CartPole ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """(run directory, summary, console text) of a run on CartPole."""
    out = tmp_path_factory.mktemp("runs") / "cartpole"
    began = time.perf_counter()
    summary = run(out=out)
    run.elapsed = time.perf_counter() - began
    return out, summary, run.text


def test_files_of_a_run(cartpole):
    out, _, _ = cartpole
    files = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "command.txt",
        "versions.json",
        "run.lock",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "plots",
    }
    assert "checkpoints/step_000000000192/state" in files
    assert "checkpoints/step_000000000192/meta.json" in files
    assert (out / "plots/learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    versions = json.loads((out / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert versions["device"]
    assert {"commit", "dirty"} < versions.keys()
    assert (out / "command.txt").read_text().strip()


def test_config_of_a_run_is_complete_and_reads_back(cartpole):
    out, _, _ = cartpole
    content = json.loads((out / "config.json").read_text())
    assert content["format_version"] == 1
    assert content["seed"] == 3
    assert read_run_settings(out) == (CONFIG, HP, 3, RunOptions(eval_episodes=5))


def test_metrics_have_a_row_per_update(cartpole):
    out, _, _ = cartpole
    rows = rows_of(out)
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    assert [row["env_steps"] for row in rows] == [32 * (i + 1) for i in range(UPDATES)]
    for row in rows:
        assert row.keys() >= METRICS
        assert isinstance(row["episode/count"], int)
        assert all(v is None or math.isfinite(v) for v in row.values())
    # The limit is 6 of 8 steps: the first update sees episodes end.
    assert all(row["episode/count"] >= 4 for row in rows)
    assert all(row["episode/return"] == row["episode/length"] <= 6 for row in rows)
    assert rows[0]["learning_rate"] == pytest.approx(1e-3)
    assert rows[-1]["learning_rate"] == pytest.approx(1e-3 / UPDATES)


def test_summary_of_a_run(cartpole):
    out, summary, _ = cartpole
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary.keys() >= SUMMARY
    assert summary["env"] == "CartPole-v1"
    assert summary["algorithm"] == "ppo_clip"
    assert summary["seed"] == 3
    assert summary["env_steps"] == 192  # of 197 asked for
    assert summary["updates"] == UPDATES
    assert summary["exit_reason"] == "finished"
    assert len(summary["state_sha256"]) == 64
    assert summary["compile_seconds"] > 0
    assert summary["train_seconds"] > 0
    assert summary["evaluation"].keys() == {"episodes", "return_mean", "return_std", "return_iqm", "length_mean"}
    assert summary["evaluation"]["episodes"] == 5
    assert 1 <= summary["evaluation"]["return_mean"] <= 6


def test_seconds_by_phase_add_up_to_the_runs(cartpole):
    """They include the picture, which comes after everything that it shows."""
    seconds = cartpole[1]["seconds"]
    assert list(seconds) == ["setup", "compilation", "training", "saving", "evaluation", "picture"]
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) == pytest.approx(run.elapsed, abs=0.2)


def test_second_line_says_where_the_settings_are_from(cartpole):
    second = cartpole[2].splitlines()[1]
    assert second.startswith("settings: the tuned preset of CartPole-v1, but for env_params, total_timesteps, ")


def test_first_line_says_what_will_run(cartpole):
    out, _, text = cartpole
    first = text.splitlines()[0]
    for part in ("CartPole-v1", "192 env steps", "197 asked for", "6 updates", "device", "seed 3", str(out)):
        assert part in first


def last_tenth(rows):
    """Returns the mean return of the episodes that ended in the last tenth of the updates, from the file."""
    rows = [row for row in rows if row["update"] > len(rows) - math.ceil(len(rows) / 10)]
    episodes = sum(row["episode/count"] for row in rows)
    return sum(row["episode/return"] * row["episode/count"] for row in rows if row["episode/count"]) / episodes


def test_train_return_is_that_of_the_metrics(cartpole):
    out, summary, _ = cartpole
    assert summary["train_return"] == pytest.approx(last_tenth(rows_of(out)))


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-100, 100)), min_size=1, max_size=40))
def test_train_return_of_any_run(episodes):
    """Over 1 to 40 updates it is that of the last 1 to 4 of them; None if no episode ended in those."""
    rows = [
        {"update": i, "episode/count": n, "episode/return": x if n else math.nan}
        for i, (n, x) in enumerate(episodes, start=1)
    ]
    kept = rows[-math.ceil(len(rows) / 10) :]
    if any(row["episode/count"] for row in kept):
        assert mean_return(kept) == pytest.approx(last_tenth(rows))
    else:
        assert mean_return(kept) is None


def test_what_the_environment_reports_is_in_the_summary(tmp_path):
    """FrozenLake reports the probability of its last transition."""
    config = TrainConfig(env="FrozenLake-misc", total_timesteps=32 * UPDATES, **SMALL)
    summary = run(config, out=tmp_path / "run")
    assert 0 < summary["train_info"]["p"] <= 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["train_info"] == summary["train_info"]
    assert "train_info" not in run(CONFIG, out=tmp_path / "other")


def test_same_seed_same_run(cartpole, tmp_path):
    """Every byte but the times is the same, whatever further sinks there are, even if they fail."""
    out, summary, _ = cartpole
    calls = []

    def failing(step, row):
        calls.append(step)
        raise RuntimeError("offline")

    with pytest.warns(UserWarning, match="offline"):
        again = run(out=tmp_path / "again", sinks=[failing])
    assert calls == [32]
    assert again["state_sha256"] == summary["state_sha256"]
    assert again["evaluation"] == summary["evaluation"]
    assert again["train_return"] == summary["train_return"]
    both = ([without_time(row) for row in rows_of(path)] for path in (out, tmp_path / "again"))
    assert next(both) == next(both)


def test_whatever_numbers_and_paths_a_program_has_in_hand(cartpole, tmp_path):
    """NumPy's and JAX's numbers, whole floats and paths as text give the same run and valid JSON, in all functions."""
    out, summary, _ = cartpole
    numbers = {name: np.int64(value) for name, value in SMALL.items() if name != "hidden_sizes"}
    params = {"max_steps_in_episode": np.float64(6)}
    config = dataclasses.replace(
        CONFIG, env_params=params, hidden_sizes=np.array([4]), total_timesteps=float(CONFIG.total_timesteps), **numbers
    )
    hp = jax.tree.map(jnp.float32, Hyperparams(learning_rate=np.float32(1e-3)))
    options, quiet = RunOptions(eval_episodes=np.int64(5)), Console(file=io.StringIO())
    there = str(tmp_path / "again")
    again = run_experiment(config, hp, np.float64(3.0), options=options, out=there, console=quiet)
    json.dumps(again)
    assert again["env_steps"] == summary["env_steps"]
    assert len(rows_of(tmp_path / "again")) == UPDATES
    settings = read_run_settings(there)
    assert (settings.config, settings.seed) == (CONFIG, 3)
    resumed = resume_experiment(there, settings=settings._replace(seed=np.int64(3)), console=quiet)
    assert json.dumps(resumed) == json.dumps({**again, "run_dir": there})
    result = evaluate_saved(load_run(str(out)), episodes=np.int64(5), seed=np.int64(3))
    assert result == {"env_steps": 192, **summary["evaluation"]}


def test_saved_policy_evaluates_as_it_did(cartpole):
    """The checkpoint alone is enough; sampling and another seed give other episodes."""
    out, summary, _ = cartpole
    assert evaluate_saved(load_run(out), episodes=5, seed=3) == {"env_steps": 192, **summary["evaluation"]}
    sampled = evaluate_saved(load_run(out), episodes=5, seed=3, greedy=False)
    assert sampled["episodes"] == 5
    assert sampled["return_mean"] <= 6


def copied(cartpole, tmp_path, **changes):
    """Returns a run's directory with another config.json and no checkpoint of its own."""
    out, _, _ = cartpole
    content = {**json.loads((out / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "checkpoints").symlink_to(out / "checkpoints")
    return tmp_path


@pytest.mark.parametrize("changes", [{"hidden_sizes": [5]}, {"num_envs": 8}, {"env": "Acrobot-v1", "env_params": {}}])
def test_checkpoint_of_another_configuration_is_refused(cartpole, tmp_path, changes):
    with pytest.raises(CheckpointError, match="another state"):
        evaluate_saved(load_run(copied(cartpole, tmp_path, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 3},
        {"num_envs": 0},
        {"num_envs": None},
        {"env_params": 3},
        {"seed": -1},
        {"hidden_sizes": None},
    ],
)
def test_config_that_was_edited_is_refused(cartpole, tmp_path, changes):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        evaluate_saved(load_run(copied(cartpole, tmp_path, **changes)))


@pytest.mark.parametrize("content", ["[]", "{}", "3", "{", '{"format_version": 1}'])
def test_config_that_is_no_runs_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        evaluate_saved(load_run(tmp_path))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_directory_that_holds_anything_is_never_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not an empty directory"):
        run(out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError) as caught:
            run(out=out)
        assert caught.value.exit_code == 4
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("change", [{"eval_episodes": 0}, {"eval_episodes": -1}])
def test_no_evaluation_episodes(tmp_path, change):
    with pytest.raises(ConfigError, match="eval_episodes"):
        run_experiment(CONFIG, HP, 0, out=tmp_path / "out", options=RunOptions(**change))
    with pytest.raises(ConfigError, match="episodes"):
        evaluate_saved(None, episodes=change["eval_episodes"])
    assert not (tmp_path / "out").exists()


# --- divergence and signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [endless_walk, pytest.param(infinite_walk, marks=pytest.mark.slow)])
def test_divergence_stops_the_run_and_saves_nothing(tmp_path, walking, short_chunks, env):
    walking(env)
    short_chunks(2, 2, 2)
    with pytest.raises(DivergedError, match=r"at update 5 \(160 env steps\)") as caught:
        run(out=tmp_path / "out")
    assert caught.value.exit_code == 3
    assert [row["update"] for row in rows_of(tmp_path / "out")] == [1, 2, 3, 4]
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_ends_the_run_after_the_chunks_in_flight(tmp_path, walking, short_chunks, name):
    """It is saved but not evaluated; episodes of this walk never end, so there is no return to report either."""
    walking(endless_walk)
    short_chunks(2, 2, 2)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def kill(step, row):
        if row["update"] == 2:
            signal.raise_signal(getattr(signal, name))

    summary = run(out=tmp_path / "out", sinks=[kill])
    assert summary["exit_reason"] == name
    assert summary["updates"] == 4  # the second chunk was on its way
    assert summary["env_steps"] == 128
    assert summary["evaluation"] is None
    assert summary["train_return"] is None
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (tmp_path / "out/checkpoints/step_000000000128/meta.json").is_file()
    assert not (tmp_path / "out/plots").exists()
    assert [row["episode/return"] for row in rows_of(tmp_path / "out")] == [None] * 4
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_second_signal_aborts_at_once(tmp_path, walking, short_chunks):
    walking(endless_walk)
    short_chunks(2, 2, 2)

    def kill(step, row):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path / "out", sinks=[kill])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
