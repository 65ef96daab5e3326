"""Shards: equal blocks of a run's environments, in which its batch is shuffled, and the devices that hold them.

What the hardware would otherwise decide is fixed by the number of shards: the batch is shuffled within each of them,
and every minibatch takes the same share of each. A run on D devices, each with S / D shards, then has the minibatches
of the run on one, and no row ever moves between devices. They exchange sums only: the gradient of every step, and per
update the statistics of each shard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Function = Callable[..., Any]


def _same(x: Any) -> Any:
    return x


@dataclass(frozen=True)
class Shards:
    """The shards of a run; by default one, on one device."""

    number: int = 1  # S
    devices: int = 1  # D, which divides S
    index: Callable[[], Any] = lambda: 0  # of this device, from 0; it exists only inside a program of several
    sum: Callable[[Any], Any] = _same  # of a pytree over the devices
    in_pieces: Callable[[Function], Function] = _same  # of f(params, rows), which returns means over the rows

    @property
    def local(self) -> int:
        """The number of shards on each device."""
        return self.number // self.devices

    @property
    def ids(self) -> jax.Array:
        """The numbers of this device's shards [S / D], from 0; consecutive, as its environments are."""
        return self.index() * self.local + jnp.arange(self.local)

    def by_shard(self, x: jax.Array) -> jax.Array:
        """Reshapes this device's rows [N, ...] to [S / D, n, ...]."""
        # Rows lie environment by environment, so those of a shard are one contiguous block.
        return x.reshape(self.local, -1, *x.shape[1:])

    def flat(self, x: jax.Array) -> jax.Array:
        """Reshapes one number per row of this device, or per step of its sequences, to [S / D, n]."""
        return x.reshape(self.local, -1)

    def gradient(self, loss: Function) -> Function:
        """Returns (params, rows) -> (gradient of the loss, what it measured), means over the rows of all devices.

        `loss(params, rows) -> (loss, measured)` is a mean over its rows, and so are the leaves of `measured`.
        """
        # One sum carries both, since the cost of a collective is mostly that devices wait for each other.
        of_own_rows = self.in_pieces(jax.grad(loss, has_aux=True))
        return lambda params, rows: self.mean(of_own_rows(params, rows))

    def mean(self, tree: Any) -> Any:
        """Returns the mean over the devices of means over the rows of each: the mean over all rows."""
        # It is exact because all devices have equally many rows.
        return tree if self.devices == 1 else jax.tree.map(lambda x: x / self.devices, self.sum(tree))

    def gather(self, tree: Any) -> Any:
        """Returns what was measured of every shard: leaves [S / D, ...] of each device to [S, ...] on all of them.

        For a few numbers per shard. They travel as one sum of vectors, each 0 but for one device's shards.
        """
        if self.devices == 1:
            return tree
        # A sum with zeros rather than an all-gather: one kind of collective is enough, and x + 0 is exact.
        start = self.index() * self.local

        def place(x: jax.Array) -> jax.Array:
            nothing = jnp.zeros((self.number, *x.shape[1:]), x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(nothing, x, start, 0)

        return self.sum(jax.tree.map(place, tree))
