"""The declarations of all settings, in three dataclasses.

- `TrainConfig`: static settings, which are compiled in.
- `Hyperparams`: arguments of the compiled program, which may be traced.
- `RunOptions`: settings of the host, which do not change the result of training.

A field is the whole declaration of a setting: its type and default; range, unit, algorithms, source and heading by
`setting`; and the docstring under it, which is its help on the command line. The flag, its place in the help and the
check of a field are derived from it, and so are the tables of docs/hyperparameters.md, which
`python scripts/settings_tables.py` writes.

This module does not import JAX, so that `purejaxppo --help` need not wait for it. `core/types.py` registers
`Hyperparams` as a pytree.
"""

import contextlib
import dataclasses
import numbers
import os
from collections.abc import Mapping
from typing import Any, Literal

from purejaxppo.config.setting import owners, setting, with_ranges
from purejaxppo.errors import ConfigError

Activation = Literal["tanh", "relu", "elu", "gelu", "silu"]
AdvantageNormalization = Literal["minibatch", "batch", "off"]
ActionDistribution = Literal["gaussian", "tanh_gaussian"]
ValueTarget = Literal["gae", "rewards_to_go"]
OnNonfinite = Literal["stop", "skip", "rollback"]
EnvParams = tuple[tuple[str, Any], ...]
AnyPath = str | os.PathLike[str]  # for arguments of public functions; everywhere else paths are `pathlib.Path`
DEFAULT_TARGET_KL = 0.01  # nats; for algorithms that need a target, if none is given
# A shard has at least this many rows of each minibatch, as a device needs them for its work to outweigh the exchange.
# On two cores, with devices of one thread, 64 x 128 (1,024 rows each) trained 1.25 times as fast on two devices as on
# one, and 16 x 128 (256 rows each) 0.83 times. Changing it changes runs.
ROWS_PER_SHARD = 512
KL_COEF_BOUNDS = (1e-3, 1e3)  # limits of the adaptive penalty: about ten updates from 1 to either of them
# Of every run, as episode/<name>; what an environment reports has other names.
EPISODE_METRICS = ("return", "length", "count")
_MAX_WHOLE = 2.0**63  # above all counts; a float from here on is not converted, so that its error message shows it
_INT32_MAX = 2**31 - 1
_SCHEDULES = ("constant", "linear", "cosine", "warmup_cosine")


def plain(value: Any) -> Any:
    """Returns a scalar or array [] of NumPy or JAX as a number of Python's own; any other value as it is."""
    if getattr(value, "ndim", None) == 0:
        with contextlib.suppress(AttributeError, TypeError):  # a `jax.ShapeDtypeStruct`, or a tracer
            value = value.item()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, numbers.Real):  # such as a long double of NumPy or a Fraction
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def whole(value: Any) -> Any:
    """Returns what `plain` does, but a float with a whole value, such as 1e6, as an int."""
    value = plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_WHOLE else value


def _convert_numbers(record: Any) -> None:
    """Converts the numbers in a frozen dataclass to Python's own, and to ints where the field is an int.

    A value of another type is left as it is, so that the message of `config/validate.py` shows it as it was given.
    """
    for field in dataclasses.fields(record):
        converted = (whole if field.type in (int, int | None) else plain)(getattr(record, field.name))
        object.__setattr__(record, field.name, converted)


@with_ranges
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Static settings of a run, which shape its compiled program. Hashable; another value takes another compilation."""

    env: str = setting("CartPole-v1", heading="environment")
    """A gymnax environment's id, or a registered environment's; `purejaxppo envs` lists them."""
    env_params: EnvParams = setting((), heading="environment")
    """Environment parameters as name=value, for example max_steps_in_episode=200."""
    algorithm: str = setting("ppo_clip", built_in=("ppo_clip", "ppo_kl", "trpo", "policy_gradient"))
    """Update rule: ppo_clip, ppo_kl, trpo, policy_gradient (files of purejaxppo/algorithms), or a registered one."""
    total_timesteps: int = setting(1_000_000, at_least=1, unit="environment steps", heading="run")
    """Budget in environment steps, over all environments; rounded down to whole updates."""
    num_envs: int = setting(64, at_least=1, unit="environments", heading="rollout and batch")
    """Environments stepped side by side."""
    num_steps: int = setting(128, at_least=1, unit="steps per environment", heading="rollout and batch")
    """Steps of each environment per update."""
    num_epochs: int = setting(4, at_least=1, unit="passes", heading="rollout and batch")
    """Passes over the collected batch per update."""
    num_minibatches: int = setting(4, at_least=1, unit="gradient steps per epoch", heading="rollout and batch")
    """Gradient steps per epoch; must divide num_envs * num_steps."""
    num_shards: int | None = setting(None, at_least=1, unit="blocks of environments", heading="rollout and batch")
    """Equal blocks of environments in which the batch is shuffled, and which devices share; must divide num_envs and
    the rows of a minibatch. Another number is another run; the number of devices changes its rounding alone. None: the
    largest of 8, 4, 2 and 1 that leaves each block 512 rows of a minibatch."""
    sequence_length: int | None = setting(None, at_least=1, unit="steps", heading="rollout and batch")
    """Steps of the sequences that a policy with memory learns from; must divide num_steps. None: all of them. Other
    policies learn from single steps."""
    hidden_sizes: tuple[int, ...] = setting((64, 64), at_least=1, at_most=65_536, unit="units", heading="policy")
    """Widths of the hidden layers (after the convolution, for image observations)."""
    activation: Activation = setting("tanh", heading="policy")
    """Activation of the hidden layers."""
    shared_torso: bool = setting(False, heading="policy")
    """Let policy and value function share all but their heads."""
    scale_pixels: bool = setting(True, heading="policy")
    """Divide observations of the type uint8 by 255."""
    policy: str | None = setting(None, heading="policy", built_in=("mlp", "conv", "gru"))
    """Network: mlp, conv, gru (with memory), or a registered one. None: conv for image observations, else mlp."""
    action_distribution: ActionDistribution = setting("gaussian", heading="policy")
    """Continuous actions only: Gaussian clipped to the bounds, or squashed into them by tanh; its 0 is their middle."""
    normalize_observation: bool = setting(False, heading="normalisation")
    """Standardise observations by the statistics of all earlier rollouts and clip them to +-10."""
    normalize_reward: bool = setting(False, heading="normalisation")
    """Divide rewards by the standard deviation of the discounted return in all earlier rollouts; clip them to +-10."""
    normalize_advantage: AdvantageNormalization = setting("minibatch", heading="normalisation")
    """Standardise advantages per minibatch, per batch, or not at all."""
    value_target: ValueTarget = "gae"
    """What the value function is fitted to: advantage + value, or the rewards-to-go (lambda = 1)."""
    optimizer: str = setting("adam", heading="optimisation", built_in=("adam", "adamw", "sgd", "rmsprop", "muon"))
    """What takes the gradient steps: adam, adamw (weight decay 1e-4), sgd, rmsprop, muon, or a registered one."""
    learning_rate_schedule: str = setting("linear", heading="optimisation", built_in=(*_SCHEDULES, "kl_adaptive"))
    """Course over the updates: constant, linear to 0, cosine to 0, warmup_cosine (up from a tenth in the first tenth,
    then cosine), a registered one; or kl_adaptive: after each update times or divided by 1.5, to hold KL(old || new)
    near target_kl (which then stops no update early)."""
    ent_coef_schedule: str = setting("constant", heading="optimisation", built_in=_SCHEDULES)
    """Course of ent_coef over the updates: constant, linear, cosine, warmup_cosine, or a registered one."""
    clip_eps_schedule: str = setting("constant", of=("ppo_clip",), built_in=_SCHEDULES)
    """ppo_clip: course of clip_eps over the updates: constant, linear, cosine, warmup_cosine, or a registered one."""
    cg_iterations: int = setting(10, at_least=1, unit="iterations per update", of=("trpo",))
    """trpo: conjugate-gradient iterations per update."""
    line_search_steps: int = setting(10, at_least=1, unit="step lengths", of=("trpo",))
    """trpo: step lengths tried per update, each half of the one before."""
    on_nonfinite: OnNonfinite = setting("stop", heading="run")
    """When a reward, observation, loss, gradient or parameter is not finite: stop; skip, which undoes the update and
    tries again with other random numbers; or rollback to the newest checkpoint, from there with others."""

    def __post_init__(self) -> None:
        _convert_numbers(self)
        # JSON has lists and objects, Python users pass lists and dicts; a hashable record needs tuples.
        pairs = self.env_params.items() if isinstance(self.env_params, Mapping) else self.env_params
        try:
            object.__setattr__(self, "env_params", tuple(sorted((str(k), plain(v)) for k, v in pairs)))
            object.__setattr__(self, "hidden_sizes", tuple(whole(width) for width in self.hidden_sizes))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"hidden_sizes = {self.hidden_sizes!r} must be a list of widths, and env_params = {self.env_params!r} "
                f"pairs of name and value."
            ) from error

    @property
    def batch_size(self) -> int:
        """Returns the environment steps per update, N = num_envs * num_steps."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Returns the number of rows per gradient step."""
        return self.batch_size // self.num_minibatches

    @property
    def shard_count(self) -> int:
        """`num_shards`, or what follows from the shapes alone: a run is then the same on any number of devices."""
        if self.num_shards is not None:
            return self.num_shards
        for number in (8, 4, 2):
            rows, rest = divmod(self.minibatch_size, number)
            if rest == 0 and self.num_envs % number == 0 and rows >= ROWS_PER_SHARD:
                return number
        return 1

    @property
    def num_updates(self) -> int:
        """Returns the number of whole updates within the budget."""
        return self.total_timesteps // self.batch_size

    @property
    def env_steps(self) -> int:
        """Returns the environment steps that are trained: the budget rounded down to whole updates."""
        return self.num_updates * self.batch_size


@with_ranges
@dataclasses.dataclass(frozen=True)
class Hyperparams:
    """Hyperparameters, which may be swept. Each field is a scalar, or an array [R] under `vmap` over R runs."""

    learning_rate: float = setting(3e-4, above=0, source="PPO, 37", heading="optimisation")
    """The optimizer's step size, which the schedule multiplies."""
    gamma: float = setting(0.99, at_least=0, at_most=1, unit="per step", source="GAE")
    """Discount per step, in [0, 1]."""
    gae_lambda: float = setting(0.95, at_least=0, at_most=1, unit="per step", source="GAE eq. 16")
    """Generalised advantage estimation's lambda, in [0, 1]: 0 is the TD error, 1 the Monte-Carlo return."""
    clip_eps: float = setting(0.2, above=0, unit="ratio", of=("ppo_clip",), source="PPO eq. 7")
    """ppo_clip: clip range of the probability ratio, 1 +- clip_eps."""
    vf_coef: float = setting(
        0.5,
        at_least=0,
        unit="per squared reward unit",
        of=("ppo_clip", "ppo_kl", "policy_gradient"),
        source="PPO eq. 9",
        heading="optimisation",
    )
    """Weight of the value loss."""
    ent_coef: float = setting(0.01, at_least=0, unit="per nat", source="PPO eq. 9", heading="optimisation")
    """Weight of the entropy bonus, per nat."""
    max_grad_norm: float = setting(0.5, above=0, unit="L2 norm", source="37", heading="optimisation")
    """Gradients are scaled down to this global L2 norm."""
    vf_clip_eps: float | None = setting(None, above=0, unit="reward units", source="WM")
    """Clip the value's change per update to this range (reward units); None leaves it free."""
    target_kl: float | None = setting(None, above=0, unit="nats", source="TRPO, 37")
    """KL(old || new) in nats: trpo's trust region, the aim of kl_adaptive (None: 0.01 for both); otherwise the rest of
    an update is skipped once a minibatch exceeds it (None: never)."""
    kl_coef: float = setting(
        1.0,
        at_least=KL_COEF_BOUNDS[0],
        at_most=KL_COEF_BOUNDS[1],
        unit="per nat",
        of=("ppo_kl",),
        source="PPO eq. 8",
    )
    """ppo_kl: weight of the KL penalty at the start of the run, per nat, in [0.001, 1000]."""
    kl_coef_factor: float = setting(2.0, at_least=1, of=("ppo_kl",), source="PPO sec. 4")
    """ppo_kl: kl_coef is multiplied or divided by it after an update whose KL left [kl_min, kl_max]; 1 holds it."""
    kl_min: float = setting(0.005, at_least=0, unit="nats", of=("ppo_kl",), source="PPO sec. 4")
    """ppo_kl: below this mean KL of an update, in nats, kl_coef falls."""
    kl_max: float = setting(0.02, above=0, unit="nats", of=("ppo_kl",), source="PPO sec. 4")
    """ppo_kl: above this mean KL of an update, in nats, kl_coef rises."""
    cg_damping: float = setting(0.1, at_least=0, of=("trpo",), source="TRPO app. C")
    """trpo: added to the Fisher matrix's diagonal."""

    def __post_init__(self) -> None:
        # JAX constructs this record for every tree of it, with arrays, tracers, shapes or axes as fields. Those must
        # stay as they are, so only numbers of Python and NumPy are converted; `plain` below converts JAX's scalars.
        for name, value in vars(self).items():
            if isinstance(value, numbers.Real) or type(value).__module__ == "numpy":
                object.__setattr__(self, name, plain(value))

    def plain(self) -> "Hyperparams":
        """Returns the hyperparameters of one run with Python's own numbers. Not for traced values."""
        return Hyperparams(**{name: plain(value) for name, value in vars(self).items()})


@with_ranges
@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Settings of the host, around training."""

    eval_episodes: int = setting(128, at_least=1, at_most=_INT32_MAX, unit="episodes", heading="evaluation")
    """Greedy episodes after training."""
    checkpoint_seconds: float = setting(60.0, at_least=0, unit="seconds", heading="checkpoint")
    """Save the state whenever this many seconds have passed (0: about every second), and at the end."""
    keep_newest: int = setting(2, at_least=2, at_most=_INT32_MAX, unit="checkpoints", heading="checkpoint")
    """Checkpoints to keep: the newest ones, at least two, so that one may be damaged ..."""
    keep_best: int = setting(1, at_least=0, at_most=_INT32_MAX, unit="checkpoints", heading="checkpoint")
    """... and those with the best returns: of the newest evaluation if the run evaluates while training, otherwise of
    the training itself."""
    eval_every: int = setting(0, at_least=0, unit="environment steps", heading="evaluation")
    """Evaluate while training too, each time that so many steps are done, rounded down to whole updates but at least
    one (0: never). `train` does it ten times unless told otherwise; it changes no bit of the training."""
    eval_every_episodes: int = setting(32, at_least=1, at_most=_INT32_MAX, unit="episodes", heading="evaluation")
    """Greedy episodes of each evaluation while training."""

    def __post_init__(self) -> None:
        _convert_numbers(self)


# Setting -> the algorithms that have it, for settings that not all of them have. An algorithm that is not named here,
# such as a user's own, may use all settings.
ALGORITHMS_WITH = owners(TrainConfig, Hyperparams)
