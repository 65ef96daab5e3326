"""How runs are laid out: spread over devices, and on each of them side by side or one after the other."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# f(x, ...) -> f over the leading axis of x, ...
Batching = Callable[[Callable[..., Any]], Callable[..., Any]]
_RUNS = PartitionSpec("runs")


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """Batching without `vmap`: run after run, each computed by itself."""
    return lambda *xs: jax.lax.map(lambda x: f(*x), xs)


class Layout(NamedTuple):
    """Where R runs are computed; R is a multiple of the number of devices."""

    mesh: Mesh  # of one axis, "runs"
    batching: Batching  # of the runs that share a device

    @property
    def sharding(self) -> NamedSharding:
        """Of every array with R in front."""
        return NamedSharding(self.mesh, _RUNS)

    def over_runs(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """f over the leading axis R of its arguments' leaves. Nothing is exchanged: no device waits for another."""
        return jax.shard_map(self.batching(f), mesh=self.mesh, in_specs=_RUNS, out_specs=_RUNS, check_vma=False)


def layout_for(num_runs: int, exact: bool = False, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The fastest layout that is safe: `jax.vmap` on an accelerator, `one_by_one` on CPU devices.

    On a CPU, one run's arrays stay in the cache, and jaxlib can wait forever in a vmapped loop on two cores.

    Args:
      num_runs: R; as many devices are used as divide it.
      exact: `one_by_one` on the first device alone, where each run has the very bits that it has by itself. A program
        for several devices passes through XLA's partitioner, after which other operations of a run may be fused, and
        other products and sums rounded as one.
      devices: to use, by default all.
    """
    devices = devices or jax.devices()
    number = 1 if exact else max(n for n in range(1, len(devices) + 1) if num_runs % n == 0)
    batching = one_by_one if exact or devices[0].platform == "cpu" else jax.vmap
    return Layout(Mesh(np.array(devices[:number]), ("runs",)), batching)
