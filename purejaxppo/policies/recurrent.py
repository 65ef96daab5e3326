"""Policies that remember by a gated recurrent unit (GRU)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import Distribution
from purejaxppo.core.types import Observation, Params, VecEnv
from purejaxppo.errors import ConfigError
from purejaxppo.policies.gated_unit import unroll
from purejaxppo.policies.heads import policy_head
from purejaxppo.policies.inputs import Inputs, is_image, reader
from purejaxppo.policies.layers import ConvTorso, Dense, MLPTorso, feature_major, torso_maker

States = dict[str, jax.Array]  # the memory: name of the unit -> its state [E, H]


def gru(config: TrainConfig, env: VecEnv) -> "Recurrent":
    """Returns the network of `conv` or `mlp` with a GRU, as wide as the last hidden layer, between torsos and heads.

    Policy and value function have a unit each, or one together (`shared_torso`).

    Raises:
      ConfigError: there is no hidden layer; and what `mlp` raises.
      EnvError: what `mlp` raises.
    """
    if not config.hidden_sizes:
        raise ConfigError("a GRU is as wide as the last hidden layer, but hidden_sizes is empty; give it one width.")
    torso = ConvTorso if is_image(env.observation_space) else MLPTorso
    network = RecurrentActorCritic(
        read=reader(config, env.observation_space),
        make_torso=torso_maker(config, torso),
        make_head=policy_head(config, env.action_space),
        width=config.hidden_sizes[-1],
        shared_torso=config.shared_torso,
    )
    return Recurrent(network)


class Recurrent:
    """The `Policy` of a recurrent network."""

    def __init__(self, network: "RecurrentActorCritic") -> None:
        self.network = network

    def init(self, key: jax.Array, obs: Observation) -> Params:
        num_envs = len(jax.tree.leaves(obs)[0])
        memory, start = self.initial_memory(num_envs), jnp.ones((num_envs, 1), jnp.bool_)
        return self.network.init(key, memory, _one_step(obs), start)

    def initial_memory(self, num_envs: int) -> States:
        return {name: jnp.zeros((num_envs, self.network.width)) for name in self.network.units}

    def act(self, params: Params, memory: States, obs: Observation, start: jax.Array) -> tuple[States, Distribution]:
        memory, pi, _ = self._apply(params, memory, _one_step(obs), start[:, None])
        return memory, jax.tree.map(lambda x: x[:, 0], pi)

    def evaluate(
        self, params: Params, memory: States, obs: Observation, start: jax.Array
    ) -> tuple[Distribution, jax.Array]:
        _, pi, value = self._apply(params, memory, obs, start)
        return pi, value

    def _apply(self, params: Params, memory: States, obs: Observation, start: jax.Array) -> Any:
        # `Any`, as flax annotates `apply` for its mutable collections.
        return self.network.apply(params, memory, obs, start)


def _one_step(obs: Observation) -> Observation:
    """Returns observations [E, ...] as sequences [E, 1, ...]."""
    return jax.tree.map(lambda x: x[:, None], obs)


class RecurrentActorCritic(nn.Module):
    """Policy and value function of sequences: torsos, GRUs and heads."""

    read: Callable[[Observation], Inputs]
    make_torso: Callable[[bool], nn.Module]
    make_head: Callable[[bool], nn.Module]
    width: int
    shared_torso: bool = False

    @property
    def units(self) -> tuple[str, ...]:
        """The names of the recurrent units: the policy's comes first, the value function's last."""
        return ("both",) if self.shared_torso else ("actor", "critic")

    @nn.compact
    def __call__(self, memory: States, obs: Observation, start: jax.Array) -> tuple[States, Distribution, jax.Array]:
        """Maps memory [B, H], obs [B, L, ...] and start [B, L] to the memory after them, pi [B, L] and value [B, L]."""
        lead, seen, privileged, mask = self.read(obs)
        columns = feature_major(seen)
        after, features = {}, []
        for unit, beside in zip(self.units, (None, privileged), strict=False):
            x = self.make_torso(columns)(seen, beside)
            # All that does not depend on the memory is computed for all steps at once, before the loop over them.
            gates = Dense(3 * self.width, 1.0, columns, name=f"{unit}_gates")(x)
            gates = (gates.T if columns else gates).reshape(*lead, -1)
            after[unit], states = GRU(self.width, name=f"{unit}_gru")(memory[unit], gates, start)
            states = states.reshape(-1, self.width)
            features.append(states.T if columns else states)
        pi = self.make_head(columns)(features[0])
        pi = pi if mask is None else pi.masked(mask)
        value = Dense(1, 1.0, columns, name="value_head")(features[-1]).reshape(-1)
        pi, value = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), (pi, value))
        return after, pi, value


class GRU(nn.Module):
    """A gated recurrent unit with orthogonal weights, over sequences in which episodes may begin (`unroll`)."""

    width: int

    @nn.compact
    def __call__(self, h: jax.Array, gates: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps h [B, H], gates x [B, L, 3 H] and start [B, L] to the last state [B, H] and all states [B, L, H]."""
        square = nn.initializers.orthogonal()

        def three(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
            return jnp.concatenate([square(k, (shape[0], shape[0])) for k in jax.random.split(key, 3)], axis=1)

        kernel = self.param("kernel", three, (self.width, 3 * self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        states = unroll(kernel, bias, h, gates.swapaxes(0, 1), start.T)
        return states[-1], states.swapaxes(0, 1)
