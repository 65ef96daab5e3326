"""Policies: what maps observations, and what is remembered of earlier ones, to a distribution and a value."""

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import Policy, VecEnv
from purejaxppo.policies.feed_forward import FeedForward
from purejaxppo.policies.networks import make_network


def make_policy(config: TrainConfig, env: VecEnv) -> Policy:
    """Returns the policy that `config` names."""
    return FeedForward(make_network(config, env))
