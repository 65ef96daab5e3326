"""The wall-clock time of a command by phase."""

import os
import time
from pathlib import Path


class Phases:
    """Divides wall-clock time into named phases. Every second belongs to one phase, so they add up to the total.

    Args:
      before: seconds that have passed already; they count towards the first phase.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter() - before

    def end(self, name: str) -> None:
        """Ends a phase, to which all time since the end of the last one belongs; repeated phases are summed."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Returns phase -> seconds, in the order in which the phases first ended."""
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}


def process_age() -> float:
    """Returns the seconds since this process was started, or 0 if they are unknown, as on systems other than Linux."""
    try:
        # Split after the command's name, which is in brackets and may contain spaces.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # seconds since boot
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began) if began else 0.0
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
