"""The records that the modules pass to each other. T = num_steps, E = num_envs, N = T * E rows, R = runs.

State holds arrays only, so that one record can be vmapped, sharded, donated and saved unchanged. Functions are passed
in `VecEnv`, `Algorithm` and `Trainer`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Hyperparams
from purejaxppo.core.distributions import Distribution
from purejaxppo.core.episodes import Episodes
from purejaxppo.core.normalizer import Normalizer
from purejaxppo.core.shards import Shards

jax.tree_util.register_dataclass(Hyperparams)

Metrics = dict[str, jax.Array]
Params = Any
EnvState = Any
Observation = Any  # an array, or a dict of arrays (`core.observations`)
Memory = Any  # what a policy remembers, a pytree of leaves [E, ...]; () if it remembers nothing
Bounds = float | tuple[Any, ...]  # a number, or nested tuples of them
_UNBOUNDED = 1e30  # a bound of this size or more counts as none: some environments declare float32's largest number


class Discrete(NamedTuple):
    """A space of n actions, 0 .. n - 1."""

    n: int

    def element(self) -> jax.ShapeDtypeStruct:
        """Returns the shape and type of one environment's action, int32 []."""
        return jax.ShapeDtypeStruct((), jnp.int32)


class MultiDiscrete(NamedTuple):
    """A space of F choices at once, the factors of an action; factor i is one of 0 .. sizes[i] - 1."""

    sizes: tuple[int, ...]

    def element(self) -> jax.ShapeDtypeStruct:
        """Returns the shape and type of one environment's action, int32 [F]."""
        return jax.ShapeDtypeStruct((len(self.sizes),), jnp.int32)


class Box(NamedTuple):
    """A space of real arrays of one shape.

    For actions `low` and `high` hold one bound per element, in nested tuples [*shape]; for observations they are None.
    A policy's action is the flat array [A] of the A elements in row-major order, which `envs.wrappers.action_bound`
    reshapes.
    """

    shape: tuple[int, ...]
    low: Bounds | None = None
    high: Bounds | None = None

    def element(self) -> jax.ShapeDtypeStruct:
        """Returns the shape and type of one environment's action, float32 [*shape]."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lowest and the highest value of each element, infinite where no bound is given."""
        low = np.asarray(-np.inf if self.low is None else self.low, np.float64)
        high = np.asarray(np.inf if self.high is None else self.high, np.float64)
        return np.broadcast_to(low, self.shape), np.broadcast_to(high, self.shape)

    def bounded(self) -> np.ndarray:
        """Returns for each element whether both of its bounds are finite."""
        low, high = self.bounds()
        return (np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED)


ActionSpace = Discrete | MultiDiscrete | Box


class EnvStep(NamedTuple):
    """The result of one step of E environments."""

    obs: Observation  # [E, ...], which the next action is chosen from; after an end the new episode's first one
    final_obs: Observation  # [E, ...], the successor in the same episode: its last observation at an end, else obs
    reward: jax.Array  # [E] float32
    terminated: jax.Array  # [E] bool, the task itself ended
    truncated: jax.Array  # [E] bool, a time limit ended the episode
    info: Metrics  # numbers or truth values, leaves [E]; their means become metrics


def _keys_themselves(keys: jax.Array) -> Any:
    return keys


class VecEnv(NamedTuple):
    """E vectorised environments that auto-reset: the step that ends an episode returns the next one's first `obs`.

    Every environment has a key of its own, so what happens in it does not depend on how many others there are. `step`
    and `draw` take any number of environments, since each of several devices steps its own only; every leaf of the
    state is [E, ...], and each of its rows belongs to one environment.
    """

    reset: Callable[[jax.Array], tuple[EnvState, Observation]]  # keys [E] -> (state, obs [E, ...])
    step: Callable[[Any, EnvState, jax.Array], tuple[EnvState, EnvStep]]  # draws, state, action [E, ...]
    observation_space: Box | dict[str, Box]
    action_space: ActionSpace
    num_envs: int
    step_limit: int | None = None  # steps after which an episode is truncated, if there is such a limit
    # The least number of steps between two truncations of one environment. 1 is always right. If two truncations are
    # closer than declared, the later one is bootstrapped from another episode's observation, without an error.
    truncation_gap: int = 1
    # keys [E] -> the draws of one step, leaves [E, ...]: what is random in it, and does not depend on the state. The
    # rollout makes those of all its steps at once, before its loop. By default they are the keys.
    draw: Callable[[jax.Array], Any] = _keys_themselves


class Actors(NamedTuple):
    """E environments and what the policy remembers of them: where a rollout begins, and where it ends."""

    env_state: EnvState
    obs: Observation  # [E, ...]
    memory: Memory  # [E, ...] before obs was seen
    start: jax.Array  # [E] bool, whether obs is the first of an episode, before which nothing is remembered


class Trajectory(NamedTuple):
    """A rollout: T steps of E environments. What nobody reads costs nothing: the compiler removes it."""

    obs: Observation  # [T, E, ...]
    action: jax.Array  # [T, E, ...] as sampled, before it is brought to the environment's bounds
    pi: Distribution  # leaves [T, E, ...], the policy that acted
    log_prob: jax.Array  # [T, E] of action under pi
    value: jax.Array  # [T, E] of obs
    next_value: jax.Array  # [T, E] of the successor in the same episode; 0 after a terminated step
    reward: jax.Array  # [T, E]
    terminated: jax.Array  # [T, E] bool
    truncated: jax.Array  # [T, E] bool
    next_obs: Observation  # [T, E, ...] the successor in the same episode; not what follows in `obs` after an end
    start: jax.Array  # [T, E] bool, whether obs is the first of an episode
    memory: Memory  # [T, E, ...] before obs was seen
    info: Metrics  # leaves [T, E]


class Batch(NamedTuple):
    """One update's training data: the N rows of a rollout in environment-major order, with their advantages.

    For a policy with memory, N counts sequences of L steps: the leading axes are then [N, L] instead of [N], but for
    `memory`.
    """

    obs: Observation  # [N, ...]
    action: jax.Array  # [N, ...]
    pi: Distribution  # leaves [N, ...], the policy that acted
    log_prob: jax.Array  # [N] of action under pi
    value: jax.Array  # [N] of obs, by the parameters before the update
    advantage: jax.Array  # [N]
    target: jax.Array  # [N], which the value function is fitted to
    start: jax.Array  # [N] bool
    memory: Memory  # [N, ...] at the beginning of each sequence
    extra: Any = ()  # [N, ...] of an algorithm's own


class LearnerState(NamedTuple):
    """Parameters, optimizer state and the algorithm's own state."""

    params: Params
    opt_state: Any
    algo_state: Any  # () for an algorithm that carries nothing from one update to the next


class RunnerState(NamedTuple):
    """The complete state of one training run; this is what a checkpoint stores."""

    learner: LearnerState
    env_state: EnvState
    obs: Observation  # [E, ...] as the environments returned it, which the next rollout starts from
    memory: Memory  # [E, ...] of the policy, before it has seen obs
    episodes: Episodes  # running
    normalizer: Normalizer
    env_ids: jax.Array  # int32 [E], the environments' numbers, from which their keys are made
    key: jax.Array
    updates: jax.Array  # int32, updates done


class Policy(Protocol):
    """What maps observations to actions and values. `policies.feed_forward` makes one of a network without memory.

    Where `start` is true an episode begins: whatever is remembered then belongs to another one and has no effect.
    """

    def init(self, key: jax.Array, obs: Observation, /) -> Params:
        """Returns the parameters, for observations like obs [E, ...]."""

    def initial_memory(self, num_envs: int, /) -> Memory:
        """Returns what is remembered before the first observation, leaves [E, ...]; () for a policy without memory."""

    def act(self, params: Params, memory: Memory, obs: Observation, start: jax.Array, /) -> tuple[Memory, Distribution]:
        """Takes one step of E environments: memory, obs [E, ...], start [E] -> (memory, distribution [E])."""

    def evaluate(
        self, params: Params, memory: Memory, obs: Observation, start: jax.Array, /
    ) -> tuple[Distribution, jax.Array]:
        """Returns distributions and values: those of rows [...] without memory, of sequences [B, L] with memory [B]."""


class Algorithm(NamedTuple):
    """An update rule: a pair of pure functions.

    The metrics of `update` are scalars. They have to include those of `core.diagnostics.diagnose`: the KL-adaptive
    learning rate follows `kl`, and `purejaxppo compare` plots it.
    """

    init: Callable[[jax.Array, Hyperparams, Params], LearnerState]  # key, hp, params of the policy -> learner
    # key, hp, learner, trajectory -> (learner, metrics). The trajectory has observations and rewards as the policy and
    # the value function are to see them: normalised, if the run normalises them.
    update: Callable[[jax.Array, Hyperparams, LearnerState, Trajectory], tuple[LearnerState, Metrics]]
    # Of the run, if all that is learnt from a device's rows passes through their `mean` or `gather`; a rule without
    # shards is trained on one device.
    shards: Shards | None = None


class Trainer(NamedTuple):
    """A training run as a pair of pure functions."""

    init: Callable[[jax.Array, Hyperparams], RunnerState]  # key, hp -> runner
    update: Callable[[Hyperparams, RunnerState], tuple[RunnerState, Metrics]]
    # Moves a restored state to the devices that it is trained on.
    place: Callable[[RunnerState], RunnerState] = lambda runner: runner
