"""A stretch of training, of one run or of many: checkpoints on time, signals, what hangs and what does not fit."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from purejaxppo.config import RunOptions
from purejaxppo.errors import CheckpointError, OutOfMemoryError, is_out_of_memory
from purejaxppo.experiment.checkpoints.saver import Saver
from purejaxppo.experiment.chunked_loop import Chunk, Hooks, Timing
from purejaxppo.experiment.metrics_log import ProgressDisplay
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.signals import StopRequest
from purejaxppo.experiment.watchdog import Watch


class Stretch(NamedTuple):
    """What a stretch consists of. Updates and seconds count from the beginning of the training."""

    advance: Callable[[Hooks], tuple[Any, Timing]]  # the host loop, which ends with a state
    report: Callable[[Chunk], object]  # takes each chunk's metrics
    directory: Path  # that has the checkpoints
    options: RunOptions
    env_steps: Callable[[int], int]  # updates -> the name of a checkpoint
    describe: Callable[[int, float], Callable[[], dict[str, Any]]]  # updates, seconds -> what gives its meta.json
    check_memory: Callable[[int], object]  # raises OutOfMemoryError if a program of so many bytes will not fit
    explain: Callable[[int], OutOfMemoryError]  # the error to raise if it did not; 0 bytes if there was none yet
    progress: ProgressDisplay
    stop: StopRequest
    farewell: str  # what to say when a signal ends the compilation
    note: Callable[[str], None]
    phases: Phases  # to which compilation, training and saving at the end are added
    updates: int = 0  # done before it
    seconds: float = 0.0  # of training before it


def train_stretch(stretch: Stretch) -> tuple[Any, Timing]:
    """Trains to the end or to a signal, saving now and then and at the end; `Timing` counts from the beginning.

    Raises:
      OutOfMemoryError: with what it would have taken.
      CheckpointError: something cannot be written.
    """
    program = 0
    done, seconds = stretch.updates, stretch.seconds
    with ExitStack() as compiling, Watch(stretch.note) as watch, Saver(stretch.directory, stretch.options) as saver:

        def report(chunk: Chunk) -> None:
            nonlocal done, seconds
            stretch.report(chunk)
            done, seconds = chunk.last_update, stretch.seconds + chunk.end
            watch.alive()

        def begin(size: int) -> None:
            nonlocal program
            program = size
            stretch.check_memory(size)
            compiling.close()
            stretch.phases.end("compilation")
            watch.alive()
            stretch.progress.start_clock()

        def save(updates: int, state: Any) -> None:
            saver.save(stretch.env_steps(updates), state, stretch.describe(updates, seconds))

        compiling.enter_context(stretch.stop.ending_at_once(stretch.farewell))
        try:
            state, timing = stretch.advance(Hooks(report, begin, stretch.stop, saver.due, save))
        except OutOfMemoryError:  # explained already
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise stretch.explain(program) from error
            raise
        stretch.phases.end("training")
        try:
            saver.wait()
        except CheckpointError as error:  # the last save is worth another try
            stretch.note(str(error))
        save(done, state)
    stretch.phases.end("saving")
    return state, timing._replace(train_seconds=seconds)
