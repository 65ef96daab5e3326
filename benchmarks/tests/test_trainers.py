"""Comparison with other trainers: how the driver treats trainers that answer, hang and die, and their figures."""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys

import gymnax
import jax
import numpy as np
import pytest

from benchmarks.lib import plots
from benchmarks.lib.worker_process import WorkerError, WorkerProcess, environment
from benchmarks.sections import other_trainers, time_to_target
from benchmarks.trainers import cartpole_numpy, environments
from benchmarks.trainers.environments import NAMES
from benchmarks.trainers.protocol import Settings
from purejaxppo.envs.presets import preset

LIMIT_S = 240.0
ANSWERS = """
from benchmarks.trainers.protocol import Trainer, serve

class Fake(Trainer):
    packages, differences, device = ("numpy",), ("it does nothing",), "Test Device"
    def __init__(self, settings):
        print("a library that prints")
    def train(self, blocks):
        print('{{"seconds": -1, "env_steps": -1}}')
        {in_block}
    def actor(self):
        return [([[0, 0]] * 4, [0, 0])]

serve(Fake)
"""
HANGS = "import time; time.sleep(600)"
DIES = "raise SystemExit('nothing works here')"


@pytest.fixture
def peer(tmp_path):
    """Returns a function: peer(source, settings) starts a process that runs it; all are ended at the end."""
    with contextlib.ExitStack() as stack:

        def start(source, settings=None):
            return stack.enter_context(WorkerProcess("fake", program(tmp_path, source, settings or {})))

        yield start


def program(directory, source, settings):
    path = directory / "fake.py"
    path.write_text(source)
    return [sys.executable, str(path), json.dumps(settings)]


def answers(in_block="pass"):
    return ANSWERS.format(in_block=in_block)


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_peer_says_what_it_is_and_trains_whatever_its_libraries_print(peer):
    process = peer(answers(), {"num_envs": 3, "num_steps": 5, "updates_per_block": 7})
    about = process.ready(30)
    assert about["settings"]["num_envs"] == 3
    assert about["versions"]["numpy"] == np.__version__
    assert about["differences"] == ["it does nothing"]
    assert about["ready_s"] > about["setup_s"] > 0
    answer = process.ask({"do": "train", "blocks": 1}, 30)
    assert answer["env_steps"] == 105
    assert answer["seconds"] >= 0
    assert process.ask({"do": "train", "blocks": 3}, 30)["env_steps"] == 315


def test_peer_plays_as_many_episodes_as_asked(peer):
    process = peer(answers())
    process.ready(30)
    answer = process.ask({"do": "evaluate", "episodes": 64, "seed": 1}, 30)
    assert answer["episodes"] == 64
    assert 8 < answer["return_mean"] < 11  # to the left, always


def test_peer_that_hangs_is_given_up_and_ended(peer):
    process = peer(HANGS)
    with pytest.raises(WorkerError, match="no answer within 1 s"):
        process.ready(1)
    assert process.process.poll() is not None


@pytest.mark.parametrize(("source", "words"), [(DIES, "nothing works here"), ("raise SystemExit(3)", "exit code 3")])
def test_peer_that_dies_at_its_start_has_its_last_words_reported(peer, source, words):
    with pytest.raises(WorkerError, match=words):
        peer(source).ready(30)


def test_peer_that_dies_in_a_block_has_its_last_words_reported(peer):
    process = peer(answers("raise RuntimeError('out of luck')"))
    process.ready(30)
    with pytest.raises(WorkerError, match="RuntimeError: out of luck"):
        process.ask({"do": "train", "blocks": 1}, 30)
    with pytest.raises(WorkerError):
        process.ask({"do": "train", "blocks": 1}, 1)


DRIVER = """
import os, sys
from benchmarks.lib.worker_process import WorkerProcess, end_workers_when_terminated
end_workers_when_terminated()
with WorkerProcess("worker", [sys.executable, "-c", "import time; time.sleep(600)"]) as worker:
    print(worker.process.pid, flush=True)
    worker.receive(600)
"""


def test_a_section_that_is_terminated_leaves_no_worker():
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as driver:
        pid = int(driver.stdout.readline())
        driver.terminate()
    assert driver.returncode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_common_shape_makes_the_round_trip(peer):
    settings = {"num_envs": 2, "num_steps": 4, "num_minibatches": 2, "updates_per_block": 3}
    with environments.start("common_shape", settings) as process:
        assert "jax" in process.ready(LIMIT_S)["versions"]
        assert process.ask({"do": "describe"}, 60)["compile_s"] > 0
        assert process.ask({"do": "train", "blocks": 1}, 60)["env_steps"] == 24
        assert 1 <= process.ask({"do": "evaluate", "episodes": 4, "seed": 0}, 60)["return_mean"] <= 500


# --- environments -----------------------------------------------------------------------------------------------------


@pytest.fixture
def uv(tmp_path, monkeypatch):
    """Returns a function: uv(source) puts a shell script in uv's place."""

    def replace(source):
        path = tmp_path / "bin" / "uv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{source}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(path.parent), prepend=":")

    return replace


def test_what_is_not_installed_is_not_installed_in_passing(uv):
    uv(f'case "$*" in *sync*) exit 9;; *) echo {sys.executable};; esac')
    with pytest.raises(WorkerError, match="run without --quick to install"):
        environments.interpreter("rejax", None)


def test_installation_ends_at_its_limit(uv):
    uv('case "$*" in *sync*) sleep 600;; esac')
    with pytest.raises(WorkerError, match="1 s were not enough"):
        environments.interpreter("rejax", 1)


def test_failed_installation_is_reported_in_one_line(uv):
    uv('case "$*" in *sync*) echo no such; echo package >&2; exit 1;; esac')
    with pytest.raises(WorkerError, match=r"^rejax: not installed: package$"):
        environments.interpreter("rejax", 30)


def test_installed_environment_is_known_until_the_header_changes(uv, tmp_path, monkeypatch):
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    uv(f"echo {python}")
    assert environments.interpreter("rejax", 30) == str(python)
    assert environments.interpreter("rejax", None) == str(python)
    monkeypatch.setattr(environments, "header", lambda script: "something else")
    with pytest.raises(WorkerError, match="not installed"):
        environments.interpreter("rejax", None)


def test_trainers_of_other_projects_have_environments_of_their_own():
    needs = {name: bool(environments.header(environments.TRAINERS / f"{name}.py")) for name in NAMES}
    assert needs == {name: name not in ("ours", "common_shape") for name in NAMES}


# --- figures ----------------------------------------------------------------------------------------------------------


def fakes(tmp_path, monkeypatch, module, sources):
    """Returns a function that puts programs in the place of the module's trainers."""

    def start(name, settings, install_limit):
        if name not in sources:
            raise WorkerError(name, "not installed")
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        return WorkerProcess(name, program(directory, sources[name], settings))

    monkeypatch.setattr(module, "start", start)


def arguments(**more):
    common = {"quick": False, "trainers": list(NAMES), "limit": 5.0, "install_limit": 1.0, "repetitions": 2}
    common |= {"first_seed": 0, "out": None}
    return argparse.Namespace(**{**common, **more})


def test_a_peer_that_fails_costs_no_other_its_row(tmp_path, monkeypatch):
    nap = answers("import time; time.sleep(0.01)")
    # its third block is its first that counts
    dies_late = answers("self.n = getattr(self, 'n', 0) + 1; assert self.n < 4, 'too late'")
    sources = {"ours": nap, "common_shape": nap, "rejax": HANGS, "sbx": DIES, "sb3": dies_late}
    fakes(tmp_path, monkeypatch, other_trainers, sources)
    rows, result = other_trainers.measure("2x3", arguments())
    measured = [set(row) - {"shape", "repetition"} for row in rows]
    assert measured == [{"ours", "common_shape", "sb3"}, {"ours", "common_shape"}]
    assert result["failed"]["rejax"] == "no answer within 5 s"
    assert "nothing works here" in result["failed"]["sbx"]
    assert "too late" in result["failed"]["sb3"]
    assert result["failed"]["brax"] == "not installed"
    assert len(result["summary"]["sb3"]["figures"][0]["samples"]) == 1
    assert result["summary"]["ours"]["ours_over_it"]["value"] == 1
    text = other_trainers.table(result)
    assert all(name in text for name in NAMES)


def test_quick_names_whom_it_leaves_out(tmp_path, monkeypatch):
    nap = answers("import time; time.sleep(0.01)")
    fakes(tmp_path, monkeypatch, other_trainers, {"ours": nap, "sb3": nap, "brax": nap})
    rows, result = other_trainers.measure("2x3", arguments(quick=True, trainers=["sb3", "brax", "rejax"]))
    assert all(set(row) == {"shape", "repetition", "ours", "sb3"} for row in rows)
    assert result["failed"] == {"brax": "left out of --quick", "rejax": "not installed"}


@pytest.fixture
def race(tmp_path, monkeypatch):
    """Returns a function: race(sources, ...) returns the runs to a target that moving to the left reaches."""
    monkeypatch.setitem(time_to_target.TARGETS, time_to_target.ENV, 9.0)
    monkeypatch.setattr(time_to_target, "settings_of", lambda seed: {"num_envs": 2, "seed": seed, "total_updates": 6})

    def run(sources, **more):
        fakes(tmp_path, monkeypatch, time_to_target, sources)
        return list(time_to_target.runs(arguments(**more)))

    return run


def test_clock_stops_at_the_target_and_keeps_who_does_not_arrive(race):
    slow = answers("import time; time.sleep(600)")
    rows = race({"ours": answers(), "rejax": slow, "sbx": DIES}, seeds=1)
    by_peer = {row["peer"]: row for row in rows}
    ours = by_peer["ours"]
    assert len(ours["curve"]) == 1
    assert 0 < ours["ready_s"] < ours["reached_s"] == ours["curve"][0][0]
    assert by_peer["rejax"]["why_not"] == "not in 5 s"
    assert "nothing works here" in by_peer["sbx"]["why_not"]
    assert by_peer["sb3"]["skipped"] == "not installed"
    summary = time_to_target.summarize(rows)
    assert summary["ours"]["reached"] == 1
    assert math.isfinite(summary["ours"]["max_s"])
    assert summary["rejax"]["median_s"] is None
    assert "sb3" not in summary
    assert "never" in time_to_target.table(summary)


def test_clock_gives_everyone_the_same_budget_of_steps(race, monkeypatch):
    monkeypatch.setitem(time_to_target.TARGETS, time_to_target.ENV, 501.0)
    rows = race({"ours": answers()}, seeds=2, trainers=["sb3"])
    assert [row["peer"] for row in rows] == ["ours", "sb3", "ours"]  # who is not there is not tried again
    assert len(rows[0]["curve"]) == 3
    assert "env steps" in rows[0]["why_not"]


ABOUT = {"target": 475, "episodes": 64}


def test_clock_draws_what_there_is(tmp_path):
    rows = [
        {"peer": "ours", "curve": [[5.0, 100, 20.0], [7.0, 200, 480.0]]},
        {"peer": "sb3", "curve": []},
    ]
    plots.time_to_target({**ABOUT, "rows": rows}, "", tmp_path / "clock.png")
    assert (tmp_path / "clock.png").stat().st_size > 1000


def test_the_picture_of_clock_begins_near_its_first_point(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    for first in (2.0, 20.0):
        curves = [[[first, 100, 20.0], [3 * first, 200, 480.0]], [[1.5 * first, 100, 480.0]], []]
        rows = [{"peer": "ours", "curve": curve} for curve in curves]
        plots.time_to_target({**ABOUT, "rows": rows}, "", tmp_path / "clock.png")
        (axes,) = plt.gcf().axes
        assert axes.get_xlim()[0] == pytest.approx(0.8 * first)
        assert first in axes.get_xticks()
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize("by_bench", [True, False])
def test_clock_draws_by_itself_unless_the_benchmark_does(tmp_path, monkeypatch, capsys, by_bench):
    rows = [{"peer": "ours", "seed": 0, "reached_s": 5.0, "ready_s": 1.0, "curve": [[5.0, 100, 480.0]]}]
    monkeypatch.setattr(time_to_target, "runs", lambda args: rows)
    monkeypatch.setattr(time_to_target, "call", lambda _: {})
    monkeypatch.setattr(time_to_target, "end_workers_when_terminated", lambda: None)
    monkeypatch.setattr(sys, "argv", ["clock.py", "--out", str(tmp_path / "clock.json")])
    monkeypatch.delenv(time_to_target.PLATFORM_VARIABLE, raising=False)
    if by_bench:
        monkeypatch.setenv(time_to_target.PLATFORM_VARIABLE, "cpu")
    time_to_target.main()
    assert (tmp_path / "clock.json").exists()
    assert (tmp_path / "clock.png").exists() != by_bench
    assert ("picture: " in capsys.readouterr().out) != by_bench


def test_clock_has_the_settings_of_the_preset():
    settings = Settings(**time_to_target.settings_of(3))
    assert settings.total_updates == 146
    assert (settings.seed, settings.learning_rate) == (3, preset("CartPole-v1")[1].learning_rate)
    assert settings.learning_rate_after(73) == pytest.approx(settings.learning_rate / 2)


# --- the judge --------------------------------------------------------------------------------------------------------


def test_cartpole_of_the_judge_is_that_of_gymnax():
    env, params = gymnax.make("CartPole-v1")
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(64, 4)).astype(np.float32) * [1.5, 1, 0.12, 1], rng.integers(0, 2, 64)
    key = jax.random.key(0)
    _, states = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, 64), params)
    names = dict(zip(("x", "x_dot", "theta", "theta_dot"), np.float32(obs).T, strict=True))
    after, _, _, terminated, *_ = jax.vmap(env.step_env, in_axes=(None, 0, 0, None))(
        key, states.replace(**names), action, params
    )
    mine = cartpole_numpy.step(obs, action)
    np.testing.assert_allclose(mine, after, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cartpole_numpy.fell(mine), terminated)
    assert cartpole_numpy.fell(mine).any()
    assert not cartpole_numpy.fell(mine).all()


def test_episode_ends_at_500_steps(monkeypatch):
    monkeypatch.setattr(cartpole_numpy, "step", lambda state, action: state)
    assert cartpole_numpy.play([(np.zeros((4, 2)), np.zeros(2))], 3, 0).tolist() == [500, 500, 500]
