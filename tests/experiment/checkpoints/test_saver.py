"""The saver: it writes the state that it was given, one save at a time, and reports every failure."""

import json
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.config import RunOptions
from purejaxppo.core.episodes import no_episodes
from purejaxppo.core.normalizer import Normalizer
from purejaxppo.core.types import LearnerState, RunnerState
from purejaxppo.errors import CheckpointError, DivergedError
from purejaxppo.experiment.checkpoints import saver as module
from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps
from purejaxppo.experiment.checkpoints.saver import Saver
from purejaxppo.experiment.checkpoints.state import state_sha256
from purejaxppo.experiment.checkpoints.store import CheckpointChoice, load_newest

LONG = 60  # seconds, for what must happen


def make_runner(value=1.0):
    params = {"kernel": jnp.full((2, 3), value)}
    learner = LearnerState(params, {"moments": jnp.full(3, 2 * value)}, ())
    return RunnerState(
        learner=learner,
        env_state=jnp.array([jnp.nan, value]),
        obs=jnp.zeros((2, 1)),
        memory=jnp.ones((2, 3)),
        episodes=no_episodes(2),
        normalizer=Normalizer(),
        env_ids=jnp.arange(2),
        key=jax.random.key(3),
        updates=jnp.int32(7),
    )


def describe():
    return {"train_return": None}


def saver(run_dir, **options):
    return Saver(run_dir, RunOptions(**options))


def saved(run_dir):
    """Returns (state, meta.json) of the newest checkpoint, as the store verifies it."""
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_runner())
    return load_newest(run_dir, expected, CheckpointChoice(strict=True))


# --- when -------------------------------------------------------------------------------------------------------------


def test_due(tmp_path, monkeypatch):
    """A save is due this many seconds after the saver was made, and after each save."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with saver(tmp_path, checkpoint_seconds=60.0) as subject:
        assert not subject.due()
        now[0] += 59.9
        assert not subject.due()
        now[0] += 0.1
        assert subject.due()
        assert subject.due()
        subject.save(10, make_runner(), describe)
        assert not subject.due()
        now[0] += 60
        assert subject.due()


def test_always_due(tmp_path):
    with saver(tmp_path, checkpoint_seconds=0) as subject:
        assert subject.due()


# --- what -------------------------------------------------------------------------------------------------------------


class Gate:
    """A describe() that waits for `open`, and records that it was `called`, and by which thread."""

    def __init__(self):
        self.called, self.open = threading.Event(), threading.Event()
        self.thread = None

    def __call__(self):
        self.thread = threading.current_thread()
        self.called.set()
        assert self.open.wait(LONG)
        return {"train_return": 1.5}


def test_the_state_at_the_time_of_the_call_is_saved(tmp_path):
    """Its buffers are donated and overwritten before a byte has been written."""
    runner, expected = make_runner(), state_sha256(make_runner())
    spoil = jax.jit(
        lambda runner: jax.tree.map(lambda x: x * 0 if x.dtype == jnp.float32 else x, runner), donate_argnums=0
    )
    gate = Gate()
    with saver(tmp_path) as subject:
        subject.save(10, runner, gate)
        spoil(runner)
        assert runner.learner.params["kernel"].is_deleted()
        gate.open.set()
    state, meta = saved(tmp_path)
    assert state_sha256(state) == expected
    assert (meta["env_steps"], meta["train_return"]) == (10, 1.5)


def test_numpy_arrays_are_copied_too(tmp_path):
    runner = jax.tree.map(lambda x: x if x.dtype == jax.random.key(0).dtype else np.array(x), make_runner())
    gate = Gate()
    with saver(tmp_path) as subject:
        subject.save(10, runner, gate)
        runner.learner.params["kernel"][:] = 5.0
        gate.open.set()
    assert state_sha256(saved(tmp_path)[0]) == state_sha256(make_runner())


def test_training_goes_on_meanwhile(tmp_path):
    """Another thread describes and writes; the checkpoint is there when it is done, for which the context waits."""
    gate = Gate()
    timer = threading.Timer(0.3, gate.open.set)
    with saver(tmp_path) as subject:
        subject.save(10, make_runner(), gate)
        assert gate.called.wait(LONG)
        assert gate.thread is not threading.current_thread()
        assert list_steps(tmp_path) == []
        timer.start()
    assert [invalid_reason(step.path) for step in list_steps(tmp_path)] == [None]
    assert not gate.thread.is_alive()
    timer.join()


def test_wait(tmp_path):
    with saver(tmp_path) as subject:
        subject.wait()  # for nothing
        subject.save(10, make_runner(), describe)
        subject.wait()
        assert [step.env_steps for step in list_steps(tmp_path)] == [10]


def test_one_at_a_time(tmp_path, monkeypatch):
    """The next save waits for the one before, so they end in order."""
    running, most, order = [0], [0], []
    real = module.save_step

    def counted(run_dir, env_steps, state, meta):
        running[0] += 1
        most[0] = max(most[0], running[0])
        result = real(run_dir, env_steps, state, meta)
        running[0] -= 1
        order.append(env_steps)
        return result

    monkeypatch.setattr(module, "save_step", counted)
    with saver(tmp_path, keep_newest=3) as subject:
        for env_steps in (10, 20, 30):
            subject.save(env_steps, make_runner(), describe)
            assert order == list(range(10, env_steps, 10))
    assert (most[0], order) == (1, [10, 20, 30])


def test_retention(tmp_path):
    """After each save the newest checkpoint and the one with the best return are kept."""
    with saver(tmp_path, keep_newest=1, keep_best=1) as subject:
        for env_steps, value in [(10, 3.0), (20, 9.0), (30, 1.0), (40, 2.0)]:
            subject.save(env_steps, make_runner(), lambda value=value: {"train_return": value})
            subject.wait()
            assert len(list_steps(tmp_path)) <= 2
    assert [step.env_steps for step in list_steps(tmp_path)] == [40, 20]


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["params", "opt_state"])
def test_what_is_not_finite_is_never_saved(tmp_path, place, value):
    """It is not described either; the save before is on the disk, and a later one works. Environments may have NaN."""
    runner = make_runner()
    part = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(value), getattr(runner.learner, place))
    bad = runner._replace(learner=runner.learner._replace(**{place: part}))
    with saver(tmp_path) as subject:
        subject.save(10, runner, describe)
        with pytest.raises(DivergedError, match="not finite after 20 env steps") as caught:
            subject.save(20, bad, pytest.fail)
        assert caught.value.exit_code == 3
        assert [step.env_steps for step in list_steps(tmp_path)] == [10]
        subject.save(30, runner, describe)
    assert [step.env_steps for step in list_steps(tmp_path)] == [30, 10]


def full(*_):
    raise CheckpointError("cannot save the checkpoint: No space left on device")


def sync_fails():
    raise OSError(28, "No space left on device")


@pytest.fixture(params=["store", "describe", "prune"])
def failing(request, monkeypatch):
    """Yields a function: failing(subject, env_steps) starts a save that fails."""

    def start(subject, env_steps):
        if request.param == "describe":
            return subject.save(env_steps, make_runner(), sync_fails)
        with monkeypatch.context() as patch:
            patch.setattr(module, "save_step" if request.param == "store" else "prune", full)
            subject.save(env_steps, make_runner(), describe)
            concluded(subject)
        return None

    return start


def concluded(subject):
    """Waits for the end of a save without receiving its failure."""
    subject._pending.exception(LONG)


def broken_off(subject, error, start):
    """Starts a save, and ends by an error of training."""
    with subject:
        start()
        raise error


def test_a_failure_is_told_at_the_next_save(tmp_path, failing):
    """It is raised once; the save after that works."""
    with saver(tmp_path) as subject:
        failing(subject, 10)
        with pytest.raises(CheckpointError, match="No space left") as caught:
            subject.save(20, make_runner(), pytest.fail)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        subject.save(30, make_runner(), describe)
    assert list_steps(tmp_path)[0].env_steps == 30


def test_a_failure_is_told_at_the_exit(tmp_path, failing):
    subject = saver(tmp_path)
    with pytest.raises(CheckpointError, match="No space left"), subject:
        failing(subject, 10)
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


def test_a_failure_does_not_hide_what_went_wrong_before(tmp_path, failing):
    """An unexpected failure of the save does not replace the error within the context either."""
    for start in (failing, lambda subject, env_steps: subject.save(env_steps, make_runner(), lambda: 1 / 0)):
        subject = saver(tmp_path)
        with pytest.raises(KeyError, match="what went wrong"):
            broken_off(subject, KeyError("what went wrong"), lambda start=start, subject=subject: start(subject, 10))


def test_another_exception_still_waits_for_the_save(tmp_path):
    gate = Gate()
    timer = threading.Timer(0.2, gate.open.set)
    subject = saver(tmp_path)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        broken_off(subject, KeyboardInterrupt(), lambda: subject.save(10, make_runner(), gate))
    timer.join()
    meta = json.loads((list_steps(tmp_path)[0].path / "meta.json").read_text())
    assert meta["env_steps"] == 10
