"""Comparison with other trainers: what the driver makes of peers that answer, hang and die, and of their figures."""

import argparse
import contextlib
import math
import shutil
import stat
import sys
from pathlib import Path

import gymnax
import jax
import numpy as np
import pytest

from benchmarks.lib import worker_process as peer_process
from benchmarks.lib.worker_process import PeerProcess
from benchmarks.sections import other_trainers as peers
from benchmarks.sections import time_to_target as clock
from benchmarks.trainers import cartpole_numpy as cartpole
from benchmarks.trainers import environments as peer_env
from benchmarks.trainers import protocol
from benchmarks.trainers.environments import PeerError
from purejaxppo.presets import preset

BENCHMARKS = Path(__file__).parent.parent
ANSWERS = """
from benchmarks.trainers.protocol import serve

class Fake:
    packages, differences, device = ("numpy",), ("it does nothing",), "Test Device"
    def __init__(self, settings):
        print("a library that prints")
    def block(self):
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
    """peer(source, settings) is a process that runs it, ended at the end."""
    with contextlib.ExitStack() as stack:

        def start(source, settings=None):
            return stack.enter_context(PeerProcess(program(tmp_path, source), settings or {}))

        yield start


def program(directory, source):
    path = directory / "fake.py"
    path.write_text(source)
    return [sys.executable, str(path)]


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
    answer = process.ask({"do": "block"}, 30)
    assert answer["env_steps"] == 105
    assert answer["seconds"] >= 0


def test_peer_plays_as_many_episodes_as_asked(peer):
    process = peer(answers())
    process.ready(30)
    answer = process.ask({"do": "evaluate", "episodes": 64, "seed": 1}, 30)
    assert answer["episodes"] == 64
    assert 8 < answer["return_mean"] < 11  # to the left, always


def test_peer_that_hangs_is_given_up_and_ended(peer):
    process = peer(HANGS)
    with pytest.raises(PeerError, match="no answer within 1 s"):
        process.ready(1)
    assert process.process.poll() is not None


@pytest.mark.parametrize(("source", "words"), [(DIES, "nothing works here"), ("raise SystemExit(3)", "exit code 3")])
def test_peer_that_dies_at_its_start_has_its_last_words_reported(peer, source, words):
    with pytest.raises(PeerError, match=words):
        peer(source).ready(30)


def test_peer_that_dies_in_a_block_has_its_last_words_reported(peer):
    process = peer(answers("raise RuntimeError('out of luck')"))
    process.ready(30)
    with pytest.raises(PeerError, match="RuntimeError: out of luck"):
        process.ask({"do": "block"}, 30)
    with pytest.raises(PeerError):
        process.ask({"do": "block"}, 1)


def test_common_shape_makes_the_round_trip(peer):
    argv = peer_env.command("common_shape", install=False, limit=1)
    with PeerProcess(argv, {"num_envs": 2, "num_steps": 4, "num_minibatches": 2, "updates_per_block": 3}) as process:
        assert "jax" in process.ready(60)["versions"]
        assert process.ask({"do": "block"}, 60)["env_steps"] == 24
        assert 1 <= process.ask({"do": "evaluate", "episodes": 4, "seed": 0}, 60)["return_mean"] <= 500


# --- environments -----------------------------------------------------------------------------------------------------


@pytest.fixture
def uv(tmp_path, monkeypatch):
    """uv(source) puts a shell script in uv's place."""

    def replace(source):
        path = tmp_path / "bin" / "uv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{source}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(path.parent), prepend=":")

    return replace


def test_what_is_not_installed_is_not_installed_in_passing(uv):
    uv(f'case "$*" in *sync*) exit 9;; *) echo {sys.executable};; esac')
    with pytest.raises(PeerError, match="run without --quick to install"):
        peer_env.command("rejax", install=False, limit=1)


def test_installation_ends_at_its_limit(uv):
    uv('case "$*" in *sync*) sleep 600;; esac')
    with pytest.raises(PeerError, match="1 s were not enough"):
        peer_env.command("rejax", install=True, limit=1)


def test_failed_installation_is_reported_in_one_line(uv):
    uv('case "$*" in *sync*) echo no such; echo package >&2; exit 1;; esac')
    with pytest.raises(PeerError, match=r"^not installed: package$"):
        peer_env.command("rejax", install=True, limit=30)


def test_installed_environment_is_known_until_the_header_changes(uv, tmp_path, monkeypatch):
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    uv(f"echo {python}")
    assert peer_env.command("rejax", install=True, limit=30)[0] == str(python)
    assert peer_env.command("rejax", install=False, limit=30)[0] == str(python)
    monkeypatch.setattr(peer_env, "header", lambda script: "something else")
    with pytest.raises(PeerError, match="not installed"):
        peer_env.command("rejax", install=False, limit=30)


def test_adapters_are_short_and_all_there():
    for name in peer_process.NAMES:
        assert len((BENCHMARKS / "trainers" / f"{name}.py").read_text().splitlines()) < 80


# --- figures ----------------------------------------------------------------------------------------------------------


def fakes(tmp_path, monkeypatch, module, sources):
    """Puts programs in the place of the module's peers."""

    def start(name, install, install_limit, settings):
        if name not in sources:
            raise PeerError("not installed")
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        return PeerProcess(program(directory, sources[name]), settings)

    monkeypatch.setattr(module, "start", start)


def arguments(**more):
    common = {"quick": False, "peers": list(peer_process.NAMES), "limit": 5.0, "install_limit": 1.0, "repetitions": 2}
    common |= {"first_seed": 0, "out": None}
    return argparse.Namespace(**{**common, **more})


def test_a_peer_that_fails_costs_no_other_its_row(tmp_path, monkeypatch):
    nap = answers("import time; time.sleep(0.01)")
    # its third block is its first that counts
    dies_late = answers("self.n = getattr(self, 'n', 0) + 1; assert self.n < 4, 'too late'")
    sources = {"ours": nap, "common_shape": nap, "rejax": HANGS, "sbx": DIES, "sb3": dies_late}
    fakes(tmp_path, monkeypatch, peers, sources)
    rows, result = peers.measure("2x3", arguments())
    measured = [set(row) - {"shape", "repetition"} for row in rows]
    assert measured == [{"ours", "common_shape", "sb3"}, {"ours", "common_shape"}]
    assert result["failed"]["rejax"] == "no answer within 5 s"
    assert "nothing works here" in result["failed"]["sbx"]
    assert "too late" in result["failed"]["sb3"]
    assert result["failed"]["brax"] == "not installed"
    assert len(result["summary"]["sb3"]["figures"][0]["samples"]) == 1
    assert result["summary"]["ours"]["ours_over_it"]["value"] == 1
    text = peers.table(result)
    assert all(name in text for name in peer_process.NAMES)


def test_quick_names_whom_it_leaves_out(tmp_path, monkeypatch):
    nap = answers("import time; time.sleep(0.01)")
    fakes(tmp_path, monkeypatch, peers, {"ours": nap, "sb3": nap, "brax": nap})
    rows, result = peers.measure("2x3", arguments(quick=True, peers=["sb3", "brax", "rejax"]))
    assert all(set(row) == {"shape", "repetition", "ours", "sb3"} for row in rows)
    assert result["failed"] == {"brax": "left out of --quick", "rejax": "not installed"}


@pytest.fixture
def race(tmp_path, monkeypatch):
    """race(sources, ...) are the runs to a target that going to the left reaches."""
    monkeypatch.setitem(clock.TARGETS, clock.ENV, 9.0)
    monkeypatch.setattr(clock, "settings_of", lambda seed: {"num_envs": 2, "seed": seed, "total_updates": 6})

    def run(sources, **more):
        fakes(tmp_path, monkeypatch, clock, sources)
        return clock.all_runs(arguments(**more))

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
    summary = clock.summarize(rows)
    assert summary["ours"]["reached"] == 1
    assert math.isfinite(summary["ours"]["max_s"])
    assert summary["rejax"]["median_s"] is None
    assert "sb3" not in summary
    assert "never" in clock.table(summary)


def test_clock_gives_everyone_the_same_budget_of_steps(race, monkeypatch):
    monkeypatch.setitem(clock.TARGETS, clock.ENV, 501.0)
    rows = race({"ours": answers()}, seeds=2, peers=["sb3"])
    assert [row["peer"] for row in rows] == ["ours", "sb3", "ours"]  # who is not there is not tried again
    assert len(rows[0]["curve"]) == 3
    assert "env steps" in rows[0]["why_not"]


def test_clock_draws_what_there_is(tmp_path):
    rows = [
        {"peer": "ours", "curve": [[5.0, 100, 20.0], [7.0, 200, 480.0]]},
        {"peer": "sb3", "curve": []},
    ]
    clock.draw(rows, tmp_path / "clock.png")
    assert (tmp_path / "clock.png").stat().st_size > 1000


def test_the_picture_of_clock_begins_near_its_first_point(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    for first in (2.0, 20.0):
        curves = [[[first, 100, 20.0], [3 * first, 200, 480.0]], [[1.5 * first, 100, 480.0]], []]
        clock.draw([{"peer": "ours", "curve": curve} for curve in curves], tmp_path / "clock.png")
        (axes,) = plt.gcf().axes
        assert axes.get_xlim()[0] == pytest.approx(0.8 * first)
        assert first in axes.get_xticks()
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize("by_bench", [True, False])
def test_clock_draws_by_itself_unless_the_benchmark_does(tmp_path, monkeypatch, capsys, by_bench):
    rows = [{"peer": "ours", "seed": 0, "reached_s": 5.0, "ready_s": 1.0, "curve": [[5.0, 100, 480.0]]}]
    monkeypatch.setattr(clock, "all_runs", lambda args: rows)
    monkeypatch.setattr(clock, "call", lambda _: {})
    monkeypatch.setattr(clock, "end_peers_when_terminated", lambda: None)
    monkeypatch.setattr(sys, "argv", ["clock.py", "--out", str(tmp_path / "clock.json")])
    monkeypatch.delenv(clock.PLATFORM_VARIABLE, raising=False)
    if by_bench:
        monkeypatch.setenv(clock.PLATFORM_VARIABLE, "cpu")
    clock.main()
    assert (tmp_path / "clock.json").exists()
    assert (tmp_path / "clock.png").exists() != by_bench
    assert ("picture: " in capsys.readouterr().out) != by_bench


def test_clock_has_the_settings_of_the_preset():
    settings = protocol.Settings(**clock.settings_of(3))
    assert settings.total_updates == 146
    assert (settings.seed, settings.learning_rate) == (3, preset("CartPole-v1")["learning_rate"])
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
    mine = cartpole.step(obs, action)
    np.testing.assert_allclose(mine, after, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cartpole.fell(mine), terminated)
    assert cartpole.fell(mine).any()
    assert not cartpole.fell(mine).all()


def test_episode_ends_at_500_steps(monkeypatch):
    monkeypatch.setattr(cartpole, "step", lambda state, action: state)
    assert cartpole.play([(np.zeros((4, 2)), np.zeros(2))], 3, 0).tolist() == [500, 500, 500]
