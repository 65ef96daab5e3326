"""Policy and value networks without memory: obs [..., O] -> (distribution [...], value [...])."""

from collections.abc import Callable

import flax.linen as nn
import jax

from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import Distribution
from purejaxppo.core.types import Observation, VecEnv
from purejaxppo.errors import ConfigError
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.heads import policy_head
from purejaxppo.policies.inputs import Inputs, is_image, reader
from purejaxppo.policies.layers import ConvTorso, Dense, MLPTorso, feature_major, torso_maker


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
