"""A stretch of training, with a host loop that only pretends: what is saved when, and what is said of an error."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest

from purejaxppo.config import RunOptions
from purejaxppo.core.types import LearnerState, RunnerState
from purejaxppo.errors import CheckpointError, DivergedError, OutOfMemoryError
from purejaxppo.experiment import supervisor as module
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.checkpoints.directory import fault, list_steps
from purejaxppo.experiment.chunked_loop import Chunk, Timing
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.signals import StopRequest
from purejaxppo.experiment.supervisor import Stretch, train_stretch

STEPS = 8  # environment steps per update
PROGRAM = 1234  # bytes
FAREWELL = "what was saved stays."


class Rehearsal:
    """A stretch whose chunks are of two updates and one second each, and what happened in it, in order.

    Args:
      directory: of the checkpoints.
      chunks: how many there are.
      before: updates and seconds before it.
      due: whether the host loop is to ask for a save after each chunk.
    """

    def __init__(self, directory, chunks=3, before=(0, 0.0), due=False):
        self.directory, self.chunks, self.due = directory, chunks, due
        self.events, self.notes, self.phases = [], [], Phases()
        self.stop = StopRequest()
        self.at = {}  # event -> what is to be done when it happens
        self.failing = []  # updates whose checkpoint cannot be written, as often as they are in here
        self.before = before

    def happen(self, *event):
        self.events.append(event)
        self.at.get(event, lambda: None)()

    def advance(self, hooks):
        """What `advance_in_chunks` does, without a device."""
        self.happen("compile")
        hooks.on_start(PROGRAM)
        done, second = self.before[0], 0.0
        for _ in range(self.chunks):
            if hooks.stopped():
                break
            metrics = {"learning_rate": np.zeros(2)}
            self.happen("chunk", done + 2)
            hooks.report(Chunk(done + 1, second, second + 1.0, metrics))
            done, second = done + 2, second + 1.0
            if hooks.save_due() and self.due:
                hooks.save(done, state_of(done))
        return state_of(done), Timing(5.0, second, 16.0)

    def describe(self, updates, seconds):
        self.happen("save", updates, seconds)

        def meta():
            if updates in self.failing:
                self.failing.remove(updates)
                raise OSError(28, "No space left on device")
            return {"updates": updates, "seconds": seconds}

        return meta

    def run(self):
        return train_stretch(
            Stretch(
                advance=self.advance,
                report=lambda chunk: self.happen("report", chunk.first_update, chunk.last_update),
                directory=self.directory,
                options=RunOptions(checkpoint_seconds=0.0, keep_newest=9),
                env_steps=lambda updates: STEPS * updates,
                describe=self.describe,
                check_memory=lambda size: self.happen("memory", size),
                explain=lambda size: OutOfMemoryError(f"out of memory: {size} bytes; try less."),
                progress=SimpleNamespace(start_clock=lambda: self.happen("clock")),
                stop=self.stop,
                farewell=FAREWELL,
                note=self.notes.append,
                phases=self.phases,
                updates=self.before[0],
                seconds=self.before[1],
            )
        )

    def saved(self):
        """(env steps, meta's updates, meta's seconds) of the checkpoints, oldest first; each is sound."""
        steps = list_steps(self.directory)[::-1]
        assert [fault(step.path) for step in steps] == [None] * len(steps)
        metas = [read_json(step.path / "meta.json") for step in steps]
        return [(step.env_steps, meta["updates"], meta["seconds"]) for step, meta in zip(steps, metas, strict=True)]


def state_of(updates):
    learner = LearnerState({"w": np.full(2, updates, np.float32)}, (), ())
    return RunnerState(learner, (), np.zeros(1), np.zeros(2, np.uint32), np.int32(updates))


def fails_with(error):
    def fail():
        raise error

    return fail


@pytest.fixture
def rehearsal(tmp_path):
    """rehearsal(chunks=3, ...)"""
    return lambda **options: Rehearsal(tmp_path, **options)


# --- the order of things ----------------------------------------------------------------------------------------------


def test_it_reports_each_chunk_and_saves_at_the_end(rehearsal):
    """The clock starts after the compilation; the state of the end is on the disk when it is over."""
    subject = rehearsal(chunks=2)
    state, timing = subject.run()
    assert subject.events == [
        ("compile",),
        ("memory", PROGRAM),
        ("clock",),
        ("chunk", 2),
        ("report", 1, 2),
        ("chunk", 4),
        ("report", 3, 4),
        ("save", 4, 2.0),
    ]
    assert int(state.updates) == 4
    assert timing == Timing(5.0, 2.0, 16.0)
    assert subject.saved() == [(32, 4, 2.0)]
    assert subject.notes == []


def test_it_saves_in_between_when_a_save_is_due(rehearsal):
    """What is reported comes first; at the end the last state is there already."""
    subject = rehearsal(due=True)
    subject.run()
    assert [event for event in subject.events if event[0] in ("report", "save")] == [
        ("report", 1, 2),
        ("save", 2, 1.0),
        ("report", 3, 4),
        ("save", 4, 2.0),
        ("report", 5, 6),
        ("save", 6, 3.0),
        ("save", 6, 3.0),
    ]
    assert subject.saved() == [(16, 2, 1.0), (32, 4, 2.0), (48, 6, 3.0)]


def test_updates_and_seconds_go_on_from_before(rehearsal):
    subject = rehearsal(chunks=2, before=(10, 7.5), due=True)
    state, timing = subject.run()
    assert [event for event in subject.events if event[0] == "report"] == [("report", 11, 12), ("report", 13, 14)]
    assert (int(state.updates), timing.train_seconds) == (14, 9.5)
    assert subject.saved() == [(96, 12, 8.5), (112, 14, 9.5)]


def test_nothing_left_to_do(rehearsal):
    """The state that it began with is saved, with the seconds of before."""
    subject = rehearsal(chunks=0, before=(10, 7.5))
    _, timing = subject.run()
    assert timing.train_seconds == 7.5
    assert subject.saved() == [(80, 10, 7.5)]


def test_the_watch_hears_of_every_sign_of_life(rehearsal, monkeypatch):
    """At the end of the compilation and after each chunk; it is told where to complain."""
    subject = rehearsal(chunks=2)

    class Watch:
        def __init__(self, say):
            assert say == subject.notes.append

        def __enter__(self):
            return SimpleNamespace(alive=lambda: subject.happen("alive"))

        def __exit__(self, *_):
            subject.happen("over")

    monkeypatch.setattr(module, "Watch", Watch)
    subject.run()
    names = [event[0] for event in subject.events]
    assert names == ["compile", "memory", "alive", "clock", *["chunk", "report", "alive"] * 2, "save", "over"]


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_during_the_compilation_ends_it_at_once(rehearsal):
    subject = rehearsal()
    subject.at["compile",] = lambda: subject.stop.received(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=f"^stopped by SIGTERM: {FAREWELL}$"):
        subject.run()
    assert subject.events == [("compile",)]
    assert subject.saved() == []


def test_a_signal_before_it_ends_it_before_it_begins(rehearsal):
    subject = rehearsal()
    subject.stop.received(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt, match=FAREWELL):
        subject.run()
    assert subject.events == []


@pytest.mark.parametrize("moment", [("clock",), ("chunk", 2), ("report", 1, 2)])
def test_a_signal_after_the_compilation_lets_what_is_started_end(rehearsal, moment):
    subject = rehearsal()
    subject.at[moment] = lambda: subject.stop.received(signal.SIGTERM)
    state, timing = subject.run()
    reached = 0 if moment == ("clock",) else 2
    assert int(state.updates) == reached
    assert timing.train_seconds == reached / 2
    assert subject.saved() == [(STEPS * reached, reached, reached / 2)]


def test_a_signal_while_the_last_state_is_saved_changes_nothing(rehearsal):
    subject = rehearsal(chunks=1)
    subject.at["save", 2, 1.0] = lambda: subject.stop.received(signal.SIGINT)
    subject.run()
    assert subject.saved() == [(16, 2, 1.0)]


def test_an_error_in_the_compilation_leaves_no_farewell_behind(rehearsal):
    subject = rehearsal()
    subject.at["compile",] = fails_with(ValueError("no such primitive"))
    with pytest.raises(ValueError, match="no such primitive"):
        subject.run()
    subject.stop.received(signal.SIGTERM)
    assert subject.stop() == "SIGTERM"


# --- memory -----------------------------------------------------------------------------------------------------------

FULL = [RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."), MemoryError()]


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize(("moment", "size"), [(("compile",), 0), (("clock",), PROGRAM), (("chunk", 4), PROGRAM)])
def test_too_little_memory_is_explained(rehearsal, error, moment, size):
    """With the size of the program, if it was known."""
    subject = rehearsal()
    subject.at[moment] = fails_with(error)
    with pytest.raises(OutOfMemoryError, match=f"^out of memory: {size} bytes; try less.$") as caught:
        subject.run()
    assert caught.value.__cause__ is error
    assert subject.saved() == []


def test_a_program_that_will_not_fit_is_not_started(rehearsal):
    """With the words of the check."""
    subject = rehearsal()
    subject.at["memory", PROGRAM] = fails_with(OutOfMemoryError("it would take 1234 bytes"))
    with pytest.raises(OutOfMemoryError, match=r"^it would take 1234 bytes$"):
        subject.run()
    assert subject.events == [("compile",), ("memory", PROGRAM)]


@pytest.mark.parametrize("error", [ValueError("shapes"), CheckpointError("RESOURCE_EXHAUSTED: no space left")])
def test_other_errors_are_not_called_memory(rehearsal, error):
    subject = rehearsal()
    subject.at["chunk", 4] = fails_with(error)
    with pytest.raises(type(error)) as caught:
        subject.run()
    assert caught.value is error


# --- saves that fail --------------------------------------------------------------------------------------------------


def test_the_last_save_is_worth_another_try(rehearsal):
    """It failed while it was not waited for; that is said, and the end is saved all the same."""
    subject = rehearsal(chunks=2, due=True)
    subject.failing = [4]
    state, _ = subject.run()
    assert int(state.updates) == 4
    (note,) = subject.notes
    assert "cannot save the checkpoint of 32 env steps" in note
    assert "No space left" in note
    assert subject.saved() == [(16, 2, 1.0), (32, 4, 2.0)]


def test_if_that_fails_too_it_is_an_error(rehearsal):
    subject = rehearsal(chunks=2, due=True)
    subject.failing = [4, 4]
    with pytest.raises(CheckpointError, match="No space left"):
        subject.run()
    assert len(subject.notes) == 1
    assert subject.saved() == [(16, 2, 1.0)]


def test_an_earlier_save_that_failed_ends_the_training_at_the_next(rehearsal):
    """A disk that is full should not be found out about at the end."""
    subject = rehearsal(due=True)
    subject.failing = [2]
    with pytest.raises(CheckpointError, match="checkpoint of 16 env steps"):
        subject.run()
    assert ("report", 3, 4) in subject.events
    assert ("chunk", 6) not in subject.events
    assert subject.notes == []
    assert subject.saved() == []


def test_what_diverges_ends_it_with_what_was_saved_before(rehearsal):
    """The report raises; the save in flight is finished, and no other begun."""
    subject = rehearsal(due=True)
    subject.at["report", 3, 4] = fails_with(DivergedError("loss/policy is not finite", 3))
    with pytest.raises(DivergedError, match="loss/policy"):
        subject.run()
    assert subject.saved() == [(16, 2, 1.0)]


def test_its_seconds_are_of_compilation_training_and_saving(tmp_path, monkeypatch):
    """Each of 100 s, 3 s and 20 s on a clock that stands still otherwise."""
    now = [0.0]

    def pass_by(seconds):
        now[0] += seconds

    monkeypatch.setattr("purejaxppo.experiment.phases.time.perf_counter", lambda: now[0])
    rehearsal = Rehearsal(tmp_path)
    rehearsal.at[("compile",)] = lambda: pass_by(100.0)
    rehearsal.at |= {("chunk", updates): lambda: pass_by(1.0) for updates in (2, 4, 6)}
    rehearsal.at["save", 6, 3.0] = lambda: pass_by(20.0)
    rehearsal.run()
    assert rehearsal.phases.seconds() == {"compilation": 100.0, "training": 3.0, "saving": 20.0}
