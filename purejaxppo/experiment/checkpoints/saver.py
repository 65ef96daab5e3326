"""Checkpoints while training goes on: every so many seconds, written by a thread."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from purejaxppo.config import RunOptions
from purejaxppo.errors import CheckpointError, DivergedError
from purejaxppo.experiment.checkpoints.directory import prune
from purejaxppo.experiment.checkpoints.state import Snapshot, is_finite, snapshot
from purejaxppo.experiment.checkpoints.store import save_step


class Saver:
    """Saves a run's state. Training waits for its copy to the host, and for the save before if that is not done yet."""

    def __init__(self, run_dir: Path, options: RunOptions) -> None:
        self._run_dir = run_dir
        self._options = options
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._last >= self._options.checkpoint_seconds

    def save(self, env_steps: int, state: Any, describe: Callable[[], dict[str, Any]]) -> None:
        """Starts saving the state of one run or of many.

        Args:
          env_steps: names the checkpoint.
          state: a record with a field `learner`; it is copied to the host before this returns.
          describe: gives meta.json; called by the thread.

        Raises:
          CheckpointError: the save before has failed.
          DivergedError: the state is not finite.
        """
        self.wait()
        copy = snapshot(state)
        if not is_finite(copy.tree.learner):
            raise DivergedError(f"a parameter or an optimizer state is not finite after {env_steps} env steps.")
        self._pending = self._thread.submit(self._write, env_steps, copy, describe)
        self._last = time.monotonic()

    def _write(self, env_steps: int, state: Snapshot, describe: Callable[[], dict[str, Any]]) -> None:
        try:
            meta = describe()
        except OSError as error:
            raise CheckpointError(f"cannot save the checkpoint of {env_steps} env steps: {error}") from error
        save_step(self._run_dir, env_steps, state, meta)
        prune(self._run_dir, self._options.keep_newest, self._options.keep_best)

    def wait(self) -> None:
        """Until what has been started is on the disk. Raises CheckpointError if it is not."""
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
        """Saves the state that training ended in, although the save before may have failed, of which `note` is told.

        Raises:
          CheckpointError: this save has failed too; raised when it is waited for.
          DivergedError: the state is not finite.
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
            if error is None:  # which would otherwise be the one to be told
                raise
        finally:
            self._thread.shutdown()
