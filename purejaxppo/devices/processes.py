"""The processes that train a run or a sweep together, on one machine or on several; by default there is one.

All of them run the same program, and each has devices of its own. The first one leads: it prints, and writes the files.
What a process decides by its own clock, or by a signal, it first agrees on with the others, so that all of them do the
same next. They talk through JAX's coordinator, which lives in the first one, and not through the devices, where a
message could overtake the training.

A process that ends leaves the others waiting for it. A thread of each looks after the others' signs of life, and ends
its own process, with one line, when there are none any more.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NoReturn, TypeVar, cast

import jax
import numpy as np

from purejaxppo.devices import selection
from purejaxppo.errors import ConfigError, ProcessError, is_out_of_memory

T = TypeVar("T")

START_S = 120  # within which all processes have to have come
BEAT_S = 2.0  # between two signs of life
LOST_S = 30.0  # without one, after which a process counts as lost
_FOREVER_MS = 7 * 24 * 3600 * 1000  # the thread ends a wait that is in vain, not the clock
FAILED_S = 5.0  # for all to say what is wrong, if it is so for all
_BEATS, _LEFT, _FAILED = "purejaxppo/beat/", "left", "failed "  # with an exit code behind it
_PIECE_BYTES = 2**26  # of an array, that all devices hold at a time while it is copied to the host


class _Group:
    """What this process knows of the others."""

    def __init__(self, client: Any, number: int, index: int) -> None:
        self.client, self.number, self.index = client, number, index
        self.exchanges = 0
        self.here = 1  # how many of the processes are on this machine
        self.on_loss = ""  # what to do if a process is lost
        self.left = False
        self.speaking = threading.Lock()
        threading.Thread(target=self._watch, daemon=True, name="processes").start()

    def beat(self, what: str, last: bool = False) -> None:
        """Gives a sign of life, unless the last one has been given."""
        with self.speaking:
            if not self.left:
                self.left = last
                self.client.key_value_set(f"{_BEATS}{self.index}", what, allow_overwrite=True)

    def beats(self) -> dict[int, str]:
        """Returns the last sign of life of each process that has given one."""
        return {int(key.rpartition("/")[2]): text for key, text in self.client.key_value_dir_get(_BEATS)}

    def _watch(self) -> None:
        """Gives this process's signs of life, and ends it when another one's are missing."""
        others = set(range(self.number)) - {self.index}
        last, since, beats = dict.fromkeys(others, ""), dict.fromkeys(others, time.monotonic()), 0
        heard = time.monotonic()  # of the coordinator
        while not self.left:
            beats += 1
            try:
                self.beat(str(beats))
                now, heard = self.beats(), time.monotonic()
            except Exception:
                if not self.left and time.monotonic() - heard > LOST_S:
                    self.lost(0)  # it has the coordinator
                time.sleep(BEAT_S)
                continue
            for other in others:
                if now.get(other, "") != last[other]:
                    last[other], since[other] = now[other], time.monotonic()
                failed = last[other].removeprefix(_FAILED) if last[other].startswith(_FAILED) else ""
                if time.monotonic() - since[other] > (FAILED_S if failed else LOST_S):
                    self.lost(other, failed)
            time.sleep(BEAT_S)

    def lost(self, other: int, failed: str = "") -> NoReturn:
        """Ends this process, which may be waiting within a library, for ever.

        Args:
          other: the process that this one cannot go on without.
          failed: its exit code, if it has said so: that of all, as its own message has the reason.
        """
        with contextlib.suppress(OSError):
            os.write(2, f"purejaxppo: error: {_lost(other, self, failed)}\n".encode())
        code = int(failed or ProcessError.exit_code)
        self.fail(code)
        os._exit(code)

    def fail(self, code: int) -> None:
        """Tells the others that this process ends. The first one waits until they have, as JAX ends them with it."""
        with contextlib.suppress(Exception):
            self.beat(f"{_FAILED}{code}", last=True)
            end = time.monotonic() + FAILED_S + 3 * BEAT_S
            while self.index == 0 and time.monotonic() < end and not self._all_failed():
                time.sleep(0.2)

    def _all_failed(self) -> bool:
        return all(beat.startswith(_FAILED) for beat in self.beats().values())


def _lost(other: int, group: _Group, failed: str = "") -> str:
    how = f"has ended with exit code {failed}, as it says" if failed else "has ended or cannot be reached"
    return f"process {other} of {group.number} {how}; {group.on_loss or 'nothing was saved.'}"


_group: _Group | None = None


def join(coordinator: str | None = None, number: int | None = None, index: int | None = None) -> None:
    """Makes this process one of several, before JAX uses its first device.

    Args:
      coordinator: HOST:PORT at which the first process can be reached by all; by default what JAX finds out under
        Slurm, Open MPI, Kubernetes or on Cloud TPU.
      number: of the processes.
      index: of this one, from 0.

    Raises:
      ConfigError: the others were not reached in time, or what is given does not fit together.
    """
    global _group
    # On CPUs, gloo carries the sums between processes.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator:
        _check_reachable(coordinator, leads=index == 0)
    try:
        jax.distributed.initialize(
            coordinator, number, index, initialization_timeout=START_S, heartbeat_timeout_seconds=100
        )
        from jax._src.distributed import global_state  # the messages between processes have no public name
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not coordinator:
            raise ConfigError(
                f"JAX did not find the other processes by itself ({reason}); without Slurm, Open MPI, Kubernetes or "
                f"Cloud TPU give --coordinator, --num-processes and --process-id."
            ) from error
        raise ConfigError(
            f"this process could not join the others at {coordinator} within {START_S} s ({reason}); start all of them "
            f"with the same --coordinator and --num-processes, each with a --process-id of its own."
        ) from error
    if global_state.num_processes > 1:
        _group = _Group(global_state.client, global_state.num_processes, global_state.process_id)
        _group.here = exchange(socket.gethostname()).count(socket.gethostname())


def _check_reachable(coordinator: str, leads: bool) -> None:
    """Raises ConfigError if the first process cannot have the port, or another one does not reach it within START_S.

    JAX would end the process, with a trace of C++, in both cases.
    """
    host, _, port = coordinator.rpartition(":")
    if leads:
        with socket.socket() as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                test.bind(("", int(port)))
            except OSError as error:
                raise ConfigError(
                    f"port {port} is not free here ({error.strerror}); give another one to all."
                ) from error
        return
    last, end = "", time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            last = error.strerror or str(error)
            time.sleep(0.5)
    raise ConfigError(
        f"process 0 was not reached at {coordinator} within {START_S} s ({last}); start it, or give another "
        f"--coordinator."
    )


def number() -> int:
    """Returns the number of processes."""
    return _group.number if _group else 1


def number_here() -> int:
    """Returns the number of processes on this machine."""
    return _group.here if _group else 1


def leads() -> bool:
    """Returns whether this is the first process, or the only one."""
    return _group is None or _group.index == 0


def exchange(text: str) -> list[str]:
    """Returns the texts of all processes, in their order. All of them have to call it, and wait for each other."""
    if _group is None:
        return [text]
    _group.exchanges += 1
    here = f"purejaxppo/exchange/{_group.exchanges}"
    try:
        _group.client.key_value_set(f"{here}/{_group.index}", text)
        texts = [_group.client.blocking_key_value_get(f"{here}/{i}", _FOREVER_MS) for i in range(_group.number)]
        # All have read what came before this exchange, or they would not have come to it.
        with contextlib.suppress(Exception):
            _group.client.key_value_delete(f"purejaxppo/exchange/{_group.exchanges - 1}/{_group.index}")
    except Exception as error:
        raise ProcessError(_lost(0, _group)) from error
    return texts


def first_of(text: str | None) -> str | None:
    """Returns the first text that a process has; None if none has any."""
    return next(filter(None, exchange(text or "")), None)


def any_of(flag: bool) -> bool:
    """Returns whether the flag is set in any process."""
    return first_of("yes" if flag else None) is not None


def from_leader(make: Callable[[], T]) -> T:
    """Returns what the first process makes, which JSON has to carry to the others."""
    if _group is None:
        return make()
    own = make() if leads() else None
    texts = exchange(json.dumps(own, default=lambda scalar: scalar.item()))  # NumPy's scalars
    return cast(T, own if leads() else json.loads(texts[0]))


def check_same(record: dict[str, Any]) -> None:
    """Raises ConfigError if a record of plain values is not the same in all processes."""
    text = json.dumps(record, sort_keys=True, default=str)
    if len(set(exchange(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    texts = exchange(text)
    first = json.loads(texts[0])
    for other, text in enumerate(texts):
        theirs = json.loads(text)
        differing = [name for name in first | theirs if first.get(name) != theirs.get(name)]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"processes 0 and {other} differ in {name}: {first.get(name)} and {theirs.get(name)}; start all of "
                f"them with the same command and the same versions."
            )


@contextlib.contextmanager
def together(on_loss: str) -> Iterator[None]:
    """Explains, within the context, an error that comes from another process's end.

    Args:
      on_loss: how to go on then.
    """
    if _group is None:
        yield
        return
    _group.on_loss = on_loss
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # A collective fails as soon as a device is gone. If its process is, the thread finds out, and ends this one.
        if not is_out_of_memory(error):
            time.sleep(LOST_S + FAILED_S + 6 * BEAT_S)
        raise


def fail(code: int) -> None:
    """Tells the others, if there are any, that this process is about to end with an exit code."""
    if _group is not None:
        _group.fail(code)


def end_process(code: int) -> None:
    """Ends this process if there are others; they hear of it."""
    if _group is not None:
        _group.fail(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def leave() -> None:
    """Tells the others that this process ends as it should."""
    global _group
    if _group is not None:
        exchange("")
        with contextlib.suppress(Exception):
            _group.beat(_LEFT, last=True)
        _group = None


def min_of(value: int) -> int:
    """Returns the smallest of the values that the processes have."""
    return min(map(int, exchange(str(value))))


def place(leaf: Any, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Returns an array on the devices of a sharding, of which each process places the parts on its own.

    Args:
      leaf: the same in all processes, with all its elements.
      sharding: over devices of any process; None for the default device.
    """
    if _group is None or sharding is None:
        return jax.device_put(leaf, sharding)
    whole = on_host(leaf)
    placed = jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])
    is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", whole.dtype), jax.dtypes.prng_key)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(leaf)) if is_key else placed


def replicated(tree: Any) -> Any:
    """Returns a tree of arrays of which each process has all elements, by all-gathers if there are several."""
    if _group is None:
        return tree
    return _identity(_everywhere(jax.tree.leaves(tree)[0]))(tree)


def _everywhere(array: jax.Array) -> jax.sharding.NamedSharding:
    """Returns the sharding by which every device has the whole of an array that is sharded over a mesh."""
    return jax.sharding.NamedSharding(cast(Any, array.sharding).mesh, jax.sharding.PartitionSpec())


@cache
def _identity(sharding: jax.sharding.NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def here(tree: Any) -> Any:
    """Returns a tree of arrays, without random keys, on the first device of this process."""
    return jax.device_put(tree if _group is None else on_host(tree), selection.first())


def on_host(tree: Any) -> Any:
    """Returns a tree of arrays as NumPy's, whichever process's devices they are on. Random keys become their data."""
    return jax.tree.map(_whole, tree)


def on_leaders_host(tree: Any) -> Any:
    """Returns a tree of arrays as `on_host` does in the first process, and without leaves in the others."""
    return jax.tree.map(lambda leaf: _whole(leaf, keep=leads()), tree)


def _whole(leaf: Any, keep: bool = True) -> np.ndarray | None:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.array(leaf) if keep else None
    if leaf.is_fully_replicated:
        return np.array(leaf.addressable_data(0)) if keep else None
    # Some rows of each device at a time, as no device may have room for the whole of it.
    everywhere = _everywhere(leaf)
    devices = everywhere.mesh.size
    rows = leaf.shape[0] // devices
    some = max(1, rows * _PIECE_BYTES // max(leaf.nbytes, _PIECE_BYTES))
    whole = np.empty((devices, rows, *leaf.shape[1:]), leaf.dtype) if keep else None
    for first in (min(first, rows - some) for first in range(0, rows, some)):
        piece = _rows(leaf, first, some, devices, everywhere).addressable_data(0)
        if whole is not None:
            whole[:, first : first + some] = piece
    return None if whole is None else whole.reshape(leaf.shape)


@partial(jax.jit, static_argnames=("some", "devices", "sharding"))
def _rows(leaf: jax.Array, first: int, some: int, devices: int, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Returns `some` rows of each device's part, from `first` on, on all devices [devices, some, ...]."""
    parts = leaf.reshape(devices, -1, *leaf.shape[1:])
    piece = jax.lax.dynamic_slice_in_dim(parts, first, some, axis=1)
    return jax.lax.with_sharding_constraint(piece, sharding)
