"""The command line as a process: signals, exit codes, and JAX made ready. Nothing slow is imported before that."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from purejaxppo.cli.arguments import Command, Common, Compare, Doctor, Plot, Resume, ResumeSweep, Sweep, Train, Verify
from purejaxppo.cli.handlers import ACTIONS, report_finished, validate
from purejaxppo.cli.output import drop_unwritten, fill_closed_streams, note, written_through
from purejaxppo.cli.parse import parse
from purejaxppo.cli.plugins import import_plugins
from purejaxppo.config.presets import PRESETS
from purejaxppo.devices.compile_cache import keep_programs
from purejaxppo.devices.cpu import cpu_cores, one_thread_is_enough, use_all_cores
from purejaxppo.devices.machine import PLATFORM_VARIABLES
from purejaxppo.errors import ConfigError, OutOfMemoryError, PureJaxPPOError, is_out_of_memory
from purejaxppo.experiment.signals import INTERRUPTED, end_process_on_signal, interrupted, when_interrupted


def main() -> None:
    """Entry point; exits with the code of the error, or 0."""
    fill_closed_streams()
    end_process_on_signal()  # training saves the state before it ends
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code. An error becomes one line on standard error."""
    debug = "--debug" in argv
    when_interrupted()
    if not debug:
        # It says in two long lines that its cache directory cannot be written; the picture comes out all the same.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        with written_through():  # the help
            command = parse(list(argv))
        return _execute(command)
    except PureJaxPPOError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail(interrupted(), INTERRUPTED, debug)
    except BrokenPipeError:  # the reader has gone; nothing more can be said to it
        return 0
    except Exception as error:
        if is_out_of_memory(error):
            message = "out of memory on the device; lower num_envs, num_steps or the number of evaluation episodes."
            return _fail(message, OutOfMemoryError.exit_code, debug)
        return _fail(f"internal error, {type(error).__name__}: {error}; --debug shows where.", 1, debug)
    finally:
        drop_unwritten()


def _execute(command: Command | ResumeSweep) -> int:
    try:
        validate(command)
    except ConfigError:
        _refuse_unknown_env(command)
        raise
    if (code := report_finished(command)) is not None:
        return code
    if not isinstance(command, Plot | Verify):
        _prepare(command.common, must_work=not isinstance(command, Doctor), one_thread=_one_thread_is_enough(command))
    return ACTIONS[type(command)](command)


def _refuse_unknown_env(command: Command | ResumeSweep) -> None:
    """Raises EnvError for a wrong name, which explains settings that do not suit: the right one's preset has others.

    Only what has no preset is looked up, since that takes JAX, gymnax and the plugins.
    """
    if not isinstance(command, Train | Compare) or command.settings.env in PRESETS:
        return
    _prepare(command.common)
    from purejaxppo.envs.gymnax_adapter import refuse_unknown

    refuse_unknown(command.settings.env)


def _one_thread_is_enough(command: Command | ResumeSweep) -> bool:
    """Whether each CPU device is to have one thread: for many runs, and for one that it suits."""
    if isinstance(command, Train | Resume):
        return one_thread_is_enough(command.settings, cpu_cores())
    return isinstance(command, Compare | Sweep | ResumeSweep)


def _prepare(common: Common, must_work: bool = True, one_thread: bool = False) -> None:
    """Chooses the devices and imports the plugins; the doctor says by itself what does not work."""
    try:
        import jax
    except ImportError:
        if must_work:
            raise
        return
    if not common.debug:
        _quiet_orbax()
    if common.device != "auto":
        jax.config.update("jax_platforms", common.device)
        jax.config.update("jax_platform_name", "")  # JAX_PLATFORM_NAME's, which would beat it
    keep_programs()
    try:
        if one_thread:
            with contextlib.suppress(ConfigError):  # in a process that has started JAX, with the devices that there are
                use_all_cores()
        if must_work:
            jax.devices()
    except Exception as error:  # not only RuntimeError: an unknown platform is an AssertionError without a word
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(_not_available(common.device, reason)) from error
    import_plugins(common.plugin)


def _not_available(device: str, reason: str) -> str:
    """What to do about devices that are not there, which are the variable's unless the flag names others."""
    asked = [f"{name}={os.environ[name]}" for name in PLATFORM_VARIABLES if os.environ.get(name)]
    if device == "auto" and asked:
        it = "it" if len(asked) == 1 else "both"
        return f"{' '.join(asked)} is not available here ({reason}); unset {it}, or set {it} to cpu."
    return f"--device {device} is not available here ({reason}); use --device {'cpu' if device == 'auto' else 'auto'}."


def _quiet_orbax() -> None:
    """Its threads tell the traceback of an error which is raised as well, some of them after that.

    Those in Python log it, and TensorStore's give it to the hook for what nobody can catch.
    """
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    tell = sys.__unraisablehook__
    ours = ("tensorstore", "Event loop is closed")
    sys.unraisablehook = lambda what: None if any(part in str(what.exc_value) for part in ours) else tell(what)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    note(f"error: {' '.join(message.split())}")
    return code
