"""Where a command's seconds went: its wall clock, cut into named phases."""

import os
import time
from pathlib import Path


class Phases:
    """Cuts the wall clock into named phases. Every second belongs to one of them, so they add up to the whole.

    Args:
      before: seconds that had passed already when this was made, which count to the first phase.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter() - before

    def end(self, name: str) -> None:
        """Ends a phase: all time since the last one ended was spent on it. One that comes again adds up."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds, in the order in which they first ended."""
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}


def process_age() -> float:
    """Seconds since this process began; 0 where the system does not tell, as only Linux does."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # seconds after the machine was started
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began) if began else 0.0
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
