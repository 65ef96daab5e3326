"""Policy and value networks: obs [..., O] -> (distribution [...], value [...])."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.config.fields import Activation
from purejaxppo.core.distributions import Categorical, DiagGaussian, Distribution, TanhDiagGaussian
from purejaxppo.core.types import Box, Discrete, Network, VecEnv
from purejaxppo.errors import ConfigError, EnvError

_ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
}
_CONV_FEATURES = 16

# Rows from which on the networks work on columns, [features, N], rather than on rows, [N, features]. The gradient of a
# layer's weights is a product over N: XLA's CPU multiplied 64 x N by N x 64 at 90-104 GFLOP/s if N was the last axis of
# both factors, and at 45 if it was the first (one AVX-512 core, N = 512 to 2,048). Acting, with few rows, is the other
# way round: 128 steps of 4 environments took 1.26 ms by rows and 1.74 by columns.
COLUMNS_FROM = 128


def make_network(config: TrainConfig, env: VecEnv) -> Network:
    """The network for an environment's spaces: convolutional for images [H, W, C] of 3 x 3 or more, else an MLP.

    Raises EnvError for a tanh policy on actions without finite bounds, ConfigError for one on discrete actions.
    """
    obs_shape = env.observation_space.shape
    is_image = len(obs_shape) == 3 and min(obs_shape[:2]) >= 3
    torso = ConvTorso if is_image else MLPTorso
    activation = _ACTIVATIONS[config.activation]
    network = ActorCritic(
        obs_shape=obs_shape,
        make_torso=lambda columns: torso(config.hidden_sizes, activation, columns),
        make_head=_policy_head(config, env.action_space),
        shared_torso=config.shared_torso,
    )
    return cast(Network, network)  # flax annotates `apply` for its mutable collections, which we do not use


def _policy_head(config: TrainConfig, space: Discrete | Box) -> Callable[[bool], nn.Module]:
    if isinstance(space, Discrete):
        if config.policy != "gaussian":
            raise ConfigError(
                f"policy {config.policy} is for continuous actions, but {config.env} has {space.n} discrete ones; "
                f"leave it out."
            )
        return lambda columns: CategoricalHead(space.n, columns)
    if config.policy == "gaussian":
        return lambda columns: GaussianHead(space.shape, DiagGaussian, columns)
    if not space.bounded().all():
        raise EnvError(f"policy tanh_gaussian needs finite action bounds, but {config.env} has none; use gaussian.")
    return lambda columns: GaussianHead(space.shape, TanhDiagGaussian, columns)


def _columns(x: jax.Array) -> bool:
    """Whether the towers work on columns [features, N] rather than on rows [N, features]."""
    rows = x.shape[0]  # a symbol in an exported policy, which takes any number
    return isinstance(rows, int) and rows >= COLUMNS_FROM


class Dense(nn.Module):
    """weights x + bias, with orthogonal weights: [I, N] -> [O, N] of columns, else [..., I] -> [..., O]."""

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
        # The bias as the weight of one more input: its gradient is part of the product, and the copy of the few
        # inputs has the layout that the weights' gradient wants.
        return jnp.concatenate([kernel, bias[None]]).T @ jnp.concatenate([x, jnp.ones((1, x.shape[1]))])


class MLPTorso(nn.Module):
    """Flattened observation [N, ...] through hidden layers; orthogonal weights of gain sqrt 2."""

    hidden_sizes: Sequence[int]
    activation: Callable[[jax.Array], jax.Array]
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
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
    def __call__(self, x: jax.Array) -> jax.Array:
        # As a matrix product over the patches: XLA's own convolution, and its gradient more so, is many times slower
        # on a CPU (docs/architecture.md has the figures).
        height, width = x.shape[1] - 2, x.shape[2] - 2
        patches = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        features = Dense(_CONV_FEATURES, math.sqrt(2), columns=False)(jnp.concatenate(patches, axis=-1))
        return MLPTorso(self.hidden_sizes, self.activation, self.columns)(self.activation(features))


class CategoricalHead(nn.Module):
    """Logits, nearly uniform at the start (gain 0.01)."""

    num_actions: int
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> Categorical:
        logits = Dense(self.num_actions, 0.01, self.columns)(x)
        return Categorical(logits.T if self.columns else logits)


class GaussianHead(nn.Module):
    """A mean from the features (gain 0.01) and a log standard deviation that is a parameter, starting at 0."""

    action_shape: tuple[int, ...]
    distribution: type[DiagGaussian] | type[TanhDiagGaussian]
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> DiagGaussian | TanhDiagGaussian:
        size = math.prod(self.action_shape)
        mean = Dense(size, 0.01, self.columns)(x)
        mean = mean.T if self.columns else mean
        log_std = self.param("log_std", nn.initializers.zeros, (size,))
        return self.distribution(mean, jnp.broadcast_to(log_std, mean.shape))


class ActorCritic(nn.Module):
    """Policy and value function over separate torsos, or over one (`shared_torso`).

    A caller that ignores one of the two outputs does not pay for it: the compiler drops what nobody reads.
    """

    obs_shape: tuple[int, ...]
    make_torso: Callable[[bool], nn.Module]
    make_head: Callable[[bool], nn.Module]
    shared_torso: bool = False

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[Distribution, jax.Array]:
        """obs [..., *obs_shape] -> pi with leaves [..., A], value [...]."""
        lead = obs.shape[: obs.ndim - len(self.obs_shape)]
        x = obs.reshape(-1, *self.obs_shape)
        columns = _columns(x)
        actor = self.make_torso(columns)(x)
        critic = actor if self.shared_torso else self.make_torso(columns)(x)
        pi = self.make_head(columns)(actor)
        value = Dense(1, 1.0, columns)(critic).reshape(-1)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), (pi, value))
