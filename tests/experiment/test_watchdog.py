"""The watchdog: one message per hang, after a limit that grows with the intervals before, and none when it is over."""

import queue
import threading
import time
from contextlib import contextmanager

import pytest

from purejaxppo.experiment.watchdog import Watchdog, announced

LIMIT = 0.15
LONG = 10.0  # for what must happen; how long exactly is the machine's business
SHORT = 3 * LIMIT  # for what must not


@contextmanager
def watching(limit=LIMIT):
    """Yields (watchdog, queue of its messages)."""
    said = queue.Queue()
    with Watchdog(said.put, limit) as watch:
        yield watch, said


def silent(said, seconds=SHORT):
    with pytest.raises(queue.Empty):
        said.get(timeout=seconds)
    return True


def test_once_per_silence():
    """While compiling, and after a sign of life, there is one message each."""
    with watching() as (watch, said):
        first = said.get(timeout=LONG)
        assert silent(said)
        watch.alive()
        second = said.get(timeout=LONG)
        assert silent(said)
    assert said.empty()
    assert first.startswith("still compiling after 0 s")
    assert second.startswith("no update has finished for 0 s")


def test_nothing_is_said_before_the_limit():
    began = time.monotonic()
    with watching(0.4) as (_, said):
        said.get(timeout=LONG)
    assert time.monotonic() - began >= 0.4


def test_signs_of_life_keep_it_silent():
    """Each comes within the limit, and together they take longer than it."""
    with watching(1.0) as (watch, said):
        until = time.monotonic() + 1.6
        while time.monotonic() < until:
            watch.alive()
            time.sleep(0.02)
        assert said.empty()


def aged(watch, seconds):
    """Makes the last sign of life that many seconds older."""
    with watch._condition:
        watch._last -= seconds


def limit_of(waits, shortest=60.0):
    """Returns the limit after signs of life with these seconds between them, of which the first are compilation.

    The limit is the argument with which the thread begins to wait.
    """
    limits = queue.Queue()

    class Noting(Watchdog):
        def _heard_after(self, since, seconds):
            if seconds is not None:
                limits.put(seconds)
            return super()._heard_after(since, seconds)

    with Noting(lambda text: None, shortest) as watch:
        limit = limits.get(timeout=LONG)
        for seconds in waits:
            aged(watch, seconds)
            watch.alive()
            limit = limits.get(timeout=LONG)
    return limit


@pytest.mark.parametrize(
    ("waits", "limit"),
    [
        ([], 60),
        ([1000.0], 60),  # compiling, which says nothing about updates
        ([1000.0, 5.0], 60),
        ([1000.0, 30.0], 300),
        ([1000.0, 30.0, 8.0, 20.0], 300),
        ([1000.0, 30.0, 8.0, 50.0], 500),
        ([0.0, 1000.0], 10_000),
    ],
)
def test_the_limit_is_ten_times_the_longest_wait(waits, limit):
    assert limit_of(waits) == pytest.approx(limit, abs=50 if limit > 60 else 0)
    assert limit_of(waits) >= limit


def test_what_it_says_names_the_wait_and_what_to_try():
    with watching(0.05) as (watch, said):
        text = said.get(timeout=LONG)
        assert "hidden_sizes" in text
        watch.alive()
        text = said.get(timeout=LONG)
        assert "longest" not in text  # there was none
        aged(watch, 0.06)
        watch.alive()
        text = said.get(timeout=2 * LONG)
    assert text.startswith("no update has finished for ")
    assert "the longest wait before was" in text
    for remedy in ("Ctrl-C twice", "`resume`", "NPROC=8", "py-spy dump"):
        assert remedy in text
    assert "\n" not in text


def test_it_ends_promptly():
    """Before the limit is over, and after a hang was reported; its thread is gone."""
    before = threading.active_count()
    for limit in (1000.0, 0.01):
        with watching(limit) as (_, said):
            if limit < 1:
                said.get(timeout=LONG)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        assert threading.active_count() == before


def test_it_never_speaks_when_it_is_over():
    """An error within the context is passed on."""
    with pytest.raises(KeyError), watching() as (_, said):
        raise KeyError
    assert silent(said)


# --- what is being done -----------------------------------------------------------------------------------------------


def test_what_takes_long_is_announced_again_and_again():
    said = queue.Queue()
    with announced(said.put, "drawing", delay=0.0, interval=0.05):
        lines = [said.get(timeout=LONG) for _ in range(3)]
    assert lines == ["drawing, 0 s so far"] * 3


def test_what_is_over_is_announced_no_more():
    """What was quick, or has failed, is not announced at all."""
    said = queue.Queue()
    with pytest.raises(KeyError), announced(said.put, "drawing", delay=LIMIT):
        raise KeyError
    with announced(said.put, "drawing", delay=LIMIT):
        pass
    assert silent(said)
