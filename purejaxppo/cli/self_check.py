"""Checks of the doctor that run small pieces of training and compare the results with known ones.

The imports are within the checks, so that a broken installation makes one check fail, and not the command.
"""

import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from purejaxppo.config import Hyperparams, TrainConfig

Status = Literal["ok", "warning", "failed"]
Verdict = tuple[Status, str]  # status and a line of detail

_RATIO_TOLERANCE = 1e-6  # for devices on which rounding depends on the size of a batch
_GAE_TOLERANCE = 1e-5  # relative, of float32 against float64; a misread flag makes an error of about 1

# Small enough to compile in seconds. With two minibatches, only the first is evaluated before any gradient step.
_SMALL = TrainConfig(
    env="CartPole-v1", total_timesteps=128, num_envs=4, num_steps=16, num_epochs=1, num_minibatches=2, hidden_sizes=(8,)
)


def check_imports() -> Verdict:
    """Imports everything that the other checks need, so that their seconds do not include it."""
    from orbax.checkpoint import v1  # noqa: F401

    import purejaxppo.experiment.checkpoints.store  # noqa: F401
    from purejaxppo.train import trainer_from_config

    trainer_from_config(_SMALL)  # gymnax is imported with the first environment
    return "ok", "jax, flax, optax, gymnax and orbax can be imported"


@functools.cache  # shared by two checks
def _small_run() -> tuple[Any, dict[str, Any]]:
    """Trains for two updates; returns the final state and the metrics, each [2]."""
    import jax

    from purejaxppo.train import train

    # LLVM's optimisations would take most of the time, and gain nothing for so little work.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    with jax.default_matmul_precision("highest"):  # TensorFloat-32 would exceed the tolerance
        program = jax.jit(functools.partial(train, _SMALL), compiler_options=options)
        return program(Hyperparams(), jax.random.key(0))


def check_ratio() -> Verdict:
    """Checks that the probability ratio is 1 before the first gradient step, when the policy is the one that acted."""
    import numpy as np

    _, metrics = _small_run()
    deviation = float(np.max(np.abs(metrics["ratio/first_minibatch_deviation"])))
    if not deviation <= _RATIO_TOLERANCE:  # nor NaN
        return "failed", f"the probability ratio is off 1 by {deviation:.2g} in the first minibatch of an update"
    one = "exactly 1" if deviation == 0 else "1 up to rounding"
    return "ok", f"the probability ratio is {one} in the first minibatch of an update"


def check_gae() -> Verdict:
    """Checks the advantages of random data, with terminated and truncated episodes, against a loop in float64."""
    import numpy as np

    from purejaxppo.core.advantage import gae

    rng = np.random.default_rng(0)
    steps, envs, gamma, gae_lambda = 64, 8, 0.99, 0.95
    reward, value, next_value = rng.normal(size=(3, steps, envs)).astype(np.float32)
    terminated, truncated = rng.random((2, steps, envs)) < 0.1
    computed = np.stack(gae(reward, value, next_value, terminated, truncated, gamma, gae_lambda))

    expected = np.zeros((steps + 1, envs))
    for t, e in itertools.product(reversed(range(steps)), range(envs)):
        future = 0.0 if terminated[t, e] else float(next_value[t, e])
        delta = float(reward[t, e]) + gamma * future - float(value[t, e])
        over = terminated[t, e] or truncated[t, e]
        expected[t, e] = delta + (0.0 if over else gamma * gae_lambda * expected[t + 1, e])
    both = np.stack([expected[:-1], expected[:-1] + value])
    error = float(np.max(np.abs(computed - both) / np.maximum(1.0, np.abs(both))))
    agrees = error <= _GAE_TOLERANCE  # NaN does not
    return "ok" if agrees else "failed", f"advantages are within {error:.1g} of a float64 loop, {steps} x {envs} steps"


def check_checkpoint() -> Verdict:
    """Checks that a complete state, saved and restored, is bitwise identical."""
    import jax

    from purejaxppo.experiment.checkpoints.state import snapshot, state_sha256
    from purejaxppo.experiment.checkpoints.store import CheckpointChoice, load_newest, save_step

    runner, _metrics = _small_run()
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), runner)
    with tempfile.TemporaryDirectory() as folder:
        save_step(Path(folder), _SMALL.env_steps, snapshot(runner), {})
        restored, _ = load_newest(Path(folder), expected, CheckpointChoice(strict=True))
        same = state_sha256(restored) == state_sha256(runner)
    if not same:
        return "failed", "a state that was saved and restored is not the same"
    return "ok", f"a state of {len(jax.tree.leaves(runner))} arrays is the same after saving and restoring it"


SELF_CHECKS: dict[str, Callable[[], Verdict]] = {
    "imports": check_imports,
    "probability ratio": check_ratio,
    "advantages": check_gae,
    "checkpoint": check_checkpoint,
}
