"""What can go wrong for a user, each with the exit code that the command line returns."""


class PureJaxPPOError(Exception):
    """Base of every error that is the user's to mend: one line that says what, why and what to do."""

    exit_code = 1


class ConfigError(PureJaxPPOError, ValueError):
    """A setting that cannot work: wrong type, out of range, or at odds with another one."""

    exit_code = 2


class DivergedError(PureJaxPPOError, ArithmeticError):
    """Training produced a number that is not finite, at an update (counted from 1) if it is known."""

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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is XLA's or Python's way of saying so. Tensorstore says RESOURCE_EXHAUSTED of a full disk."""
    if isinstance(error, CheckpointError):
        return False
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


class OutOfMemoryError(PureJaxPPOError, MemoryError):
    """The program does not fit into the device's memory."""

    exit_code = 7
