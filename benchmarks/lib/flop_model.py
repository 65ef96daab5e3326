"""A lower bound on the work of an environment step, and the limit of speed that follows from it on a machine.

Two towers of sizes O-h-h-1 and O-h-h-A with W weights (biases left out) and H hidden units in all, e epochs:

- a forward pass takes 2 W FLOP and H tanh; the gradient of the weights takes 2 W FLOP more, that of the layers' inputs
  another 2 W, less those of the first layer, whose input needs none;
- per step: one forward pass of both towers in the rollout (the actor inside the scan, the critic after it), and
  e times forward and backward. CartPole's 4-64-64 towers with four epochs: 227 kFLOP and 1,280 tanh;
- bytes, all fused: the row of the batch (observation, action, log-probability, value, advantage, target) written once
  and read once per epoch;
- bytes, nothing fused: each hidden layer's activations pass through memory eleven times an epoch: forward, product
  written, tanh read and written, next product read; backward, tanh's own gradient two read and one written, the
  weights' gradient two read, the input's one read and one written. CartPole: 45 kB.

The environment, the losses, Adam, the shuffle and the metrics are left out: this is a bound, not a prediction.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

FLOAT = 4  # bytes


class PerStep(NamedTuple):
    """The work of one environment step, including its share of the update."""

    flop: float
    tanh: float
    bytes_fused: float
    bytes_unfused: float


class Limit(NamedTuple):
    """The least seconds per environment step that each resource takes; the largest one is the limit."""

    compute: float
    memory: float
    chain: float  # of dependent small kernels, on an accelerator
    memory_unfused: float  # no bound: what it would be if every activation went through memory

    @property
    def env_steps_per_s(self) -> float:
        """The environment steps per second that cannot be exceeded."""
        return 1 / max(self.compute, self.memory, self.chain)


def per_step(inputs: int, outputs: int, hidden: tuple[int, ...] = (64, 64), epochs: int = 4) -> PerStep:
    """Returns the work of separate actor and critic towers; `outputs` are the actor's."""
    weights = first = units = 0
    for last in (outputs, 1):
        sizes = [inputs, *hidden, last]
        products = [a * b for a, b in pairwise(sizes)]
        weights, first, units = weights + sum(products), first + products[0], units + sum(hidden)
    flop = 2 * weights + epochs * (6 * weights - 2 * first)
    row = FLOAT * (inputs + 5)
    return PerStep(flop, units * (1 + epochs), row * (1 + epochs), FLOAT * units * 11 * epochs)


def limit(step: PerStep, machine: Mapping[str, float], kernels_per_step: float = 0.0) -> Limit:
    """Returns the limit of a machine by what `workers/hardware_limits.py` measures.

    Args:
      step: from `per_step`.
      machine: matmul_flop_per_s, tanh_per_s, bytes_per_s, and kernel_s if kernels are given.
      kernels_per_step: dependent kernels per environment step, of all environments together.
    """
    return Limit(
        compute=step.flop / machine["matmul_flop_per_s"] + step.tanh / machine["tanh_per_s"],
        memory=step.bytes_fused / machine["bytes_per_s"],
        chain=kernels_per_step * machine["kernel_s"] if kernels_per_step else 0.0,
        memory_unfused=step.bytes_unfused / machine["bytes_per_s"],
    )
