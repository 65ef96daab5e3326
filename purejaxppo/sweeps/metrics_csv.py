"""The rows of metrics.csv, one per run and update; equal numbers give equal text."""

import re
from collections.abc import Sequence

import numpy as np

from purejaxppo.core.nonfinite import first_nonfinite
from purejaxppo.experiment.chunked_loop import Chunk
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.sweeps.tables import point_cells

_NOT_FINITE = re.compile(r"(?<=,)-?(nan|inf)(?=[,\n])")


def metrics_head(sweep: SweepSettings, names: Sequence[str]) -> str:
    """Returns the first line: run, seed, the swept fields, update, env_steps, the metrics, nonfinite."""
    used = (used_name(sweep.axes, name) for name in names)
    return ",".join(["run", "seed", *sweep.axes, "update", "env_steps", *used, "nonfinite"]) + "\n"


def used_name(axes: Sequence[str], name: str) -> str:
    """Returns a metric's column, with `_used` behind the name of a swept field.

    The metric `learning_rate`, for example, is the scheduled value, and the field is the initial one.
    """
    return f"{name}_used" if name in axes else name


class SweepRows:
    """Turns the chunks of a batch of runs into rows. A run that is frozen has no rows.

    Args:
      sweep: that the runs belong to.
      runs: numbers of the runs, in order; further entries of the arrays are copies that fill the batch.
      names: of the metrics, in the order of the columns; a metric that the runs do not have leaves its column empty.
      until: updates after which a run is finished.
      diverged: [R] update in which a run diverged earlier, 0 for none.
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
        """Returns the rows of a chunk, run by run."""
        columns = [chunk.metrics.get(name) for name in self._names]
        # Nine significant digits tell every float32 from its neighbours.
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
        return _NOT_FINITE.sub("", "".join(rows))

    def _last(self, i: int, chunk: Chunk, bits: np.ndarray) -> int:
        """Returns how many of the chunk's updates run i has made, including the one in which it diverged."""
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
