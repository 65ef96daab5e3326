"""A resumed run equals the uninterrupted one: the same bits, the same rows, the same evaluation."""

import dataclasses
import functools
import io
import json
import math
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from probe_envs import spoiled, walk
from rich.console import Console

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.core.episodes import no_episodes
from purejaxppo.core.nonfinite import NONFINITE_RULES
from purejaxppo.core.normalizer import Normalizer
from purejaxppo.core.types import LearnerState, RunnerState
from purejaxppo.envs.registry import make_env
from purejaxppo.errors import CheckpointError, ConfigError, DivergedError, EnvError
from purejaxppo.experiment import chunked_loop, load_run, training
from purejaxppo.experiment import run as experiment_run
from purejaxppo.experiment.checkpoints.directory import list_steps
from purejaxppo.experiment.checkpoints.state import snapshot
from purejaxppo.experiment.checkpoints.store import CheckpointChoice, save_step
from purejaxppo.experiment.chunked_loop import Timing
from purejaxppo.experiment.directory import RunSettings, read_run_settings
from purejaxppo.experiment.evaluation import Evaluator
from purejaxppo.experiment.run import evaluate_saved, resume_experiment, run_experiment
from purejaxppo.train import trainer_from_config

UPDATES = 6
HP = Hyperparams(learning_rate=1e-3, target_kl=0.01)
CONFIG = TrainConfig(
    env="walk",
    algorithm="ppo_kl",
    total_timesteps=32 * UPDATES,
    num_envs=4,
    num_steps=8,
    num_epochs=1,
    num_minibatches=2,
    hidden_sizes=(4,),
    normalize_observation=True,
    normalize_reward=True,
    learning_rate_schedule="kl_adaptive",
)
PLAIN = dataclasses.replace(  # for what does not depend on how much there is in a state
    CONFIG,
    algorithm="ppo_clip",
    normalize_observation=False,
    normalize_reward=False,
    learning_rate_schedule="constant",
)
OPTIONS = RunOptions(eval_episodes=4, checkpoint_seconds=0.0, keep_newest=10)
EVALUATING = dataclasses.replace(OPTIONS, eval_every=64, eval_every_episodes=3)  # after the updates 2, 4 and 6


@functools.cache
def make_once(make, num_envs):
    """Makes one environment per kind and size, so that the cached trainers can be found by it."""
    return make(num_envs)


def made_by(make):
    """Returns a replacement of `make_env` that makes this environment, whatever the settings name."""
    return lambda config, num_envs=None, **_: make_once(make, num_envs or config.num_envs)


def build_once(config, env, devices):
    """Builds one trainer per environment and settings; stopping and rollback belong to the host."""
    guard = "skip" if config.on_nonfinite == "skip" else "stop"
    return _build(dataclasses.replace(config, on_nonfinite=guard), env)


_build = functools.cache(trainer_from_config)


@functools.cache
def compile_once(trainer, num_updates):
    """Compiles a program once for every run with this trainer, as the host loop would."""
    runner = jax.eval_shape(trainer.init, jax.random.key(0), jax.tree.map(jnp.float32, HP))
    return COMPILE(trainer, jax.tree.map(jnp.float32, HP), runner, num_updates)


COMPILE = chunked_loop._compile_advance


@pytest.fixture(autouse=True, scope="module")
def _module_patch():
    """Replaces gymnax's environments by the walk, and makes a chunk, hence a checkpoint, of every update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_run, "make_env", made_by(walk))
        patch.setattr(experiment_run, "spread_trainer", build_once)
        patch.setattr(experiment_run, "_evaluator", functools.cache(experiment_run._evaluator))
        patch.setattr(chunked_loop, "_compile_advance", lambda trainer, hp, runner, n: compile_once(trainer, n))
        patch.setattr(chunked_loop, "_CHUNK_UPDATES", 1)
        patch.setattr(chunked_loop, "_CHUNK_WORK", {"cpu": 0.0})
        yield


def run(out, sinks=(), config=CONFIG, options=OPTIONS, **others):
    """Trains a new run; its console's text goes to `run.text`."""
    return _quiet(run_experiment, config, HP, 3, options=options, out=out, sinks=sinks, **others)


def resume(out, **options):
    """Resumes a run; its console's text goes to `run.text`."""
    return _quiet(resume_experiment, out, **options)


def _quiet(function, *args, **options):
    console = Console(file=io.StringIO())
    try:
        return function(*args, console=console, **options)
    finally:
        run.text = console.file.getvalue()


def stopping_after(update):
    """Returns a sink that requests a stop; no other chunk is running, since each one is saved."""

    def sink(_, row):
        if row["update"] == update:
            signal.raise_signal(signal.SIGTERM)

    return sink


def rows_of(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same(out, summary, other, other_summary):
    """Compares everything but times."""
    for name in ("state_sha256", "evaluation", "env_steps", "updates", "train_return", "exit_reason"):
        assert summary[name] == other_summary[name], name
    assert rows_of(out) == rows_of(other)


def other_settings(out, **changes):
    settings = read_run_settings(out)
    return settings._replace(config=dataclasses.replace(settings.config, **changes))


@pytest.fixture(scope="module")
def whole(_module_patch, tmp_path_factory):
    """(directory, summary) of the uninterrupted run; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run(out)


@pytest.fixture(scope="module")
def stopped(_module_patch, tmp_path_factory):
    """The directory of a run that was stopped after 3 of 6 updates; not to be changed."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert run(out, [stopping_after(3)])["updates"] == 3
    return out


@pytest.fixture
def half(stopped, tmp_path):
    """A copy of the stopped run, to be resumed."""
    return shutil.copytree(stopped, tmp_path / "half")


# --- the same end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [1, 4])
def test_stopped_and_resumed_is_uninterrupted(whole, tmp_path, update):
    """The state includes the algorithm's, an adaptive learning rate, both normalisers and unfinished episodes."""
    out = tmp_path / "run"
    first = run(out, [stopping_after(update)])
    assert (first["exit_reason"], first["evaluation"]) == ("SIGTERM", None)
    summary = resume(out)
    assert_same(out, summary, *whole)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert f"resumed at {update * 32} env steps" in run.text
    seconds = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert (out / "command.txt").read_text().count("\n") == 2


def test_how_often_one_saves_changes_nothing(whole, tmp_path):
    options = dataclasses.replace(OPTIONS, checkpoint_seconds=1e6)
    summary = _quiet(run_experiment, CONFIG, HP, 3, options=options, out=tmp_path / "run")
    assert len(list_steps(tmp_path / "run")) == 1
    assert len(list_steps(whole[0])) == UPDATES
    assert_same(tmp_path / "run", summary, *whole)


@pytest.mark.parametrize("rows", ["more", "torn"])
def test_rows_after_the_checkpoint_are_done_again(whole, half, rows):
    """A crash leaves such rows, complete or torn."""
    path = half / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text + (text.splitlines()[-1] + "\n" if rows == "more" else '{"update": 4, "env_st'))
    assert_same(half, resume(half), *whole)


def test_rows_that_are_lost_are_said_and_not_invented(whole, half):
    path = half / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + '\n{"update": 3')
    summary = resume(half)
    assert "has lost rows" in run.text
    assert summary["state_sha256"] == whole[1]["state_sha256"]
    assert [row["update"] for row in rows_of(half)] == [1, 2, 4, 5, 6]


def test_without_a_checkpoint_it_begins_anew(whole, half):
    """A run was killed before its first checkpoint."""
    shutil.rmtree(half / "checkpoints")
    (half / "summary.json").unlink()
    assert_same(half, resume(half), *whole)


def test_a_run_that_was_killed_before_its_evaluation(whole, tmp_path):
    """Nothing is trained again, and the evaluation equals that of the uninterrupted run."""
    out = shutil.copytree(whole[0], tmp_path / "run")
    (out / "summary.json").unlink()
    shutil.rmtree(out / "plots")
    summary = resume(out)
    assert_same(out, summary, *whole)
    assert summary["env_steps_per_second"] > 0
    assert (out / "plots" / "learning_curve.png").is_file()


def test_a_finished_run_is_left_alone(whole, tmp_path):
    out = shutil.copytree(whole[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert resume(out) == {**whole[1], "run_dir": str(out)}
    assert "finished already" in run.text
    assert "--total-timesteps" in run.text
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_finished_run_whose_end_is_damaged_is_finished_again(whole, tmp_path, damage):
    """It is resumed from the checkpoint before, to the same result."""
    out = shutil.copytree(whole[0], tmp_path / "run")
    newest = list_steps(out)[0].path
    shutil.rmtree(newest) if damage == "remove" else (newest / "meta.json").write_text("{}")
    assert_same(out, resume(out), *whole)
    assert ("passed over" in run.text) == (damage == "flip")
    assert list_steps(out)[0].path == newest


def test_a_larger_budget_is_the_longer_run(whole, half, tmp_path):
    """Nothing in this run is scheduled over the budget."""
    longer = dataclasses.replace(CONFIG, total_timesteps=32 * 8)
    summary = resume(half, settings=other_settings(half, total_timesteps=32 * 8))
    assert_same(half, summary, tmp_path / "fresh", run(tmp_path / "fresh", config=longer))
    assert read_run_settings(half).config == longer
    again = resume(shutil.copytree(whole[0], tmp_path / "whole"), settings=other_settings(half))
    assert again["state_sha256"] == summary["state_sha256"]
    assert "linear schedule" not in run.text


@pytest.mark.slow
def test_a_larger_budget_for_a_linear_schedule_is_said(tmp_path):
    out, config = tmp_path / "run", dataclasses.replace(CONFIG, learning_rate_schedule="linear")
    run(out, [stopping_after(2)], config=config)
    assert resume(out, settings=other_settings(out, total_timesteps=32 * 8))["updates"] == 8
    assert "another run than one with this budget from its start" in run.text


def test_a_budget_that_is_used_up_already(half):
    with pytest.raises(ConfigError, match=r"less than what .* has done, 96 env steps"):
        resume(half, settings=other_settings(half, total_timesteps=64))
    assert read_run_settings(half).config == CONFIG


# --- evaluations while training ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(_module_patch, tmp_path_factory):
    """(directory, summary) of the uninterrupted run that evaluates while it trains; not to be changed."""
    out = tmp_path_factory.mktemp("evaluated") / "run"
    return out, run(out, options=EVALUATING)


@pytest.fixture
def stop_in_evaluation(monkeypatch):
    """Yields a function: stop_in_evaluation(n, ...) sends a signal in the n-th evaluation while training from here."""
    real, left = Evaluator.play, []

    def play(self, key, runner, say, stop=None):
        if stop is None:  # at the end of a run
            return real(self, key, runner, say)
        left[:] = [number - 1 for number in left]
        if 0 in left:
            signal.raise_signal(signal.SIGTERM)
        return real(self, key, runner, say, stop)

    monkeypatch.setattr(Evaluator, "play", play)
    return lambda *numbers: left.__setitem__(slice(None), numbers)


def evaluated_updates(out):
    return [row["update"] for row in rows_of(out) if "evaluation/return" in row]


def test_evaluations_change_no_bit_of_the_training(whole, evaluated):
    """Nor do they change the evaluation at the end; only the rows of their updates have more fields."""
    (plain, plain_summary), (out, summary) = whole, evaluated
    for name in ("state_sha256", "evaluation", "train_return", "updates"):
        assert summary[name] == plain_summary[name], name
    assert evaluated_updates(out) == [2, 4, 6]
    assert evaluated_updates(plain) == []
    rows = [{name: x for name, x in row.items() if not name.startswith("evaluation/")} for row in rows_of(out)]
    assert rows == rows_of(plain)
    assert {row["evaluation/episodes"] for row in rows_of(out) if row["update"] % 2 == 0} == {3}


def test_checkpoints_have_the_newest_evaluation(evaluated):
    returns = [None, *(row["evaluation/return"] for row in rows_of(evaluated[0]) if "evaluation/return" in row)]
    metas = [json.loads((step.path / "meta.json").read_text()) for step in reversed(list_steps(evaluated[0]))]
    assert [meta["evaluation_return"] for meta in metas] == [returns[i // 2] for i in range(1, UPDATES + 1)]
    assert {meta["ranked_by"] for meta in metas} == {"evaluation_return"}
    assert len({*returns}) == 4


@pytest.mark.parametrize("update", [1, 2, 3])
def test_an_evaluating_run_that_was_stopped(evaluated, tmp_path, update):
    """The signal comes before, right after, or between two evaluations."""
    out = tmp_path / "run"
    assert run(out, [stopping_after(update)], options=EVALUATING)["updates"] == update
    assert_same(out, resume(out), *evaluated)


@pytest.mark.parametrize("evaluation", [1, 3])
def test_a_signal_during_an_evaluation(evaluated, tmp_path, stop_in_evaluation, evaluation):
    """The update before it is saved and its row is there; the resumed run repeats it, even if that is stopped again."""
    out, updates = tmp_path / "run", 2 * evaluation
    stop_in_evaluation(evaluation)
    summary = run(out, options=EVALUATING)
    assert (summary["exit_reason"], summary["updates"], summary["evaluation"]) == ("SIGTERM", updates, None)
    assert [row["update"] for row in rows_of(out)] == list(range(1, updates + 1))
    assert evaluated_updates(out) == [2, 4, 6][: evaluation - 1]
    stop_in_evaluation(1)
    again = resume(out)
    assert (again["exit_reason"], again["updates"]) == ("SIGTERM", updates)
    assert rows_of(out)[-1].keys() == rows_of(evaluated[0])[0].keys()
    stop_in_evaluation()
    assert_same(out, resume(out), *evaluated)


def test_a_kill_after_an_evaluation_that_was_repeated(evaluated, tmp_path, stop_in_evaluation):
    """Its row is in the file, but no later checkpoint is; or the kill came before the row was written."""
    out = tmp_path / "run"
    stop_in_evaluation(2)
    run(out, options=EVALUATING)
    stop_in_evaluation()
    for lines in (3, 4):
        copy = shutil.copytree(out, tmp_path / f"{lines}")
        text = (evaluated[0] / "metrics.jsonl").read_text().splitlines()[:lines]
        first = (copy / "metrics.jsonl").read_text().splitlines()[:3]  # whose seconds, hence length, are this run's
        (copy / "metrics.jsonl").write_text("\n".join([*first, *text[3:]]) + "\n")
        assert_same(copy, resume(copy), *evaluated)
        assert "lost rows" not in run.text


@pytest.mark.parametrize("update", [3, 4, 5])
def test_a_kill_between_an_evaluation_and_the_next_checkpoint(evaluated, tmp_path, update):
    """Rows from the fourth update on are in the file, and the newest checkpoint is an older or the same one."""
    out = shutil.copytree(evaluated[0], tmp_path / "run")
    (out / "summary.json").unlink()
    for step in list_steps(out):
        if step.env_steps > 32 * update:
            shutil.rmtree(step.path)
    assert_same(out, resume(out), *evaluated)


def test_a_larger_budget_is_the_longer_run_with_its_evaluations(evaluated, tmp_path):
    out, config = shutil.copytree(evaluated[0], tmp_path / "run"), dataclasses.replace(CONFIG, total_timesteps=32 * 9)
    summary = resume(out, settings=other_settings(out, total_timesteps=32 * 9))
    assert evaluated_updates(out) == [2, 4, 6, 8]
    assert_same(out, summary, tmp_path / "fresh", run(tmp_path / "fresh", config=config, options=EVALUATING))


def test_evaluations_may_be_changed_when_a_run_is_resumed(evaluated, half, tmp_path, stop_in_evaluation):
    """They begin, or end, with the command that says so; the row of one that was stopped stays as it was."""
    settings = read_run_settings(half)
    summary = resume(half, settings=settings._replace(options=dataclasses.replace(EVALUATING, eval_every=96)))
    assert summary["state_sha256"] == evaluated[1]["state_sha256"]
    assert evaluated_updates(half) == [6]
    out = tmp_path / "off"
    stop_in_evaluation(2)
    run(out, options=EVALUATING)
    assert resume(out, settings=settings)["state_sha256"] == evaluated[1]["state_sha256"]
    assert evaluated_updates(out) == [2]
    assert [row["update"] for row in rows_of(out)] == list(range(1, UPDATES + 1))


# --- what has changed meanwhile ---------------------------------------------------------------------------------------


def test_settings_that_would_alter_the_result_are_refused(half):
    """The error has all differences, wherever they come from, and nothing is changed."""
    before = (half / "config.json").read_text()
    settings = read_run_settings(half)
    changed = settings._replace(hp=dataclasses.replace(HP, gamma=0.9), config=dataclasses.replace(CONFIG, num_epochs=2))
    with pytest.raises(ConfigError, match=r"num_epochs 1 -> 2, gamma 0\.99 -> 0\.9"):
        resume(half, settings=changed)
    assert (half / "config.json").read_text() == before
    content = json.loads(before)
    (half / "config.json").write_text(json.dumps({**content, "gamma": 0.9}))
    with pytest.raises(CheckpointError, match=r"config\.json has been changed .* gamma 0\.99 -> 0\.9"):
        resume(half)


def test_another_jax_is_said(half):
    path = half / "versions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "jax": "0.9.9"}))
    resume(half)
    assert f"jax 0.9.9 -> {jax.__version__} since the run began" in run.text


def test_another_seed_is_refused_before_and_after_the_first_save(half):
    """It may be edited into config.json or passed; without a checkpoint the settings in the directory are compared."""
    settings = read_run_settings(half)._replace(seed=4)
    with pytest.raises(ConfigError, match="seed 3 -> 4"):
        resume(half, settings=settings)
    content = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**content, "seed": 4}))
    with pytest.raises(CheckpointError, match="seed 3 -> 4"):
        resume(half)
    shutil.rmtree(half / "checkpoints")
    with pytest.raises(ConfigError, match="seed 4 -> 3"):
        resume(half, settings=settings._replace(seed=3))


def test_checkpoints_that_cannot_be_listed_are_not_none(half):
    """Otherwise the run would begin again, and lose what was trained."""
    shutil.rmtree(half / "checkpoints")
    (half / "checkpoints").write_text("not a directory")
    before = (half / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"cannot read .*checkpoints"):
        resume(half)
    assert (half / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_summary_that_cannot_be_read_is_written_again(whole, tmp_path, content):
    out = shutil.copytree(whole[0], tmp_path / "run")
    (out / "summary.json").write_text(content)
    assert_same(out, resume(out), *whole)


def test_a_picture_that_is_missing_is_drawn(whole, tmp_path):
    """The run was killed between summary and picture."""
    out = shutil.copytree(whole[0], tmp_path / "run", ignore=lambda *_: ["plots"])
    resume(out)
    assert (out / "plots" / "learning_curve.png").is_file()


def test_an_environment_that_is_gone(half, monkeypatch):
    monkeypatch.setattr(experiment_run, "make_env", make_env)
    with pytest.raises(EnvError, match="walk"):
        resume(half)


def test_a_damaged_checkpoint_is_passed_over_with_the_reason(whole, half):
    newest = list_steps(half)[0].path
    (newest / "meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"step_000000000096: meta\.json has 2 bytes"):
        resume(half, strict=True)
    assert_same(half, resume(half), *whole)
    assert "step_000000000096: meta.json has 2 bytes" in run.text
    assert "passed over for step_000000000064" in run.text


def test_every_checkpoint_is_damaged(half):
    for step in list_steps(half):
        (step.path / "COMMIT").unlink()
    with pytest.raises(CheckpointError, match=r"step_000000000096: .*step_000000000064: .*step_000000000032: "):
        resume(half)


# --- numbers that are not finite --------------------------------------------------------------------------------------


def now_and_then(num_envs, probability=0.02):
    """Returns the walk with rewards that are not finite at random steps."""
    env = walk(num_envs)

    def step(keys, state, action):
        state, result = env.step(keys, state, action)
        bad = jax.random.bernoulli(jax.random.fold_in(keys[0], 7), probability)
        return state, result._replace(reward=jnp.where(bad, jnp.nan, result.reward))

    return env._replace(step=step)


@pytest.fixture
def use(monkeypatch):
    """Yields a function: use(make) puts another environment in the walk's place."""
    return lambda make: monkeypatch.setattr(experiment_run, "make_env", made_by(make))


def test_a_run_that_diverged_goes_on_when_told_to_skip(tmp_path, use):
    """The error names the last good checkpoint, that of the update before."""
    use(now_and_then)
    with pytest.raises(DivergedError, match=r"reward is not finite at update .*; `purejaxppo resume") as caught:
        run(tmp_path / "run", config=dataclasses.replace(PLAIN, total_timesteps=32 * 12))
    steps = [step.env_steps for step in list_steps(tmp_path / "run")]
    good = 32 * (caught.value.update - 1)
    assert steps == list(range(good, 0, -32)) != []
    assert f"step_{good:012d}; `purejaxppo resume" in str(caught.value)
    summary = resume(tmp_path / "run", settings=other_settings(tmp_path / "run", on_nonfinite="skip"))
    assert (summary["updates"], summary["exit_reason"]) == (12, "finished")
    rows = rows_of(tmp_path / "run")
    assert {row.get("nonfinite") for row in rows} == {None, "reward"}
    assert rows[good // 32]["nonfinite"] == "reward"  # where it had stopped
    assert math.isfinite(summary["evaluation"]["return_mean"])


def test_rollback_goes_on_with_other_random_numbers(tmp_path, use):
    """Rows of undone updates are removed; all rows and every checkpoint are finite."""
    use(now_and_then)
    config = dataclasses.replace(PLAIN, total_timesteps=32 * 12, on_nonfinite="rollback")
    summary = run(tmp_path / "run", config=config, options=EVALUATING)
    assert evaluated_updates(tmp_path / "run") == [2, 4, 6, 8, 10, 12]
    assert summary["updates"] == 12
    assert "Rolled back to" in run.text
    assert [row["update"] for row in rows_of(tmp_path / "run")] == list(range(1, 13))
    assert not any("nonfinite" in row for row in rows_of(tmp_path / "run"))


def test_rollbacks_are_counted_from_one_checkpoint(half, monkeypatch):
    """There are three from one checkpoint, then progress that is saved, and three more from the next one."""
    failures = {96: [4, 4, 4, None], 160: [6, 6, 6, None]}
    starts = []

    def attempt(run, saved, _):
        starts.append(saved.updates)
        update = failures[saved.updates * 32].pop(0)
        if update:
            raise DivergedError("reward is not finite.", update)
        if saved.updates == 3:  # a later checkpoint, and then it goes wrong again
            runner = training.load_runner(run.run_dir, run.settings, run.trainer)[0]
            later = runner._replace(updates=jnp.int32(5))
            meta = {"updates": 5, "metrics_bytes": 0, "seconds": 0.0, "train_return": None}
            save_step(run.run_dir, 160, snapshot(later), {**meta, "settings": run.settings.record()})
            raise DivergedError("reward is not finite.", 6)
        return saved.runner, Timing(0.0, 0.0, 0.0)

    monkeypatch.setattr(training, "_attempt", attempt)
    monkeypatch.setattr(experiment_run, "_finish", lambda *_: {})
    failures[96][-1:] = [None]
    failures[160] = [6, 6, None]
    resume(half, settings=other_settings(half, on_nonfinite="rollback"))
    assert starts == [3, 3, 3, 3, 5, 5, 5]


def test_rollback_gives_up(half, monkeypatch):
    """If it always fails, there are the first attempt, three more, and the error."""
    starts = []

    def attempt(run, saved, _):
        starts.append(saved.updates)
        raise DivergedError("reward is not finite at update 4.", 4)

    monkeypatch.setattr(training, "_attempt", attempt)
    with pytest.raises(DivergedError, match="at update 4"):
        resume(half, settings=other_settings(half, on_nonfinite="rollback"))
    assert len(starts) - 1 == run.text.count("Rolled back to 96 env steps") == NONFINITE_RULES["rollback"].rollbacks


@pytest.mark.slow
def test_rollback_gives_up_where_a_reward_is_never_finite_again(tmp_path, use):
    use(lambda num_envs: spoiled(walk(num_envs), after=20))
    with pytest.raises(DivergedError, match="at update 3"):
        run(tmp_path / "run", config=dataclasses.replace(PLAIN, on_nonfinite="rollback"))
    assert run.text.count("Rolled back to 64 env steps") == NONFINITE_RULES["rollback"].rollbacks


@pytest.mark.slow
def test_rollback_without_a_checkpoint_is_from_the_beginning(tmp_path, use):
    use(lambda num_envs: spoiled(walk(num_envs), after=0))
    with pytest.raises(DivergedError, match="there is no good checkpoint"):
        run(tmp_path / "run", config=dataclasses.replace(PLAIN, on_nonfinite="rollback"))
    assert run.text.count("Rolled back to 0 env steps") == NONFINITE_RULES["rollback"].rollbacks


def test_other_keys_depend_on_what_failed_alone():
    """The same failures give the same key, in another process too; others, or another order, give another key."""
    state = type("State", (), {"key": jax.random.key(0)})

    def key(failed_at):
        run = SimpleNamespace(trainer=SimpleNamespace(place=lambda runner: runner))
        runner = training._first_state(run, training.Saved(jnp_runner(state.key)), failed_at)
        return tuple(jax.random.key_data(runner.key).tolist())

    keys = [key([3]), key([3, 3]), key([4]), key([3, 4]), key([4, 3])]
    assert len(set(keys)) == 5
    assert key([3, 4]) == keys[3]


def jnp_runner(key):
    learner = LearnerState({}, (), ())
    return RunnerState(learner, (), jnp.zeros(1), (), no_episodes(1), Normalizer(), jnp.arange(1), key, jnp.int32(0))


# --- evaluation of a chosen checkpoint --------------------------------------------------------------------------------


def test_settings_are_checked_before_anything_is_touched(half):
    settings = read_run_settings(half)
    bad = RunSettings(settings.config, settings.hp, settings.seed, RunOptions(keep_newest=0))
    with pytest.raises(ConfigError, match="keep_newest"):
        resume(half, settings=bad)


def test_evaluating_another_than_the_newest(half, monkeypatch):
    """It is chosen by its number; the directory of a run in training is not locked for readers."""
    monkeypatch.setattr(load_run, "make_env", made_by(walk))
    saved = [load_run.load_run(half, CheckpointChoice(steps)) for steps in (96, 32)]
    assert [int(run.runner.updates) * run.config.batch_size for run in saved] == [96, 32]
    newest, oldest = (evaluate_saved(run, episodes=4) for run in saved)
    assert newest == evaluate_saved(load_run.load_run(half), episodes=4)
    assert newest["env_steps"] != oldest["env_steps"]
    with pytest.raises(CheckpointError, match="no checkpoint of 33 env steps"):
        load_run.load_run(half, CheckpointChoice(33))
    (list_steps(half)[0].path / "COMMIT").unlink()
    notes = []
    assert evaluate_saved(load_run.load_run(half, CheckpointChoice(note=notes.append)), episodes=4) != newest
    assert len(notes) == 1
    with pytest.raises(CheckpointError, match="COMMIT is missing"):
        load_run.load_run(half, CheckpointChoice(strict=True))
