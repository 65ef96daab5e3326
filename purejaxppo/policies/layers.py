"""Layers, and the torsos that are made of them."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.config.fields import Activation
from purejaxppo.core.target import platform

_ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
}


_CONV_FEATURES = 16


# From this number of rows N on, activations are feature-major, [F, N], instead of row-major, [N, F]. The gradient of a
# layer's weights is a product over N: XLA's CPU multiplied 64 x N by N x 64 at 90-104 GFLOP/s if N was the last axis of
# both factors, and at 45 if it was the first (one AVX-512 core, N = 512 to 2,048). With few rows, as in the rollout, it
# is the other way round: 128 steps of 4 environments took 1.26 ms row-major and 1.74 feature-major. An H100 trained
# 1.02 to 1.04 times as fast row-major (2048 x 128, Pendulum, Breakout), and 1,024 runs of 4 x 128 0.98 times
# (benchmarks/log.md).
COLUMNS_FROM = 128


def torso_maker(config: TrainConfig, kind: type["MLPTorso | ConvTorso"]) -> Callable[[bool], "MLPTorso | ConvTorso"]:
    """Returns the function that makes the hidden layers, for activations that are feature-major or not."""
    return lambda columns: kind(config.hidden_sizes, _ACTIVATIONS[config.activation], columns)


def feature_major(x: jax.Array) -> bool:
    """Returns whether the activations for the rows x are feature-major, [F, N], rather than row-major, [N, F]."""
    rows = x.shape[0]  # a symbolic dimension in an exported policy, which accepts any number of rows
    return platform() != "gpu" and isinstance(rows, int) and rows >= COLUMNS_FROM


class Dense(nn.Module):
    """A dense layer with orthogonal weights.

    It maps [..., I] -> [..., O], or feature-major [I, N] -> [O, N] if `columns`. Its parameters are the same in both
    layouts.
    """

    width: int
    gain: float
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array, first: bool = False) -> jax.Array:
        inputs = x.shape[0 if self.columns else -1]
        kernel = self.param("kernel", nn.initializers.orthogonal(self.gain), (inputs, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        if not self.columns:
            return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        if not first:
            return kernel.T @ x + bias[:, None]
        # In the first layer the bias is the weight of one more input, a constant 1. Its gradient then is part of the
        # matrix product, and concatenation copies the few inputs into the layout that the weights' gradient needs.
        return jnp.concatenate([kernel, bias[None]]).T @ jnp.concatenate([x, jnp.ones((1, x.shape[1]))])


class MLPTorso(nn.Module):
    """Hidden layers over the flattened observation [N, ...]; orthogonal weights of gain sqrt 2.

    `beside` [N, P], if there is any, are further inputs of the first of them.
    """

    hidden_sizes: Sequence[int]
    activation: Callable[[jax.Array], jax.Array]
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array, beside: jax.Array | None = None) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        x = x if beside is None else jnp.concatenate([x, beside], axis=-1)
        x = x.T if self.columns else x
        for i, width in enumerate(self.hidden_sizes):
            x = self.activation(Dense(width, math.sqrt(2), self.columns)(x, first=i == 0))
        return x


class ConvTorso(nn.Module):
    """One 3 x 3 convolution of 16 features, the size that suits MinAtar's 10 x 10 boards, then hidden layers.

    Source: Young & Tian 2019, "MinAtar", arXiv:1903.03176, sec. 3.
    """

    hidden_sizes: Sequence[int]
    activation: Callable[[jax.Array], jax.Array]
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array, beside: jax.Array | None = None) -> jax.Array:
        # The convolution is a matrix product over patches: XLA's own convolution, and even more its gradient, is many
        # times slower on a CPU (docs/architecture.md has the figures).
        height, width = x.shape[1] - 2, x.shape[2] - 2
        patches = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        features = Dense(_CONV_FEATURES, math.sqrt(2), columns=False)(jnp.concatenate(patches, axis=-1))
        return MLPTorso(self.hidden_sizes, self.activation, self.columns)(self.activation(features), beside)
