"""The two kinds of setting: `TrainConfig` is compiled in, `Hyperparams` are arguments of the compiled program.

No JAX in here, so that `purejaxppo --help` can read the dataclasses without waiting for it (`types.py` registers
`Hyperparams` as a pytree). The docstring under each field is its help text on the command line.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from purejaxppo.errors import ConfigError

Activation = Literal["tanh", "relu", "elu", "gelu", "silu"]
AdvantageNormalization = Literal["minibatch", "batch", "off"]
Policy = Literal["gaussian", "tanh_gaussian"]
Schedule = Literal["linear", "constant"]
LearningRateSchedule = Literal["linear", "constant", "kl_adaptive"]
ValueTarget = Literal["gae", "rewards_to_go"]
EnvParams = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What shapes the compiled program. Frozen and hashable: changing a field recompiles."""

    env: str = "CartPole-v1"
    """gymnax environment id; `purejaxppo envs` lists them."""
    env_params: EnvParams = ()
    """Environment parameters as name=value, for example max_steps_in_episode=200."""
    algorithm: str = "ppo_clip"
    """Update rule: ppo_clip, ppo_kl, trpo or policy_gradient, the files of purejaxppo/algorithms."""
    total_timesteps: int = 1_000_000
    """Budget in environment steps, over all environments; rounded down to whole updates."""
    num_envs: int = 64
    """Environments stepped side by side."""
    num_steps: int = 128
    """Steps of each environment per update."""
    num_epochs: int = 4
    """Passes over the collected batch per update."""
    num_minibatches: int = 4
    """Gradient steps per epoch; must divide num_envs * num_steps."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers (after the convolution, for image observations)."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""
    shared_torso: bool = False
    """Let policy and value function share all but their heads."""
    policy: Policy = "gaussian"
    """Continuous actions only: Gaussian clipped to the bounds, or squashed into them by tanh."""
    normalize_observation: bool = False
    """Standardise observations by running statistics and clip them to +-10."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return and clip them to +-10."""
    normalize_advantage: AdvantageNormalization = "minibatch"
    """Standardise advantages per minibatch, per batch, or not at all."""
    value_target: ValueTarget = "gae"
    """What the value function is fitted to: advantage + value, or the rewards-to-go (lambda = 1)."""
    learning_rate_schedule: LearningRateSchedule = "linear"
    """Linear decay to 0 over the updates, constant, or kl_adaptive: after each update times or divided by 1.5, to hold
    KL(old || new) near target_kl (which then stops no update early)."""
    ent_coef_schedule: Schedule = "constant"
    """Linear decay of ent_coef to 0 over the updates, or constant."""
    clip_eps_schedule: Schedule = "constant"
    """ppo_clip: linear decay of clip_eps to 0 over the updates, or constant."""
    cg_iterations: int = 10
    """trpo: conjugate-gradient iterations per update."""
    line_search_steps: int = 10
    """trpo: step lengths tried per update, each half of the one before."""

    def __post_init__(self) -> None:
        # JSON and Python users write lists and dicts; a hashable record holds tuples.
        pairs = self.env_params.items() if isinstance(self.env_params, Mapping) else self.env_params
        try:
            object.__setattr__(self, "env_params", tuple(sorted((str(k), v) for k, v in pairs)))
            object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"hidden_sizes = {self.hidden_sizes!r} must be a list of widths, and env_params = {self.env_params!r} "
                f"pairs of name and value."
            ) from error

    @property
    def batch_size(self) -> int:
        """Environment steps per update, N = num_envs * num_steps."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Rows per gradient step."""
        return self.batch_size // self.num_minibatches

    @property
    def num_updates(self) -> int:
        """Updates that fit into the budget."""
        return self.total_timesteps // self.batch_size

    @property
    def env_steps(self) -> int:
        """Environment steps that will really run: the budget rounded down to whole updates."""
        return self.num_updates * self.batch_size


@dataclasses.dataclass(frozen=True)
class Hyperparams:
    """What may be swept. Each field is a scalar, or an array [R] under `vmap` over R runs."""

    learning_rate: float = 3e-4
    """Adam's step size (its start, under a linear schedule)."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    gae_lambda: float = 0.95
    """Generalised advantage estimation's lambda, in [0, 1]: 0 is the TD error, 1 the Monte-Carlo return."""
    clip_eps: float = 0.2
    """ppo_clip: clip range of the probability ratio, 1 +- clip_eps."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus, per nat."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global L2 norm."""
    vf_clip_eps: float | None = None
    """Clip the value's change per update to this range (reward units); None leaves it free."""
    target_kl: float | None = None
    """KL(old || new) in nats: trpo's trust region, the aim of kl_adaptive (None: 0.01 for both); otherwise the rest of
    an update is skipped once a minibatch exceeds it (None: never)."""
    kl_coef: float = 1.0
    """ppo_kl: weight of the KL penalty at the start of the run, per nat, in [0.001, 1000]."""
    kl_coef_factor: float = 2.0
    """ppo_kl: kl_coef is multiplied or divided by it after an update whose KL left [kl_min, kl_max]; 1 holds it."""
    kl_min: float = 0.005
    """ppo_kl: below this mean KL of an update, in nats, kl_coef falls."""
    kl_max: float = 0.02
    """ppo_kl: above this mean KL of an update, in nats, kl_coef rises."""
    cg_damping: float = 0.1
    """trpo: added to the Fisher matrix's diagonal."""


# Options that only some update rules have; every other one belongs to all of them.
ALGORITHMS_WITH: dict[str, tuple[str, ...]] = {
    "clip_eps": ("ppo_clip",),
    "clip_eps_schedule": ("ppo_clip",),
    "vf_coef": ("ppo_clip", "ppo_kl", "policy_gradient"),
    "kl_coef": ("ppo_kl",),
    "kl_coef_factor": ("ppo_kl",),
    "kl_min": ("ppo_kl",),
    "kl_max": ("ppo_kl",),
    "cg_iterations": ("trpo",),
    "cg_damping": ("trpo",),
    "line_search_steps": ("trpo",),
}
DEFAULT_TARGET_KL = 0.01  # nats, where a target is needed and none is given
KL_COEF_BOUNDS = (1e-3, 1e3)  # the adaptive penalty stays within: about ten updates from 1 to either end

_COUNTS = (
    "total_timesteps",
    "num_envs",
    "num_steps",
    "num_epochs",
    "num_minibatches",
    "cg_iterations",
    "line_search_steps",
)
_MAX_WIDTH = 65_536
_FLOAT32_MAX = 3.4e38

# Field -> (lowest, highest, is the lowest allowed); infinite bounds are never allowed values.
_RANGES = {
    "learning_rate": (0.0, math.inf, False),
    "gamma": (0.0, 1.0, True),
    "gae_lambda": (0.0, 1.0, True),
    "clip_eps": (0.0, math.inf, False),
    "vf_coef": (0.0, math.inf, True),
    "ent_coef": (0.0, math.inf, True),
    "max_grad_norm": (0.0, math.inf, False),
    "vf_clip_eps": (0.0, math.inf, False),
    "target_kl": (0.0, math.inf, False),
    "kl_coef": (*KL_COEF_BOUNDS, True),
    "kl_coef_factor": (1.0, math.inf, True),
    "kl_min": (0.0, math.inf, True),
    "kl_max": (0.0, math.inf, False),
    "cg_damping": (0.0, math.inf, True),
}


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for the closest of the known words, or the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def validate_algorithm(name: str, known: Iterable[str]) -> None:
    """Raises ConfigError, with a suggestion, for an algorithm that is not among the known ones."""
    if name not in (known := list(known)):
        raise ConfigError(f"algorithm {name!r} is unknown; choose from {', '.join(known)}.{suggestion(name, known)}")


def validate_seed(seed: int) -> None:
    """Raises ConfigError outside [0, 2^32): `jax.random.key` wraps there, so that two seeds would be one."""
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed = {seed!r} is not a whole number in [0, 2**32); choose one there.")


def validate_config(config: TrainConfig) -> None:
    """Raises ConfigError, with the numbers and the remedy, for settings that cannot train."""
    for name in _COUNTS:
        value = getattr(config, name)
        if not _is_whole(value) or not 1 <= value < 2**63:
            raise ConfigError(f"{name} = {value!r} is not a whole number from 1 to 2**63 - 1.")
    for field in dataclasses.fields(config):
        _validate_type(field, getattr(config, field.name))
    for name, value in config.env_params:
        if not _is_number(value) and not isinstance(value, bool):
            raise ConfigError(f"env_params: {name} = {value!r} is not a number.")
    for width in config.hidden_sizes:
        if not _is_whole(width) or not 1 <= width <= _MAX_WIDTH:
            raise ConfigError(
                f"hidden_sizes has a layer of width {width!r}; a width is a whole number from 1 to {_MAX_WIDTH}."
            )
    if config.batch_size >= 2**31:
        raise ConfigError(
            f"num_envs * num_steps = {config.batch_size} rows per update are more than 2**31 - 1; lower one of them."
        )
    _validate_minibatches(config)
    if config.algorithm == "trpo":
        _validate_trpo(config)
    if config.num_updates < 1:
        raise ConfigError(
            f"total_timesteps = {config.total_timesteps} is below one update; it needs at least {config.batch_size} "
            f"(num_envs {config.num_envs} * num_steps {config.num_steps})."
        )
    if config.num_updates >= 2**31:
        raise ConfigError(
            f"total_timesteps = {config.total_timesteps} makes {config.num_updates} updates, more than 2**31 - 1; "
            f"raise num_envs or num_steps."
        )


def _is_whole(value: Any) -> bool:
    """A whole number of Python or NumPy; bool is one by inheritance only."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _validate_type(field: dataclasses.Field, value: Any) -> None:
    choices: Any = {
        "activation": Activation,
        "policy": Policy,
        "normalize_advantage": AdvantageNormalization,
        "value_target": ValueTarget,
        "learning_rate_schedule": LearningRateSchedule,
        "ent_coef_schedule": Schedule,
        "clip_eps_schedule": Schedule,
    }.get(field.name)
    if choices is not None and value not in get_args(choices):
        known = get_args(choices)
        raise ConfigError(f"{field.name} = {value!r} is unknown; choose from {', '.join(known)}.")
    for kind, name in ((bool, "true or false"), (str, "text")):
        if field.type is kind and not isinstance(value, kind):
            raise ConfigError(f"{field.name} = {value!r} is not {name}.")


def _validate_minibatches(config: TrainConfig) -> None:
    size, count = config.batch_size, config.num_minibatches
    if size == 1 and config.normalize_advantage != "off":
        raise ConfigError(
            "num_envs * num_steps = 1 row per update, whose advantage cannot be standardised; "
            "raise one of them, or set normalize_advantage to off."
        )
    lonely = config.normalize_advantage == "minibatch"  # one row alone would have no spread
    if size % count:
        near = [d for d in sorted(nearest_divisors(size, count)) if d < size or not lonely]
        raise ConfigError(
            f"num_envs * num_steps = {size} is not divisible by num_minibatches = {count}; "
            f"try {', '.join(map(str, near[:-1]))}{' or ' if near[:-1] else ''}{near[-1]}."
        )
    if size == count and lonely:
        raise ConfigError(
            f"num_minibatches = {count} leaves one row per minibatch, whose advantage cannot be standardised; "
            f"lower it, or set normalize_advantage to batch or off."
        )


def _validate_trpo(config: TrainConfig) -> None:
    if config.shared_torso:
        raise ConfigError(
            "trpo needs separate torsos (shared_torso off): fitting the value function would move a shared one, and "
            "with it the policy, out of the trust region."
        )
    if config.learning_rate_schedule == "kl_adaptive":
        raise ConfigError(
            "learning_rate_schedule = kl_adaptive is for ppo_clip, ppo_kl and policy_gradient; trpo's line search "
            "bounds the KL itself; use linear or constant, or leave trpo out."
        )


def nearest_divisors(number: int, target: int) -> list[int]:
    """The up to three divisors of `number` that are closest to `target`."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = {*small, *(number // d for d in small)}
    return sorted(divisors, key=lambda d: abs(d - target))[:3]


def validate_hyperparams(hp: Hyperparams) -> None:
    """Raises ConfigError for a value that is not finite or outside its range. Concrete scalars only."""
    for name, (low, high, low_allowed) in _RANGES.items():
        value = getattr(hp, name)
        if value is None and name in ("vf_clip_eps", "target_kl"):
            continue
        if not _is_number(value):
            raise ConfigError(f"{name} = {value!r} is not a number.")
        number = float(value) if abs(value) < _FLOAT32_MAX else math.inf
        above = number >= low if low_allowed else number > low
        if not (math.isfinite(number) and above and number <= high):
            bounds = f"{'[' if low_allowed else '('}{low:g}, {f'{high:g}]' if math.isfinite(high) else 'inf)'}"
            raise ConfigError(f"{name} = {value} is outside {bounds}.")
    if hp.kl_min >= hp.kl_max:
        raise ConfigError(f"kl_min = {hp.kl_min} is not below kl_max = {hp.kl_max}; leave a gap between them.")
