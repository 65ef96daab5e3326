"""A network of your own: a residual MLP with layer norm, as a flax module.

purejaxppo train --plugin scripts/examples/own_network.py --env CartPole-v1 --policy residual_mlp
"""

from collections.abc import Callable

import flax.linen as nn

import purejaxppo
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.heads import policy_head

BLOCKS = 2


class ResidualTorso(nn.Module):
    """Maps observations [N, O] to features [N, width] by blocks x + W2 relu(W1 norm(x))."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        for _ in range(BLOCKS):
            x += nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(nn.LayerNorm()(x))))
        return nn.LayerNorm()(x)


class ResidualActorCritic(nn.Module):
    """Maps observations [..., O] to the distribution and the value [...], each with a torso of its own."""

    make_head: Callable[[bool], nn.Module]
    width: int

    @nn.compact
    def __call__(self, obs):
        pi = self.make_head(False)(ResidualTorso(self.width)(obs))
        return pi, nn.Dense(1)(ResidualTorso(self.width)(obs))[..., 0]


def residual_mlp(config, env):
    """Returns the policy for an environment: its head is that of the environment's kind of actions."""
    return FeedForward(ResidualActorCritic(policy_head(config, env.action_space), config.hidden_sizes[-1]))


purejaxppo.register_policy("residual_mlp", residual_mlp)
