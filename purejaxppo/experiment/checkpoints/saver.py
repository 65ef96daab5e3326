"""Periodic checkpoints, written by a thread while training goes on.

At a save, training waits for two things only: the save before, if it is not finished yet, and the copy of the state to
the host. The copy is necessary because the device's buffers are donated to the next chunk. Serialising, hashing,
syncing and pruning are done by the thread. A failure of the thread is raised by the next call that waits for it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from purejaxppo.config import RunOptions
from purejaxppo.devices import processes
from purejaxppo.errors import CheckpointError, DivergedError
from purejaxppo.experiment.checkpoints.directory import Ranking, prune
from purejaxppo.experiment.checkpoints.state import Snapshot, is_finite, snapshot
from purejaxppo.experiment.checkpoints.store import save_step


def ranking(options: RunOptions) -> Ranking:
    """Returns by what the best checkpoints of a run are told: its evaluations while training, if it has them."""
    return "evaluation_return" if options.eval_every else "train_return"


class Saver:
    """Saves the states of a run, one at a time. On leaving the context the last save is waited for.

    Of several processes the first one writes; the others only give their parts of the state.

    Args:
      run_dir: below which the checkpoints are.
      options: how often to save, and how many checkpoints to keep.
    """

    def __init__(self, run_dir: Path, options: RunOptions) -> None:
        self._run_dir = run_dir
        self._options = options
        self._ranking = ranking(options)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._last = time.monotonic()

    def due(self) -> bool:
        """Returns whether `checkpoint_seconds` have passed since the last save, by the clock of any process."""
        return processes.any_of(time.monotonic() - self._last >= self._options.checkpoint_seconds)

    def save(self, env_steps: int, state: Any, describe: Callable[[], dict[str, Any]]) -> None:
        """Starts to save a state, of one run or of several.

        Args:
          env_steps: the checkpoint is named after them.
          state: a record with a field `learner`; it is copied to the host before this method returns.
          describe: returns the content of meta.json; called by the thread.

        Raises:
          CheckpointError: the save before has failed.
          DivergedError: a number in `learner` is not finite.
        """
        self.wait()
        processes.exchange("")  # those that do not write wait here, not in the devices' exchange
        copy = snapshot(state)
        if not processes.from_leader(lambda: is_finite(copy.tree.learner)):
            raise DivergedError(f"a parameter or an optimizer state is not finite after {env_steps} env steps.")
        if processes.leads():
            self._pending = self._thread.submit(self._write, env_steps, copy, describe)
        self._last = time.monotonic()

    def _write(self, env_steps: int, state: Snapshot, describe: Callable[[], dict[str, Any]]) -> None:
        try:
            meta = describe()
        except OSError as error:
            raise CheckpointError(f"cannot save the checkpoint of {env_steps} env steps: {error}") from error
        save_step(self._run_dir, env_steps, state, meta)
        prune(self._run_dir, self._options.keep_newest, self._options.keep_best, self._ranking)

    def wait(self) -> None:
        """Waits until the save that was started is on the disk. Raises CheckpointError if it has failed."""
        # Cleared before the result is asked for, so that a failure is raised once and not by every later call.
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def save_last(
        self,
        env_steps: int,
        state: Any,
        describe: Callable[[], dict[str, Any]],
        note: Callable[[str], object],
    ) -> None:
        """Starts to save the last state of training, even if the save before has failed.

        If this save fails too, CheckpointError is raised where it is waited for, on leaving the context.

        Args:
          env_steps, state, describe: as in `save`.
          note: called with the error message of the save before, if that has failed.

        Raises:
          DivergedError: a number in `learner` is not finite.
        """
        try:
            self.wait()
        except CheckpointError as error:
            note(str(error))
        self.save(env_steps, state, describe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:  # an error within the context comes first, and must not be replaced by this one
                raise
        finally:
            self._thread.shutdown()
