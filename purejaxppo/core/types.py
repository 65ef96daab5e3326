"""The records that travel between the parts. T = num_steps, E = num_envs, N = T * E, R = runs.

State holds arrays only, so that one record can be vmapped, sharded, donated and saved unchanged; functions travel in
`VecEnv`, `Algorithm` and `Trainer`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from purejaxppo.config import Hyperparams
from purejaxppo.core.distributions import Distribution

jax.tree_util.register_dataclass(Hyperparams)

Metrics = dict[str, jax.Array]
Params = Any
EnvState = Any
_UNBOUNDED = 1e30  # from here on a bound stands for none: some environments declare float32's largest number


class Discrete(NamedTuple):
    """n actions, 0 .. n - 1."""

    n: int


class Box(NamedTuple):
    """Real arrays of one shape; low and high are given per element, as tuples, for actions and None otherwise."""

    shape: tuple[int, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lowest and the highest value of each element, infinite where none is given."""
        low = np.asarray(-np.inf if self.low is None else self.low, np.float64)
        high = np.asarray(np.inf if self.high is None else self.high, np.float64)
        return np.broadcast_to(low, self.shape), np.broadcast_to(high, self.shape)

    def bounded(self) -> np.ndarray:
        """Returns for each element whether both of its bounds are finite."""
        low, high = self.bounds()
        return (np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED)


class EnvStep(NamedTuple):
    """What E environments return for one step."""

    obs: jax.Array  # [E, ...] of the next step: already the new episode's first after an end
    final_obs: jax.Array  # [E, ...] of the same episode: its last one after an end, else equal to obs
    reward: jax.Array  # [E] float32
    terminated: jax.Array  # [E] bool, the task ended
    truncated: jax.Array  # [E] bool, a time limit cut it off
    info: Metrics  # [E] each; the rollout returns their sums


class VecEnv(NamedTuple):
    """E environments stepped side by side, each starting anew by itself when its episode ends."""

    reset: Callable[[jax.Array], tuple[EnvState, jax.Array]]  # key -> (state, obs [E, ...])
    step: Callable[[jax.Array, EnvState, jax.Array], tuple[EnvState, EnvStep]]  # key, state, action [E, ...]
    observation_space: Box
    action_space: Discrete | Box
    num_envs: int
    step_limit: int | None = None  # steps after which an episode is truncated, if there is such a limit
    # Steps from one truncation of an environment to its next, at least. 1 is always right; if two are closer than it
    # says, the later one is valued by another episode's last observation, and nothing tells.
    truncation_gap: int = 1


class Transition(NamedTuple):
    """A rollout."""

    obs: jax.Array  # [T, E, ...]
    action: jax.Array  # [T, E, ...] as sampled
    pi: Distribution  # leaves [T, E, ...], the policy that acted
    log_prob: jax.Array  # [T, E] of action under pi
    value: jax.Array  # [T, E]
    next_value: jax.Array  # [T, E] of the next observation of the same episode
    reward: jax.Array  # [T, E]
    terminated: jax.Array  # [T, E] bool
    truncated: jax.Array  # [T, E] bool


class Batch(NamedTuple):
    """What an algorithm learns from: a rollout's rows, environment by environment, with their advantages."""

    obs: jax.Array  # [N, ...]
    action: jax.Array  # [N, ...]
    pi: Distribution  # leaves [N, ...]
    log_prob: jax.Array  # [N]
    value: jax.Array  # [N]
    advantage: jax.Array  # [N]
    target: jax.Array  # [N] for the value function


class LearnerState(NamedTuple):
    """What learns."""

    params: Params
    opt_state: Any
    algo_state: Any  # () unless an algorithm carries something of its own


class RunnerState(NamedTuple):
    """Everything that a run is."""

    learner: LearnerState
    env_state: EnvState  # with the normalisers' statistics and the unfinished episodes' sums
    obs: jax.Array  # [E, ...] that the next rollout starts from
    key: jax.Array
    updates: jax.Array  # int32, updates done


class Network(Protocol):
    """Any object with these two methods; a flax linen module is one."""

    def init(self, key: jax.Array, obs: jax.Array, /) -> Params: ...
    def apply(self, params: Params, obs: jax.Array, /) -> tuple[Distribution, jax.Array]: ...


Apply = Callable[[Params, jax.Array], tuple[Distribution, jax.Array]]  # params, obs [..., O] -> (pi, value [...])


# params, rows -> means over the rows, or values of each
OfRows = Callable[[Params, Batch], Any]


class Split(NamedTuple):
    """How functions of a batch's rows are computed share by share, by default not at all."""

    mean: Callable[[OfRows], OfRows] = lambda f: f  # of f(params, rows) -> means over the rows
    each: Callable[[OfRows], OfRows] = lambda f: f  # of f(params, rows) -> values of each row


whole = Split()


class Algorithm(NamedTuple):
    """An update rule: a pair of pure functions.

    The metrics of `update` are scalars. Those of `diagnostics.drift` belong among them: the KL-adaptive learning rate
    follows `kl`, and `compare` draws it.
    """

    init: Callable[[Hyperparams, Params], LearnerState]
    update: Callable[[jax.Array, Hyperparams, LearnerState, Batch], tuple[LearnerState, Metrics]]


class Trainer(NamedTuple):
    """A whole training run as a pair of pure functions."""

    init: Callable[[jax.Array, Hyperparams], RunnerState]
    update: Callable[[Hyperparams, RunnerState], tuple[RunnerState, Metrics]]
    place: Callable[[RunnerState], RunnerState] = lambda runner: runner  # puts a saved state where it is computed
