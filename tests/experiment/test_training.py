"""Training one run with programs that only count: what is saved when, and what errors say."""

import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.core.episodes import no_episodes
from purejaxppo.core.normalizer import Normalizer
from purejaxppo.core.types import LearnerState, RunnerState
from purejaxppo.errors import CheckpointError, DivergedError, OutOfMemoryError
from purejaxppo.evaluate import Episodes
from purejaxppo.experiment import training as module
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps
from purejaxppo.experiment.directory import RunSettings
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.signals import StopRequest
from purejaxppo.experiment.training import Run, Saved, train

STEPS = 8  # environment steps per update
PROGRAM = 1234  # bytes


class Rehearsal:
    """A run in chunks of two updates, with a program that only counts, and a record of its events in order.

    Args:
      patch: the test's monkeypatch.
      directory: of the run.
      chunks: how many there are to train.
      before: updates and seconds before them, as of a checkpoint.
      due: whether a save is due at every moment.
      period: updates between two evaluations; 0 for none.
    """

    def __init__(self, patch, directory, chunks=3, before=(0, 0.0), due=False, period=0):
        self.directory, self.before = directory, before
        self.events, self.notes, self.rows, self.phases = [], [], [], Phases()
        self.stop = StopRequest()
        self.at = {}  # event -> what is to be done when it happens
        self.failing = []  # updates whose checkpoint cannot be written, as often as they are in here
        updates = before[0] + 2 * chunks
        self.config = TrainConfig(num_envs=2, num_steps=4, num_minibatches=1, total_timesteps=STEPS * max(updates, 1))
        self.options = RunOptions(checkpoint_seconds=0.0 if due else 1e9, keep_newest=9, eval_every=period * STEPS)
        patch.setattr(module, "chunk_lengths", lambda *_: [2] * (updates // 2))
        patch.setattr(module, "compile_chunks", self.compile)
        patch.setattr(module, "program_bytes", lambda _: PROGRAM)
        patch.setattr(module, "explain", lambda c, e, size: OutOfMemoryError(f"out of memory: {size} bytes; try less."))
        patch.setattr(module, "_check_memory", lambda _, size: self.happen("memory", size))
        patch.setattr(module, "ProgressDisplay", self.progress)
        patch.setattr(module, "_description", self.description)
        patch.setattr(module, "remark", lambda _, text: self.notes.append(text))

    def happen(self, *event):
        self.events.append(event)
        self.at.get(event, lambda: None)()

    def compile(self, trainer, hp, state, lengths):
        self.happen("compile")
        return dict.fromkeys(lengths, self.advance)

    def advance(self, hp, state):
        done = int(state.updates) + 2
        self.happen("chunk", done)
        zeros = np.zeros(2, np.int32)
        names = ("learning_rate", "nonfinite", "episode/count", "episode/return")
        return state_of(done), dict.fromkeys(names, zeros)

    def compile_evaluation(self, runner):
        self.happen("compile evaluation")

    def play(self, key, runner, say, stop):
        """Evaluates, as a stand-in for an `Evaluator` that looks twice whether it is to stop."""
        self.happen("evaluate", int(runner.updates))
        if stop() or stop():
            return None
        return Episodes(np.full(3, float(runner.updates)), np.ones(3), np.ones(3, bool))

    def progress(self, console, *_):
        """Takes the place of the display, the second of the sinks."""
        outer = self

        class Display:
            def start_clock(self):
                outer.happen("clock")

            def __call__(self, env_steps, row):
                outer.happen("report", row["update"])
                outer.rows.append(row)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        return Display()

    def description(self, run, updates, log, seconds, *_):
        self.happen("save", updates)

        def meta():
            if updates in self.failing:
                self.failing.remove(updates)
                raise OSError(28, "No space left on device")
            return {"updates": updates, "seconds": seconds}

        return meta

    def run(self):
        settings = RunSettings(self.config, Hyperparams(), 0, self.options)
        trainer = SimpleNamespace(place=lambda state: state)
        self.directory.mkdir(exist_ok=True)
        (self.directory / "metrics.jsonl").write_text("")
        evaluator = SimpleNamespace(compile=self.compile_evaluation, play=self.play, num_episodes=3)
        evaluator = evaluator if self.options.eval_every else None
        run = Run(
            *(self.directory, self.directory, settings, None, trainer, jax.devices()[:1], None, self.stop, self.phases),
            evaluator=evaluator,
        )
        done, seconds = self.before
        return train(run, Saved(state_of(done), done, 0, seconds))

    def saved(self):
        """Returns (env steps, meta's updates) of the checkpoints, oldest first, all valid and with growing seconds."""
        steps = list_steps(self.directory)[::-1]
        assert [invalid_reason(step.path) for step in steps] == [None] * len(steps)
        metas = [read_json(step.path / "meta.json") for step in steps]
        seconds = [meta["seconds"] for meta in metas]
        assert seconds == sorted(seconds)
        assert all(second >= self.before[1] for second in seconds)
        return [(step.env_steps, meta["updates"]) for step, meta in zip(steps, metas, strict=True)]

    def of(self, *kinds):
        return [event for event in self.events if event[0] in kinds]


def state_of(updates):
    learner = LearnerState({"w": np.full(2, updates, np.float32)}, (), ())
    return RunnerState(
        learner=learner,
        env_state=(),
        obs=np.zeros(1),
        memory=(),
        episodes=no_episodes(1),
        normalizer=Normalizer(),
        env_ids=np.zeros(1, np.int32),
        key=np.zeros(2, np.uint32),
        updates=np.int32(updates),
    )


def fails_with(error):
    def fail():
        raise error

    return fail


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    """Yields a function: rehearsal(chunks=3, ...) makes a Rehearsal."""
    return lambda **options: Rehearsal(monkeypatch, tmp_path / "run", **options)


# --- the order of things ----------------------------------------------------------------------------------------------


def test_it_reports_each_chunk_and_saves_at_the_end(rehearsal):
    """A chunk is reported while the next one runs; the last state is on the disk at the end."""
    subject = rehearsal(chunks=2)
    state, timing = subject.run()
    assert subject.events == [
        ("compile",),
        ("memory", PROGRAM),
        ("clock",),
        ("chunk", 2),
        ("chunk", 4),
        ("report", 1),
        ("report", 2),
        ("report", 3),
        ("report", 4),
        ("save", 4),
    ]
    assert int(state.updates) == 4
    assert timing.train_seconds > 0
    assert timing.env_steps_per_second > 0
    assert subject.saved() == [(32, 4)]
    assert subject.notes == []


def test_it_saves_in_between_when_a_save_is_due(rehearsal):
    """A chunk is reported before it is saved, and no other one is started; the last state is then saved already."""
    subject = rehearsal(due=True, chunks=2)
    subject.run()
    assert subject.of("chunk", "report", "save") == [
        ("chunk", 2),
        ("report", 1),
        ("report", 2),
        ("save", 2),
        ("chunk", 4),
        ("report", 3),
        ("report", 4),
        ("save", 4),
    ]
    assert subject.saved() == [(16, 2), (32, 4)]


def test_updates_and_seconds_go_on_from_before(rehearsal):
    subject = rehearsal(chunks=2, before=(10, 7.5), due=True)
    state, timing = subject.run()
    assert subject.of("report") == [("report", update) for update in (11, 12, 13, 14)]
    assert int(state.updates) == 14
    assert timing.train_seconds > 7.5
    assert subject.saved() == [(96, 12), (112, 14)]


def test_nothing_left_to_do(rehearsal):
    """The state that it began with is saved, with the seconds before."""
    subject = rehearsal(chunks=0, before=(10, 7.5))
    _, timing = subject.run()
    assert (timing.train_seconds, timing.env_steps_per_second) == (7.5, 0.0)
    assert subject.saved() == [(80, 10)]


def test_the_watchdog_hears_of_every_sign_of_life(rehearsal, monkeypatch):
    """There is one at the end of the compilation and one after each chunk."""
    subject = rehearsal(chunks=2)

    class Watchdog:
        def __init__(self, say):
            say("told here")

        def __enter__(self):
            return SimpleNamespace(alive=lambda: subject.happen("alive"))

        def __exit__(self, *_):
            subject.happen("over")

    monkeypatch.setattr(module, "Watchdog", Watchdog)
    subject.run()
    assert subject.notes == ["told here"]
    names = [event[0] for event in subject.of("compile", "alive", "clock", "report", "save", "over")]
    assert names == ["compile", "alive", "clock", *["report", "report", "alive"] * 2, "save", "over"]


# --- evaluations while training ---------------------------------------------------------------------------------------


def test_an_evaluation_comes_before_the_row_of_its_update(rehearsal):
    """No chunk runs then, and the others are one ahead as ever; a checkpoint of that update comes after the row."""
    subject = rehearsal(chunks=4, period=4)
    subject.run()
    assert subject.events[:3] == [("compile",), ("memory", PROGRAM), ("compile evaluation",)]
    assert subject.of("chunk", "report", "evaluate", "save") == [
        ("chunk", 2),
        ("chunk", 4),
        ("report", 1),
        ("report", 2),
        ("report", 3),
        ("evaluate", 4),
        ("report", 4),
        ("chunk", 6),
        ("chunk", 8),
        ("report", 5),
        ("report", 6),
        ("report", 7),
        ("evaluate", 8),
        ("report", 8),
        ("save", 8),
    ]
    assert [row.get("evaluation/return") for row in subject.rows] == [*[None] * 3, 4.0, *[None] * 3, 8.0]


def test_the_seconds_of_evaluations_are_their_own(rehearsal, monkeypatch):
    """They are not of the training, by which the speed is measured: three chunks of 1 s, two evaluations of 50 s."""
    now = [0.0]

    def pass_by(seconds):
        now[0] += seconds

    monkeypatch.setattr("purejaxppo.experiment.phases.time.perf_counter", lambda: now[0])
    subject = rehearsal(chunks=3, period=2)
    subject.at |= {("chunk", updates): lambda: pass_by(1.0) for updates in (2, 4, 6)}
    subject.at |= {("evaluate", updates): lambda: pass_by(50.0) for updates in (2, 4, 6)}
    _, timing = subject.run()
    assert subject.phases.seconds() == {"compilation": 0.0, "training": 3.0, "evaluation": 150.0, "saving": 0.0}
    assert timing.train_seconds == 3.0
    assert timing.env_steps_per_second == 2 * STEPS
    assert [row["seconds"] for row in subject.rows] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("moment", [("evaluate", 4), ("report", 3)])
def test_a_signal_that_stops_an_evaluation_lets_its_row_be_written(rehearsal, moment):
    """It is written without the evaluation, the state is saved, and nothing is started any more."""
    subject = rehearsal(period=4)
    subject.at[moment] = lambda: subject.stop.received(signal.SIGTERM)
    state, _ = subject.run()
    assert int(state.updates) == 4
    assert [row["update"] for row in subject.rows] == [1, 2, 3, 4]
    assert not any("evaluation/return" in row for row in subject.rows)
    assert subject.saved() == [(32, 4)]


def test_an_evaluation_without_memory_is_explained_as_one(rehearsal):
    subject = rehearsal(period=4)
    subject.at["evaluate", 4] = fails_with(MemoryError())
    with pytest.raises(OutOfMemoryError, match="evaluation of 3 episodes"):
        subject.run()


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_during_the_compilation_ends_it_at_once(rehearsal):
    subject = rehearsal()
    subject.at["compile",] = lambda: subject.stop.received(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped by SIGTERM: no update had finished; `purejaxppo resume "):
        subject.run()
    assert subject.events == [("compile",)]
    assert subject.saved() == []


def test_a_signal_before_it_ends_it_before_it_begins(rehearsal):
    subject = rehearsal(before=(10, 7.5))
    subject.stop.received(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt, match="the state after 80 env steps is saved"):
        subject.run()
    assert subject.events == []


@pytest.mark.parametrize(
    ("moment", "reached"), [(("clock",), 0), (("chunk", 2), 2), (("report", 1), 4), (("report", 3), 6)]
)
def test_a_signal_after_the_compilation_lets_what_is_started_end(rehearsal, moment, reached):
    """The signal comes while the first chunk is reported and the second one runs."""
    subject = rehearsal()
    subject.at[moment] = lambda: subject.stop.received(signal.SIGTERM)
    state, _ = subject.run()
    assert int(state.updates) == reached
    assert subject.of("report") == [("report", update + 1) for update in range(reached)]
    assert subject.saved() == [(STEPS * reached, reached)]


def test_a_signal_while_the_last_state_is_saved_changes_nothing(rehearsal):
    subject = rehearsal(chunks=1)
    subject.at["save", 2] = lambda: subject.stop.received(signal.SIGINT)
    subject.run()
    assert subject.saved() == [(16, 2)]


def test_an_error_in_the_compilation_leaves_no_message_behind(rehearsal):
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
    """The error has the size of the program, if it was known."""
    subject = rehearsal()
    subject.at[moment] = fails_with(error)
    with pytest.raises(OutOfMemoryError, match=f"^out of memory: {size} bytes; try less.$") as caught:
        subject.run()
    assert caught.value.__cause__ is error
    assert subject.saved() == []


def test_a_program_that_will_not_fit_is_not_started(rehearsal):
    """The error is that of the check."""
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


def test_the_last_state_is_saved_although_the_save_before_failed(rehearsal):
    """It failed in the thread; that is reported, and the last state, here that of a signal, is saved all the same."""
    subject = rehearsal(due=True)
    subject.failing = [2]
    subject.at["chunk", 4] = lambda: subject.stop.received(signal.SIGTERM)
    state, _ = subject.run()
    assert int(state.updates) == 4
    assert subject.of("save") == [("save", 2), ("save", 4)]
    (note,) = subject.notes
    assert "cannot save the checkpoint of 16 env steps" in note
    assert "No space left" in note
    assert subject.saved() == [(32, 4)]


def test_if_that_fails_too_it_is_an_error(rehearsal):
    subject = rehearsal(chunks=2, due=True)
    subject.failing = [2, 4]
    with pytest.raises(CheckpointError, match="No space left"):
        subject.run()
    assert len(subject.notes) == 1
    assert subject.saved() == []


def test_an_earlier_save_that_failed_ends_the_training_at_the_next(rehearsal):
    """A full disk is noticed before the end of training."""
    subject = rehearsal(due=True)
    subject.failing = [2]
    with pytest.raises(CheckpointError, match="checkpoint of 16 env steps"):
        subject.run()
    assert ("report", 4) in subject.events
    assert ("chunk", 6) not in subject.events
    assert subject.notes == []
    assert subject.saved() == []


def test_what_diverges_ends_it_with_what_was_saved_before(rehearsal):
    """Reporting raises; the save that is running is finished, and no other one is started."""
    subject = rehearsal(due=True)
    subject.at["report", 3] = fails_with(DivergedError("loss/policy is not finite", 3))
    with pytest.raises(DivergedError, match="loss/policy"):
        subject.run()
    assert subject.saved() == [(16, 2)]


def test_its_seconds_are_of_compilation_training_and_saving(rehearsal, monkeypatch):
    """They take 100 s, 3 s and 20 s on a clock that stands still otherwise."""
    now = [0.0]

    def pass_by(seconds):
        now[0] += seconds

    monkeypatch.setattr("purejaxppo.experiment.phases.time.perf_counter", lambda: now[0])
    subject = rehearsal()
    subject.at[("compile",)] = lambda: pass_by(100.0)
    subject.at |= {("chunk", updates): lambda: pass_by(1.0) for updates in (2, 4, 6)}
    subject.at["save", 6] = lambda: pass_by(20.0)
    subject.run()
    assert subject.phases.seconds() == {"compilation": 100.0, "training": 3.0, "saving": 20.0}
