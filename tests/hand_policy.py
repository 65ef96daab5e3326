"""Policies that are a function, for tests that need no network."""

from types import SimpleNamespace

from purejaxppo.policies.feed_forward import FeedForward


def policy_of(apply):
    """Returns the policy without memory of apply(params, obs) -> (distribution, value), which has no parameters."""
    return FeedForward(SimpleNamespace(init=lambda key, obs: (), apply=apply))
