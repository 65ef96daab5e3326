"""The process of the command line: signals, exit codes, and the set-up of JAX.

Signals are handled before anything slow is imported.
"""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from purejaxppo.cli.arguments import (
    Command,
    Common,
    Compare,
    Doctor,
    Plot,
    Resume,
    ResumeSweep,
    Sweep,
    Together,
    Train,
    Verify,
)
from purejaxppo.cli.handlers import ACTIONS, report_finished, validate
from purejaxppo.cli.output import discard_unwritten, fill_closed_streams, flushed_output, note
from purejaxppo.cli.parse import parse
from purejaxppo.cli.plugins import import_plugins
from purejaxppo.cli.supervisor import begin_as_child, explain_abort, has_others, run_in_child
from purejaxppo.config.presets import PRESETS
from purejaxppo.devices.compile_cache import keep_programs
from purejaxppo.devices.cpu import cpu_cores, one_thread_is_enough, use_all_cores
from purejaxppo.devices.machine import PLATFORM_VARIABLES
from purejaxppo.errors import ConfigError, OutOfMemoryError, PureJaxPPOError, is_out_of_memory
from purejaxppo.experiment.directory import begun_on
from purejaxppo.experiment.signals import (
    INTERRUPTED,
    STOPPED,
    before_end,
    end_process_on_signal,
    hear_what_stays,
    interrupted,
    when_interrupted,
)
from purejaxppo.experiment.watchdog import announced

_ALONE = Together()


def main() -> None:
    """Runs the command in `sys.argv`, and exits with 0 or the code of the error."""
    fill_closed_streams()
    end_process_on_signal()  # until training begins, which saves its state before it ends
    if has_others(sys.argv[1:]) and not begin_as_child():
        sys.exit(run_in_child())
    code = run(sys.argv[1:])
    if processes := sys.modules.get("purejaxppo.devices.processes"):
        processes.end_process(code)  # unless it has taken its leave: the others would wait for it, for minutes
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code. An error is printed as one line on standard error."""
    debug = "--debug" in argv
    when_interrupted()
    if not debug:
        # It warns if its cache directory cannot be written, although pictures are drawn nevertheless.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        with flushed_output():  # --help prints to standard output
            command = parse(list(argv))
        _validate(command)
        together = command.together if isinstance(command, Train | Resume | ResumeSweep | Sweep) else _ALONE
        if not together.several and (code := report_finished(command)) is not None:  # each would ask for the lock
            return code
        if not isinstance(command, Plot | Verify):
            works = not isinstance(command, Doctor)  # the doctor says by itself what does not
            _prepare(command.common, must_work=works, one_thread=_one_thread_is_enough(command), together=together)
            if together.several:
                return _with_others(command)
        return ACTIONS[type(command)](command)
    except PureJaxPPOError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail(interrupted(), INTERRUPTED, debug)
    except BrokenPipeError:  # nobody reads standard output any more, as in `purejaxppo envs | head`
        return 0
    except Exception as error:
        if is_out_of_memory(error):
            message = "out of memory on the device; lower num_envs, num_steps or the number of evaluation episodes."
            return _fail(message, OutOfMemoryError.exit_code, debug)
        return _fail(f"internal error, {type(error).__name__}: {error}; --debug shows where.", 1, debug)
    finally:
        discard_unwritten()


def _with_others(command: Command | ResumeSweep) -> int:
    """Runs a command of several processes, of which the first one prints, and returns its exit code."""
    from purejaxppo.devices import processes

    # Gloo greets on the standard output itself, where a program may expect JSON.
    own = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(own if processes.leads() else nowhere):
        os.dup2(nowhere.fileno(), 1)
        code = ACTIONS[type(command)](command)
        own.flush()
    processes.leave()
    return code


def _validate(command: Command | ResumeSweep) -> None:
    """Raises ConfigError for settings that cannot work, or EnvError if the environment does not exist."""
    try:
        validate(command)
    except ConfigError:
        _refuse_unknown_env(command)
        raise


def _refuse_unknown_env(command: Command | ResumeSweep) -> None:
    """Raises EnvError if the environment does not exist.

    A misspelt name has no preset. The defaults may then contradict the other flags, and an error about that would be
    misleading. Only names without a preset are looked up, as that takes JAX, gymnax and the plugins.
    """
    if not isinstance(command, Train | Compare) or command.settings.env in PRESETS:
        return
    _prepare(command.common)
    from purejaxppo.envs.registry import refuse_unknown_env

    refuse_unknown_env(command.settings.env)


def _one_thread_is_enough(command: Command | ResumeSweep) -> bool:
    """Returns whether each CPU device should have one thread: for many runs, and for a run that is fast with it."""
    if not isinstance(command, Plot | Verify) and command.common.devices != "auto":
        return True  # or a CPU would be one device
    if isinstance(command, Resume) and 1 < (begun_on(command.run_dir) or 1) <= cpu_cores():
        return True  # which makes as many devices again
    if isinstance(command, Train | Resume):
        return one_thread_is_enough(command.settings, cpu_cores())
    return isinstance(command, Compare | Sweep | ResumeSweep)


def _prepare(common: Common, must_work: bool = True, one_thread: bool = False, together: Together = _ALONE) -> None:
    """Sets up JAX, with the devices that were asked for, and imports the plugins.

    Args:
      common: the options of every command.
      must_work: raise if JAX or its devices are missing; the doctor reports that itself.
      one_thread: make a CPU device of one thread per core.
      together: the processes to join.

    Raises:
      ConfigError: the devices are not available.
      EnvError: a plugin cannot be imported.
    """
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
        jax.config.update("jax_platform_name", "")  # that of JAX_PLATFORM_NAME, which would override --device
    keep_programs()
    if together.several:
        _join(together)
    try:
        if one_thread:
            with contextlib.suppress(ConfigError):  # JAX has been started: its devices stay as they are
                use_all_cores()
        if must_work:
            jax.devices()
    except Exception as error:  # RuntimeError, or for an unknown platform an AssertionError without text
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(_not_available(common.device, reason)) from error
    if must_work:
        from purejaxppo.devices.selection import use_devices

        use_devices(common.devices)
    import_plugins(common.plugin)


def _join(together: Together) -> None:
    """Joins the processes that train together. Raises ConfigError if they do not come."""
    from purejaxppo.devices import processes

    number, where = together.num_processes or "the", together.coordinator or "the coordinator that JAX found"
    explain_abort(
        ConfigError.exit_code,
        f"not all of {number} processes have come to {where} within {processes.START_S} s; start all of them with the "
        f"same command, each with a --process-id of its own.",
    )
    with announced(note, f"waiting for the other processes at {where}"):
        processes.join(together.coordinator, together.num_processes, together.process_id)
    before_end(processes.fail)
    failed = "JAX has failed, as it says above"
    if processes.leads():
        taken = f"a process with a number that was taken has come to this coordinator, or {failed}"
        hear_what_stays(lambda what_stays: explain_abort(128 + signal.SIGABRT, f"{taken}; {what_stays}"))
    else:
        gone = f"process 0 has ended or cannot be reached, or {failed}"
        hear_what_stays(lambda what_stays: explain_abort(STOPPED, f"{gone}; {what_stays}"))


def _not_available(device: str, reason: str) -> str:
    """Returns the error for devices that are missing, and what to do: they are those of a variable, or of the flag."""
    asked = [f"{name}={os.environ[name]}" for name in PLATFORM_VARIABLES if os.environ.get(name)]
    if device == "auto" and asked:
        it = "it" if len(asked) == 1 else "both"
        return f"{' '.join(asked)} is not available here ({reason}); unset {it}, or set {it} to cpu."
    return f"--device {device} is not available here ({reason}); use --device {'cpu' if device == 'auto' else 'auto'}."


def _quiet_orbax() -> None:
    """Silences errors that orbax's background threads print in addition to raising them.

    Its Python threads log them with absl; TensorStore's threads pass them to `sys.unraisablehook`.
    """
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    report = sys.__unraisablehook__
    silent = ("tensorstore", "Event loop is closed")
    sys.unraisablehook = lambda what: None if any(text in str(what.exc_value) for text in silent) else report(what)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    note(f"error: {' '.join(message.split())}")
    return code
