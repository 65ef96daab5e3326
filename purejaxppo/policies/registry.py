"""The policy that a configuration names."""

import contextlib
from collections.abc import Callable

from purejaxppo.config import TrainConfig
from purejaxppo.config.registry import Registry
from purejaxppo.config.validate import ACTION_DISTRIBUTIONS
from purejaxppo.core.faults import faults_of
from purejaxppo.core.types import Policy, VecEnv
from purejaxppo.policies.inputs import is_image
from purejaxppo.policies.networks import conv, mlp
from purejaxppo.policies.recurrent import gru

# The setting `policy` was that of the action distribution, and is read as such in the files of earlier versions.
POLICIES: Registry[Callable[[TrainConfig, VecEnv], Policy]] = Registry(
    "policy", {"mlp": mlp, "conv": conv, "gru": gru}, reserved=lambda: ACTION_DISTRIBUTIONS
)


def register_policy(name: str, factory: Callable[[TrainConfig, VecEnv], Policy]) -> None:
    """Makes a policy of one's own known by name, to settings, flags and saved runs.

    Args:
      name: no built-in one's; one's own may be registered again.
      factory: `factory(config, env)` returns the policy, such as `FeedForward(network)`.
    """
    POLICIES.register(name, factory)


def make_policy(config: TrainConfig, env: VecEnv) -> Policy:
    """Returns the policy that `config` names, or else a convolutional one for images and an MLP for the rest.

    Raises:
      ConfigError: an unknown name, a policy that does not fit the settings or the observations, or a factory of one's
        own that raises an error.
      EnvError: an action distribution that does not fit the actions.
    """
    name = config.policy or ("conv" if is_image(env.observation_space) else "mlp")
    factory = POLICIES.lookup(name)
    with contextlib.nullcontext() if name in POLICIES.built_in() else faults_of(f"policy {name!r}"):
        return factory(config, env)
