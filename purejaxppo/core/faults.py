"""Errors in a part of a user's own, as one line that names the part and the line of its code."""

import contextlib
import inspect
from collections.abc import Iterator

import jax

from purejaxppo.errors import ConfigError, PureJaxPPOError, is_out_of_memory


def describe(error: Exception) -> str:
    """Returns the error, and the line of the user's own code that raised it, as one line of text."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    ours = (jax.__file__.rpartition("/")[0] + "/", __file__.rpartition("/core/")[0] + "/")
    own = [f for f in frames if not f.filename.startswith(ours)]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}{where}"


@contextlib.contextmanager
def faults_of(part: str) -> Iterator[None]:
    """Turns an error within the context into a ConfigError that says that `part` raised it, and where."""
    try:
        yield
    except PureJaxPPOError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{part} raises {describe(error)}.") from error
