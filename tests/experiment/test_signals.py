"""Signals: the first one asks to stop, Ctrl-C after it aborts, and where nothing needs saving one is enough."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from purejaxppo.experiment.signals import SIGNALS, StopRequest, stop_on_signal

NAMES = ["SIGINT", "SIGTERM", "SIGUSR1"]


def handlers():
    return {number: signal.getsignal(number) for number in SIGNALS}


# --- within a program -------------------------------------------------------------------------------------------------


def test_these_are_the_signals():
    assert [number.name for number in SIGNALS] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_first_is_noted_and_ctrl_c_after_it_aborts(name):
    """Further signals of a batch system do not abort."""
    before = handlers()
    with stop_on_signal() as stop:
        assert stop() is None
        signal.raise_signal(getattr(signal, name))
        assert stop() == name
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert handlers() == before


def test_handlers_are_restored():
    before = handlers()
    with stop_on_signal() as stop:
        assert all(signal.getsignal(number) != before[number] for number in SIGNALS)
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt):  # Python's own handler again
        signal.raise_signal(signal.SIGINT)
    assert stop() is None


def test_at_once():
    """Within the context a signal ends everything, with the message; outside of it a signal is noted only."""
    with stop_on_signal() as stop:
        stopped = pytest.raises(KeyboardInterrupt, match=r"^stopped by SIGUSR1: all is saved$")
        with stopped, stop.ending_at_once("all is saved"):
            signal.raise_signal(signal.SIGUSR1)
            pytest.fail("it went on")
    with stop_on_signal() as stop:
        with stop.ending_at_once("all is saved"):
            pass
        signal.raise_signal(signal.SIGUSR1)
        assert stop() == "SIGUSR1"


def test_at_once_when_it_has_come_before():
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match=r"^stopped by SIGTERM: all is saved$"):
            stop.ending_at_once("all is saved").__enter__()


def test_at_once_misses_no_signal_on_its_way_in():
    """A signal comes in its thread at the very moment in which the context asks whether one has come."""

    class Late(StopRequest):
        late = False

        def __getattribute__(self, attribute):
            value = super().__getattribute__(attribute)
            if attribute == "name" and self.late:
                self.late = False
                self.received(signal.SIGTERM)
            return value

    stop = Late()
    stop.late = True
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"), stop.ending_at_once("all is saved"):
        pytest.fail("it went on")


def test_nothing_is_heard_outside_the_main_thread():
    """No handler may be installed there: the program keeps its own."""
    before, heard = handlers(), []

    def listen():
        with stop_on_signal() as stop:
            heard.append(handlers() == before)
            heard.append(stop())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join(60)
    assert heard == [True, None]
    assert handlers() == before


# --- a process of its own ---------------------------------------------------------------------------------------------

PREAMBLE = """
import ctypes, os, signal, sys, time
from purejaxppo.experiment.signals import SIGNALS, stop_process_on_signal

def ready():
    print("ready", flush=True)

"""


def process_of(code, **options):
    program = [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def signalled(code, *names, pause=0.3):
    """Returns (exit code, standard output after `ready`, standard error, seconds) of a program signalled when ready."""
    with process_of(code) as process:
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            began = time.monotonic()
            for i, name in enumerate(names):
                time.sleep(pause if i else 0)
                process.send_signal(getattr(signal, name))
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, stdout, stderr, time.monotonic() - began


@pytest.mark.parametrize("name", NAMES)
def test_process_the_first_is_noted(name):
    code = """
        with stop_process_on_signal() as stop:
            ready()
            while not stop():
                time.sleep(0.01)
            print(stop())
    """
    assert signalled(code, name)[:3] == (0, f"{name}\n", "")


WAITS = {
    "python": "while True: sum(range(1000))",
    "sleep": "time.sleep(100)",
    "C": "while True: ctypes.CDLL(None).sleep(100)",  # each of which a signal ends early
    "another thread's lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.parametrize(("name", "wait"), [*zip(NAMES, WAITS, strict=False), ("SIGTERM", list(WAITS)[3])])
def test_process_at_once(name, wait):
    """The process ends with one line and exit code 75, whatever the main thread is doing."""
    code = f"""
        with stop_process_on_signal() as stop, stop.ending_at_once("all is saved."):
            ready()
            {WAITS[wait]}
    """
    code, stdout, stderr, seconds = signalled(code, name)
    assert (code, stdout, stderr) == (75, "", f"purejaxppo: stopped by {name}: all is saved.\n")
    assert seconds < 20


def test_process_at_once_during_a_compilation():
    """XLA compiles a program for many seconds, in which no Python runs in the main thread."""
    code = """
        import jax, jax.numpy as jnp

        def slow(x):
            for i in range(1500):
                x = jnp.sort(x * (i + 0.5)) + jnp.cumsum(x)
            return x

        program = jax.jit(slow).lower(jnp.ones(100 + 7))
        with stop_process_on_signal() as stop, stop.ending_at_once("all is saved."):
            ready()
            program.compile()
            print("compiled")
    """
    code, stdout, stderr, seconds = signalled(code, "SIGTERM")
    assert (code, stdout, stderr) == (75, "", "purejaxppo: stopped by SIGTERM: all is saved.\n")
    assert seconds < 10


def test_process_at_once_when_it_has_come_before():
    code = """
        with stop_process_on_signal() as stop:
            ready()
            while not stop():
                time.sleep(0.01)
            with stop.ending_at_once("all is saved."):
                print("it went on", flush=True)
    """
    assert signalled(code, "SIGINT")[:3] == (75, "", "purejaxppo: stopped by SIGINT: all is saved.\n")


@pytest.mark.parametrize("names", [("SIGINT", "SIGINT"), ("SIGUSR1", "SIGTERM", "SIGINT")])
def test_process_the_second_aborts(names):
    """The process ends at once, though the main thread never returns to Python."""
    code = """
        with stop_process_on_signal() as stop:
            ready()
            while True:
                ctypes.CDLL(None).sleep(100)
    """
    code, stdout, stderr, seconds = signalled(code, *names)
    assert (code, stdout) == (130, "")
    assert stderr == "purejaxppo: interrupted again; nothing had been written yet, so nothing is lost.\n"
    assert seconds < 20


def test_process_everything_is_restored():
    """Handlers, wakeup descriptor, threads and file descriptors are, after an exception too; SIGUSR2 is not heard."""
    code = """
        import threading
        def state():
            descriptor = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(descriptor)
            fds = sorted(os.listdir("/proc/self/fd"))
            return {n: signal.getsignal(n) for n in SIGNALS}, descriptor, threading.active_count(), fds
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGTERM, lambda *_: None)
        before = state()
        for attempt in range(2):
            try:
                with stop_process_on_signal() as stop:
                    assert state()[0] != before[0] and state()[1] != before[1]
                    signal.signal(signal.SIGUSR2, lambda *_: None)
                    signal.raise_signal(signal.SIGUSR2)
                    time.sleep(0.1)
                    assert stop() is None
                    if attempt:
                        raise KeyError
            except KeyError:
                pass
            assert state() == before
        signal.raise_signal(signal.SIGTERM)
        assert os.read(reader, 10)[-1] == signal.SIGTERM
        assert stop() is None
        ready()
    """
    assert signalled(code)[:3] == (0, "", "")


def test_process_ends_even_if_nobody_reads_its_stop_message():
    """Standard error is a pipe whose reader has gone, which must not end the listening thread."""
    code = """
        with stop_process_on_signal() as stop, stop.ending_at_once("all is saved."):
            ready()
            time.sleep(100)
    """
    with process_of(code) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.stderr.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 75
        finally:
            process.kill()


def test_process_prints_a_stop_message_that_is_not_unicode():
    code = """
        with stop_process_on_signal() as stop, stop.ending_at_once(os.fsdecode(b"runs/\\xff is saved.")):
            ready()
            time.sleep(100)
    """
    assert signalled(code, "SIGTERM")[:3] == (75, "", "purejaxppo: stopped by SIGTERM: runs/\\udcff is saved.\n")
