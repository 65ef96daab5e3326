"""The policy network that a configuration names."""

from collections.abc import Callable

from purejaxppo.config import TrainConfig
from purejaxppo.config.registry import Registry
from purejaxppo.config.validate import ACTION_DISTRIBUTIONS
from purejaxppo.core.types import Network, VecEnv
from purejaxppo.policies.networks import conv, is_image, mlp

# The setting `policy` was that of the action distribution, and is read as such in the files of earlier versions.
POLICIES: Registry[Callable[[TrainConfig, VecEnv], Network]] = Registry(
    "policy", {"mlp": mlp, "conv": conv}, reserved=lambda: ACTION_DISTRIBUTIONS
)


def register_policy(name: str, factory: Callable[[TrainConfig, VecEnv], Network]) -> None:
    """Makes a policy network of one's own known by name, to settings, flags and saved runs.

    Args:
      name: no built-in one's; one's own may be registered again.
      factory: `factory(config, env)` returns an object with `init(key, obs)` and `apply(params, obs) -> (pi, value)`.
    """
    POLICIES.register(name, factory)


def make_network(config: TrainConfig, env: VecEnv) -> Network:
    """Returns the network that `config` names, or else a convolutional one for images and an MLP for the rest.

    Raises:
      ConfigError: an unknown name, or a network that does not fit the settings or the observations.
      EnvError: an action distribution that does not fit the actions.
    """
    name = config.policy or ("conv" if is_image(env) else "mlp")
    return POLICIES.lookup(name)(config, env)
