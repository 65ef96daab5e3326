"""Policy and value networks: obs [..., O] -> (distribution [...], value [...])."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.config.fields import Activation
from purejaxppo.core.distributions import (
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    TanhDiagGaussian,
    split_last,
)
from purejaxppo.core.observations import ACTION_MASK, CRITIC, OBS, actor_keys
from purejaxppo.core.types import ActionSpace, Box, Discrete, MultiDiscrete, Observation, VecEnv
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.policies.feed_forward import FeedForward

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


def mlp(config: TrainConfig, env: VecEnv) -> FeedForward:
    """Returns the policy of an MLP over the flattened observation. Raises as `_actor_critic` does."""
    return _actor_critic(config, env, MLPTorso)


def conv(config: TrainConfig, env: VecEnv) -> FeedForward:
    """Returns that of a convolutional network. Raises as `_actor_critic` does, and ConfigError if there is no image."""
    if not is_image(env.observation_space):
        raise ConfigError(
            f"policy conv needs observations [H, W, C] of at least 3 x 3, but those of {config.env} are no such "
            f"images; use mlp."
        )
    return _actor_critic(config, env, ConvTorso)


def _actor_critic(config: TrainConfig, env: VecEnv, torso: type["MLPTorso | ConvTorso"]) -> FeedForward:
    """Returns the policy of a network for an environment's spaces.

    Raises:
      ConfigError: a tanh-Gaussian with discrete actions, or a shared torso of a value function that sees more.
      EnvError: a tanh-Gaussian for actions that lack finite bounds, or observations of which the policy sees nothing.
    """
    network = ActorCritic(
        read=reader(config, env.observation_space),
        make_torso=torso_maker(config, torso),
        make_head=policy_head(config, env.action_space),
        shared_torso=config.shared_torso,
    )
    return FeedForward(network)


class Inputs(NamedTuple):
    """An observation as a network takes it: N rows."""

    lead: tuple[int, ...]  # the axes that the rows had
    seen: jax.Array  # [N, ...] by policy and value function
    privileged: jax.Array | None  # [N, P] by the value function alone
    mask: jax.Array | None  # bool [N, A], of the actions that are possible


Space = Box | dict[str, Box]


def reader(config: TrainConfig, space: Space) -> Callable[[Observation], Inputs]:
    """Returns the function from observations [..., O] to a network's inputs.

    Raises:
      ConfigError: a shared torso of a value function that sees more.
      EnvError: the policy would see nothing.
    """
    if isinstance(space, dict) and CRITIC in space and config.shared_torso:
        raise ConfigError(
            f"shared_torso is on, but {config.env} shows the value function more than the policy ({CRITIC!r}); turn it "
            f"off."
        )

    spaces = space if isinstance(space, dict) else {OBS: space}
    keys = actor_keys(spaces)
    if not keys:
        raise EnvError(f"{config.env} shows the policy nothing: its observations have the keys {', '.join(spaces)}.")

    def rows(arrays: dict[str, jax.Array], key: str) -> jax.Array:
        x = arrays[key]
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / (255 if config.scale_pixels else 1)
        return x.reshape(-1, *spaces[key].shape)

    def flat(arrays: dict[str, jax.Array], keys: Sequence[str]) -> jax.Array:
        parts = [rows(arrays, key) for key in keys]
        return jnp.concatenate([x.reshape(x.shape[0], -1) for x in parts], axis=-1)

    def privileged(arrays: dict[str, jax.Array]) -> jax.Array:
        if CRITIC in arrays:
            return flat(arrays, [CRITIC])
        # Not in training: the value is then of no account.
        return jnp.zeros((rows(arrays, keys[0]).shape[0], math.prod(spaces[CRITIC].shape)))

    def read(obs: Observation) -> Inputs:
        arrays = obs if isinstance(space, dict) else {OBS: obs}
        first = arrays[keys[0]]
        return Inputs(
            lead=first.shape[: first.ndim - len(spaces[keys[0]].shape)],
            seen=rows(arrays, keys[0]) if len(keys) == 1 else flat(arrays, keys),
            privileged=privileged(arrays) if CRITIC in spaces else None,
            mask=rows(arrays, ACTION_MASK) if ACTION_MASK in spaces else None,
        )

    return read


def is_image(space: Space) -> bool:
    """Returns whether the one array that the policy sees is a picture [H, W, C] of at least 3 x 3."""
    if isinstance(space, dict):
        keys = actor_keys(space)
        return len(keys) == 1 and is_image(space[keys[0]])
    return len(space.shape) == 3 and min(space.shape[:2]) >= 3


def torso_maker(config: TrainConfig, kind: type["MLPTorso | ConvTorso"]) -> Callable[[bool], "MLPTorso | ConvTorso"]:
    """Returns the function that makes the hidden layers, for activations that are feature-major or not."""
    return lambda columns: kind(config.hidden_sizes, _ACTIVATIONS[config.activation], columns)


def policy_head(config: TrainConfig, space: ActionSpace) -> Callable[[bool], nn.Module]:
    """Returns the function that makes the head for a kind of actions, for features that are feature-major or not."""
    if isinstance(space, Discrete | MultiDiscrete):
        if config.action_distribution != "gaussian":
            number = space.n if isinstance(space, Discrete) else " x ".join(map(str, space.sizes))
            raise ConfigError(
                f"action_distribution {config.action_distribution} is for continuous actions, but {config.env} has "
                f"{number} discrete ones; leave it out."
            )
        if isinstance(space, MultiDiscrete):
            return lambda columns: MultiCategoricalHead(space.sizes, columns)
        return lambda columns: CategoricalHead(space.n, columns)
    if config.action_distribution == "gaussian":
        return lambda columns: GaussianHead(space.shape, DiagGaussian, columns)
    if not space.bounded().all():
        raise EnvError(
            f"action_distribution tanh_gaussian needs finite action bounds, but {config.env} has none; use gaussian."
        )
    return lambda columns: GaussianHead(space.shape, TanhDiagGaussian, columns)


def feature_major(x: jax.Array) -> bool:
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


class CategoricalHead(nn.Module):
    """A categorical policy, nearly uniform at initialisation (gain 0.01)."""

    num_actions: int
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> Categorical:
        logits = Dense(self.num_actions, 0.01, self.columns)(x)
        return Categorical(logits.T if self.columns else logits)


class MultiCategoricalHead(nn.Module):
    """Independent categorical policies, one per factor, nearly uniform at initialisation (gain 0.01)."""

    sizes: tuple[int, ...]
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> MultiCategorical:
        logits = Dense(sum(self.sizes), 0.01, self.columns)(x)  # one product for all factors
        logits = logits.T if self.columns else logits
        return MultiCategorical(tuple(Categorical(part) for part in split_last(logits, self.sizes)))


class GaussianHead(nn.Module):
    """A Gaussian policy: the mean depends on the features (gain 0.01), log_std is a free parameter that starts at 0.

    Its action is flat, [..., A], whatever the shape of the environment's.
    """

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

    read: Callable[[Observation], Inputs]
    make_torso: Callable[[bool], nn.Module]
    make_head: Callable[[bool], nn.Module]
    shared_torso: bool = False

    @nn.compact
    def __call__(self, obs: Observation) -> tuple[Distribution, jax.Array]:
        """Maps observations [..., O] to pi, with leaves [..., A], and value [...]."""
        lead, seen, privileged, mask = self.read(obs)
        columns = feature_major(seen)
        actor = self.make_torso(columns)(seen)
        critic = actor if self.shared_torso else self.make_torso(columns)(seen, privileged)
        pi = self.make_head(columns)(actor)
        pi = pi if mask is None else pi.masked(mask)
        value = Dense(1, 1.0, columns)(critic).reshape(-1)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), (pi, value))
