"""Progress: what a terminal shows, and what a file gets."""

import contextlib
import io
import math
import os

import pytest
from rich.console import Console

from purejaxppo.experiment import progress as module
from purejaxppo.experiment.progress import ProgressDisplay, Terminal, say


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_plain_lines_elsewhere_than_on_a_terminal(clock):
    """There is at most one line in five seconds, each complete, and one at the end."""
    out = console(False)
    with ProgressDisplay(out, 1_000_000) as progress:
        clock.now += 60  # compilation
        progress.start_clock()
        for step in range(1, 11):
            clock.now += 1
            progress(step * 50_000, {"episode/return": math.nan if step < 3 else 12.5})
    lines = out.file.getvalue().splitlines()
    assert lines == [
        "compiling",
        "250,000 / 1,000,000 env steps  50,000 steps/s  return 12.5  ETA 15 s",
        "500,000 / 1,000,000 env steps  50,000 steps/s  return 12.5  ETA 10 s",
    ]


def test_the_last_line_is_there_once(clock):
    """It is, whether or not it had just been shown when training ended."""
    for seconds in (2, 7):
        out = console(False)
        with ProgressDisplay(out, 100) as progress:
            progress.start_clock()
            clock.now += seconds
            progress(100, {"episode/return": 1.0})
            clock.now += 60  # the evaluation
        assert [line[:9] for line in out.file.getvalue().splitlines()] == ["compiling", "100 / 100"]


def test_nothing_is_said_of_a_speed_before_there_is_one(clock):
    """A resumed sweep counts what an earlier process trained, after a long compilation, without a line on speed."""
    out = console(False)
    with ProgressDisplay(out, 1000) as progress:
        clock.now += 60
        progress.skip(0)
        progress.skip(600)
        progress.advance(0, {"episode/return": None})
        progress.start_clock()
        clock.now += 10
        progress.advance(0, {"episode/return": None})
        progress.advance(100, {"episode/return": None})
    lines = out.file.getvalue().splitlines()
    assert lines == ["compiling", "700 / 1,000 env steps  10 steps/s  no finished episode  ETA 30 s"]


@pytest.mark.parametrize("missing", [math.nan, None])
def test_no_finished_episode_is_said_not_shown_as_0(clock, missing):
    out = console(False)
    with ProgressDisplay(out, 100) as progress:
        clock.now += 10
        progress(50, {"episode/return": missing})
    assert "no finished episode" in out.file.getvalue()
    assert "nan" not in out.file.getvalue()


def test_the_last_known_return_stays(clock):
    out = console(False)
    with ProgressDisplay(out, 100) as progress:
        clock.now += 1
        progress(20, {"episode/return": 7.0})
        clock.now += 9
        progress(50, {"episode/return": math.nan})
    assert "return 7 " in out.file.getvalue()


def test_the_newest_evaluation_stays(clock):
    """It is shown from the first one on, and one that is not finite is passed over."""
    out = console(False)
    with ProgressDisplay(out, 100) as progress:
        for step, row in enumerate([{}, {"evaluation/return": 9.5}, {"evaluation/return": None}, {}], start=1):
            clock.now += 10
            progress(20 * step, {"episode/return": 7.0, **row})
    lines = out.file.getvalue().splitlines()[1:]
    assert ["evaluation 9.5" in line for line in lines] == [False, True, True, True]
    assert "return 7  evaluation 9.5  ETA" in lines[1]


def test_a_terminal_that_is_gone_ends_nothing():
    """The reader of a pipe, for example, has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        out = Terminal(file=file)
        with ProgressDisplay(out, 100) as progress:
            progress(50, {"episode/return": 3.0})
        say(out, "more")
        assert out.quiet
        with contextlib.suppress(BrokenPipeError):
            file.close()


def test_what_looks_like_markup_is_said_as_it_is():
    out = Terminal(file=io.StringIO())
    say(out, "runs/a[/b] runs/sweep[lr]")
    assert out.file.getvalue() == "runs/a[/b] runs/sweep[lr]\n"


def test_a_bar_on_a_terminal(clock):
    out = console(True)
    with ProgressDisplay(out, 100) as progress:
        clock.now += 1
        progress(50, {"episode/return": 3.0})
    text = out.file.getvalue()
    assert "50%" in text
    assert "return 3" in text
    assert "steps/s" in text


def test_a_run_without_a_single_row_shows_no_progress(clock):
    out = console(False)
    with ProgressDisplay(out, 100):
        pass
    assert out.file.getvalue() == "compiling\n"


def test_a_resumed_run_counts_its_own_steps_for_the_speed(clock):
    out = console(False)
    with ProgressDisplay(out, 1000, 600) as progress:
        progress.start_clock()
        clock.now += 10
        progress(700, {"episode/return": 3.0})
    assert out.file.getvalue().splitlines()[1] == "700 / 1,000 env steps  10 steps/s  return 3  ETA 30 s"
