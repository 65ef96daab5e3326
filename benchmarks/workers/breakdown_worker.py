"""Answers with the seconds of the parts of an update, each compiled by itself and timed in turn.

python -m benchmarks.workers.breakdown_worker 64x128 --repetitions 9

Nothing that a part computes is thrown away: it is carried from one round to the next and returned at the end.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.lib.hlo_kernels import count_kernels
from benchmarks.lib.report import parser, shape, sizes
from benchmarks.lib.worker_process import answer_channel
from benchmarks.trainers.ours import train_config, warm_block
from benchmarks.trainers.protocol import Settings
from purejaxppo import Hyperparams, TrainConfig, use_all_cores
from purejaxppo.algorithms.ppo_clip import clipped_loss, ppo_clip
from purejaxppo.algorithms.surrogate import surrogate_steps
from purejaxppo.core.advantage import gae
from purejaxppo.core.minibatch import cut
from purejaxppo.core.rollout import rollout
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Actors, Batch, Policy
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.policies.registry import make_policy

Step = Callable[[Any], tuple[Any, Any]]  # state -> (state, what else is computed)
# Env steps per call on a CPU, for calls of some tens of milliseconds.
ENV_STEPS = {"environment": 1 << 16, "rollout": 1 << 15, "advantage": 1 << 19, "one epoch": 1 << 14, "epochs": 1 << 13}


class Part(NamedTuple):
    """A part of an update that is measured: a step, and the state that it starts from."""

    state: Any
    step: Step


def repeated(part: Part, rounds: int) -> Callable[[], float]:
    """Compiles `rounds` rounds of a part in one loop; returns a function that returns the seconds of one round."""
    rest = zeros_like(jax.eval_shape(part.step, part.state)[1])

    def call(state: Any, rest: Any) -> Any:
        return jax.lax.scan(lambda carry, _: (part.step(carry[0]), None), (state, rest), length=rounds)[0]

    program = jax.jit(call).lower(part.state, rest).compile()
    carry = jax.block_until_ready(program(part.state, rest))

    def measure() -> float:
        nonlocal carry
        start = time.perf_counter()
        carry = jax.block_until_ready(program(*carry))
        return (time.perf_counter() - start) / rounds

    return measure


def zeros_like(shapes: Any) -> Any:
    """Returns arrays of these shapes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def make_parts(config: TrainConfig) -> dict[str, Part]:
    """Returns the parts of one update of ppo_clip, on data of a first rollout."""
    hp = jax.tree.map(jnp.float32, Hyperparams())
    wrapped = bound_action(config, from_gymnax(config.env, config.num_envs))
    policy = make_policy(config, wrapped)
    key = jax.random.key(0)
    env_state, obs = jax.jit(wrapped.reset)(jax.random.split(key, config.num_envs))
    env_ids = jnp.arange(config.num_envs)
    params = jax.jit(policy.init)(key, obs)
    memory = policy.initial_memory(config.num_envs)

    def collect(state: Any) -> tuple[Any, Any]:
        key, params, actors = state
        key, now = jax.random.split(key)
        actors, trajectory = rollout(now, wrapped, policy, params, actors, env_ids, config.num_steps)
        return (key, params, actors), trajectory

    start = key, params, Actors(env_state, obs, memory, start=jnp.ones(config.num_envs, jnp.bool_))
    _, seen = jax.jit(collect)(start)

    def env_alone(state: Any) -> tuple[Any, Any]:
        def step(carry: Any, inputs: Any) -> tuple[Any, None]:
            env_state, result = wrapped.step(inputs[0], carry[0], inputs[1])
            return (env_state, result), None

        key, action, last = state
        key, now = jax.random.split(key)
        keys = jax.random.split(now, (config.num_steps, config.num_envs))
        last, _ = jax.lax.scan(step, last, (jax.vmap(wrapped.draw)(keys), action))
        return (key, action, last), ()

    def estimate(state: Any) -> tuple[Any, Any]:
        seen, advantage, _ = state
        reward = seen.reward + 1e-9 * advantage  # so that no round is like the last
        ends = seen.terminated, seen.truncated
        return (seen, *gae(reward, seen.value, seen.next_value, *ends, hp.gamma, hp.gae_lambda)), ()

    draws = jax.eval_shape(wrapped.draw, jax.random.split(key, config.num_envs))
    first = zeros_like(jax.eval_shape(wrapped.step, draws, env_state, seen.action[0])[1])
    zeros = jnp.zeros_like(seen.reward)
    batch = cut(config, seen, advantage=seen.reward, target=seen.reward)
    return {
        "environment": Part((key, seen.action, (env_state, first)), env_alone),
        "rollout": Part(start, collect),
        "advantage": Part((seen, zeros, zeros), estimate),
        "one epoch": learning(replace(config, num_epochs=1), policy, hp, params, batch),
        "epochs": learning(config, policy, hp, params, batch),
    }


def learning(config: TrainConfig, policy: Policy, hp: Hyperparams, params: Any, batch: Batch) -> Part:
    """Returns the part of all gradient steps, with shuffles and measures of drift, on the same batch in each round."""
    learn = surrogate_steps(config, policy, clipped_loss(), Shards(config.shard_count))

    def step(state: Any) -> tuple[Any, Any]:
        key, hp, learner, batch = state
        key, now = jax.random.split(key)
        learner, metrics = learn(now, hp, learner, batch)
        return (key, hp, learner, batch), metrics

    key = jax.random.key(1)
    return Part((key, hp, ppo_clip(config, policy).init(key, hp, params), batch), step)


def measure(num_envs: int, num_steps: int, repetitions: int) -> dict[str, Any]:
    """Returns the seconds per round of each part, all parts in turn, and the kernels of a whole update."""
    work = Settings(num_envs=num_envs, num_steps=num_steps)
    larger = 1 if jax.default_backend() == "cpu" else 16
    rounds = {name: max(2, min(64, larger * size // work.env_steps)) for name, size in ENV_STEPS.items()}
    timers = {name: repeated(part, rounds[name]) for name, part in make_parts(train_config(work)).items()}
    block = warm_block(replace(work, updates_per_block=rounds["epochs"]))
    timers["whole update"] = lambda: block.time() / rounds["epochs"]
    times = [{name: timer() for name, timer in timers.items()} for _ in range(repetitions)]
    kernels = count_kernels(block.program.as_text() or "") / rounds["epochs"]
    return {"seconds": times, "kernels_per_update": kernels, "env_steps_per_update": work.env_steps}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("shape", type=shape, help="environments x steps of CartPole")
    options.add_argument("--repetitions", type=int, default=9)
    arguments = options.parse_args()
    answer = answer_channel()
    # The parts run on one device, and so does the whole update that they are compared with.
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    use_all_cores()
    answer(measure(**sizes(arguments.shape), repetitions=arguments.repetitions))


if __name__ == "__main__":
    main()
