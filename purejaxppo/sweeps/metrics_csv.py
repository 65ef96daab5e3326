"""metrics.csv: a row per run and update, as text that is the same for the same numbers."""

import re
from collections.abc import Sequence

import numpy as np

from purejaxppo.core.nonfinite import first_nonfinite
from purejaxppo.experiment.chunked_loop import Chunk
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.sweeps.tables import point_cells

_NOT_FINITE = re.compile(r"(?<=,)-?(nan|inf)(?=[,\n])")


def metrics_head(sweep: SweepSettings, names: Sequence[str]) -> str:
    """The first line: run, seed, the swept fields, update, env_steps, the metrics, and what was not finite."""
    used = (used_name(sweep.axes, name) for name in names)
    return ",".join(["run", "seed", *sweep.axes, "update", "env_steps", *used, "nonfinite"]) + "\n"


def used_name(axes: Sequence[str], name: str) -> str:
    """A metric's column. Under a schedule `learning_rate` is not the swept one, and is called learning_rate_used."""
    return f"{name}_used" if name in axes else name


class MetricRows:
    """Turns chunks of runs that are side by side into rows, until each run's end.

    Args:
      sweep: whose runs they are.
      runs: their numbers, in order; what the arrays have beyond them is left out.
      names: of the metrics, in the order of the columns; those that the runs do not have stay empty.
      until: updates after which a run is at its end.
      diverged: update after which each has come to it before, 0 for none.
    """

    def __init__(
        self, sweep: SweepSettings, runs: Sequence[int], names: Sequence[str], until: int, diverged: np.ndarray
    ) -> None:
        self._prefixes = [_prefix(sweep, run) for run in runs]
        self._batch_size = sweep.settings[runs[0] // len(sweep.seeds)][0].batch_size
        self._names = names
        self._until = until
        self._diverged = diverged.copy()

    def __call__(self, chunk: Chunk) -> str:
        """The rows of a chunk."""
        columns = [chunk.metrics.get(name) for name in self._names]
        form = ",".join(["%s,%d,%d", *("" if column is None else "%.9g" for column in columns), "%s\n"])
        known = [column for column in columns if column is not None]
        rows = []
        for i, prefix in enumerate(self._prefixes):
            bits = chunk.metrics["nonfinite"][i]
            last = self._last(i, chunk, bits)
            for u, values in enumerate(zip(*(column[i, :last].tolist() for column in known), strict=True)):
                update = chunk.first_update + u
                what = first_nonfinite(int(bits[u])) or ""
                rows.append(form % (prefix, update, update * self._batch_size, *values, what))
        # As many digits as tell one float32 from the next.
        return _NOT_FINITE.sub("", "".join(rows))

    def _last(self, i: int, chunk: Chunk, bits: np.ndarray) -> int:
        """How many of the chunk's updates run i has made; the one that was not finite counts."""
        if self._diverged[i]:
            return 0
        length = max(0, min(len(bits), self._until - chunk.first_update + 1))
        bad = np.flatnonzero(bits[:length])
        if bad.size:
            self._diverged[i] = chunk.first_update + bad[0]
            return int(bad[0]) + 1
        return length


def _prefix(sweep: SweepSettings, run: int) -> str:
    setting, i = divmod(run, len(sweep.seeds))
    return ",".join([str(run), str(sweep.seeds[i]), *point_cells(sweep, setting).values()])
