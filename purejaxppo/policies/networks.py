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

# From this number of rows N on, activations are feature-major, [F, N], instead of row-major, [N, F]. The gradient of a
# layer's weights is a product over N: XLA's CPU multiplied 64 x N by N x 64 at 90-104 GFLOP/s if N was the last axis of
# both factors, and at 45 if it was the first (one AVX-512 core, N = 512 to 2,048). With few rows, as in the rollout, it
# is the other way round: 128 steps of 4 environments took 1.26 ms row-major and 1.74 feature-major.
COLUMNS_FROM = 128


def is_image(env: VecEnv) -> bool:
    """Returns whether observations have shape [H, W, C], of at least 3 x 3."""
    obs_shape = env.observation_space.shape
    return len(obs_shape) == 3 and min(obs_shape[:2]) >= 3


def mlp(config: TrainConfig, env: VecEnv) -> Network:
    """Returns an MLP over the flattened observation. Raises as `_actor_critic` does."""
    return _actor_critic(config, env, MLPTorso)


def conv(config: TrainConfig, env: VecEnv) -> Network:
    """Returns a convolutional network. Raises as `_actor_critic` does, and ConfigError if there is no image."""
    if not is_image(env):
        raise ConfigError(
            f"policy conv needs observations [H, W, C] of at least 3 x 3, but those of {config.env} have shape "
            f"{list(env.observation_space.shape)}; use mlp."
        )
    return _actor_critic(config, env, ConvTorso)


def _actor_critic(config: TrainConfig, env: VecEnv, torso: type["MLPTorso | ConvTorso"]) -> Network:
    """Returns the network for an environment's spaces.

    Raises:
      ConfigError: a tanh-Gaussian with discrete actions.
      EnvError: a tanh-Gaussian for actions that lack finite bounds.
    """
    obs_shape = env.observation_space.shape
    activation = _ACTIVATIONS[config.activation]
    network = ActorCritic(
        obs_shape=obs_shape,
        make_torso=lambda columns: torso(config.hidden_sizes, activation, columns),
        make_head=_policy_head(config, env.action_space),
        shared_torso=config.shared_torso,
    )
    return cast(Network, network)  # flax annotates `apply` for its mutable collections, which are not used here


def _policy_head(config: TrainConfig, space: Discrete | Box) -> Callable[[bool], nn.Module]:
    if isinstance(space, Discrete):
        if config.action_distribution != "gaussian":
            raise ConfigError(
                f"action_distribution {config.action_distribution} is for continuous actions, but {config.env} has "
                f"{space.n} discrete ones; leave it out."
            )
        return lambda columns: CategoricalHead(space.n, columns)
    if config.action_distribution == "gaussian":
        return lambda columns: GaussianHead(space.shape, DiagGaussian, columns)
    if not space.bounded().all():
        raise EnvError(
            f"action_distribution tanh_gaussian needs finite action bounds, but {config.env} has none; use gaussian."
        )
    return lambda columns: GaussianHead(space.shape, TanhDiagGaussian, columns)


def _columns(x: jax.Array) -> bool:
    """Returns whether the activations for the rows x are feature-major, [F, N], rather than row-major, [N, F]."""
    rows = x.shape[0]  # a symbolic dimension in an exported policy, which accepts any number of rows
    return isinstance(rows, int) and rows >= COLUMNS_FROM


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
    """Hidden layers over the flattened observation [N, ...]; orthogonal weights of gain sqrt 2."""

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
        # The convolution is a matrix product over patches: XLA's own convolution, and even more its gradient, is many
        # times slower on a CPU (docs/architecture.md has the figures).
        height, width = x.shape[1] - 2, x.shape[2] - 2
        patches = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        features = Dense(_CONV_FEATURES, math.sqrt(2), columns=False)(jnp.concatenate(patches, axis=-1))
        return MLPTorso(self.hidden_sizes, self.activation, self.columns)(self.activation(features))


class CategoricalHead(nn.Module):
    """A categorical policy, nearly uniform at initialisation (gain 0.01)."""

    num_actions: int
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> Categorical:
        logits = Dense(self.num_actions, 0.01, self.columns)(x)
        return Categorical(logits.T if self.columns else logits)


class GaussianHead(nn.Module):
    """A Gaussian policy: the mean depends on the features (gain 0.01), log_std is a free parameter that starts at 0."""

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

    Calling it costs only the output that is used: under `jit`, the compiler removes the other as dead code.
    """

    obs_shape: tuple[int, ...]
    make_torso: Callable[[bool], nn.Module]
    make_head: Callable[[bool], nn.Module]
    shared_torso: bool = False

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[Distribution, jax.Array]:
        """Maps obs [..., *obs_shape] to pi, with leaves [..., A], and value [...]."""
        lead = obs.shape[: obs.ndim - len(self.obs_shape)]
        x = obs.reshape(-1, *self.obs_shape)
        columns = _columns(x)
        actor = self.make_torso(columns)(x)
        critic = actor if self.shared_torso else self.make_torso(columns)(x)
        pi = self.make_head(columns)(actor)
        value = Dense(1, 1.0, columns)(critic).reshape(-1)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), (pi, value))
