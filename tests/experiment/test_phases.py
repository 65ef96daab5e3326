"""Seconds by phase: they add up to the wall-clock time, from the start of the process if that is known."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from purejaxppo.experiment.phases import Phases, process_age


def test_phases_add_up_to_the_wall_clock():
    """Earlier time counts towards the first phase; a repeated phase is one phase, in its first place."""
    began = time.perf_counter()
    phases = Phases(before=5.0)
    time.sleep(0.02)
    phases.end("start")
    time.sleep(0.04)
    phases.end("training")
    phases.end("saving")
    time.sleep(0.03)
    phases.end("training")
    elapsed = time.perf_counter() - began
    seconds = phases.seconds()
    assert list(seconds) == ["start", "training", "saving"]
    assert sum(seconds.values()) == pytest.approx(5.0 + elapsed, abs=0.005)
    assert seconds["start"] >= 5.02
    assert seconds["training"] >= 0.07
    assert seconds["saving"] < 0.02


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
def test_the_age_of_a_process_is_that_since_its_start():
    """It agrees with the time that the parent measured, to a hundredth of a second, the system's unit."""
    program = "import time; time.sleep(0.3); from purejaxppo.experiment.phases import process_age; print(process_age())"
    began = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    elapsed = time.perf_counter() - began
    assert 0.3 <= float(told.stdout) <= elapsed + 0.02
    assert process_age() > float(told.stdout)


@pytest.mark.parametrize(
    "content", [None, "", "1 (python) R", "1 (python) R " + "0 " * 50, "1 (python) R " + "x " * 50]
)
def test_a_system_that_does_not_tell_is_no_error(monkeypatch, content):
    def read(path):
        if content is None:
            raise FileNotFoundError(path)
        return content

    monkeypatch.setattr(Path, "read_text", read)
    assert process_age() == 0.0
