"""The errors that a user can act on, each with the exit code that the command line returns."""


class PureJaxPPOError(Exception):
    """Base of every error that a user can act on: one line that says what, why and what to do."""

    exit_code = 1


class ConfigError(PureJaxPPOError, ValueError):
    """A setting that cannot work: wrong type, out of range, or at odds with another one."""

    exit_code = 2


class DivergedError(PureJaxPPOError, ArithmeticError):
    """Training produced a NaN or an infinity.

    Args:
      message: one line.
      update: the update in which it did, counted from 1; 0 if that is unknown.
    """

    exit_code = 3

    def __init__(self, message: str, update: int = 0) -> None:
        super().__init__(message)
        self.update = update


class CheckpointError(PureJaxPPOError, OSError):
    """A run directory or checkpoint that cannot be written, found or read."""

    exit_code = 4


class EnvError(PureJaxPPOError, ValueError):
    """An environment that is unknown, wrongly parametrised or not supported."""

    exit_code = 5


class RunDirInUseError(PureJaxPPOError):
    """Another process is working in the run directory."""

    exit_code = 6


class ProcessError(PureJaxPPOError):
    """Another one of the processes that train together has ended; what was saved before can be resumed."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of XLA's or Python's means that memory was exhausted."""
    if isinstance(error, CheckpointError):  # Tensorstore reports a full disk as RESOURCE_EXHAUSTED
        return False
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


class OutOfMemoryError(PureJaxPPOError, MemoryError):
    """The program does not fit into the device's memory."""

    exit_code = 7
