"""Many short-lived processes of the command line or of a script, to be killed, stopped, starved and disturbed.

A new Python needs 5 to 10 seconds for its imports, a fork of one that has them none. JAX must not be forked once it has
threads, so the server imports all that is slow without asking JAX for a device, checks that it still is one thread, and
never computes anything itself. (`import gymnax` does compute; the server loads what makes it slow, and no more.)
"""

import contextlib
import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

CHUNK_UPDATES = 2  # updates per chunk, so that tiny runs have many


# --- the tests' side --------------------------------------------------------------------------------------------------


class Server:
    """Starts commands as forks of one process; for several threads. Use it as a context."""

    def __init__(self, cache):
        """`cache` is a directory for compiled programs."""
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OPENBLAS_NUM_THREADS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, **request):
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, log, *argv, faults=(), fill_cache=False):
        """A process which runs `purejaxppo argv` under `faults`, of those below; its output goes to `log`.*"""
        argv = [str(part) for part in argv]
        pid = self.ask(argv=argv, log=str(log), faults=list(faults), fill_cache=fill_cache)
        return Child(self, pid, log)

    def script(self, log, text, **variables):
        """Runs a script in a process where JAX has not started, and no pytest: (exit code, output, errors).

        None removes a variable of the environment. JAX reads its own when it is imported, which is long past: they are
        given to `jax.config` as well.
        """
        child = Child(self, self.ask(script=text, log=str(log), variables=variables), log)
        return child.wait(), child.stdout, child.stderr

    def run(self, log, *argv, **options):
        """The same, to its end: (exit code, standard error)."""
        child = self.start(log, *argv, **options)
        return child.wait(), child.stderr

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class Child(NamedTuple):
    """A process of the server."""

    server: Server
    pid: int
    log: Path

    def poll(self):
        """The exit code, negative for a signal; None while it lives."""
        return self.server.ask(poll=self.pid)

    def wait(self, timeout=120.0):
        assert self.until(lambda: False, timeout), f"{self.pid} hangs: {self.stderr}"
        return self.poll()

    def until(self, condition, timeout=120.0):
        """Waits until a condition holds or the process ends; False if neither happens in time."""
        end = time.monotonic() + timeout
        while not condition() and self.poll() is None:
            if time.monotonic() > end:
                self.kill(9)
                return False
            time.sleep(0.01)
        return True

    def kill(self, number):
        """Sends a signal. One that is a zombie, not yet waited for, does not mind."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def stderr(self):
        return Path(f"{self.log}.err").read_text()

    @property
    def stdout(self):
        return Path(f"{self.log}.out").read_text()


# --- the processes' side ----------------------------------------------------------------------------------------------


def serve():
    """Answers requests on standard input, one line of JSON each, until that is closed; kills what is left then."""
    import chex  # noqa: F401
    import flax.linen  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import optax  # noqa: F401
    import scipy.stats  # noqa: F401
    import seaborn  # noqa: F401
    from jax._src import xla_bridge
    from orbax.checkpoint import v1  # noqa: F401

    import purejaxppo.cli.main
    import purejaxppo.experiment.run  # noqa: F401

    assert not xla_bridge._backends, "something asked JAX for a device; its threads would not survive a fork"
    assert len(os.listdir("/proc/self/task")) == 1
    warnings.simplefilter("ignore")  # of jax, that it does not like to be forked
    codes = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = _poll(codes, request["poll"])
        else:
            answer = os.fork()
            if not answer:
                _become(request.pop("log"), partial(_run_script if "script" in request else _run_command, **request))
            codes[answer] = None
        print(json.dumps(answer), flush=True)
    for pid, code in codes.items():
        if code is None and _poll(codes, pid) is None:
            os.kill(pid, 9)


def _poll(codes, pid):
    if codes[pid] is None:
        found, status = os.waitpid(pid, os.WNOHANG)
        codes[pid] = os.waitstatus_to_exitcode(status) if found else None
    return codes[pid]


def _become(log, run):
    """Runs something in this process, of which nothing else is left to do."""
    for number, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        run()
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run_command(argv, faults, fill_cache):
    """The command itself. A killed process never fills the cache: half a program could be left there."""
    import jax

    import purejaxppo.cli.main
    from purejaxppo.experiment import chunked_loop

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0 if fill_cache else 1e9)
    chunked_loop._CHUNK_UPDATES = CHUNK_UPDATES
    sys.argv = ["purejaxppo", *argv]
    for fault in faults:
        name, *arguments = fault.split("=", 1)
        FAULTS[name](*arguments)
    purejaxppo.cli.main.main()


def _run_script(script, variables):
    """A script, as if its variables had been there when JAX was imported."""
    import jax

    warnings.resetwarnings()  # the server ignores them
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
        setting = name.lower()
        if setting == "jax_num_cpu_devices":
            jax.config.update(setting, int(value or -1))
        elif setting in jax.config._value_holders:
            jax.config.update(setting, value)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    exec(script, {"__name__": "__main__"})


def _before(owner, name, action):
    """Does something before each call of a function."""
    real = getattr(owner, name)

    def function(*args, **kwargs):
        action()
        return real(*args, **kwargs)

    setattr(owner, name, function)


def _block():
    """Computes for ever; the main thread is in C++ and sees no signal."""
    import jax

    jax.block_until_ready(jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2.0, lambda x: x * 0.5, x))(1.0))


def compile_for_long(marker):
    """What is compiled before the trainer takes very long, within XLA."""
    import jax
    import jax.numpy as jnp

    from purejaxppo.experiment import chunked_loop

    def sorts(x):
        for _ in range(2000):
            x = jnp.sort(x * 1.5)
        return x

    def compile_sorts():
        lowered = jax.jit(sorts).lower(jnp.ones((8, 8)))
        Path(marker).touch()
        lowered.compile()
        Path(marker).unlink()

    _before(chunked_loop, "_compile_advance", compile_sorts)


def hold_compilation(marker):
    """Compilation waits for the marker, which it makes, to be taken away."""
    from purejaxppo.experiment import chunked_loop

    def hold():
        Path(marker).touch()
        while Path(marker).exists():
            time.sleep(0.01)

    _before(chunked_loop, "_compile_advance", hold)


def slow_chunks(marker):
    """Rows take their time to be written."""
    from purejaxppo.experiment import training

    def slow():
        Path(marker).touch()
        time.sleep(0.1)

    _before(training.RunRows, "write", slow)


def endless_chunk(marker):
    """The first chunk does not end."""
    from purejaxppo.experiment import training

    _before(training.RunRows, "write", lambda: (Path(marker).touch(), _block()))


def slow_saving(marker):
    """A state takes its time to be written."""
    from purejaxppo.experiment.checkpoints import store

    _before(store, "write_state", lambda: (Path(marker).touch(), time.sleep(0.5)))


def endless_evaluation(marker):
    """The evaluation does not end."""
    from purejaxppo.experiment import run as experiment_run

    _before(experiment_run, "_evaluate", lambda: (Path(marker).touch(), _block()))


def no_space(path):
    """No state can be written any more."""
    from purejaxppo.experiment.checkpoints import store

    def fail(directory, tree):
        directory.mkdir()
        (directory / "half").write_text("half of it")
        raise OSError(28, "No space left on device")

    store.write_state = fail


def short_files(size):
    """No file can grow beyond this many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def no_network(marker):
    """A network namespace with nothing in it where that is allowed; and every attempt is noted, and fails."""

    def refuse(*args, **kwargs):
        Path(marker).write_text(f"{args} {kwargs}")
        raise OSError("the network is blocked")

    ctypes.CDLL(None).unshare(0x40000000)  # CLONE_NEWNET
    for name in ("connect", "connect_ex", "sendto", "bind"):
        setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        setattr(socket, name, refuse)


def cpu_devices(count):
    """JAX has another number of CPU devices than the tests."""
    import jax

    jax.config.update("jax_num_cpu_devices", int(count))


FAULTS = {
    function.__name__: function
    for function in (
        compile_for_long,
        hold_compilation,
        slow_chunks,
        endless_chunk,
        slow_saving,
        endless_evaluation,
        no_space,
        short_files,
        no_network,
        cpu_devices,
    )
}


if __name__ == "__main__":
    serve()
