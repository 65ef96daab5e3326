"""An auxiliary loss: the torso of the policy also learns to predict the next observation.

The network has a method more, and the algorithm adds its error to the loss of ppo_clip. `Batch.extra` carries what that
takes beside the usual rows.

    purejaxppo train --plugin scripts/examples/auxiliary_loss.py --env Acrobot-v1 --policy predictive \\
        --algorithm ppo_predictive
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

import purejaxppo
from purejaxppo.algorithms.ppo_clip import clipped_loss, ppo_clip
from purejaxppo.algorithms.surrogate import surrogate_steps
from purejaxppo.core.advantage import estimate
from purejaxppo.core.minibatch import cut
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.heads import policy_head

WEIGHT = 0.1


def two_layers(width):
    """Returns a network from observations [..., O] to features [..., width]."""
    return nn.Sequential([nn.Dense(width), nn.tanh, nn.Dense(width), nn.tanh])


class Predictive(nn.Module):
    """One torso with heads for pi and the next observation, and one for the value."""

    make_head: Callable[[bool], nn.Module]
    num_actions: int
    width: int
    size: int  # of an observation

    def setup(self):
        self.torso, self.critic = two_layers(self.width), two_layers(self.width)
        self.head, self.value = self.make_head(False), nn.Dense(1)
        self.model = nn.Sequential([nn.Dense(self.width), nn.relu, nn.Dense(self.size)])

    def __call__(self, obs):
        """Maps obs [..., O] to the distribution and the value [...]."""
        if self.is_initializing():  # so that the model has parameters, too
            self.predict(obs, jnp.zeros(obs.shape[:-1], jnp.int32))
        return self.head(self.torso(obs)), self.value(self.critic(obs))[..., 0]

    def predict(self, obs, action):
        """Maps obs [..., O] and action [...] to the next observation [..., O]."""
        taken = jax.nn.one_hot(action, self.num_actions)
        return obs + self.model(jnp.concatenate([self.torso(obs), taken], axis=-1))


def predictive(config, env):
    """Returns the policy for an environment with vectors as observations and discrete actions."""
    (size,) = env.observation_space.shape
    head, width = policy_head(config, env.action_space), config.hidden_sizes[-1]
    return FeedForward(Predictive(head, env.action_space.n, width, size))


def ppo_predictive(config, policy, *, shards):
    """Returns ppo_clip with the prediction's mean squared error, times WEIGHT, in its loss."""

    def prediction_loss(params, minibatch):
        predicted = policy.network.apply(params, minibatch.obs, minibatch.action, method="predict")
        error = jnp.mean((predicted - minibatch.extra) ** 2)
        return WEIGHT * error, {"loss/prediction": error}

    learn = surrogate_steps(config, policy, clipped_loss(), shards, prediction_loss)

    def update(key, hp, learner, trajectory):
        advantage, target = estimate(config, hp, trajectory)
        return learn(key, hp, learner, cut(config, trajectory, advantage, target, extra=trajectory.next_obs))

    return ppo_clip(config, policy, shards=shards)._replace(update=update)


purejaxppo.register_policy("predictive", predictive)
purejaxppo.register_algorithm("ppo_predictive", ppo_predictive)
