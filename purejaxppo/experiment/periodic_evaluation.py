"""Evaluations of a run while it trains: at which updates, with which random numbers, and what the rows get of them.

They read the state between two chunks of updates and change nothing of it, so the training is the same with and without
them. Everything about an evaluation follows from the run's seed, its settings and the update after which it runs: a
resumed run repeats it bit for bit.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from purejaxppo.config import RunOptions, TrainConfig
from purejaxppo.core.types import RunnerState
from purejaxppo.devices.memory import out_of_memory_explained
from purejaxppo.errors import OutOfMemoryError
from purejaxppo.evaluate import evaluation_key
from purejaxppo.experiment.evaluation import Evaluator, summarize
from purejaxppo.experiment.progress import Row


def eval_period(config: TrainConfig, options: RunOptions) -> int:
    """Returns the number of updates between two evaluations, at least one; 0 if the run does not evaluate."""
    return max(1, options.eval_every // config.batch_size) if options.eval_every else 0


class PeriodicEvaluation:
    """The evaluations of one run while it trains.

    Args:
      config, options, seed: of the run.
      evaluator: plays the episodes; None if the run does not evaluate.
      newest: the return of the newest evaluation before, in a resumed run.
      say: called with progress messages if an evaluation takes longer than a few seconds.
      stop: ends an evaluation, if true.
    """

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        seed: int,
        evaluator: Evaluator | None,
        newest: float | None,
        say: Callable[[str], object],
        stop: Callable[[], object],
    ) -> None:
        self.period = eval_period(config, options) if evaluator else 0
        self.newest = newest
        self._seconds = 0.0  # of all evaluations so far
        self._evaluator, self._seed, self._say, self._stop = evaluator, seed, say, stop
        self._updates = config.num_updates

    def due(self, update: int) -> bool:
        """Returns whether the state after this update is evaluated."""
        return self.period > 0 and update > 0 and update % self.period == 0

    def compile(self, runner: RunnerState, done: int) -> None:
        """Compiles the evaluation, unless none is left to be done from the state after `done` updates on."""
        if self._evaluator and self.period and (self.due(done) or self._updates // self.period > done // self.period):
            self._evaluator.compile(runner)

    def clock(self) -> Callable[[], float]:
        """Returns a function that returns the seconds of all evaluations from now on."""
        before = self._seconds
        return lambda: self._seconds - before

    def measure(self, runner: RunnerState, update: int) -> Row | None:
        """Returns the fields that an evaluation adds to the row of an update; None if it was asked to stop.

        Args:
          runner: the state after that update.
          update: its number, counted from 1.

        Raises:
          OutOfMemoryError: the device has too little memory for the episodes.
        """
        assert self._evaluator is not None  # otherwise none is due
        began = time.perf_counter()
        with out_of_memory_explained(self._too_large):
            episodes = self._evaluator.play(periodic_key(self._seed, update), runner, self._say, self._stop)
        self._seconds += time.perf_counter() - began
        if episodes is None:
            return None
        row = _fields(summarize(episodes))
        self.newest = row["evaluation/return"]
        return row

    def _too_large(self) -> OutOfMemoryError:
        assert self._evaluator is not None
        number = self._evaluator.num_episodes
        return OutOfMemoryError(
            f"out of memory in the evaluation of {number} episodes side by side while training; resume the run with "
            f"--eval-every-episodes {max(1, number // 4)}, or with --eval-every 0 without such evaluations."
        )


def periodic_key(seed: int, update: int) -> jax.Array:
    """Returns the key of the evaluation after an update.

    It is independent of the keys of the training and of the evaluation at the end.
    """
    return jax.random.fold_in(jax.random.fold_in(evaluation_key(seed), 0x7EA1), update)


def _fields(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a row from the statistics of `summarize`."""
    fields = {
        "evaluation/return": summary["return_mean"],
        "evaluation/return_std": summary["return_std"],
        "evaluation/length": summary["length_mean"],
        "evaluation/episodes": summary["episodes"],
    }
    return {**fields, **({"evaluation/unfinished": summary["unfinished"]} if "unfinished" in summary else {})}
