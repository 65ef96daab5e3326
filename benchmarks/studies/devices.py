"""Learning curves of one run on 1, 2 and 4 CPU devices: whether the number of devices can be told from them.

    python -m benchmarks.studies.devices --seeds 10 --out benchmarks/results/devices.json

The runs of a seed begin with the same parameters, environments and random numbers, and differ by rounding, which
training makes grow. For each number of devices, the mean training return over the whole run is compared with that on
one device, seed by seed: the p-value is that of the exact sign-flip test, two-sided, of the hypothesis that the
difference of a seed is as likely to be negative as positive.
"""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.report import parser

NUMBERS = (1, 2, 4)
TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"num_envs": 64, "num_steps": 128, "num_minibatches": 4, "total_timesteps": 300_000},
    "Pendulum-v1": {},  # its preset, with both normalisers
}


def curves(env_id: str, settings: dict[str, Any], number: int, seeds: range) -> np.ndarray:
    """Returns the training returns [seeds, updates] on `number` devices; NaN where no episode ended."""
    import jax
    import jax.numpy as jnp

    import purejaxppo
    from purejaxppo.config.resolve import resolve

    config, hp = resolve(env_id, {**settings, "num_shards": max(NUMBERS)})
    trainer = purejaxppo.spread_trainer(config, devices=jax.devices()[:number])
    hp = jax.tree.map(jnp.float32, hp)
    init = jax.jit(trainer.init)
    train = jax.jit(lambda hp, runner: purejaxppo.advance(trainer, hp, runner, config.num_updates)[1])
    return np.array([train(hp, init(jax.random.key(seed), hp))["episode/return"] for seed in seeds])


def sign_flip_p(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of the mean of these differences [n] under all 2^n flips of their signs."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(differences))))
    means = np.abs(signs @ differences)
    return float(np.mean(means >= np.abs(differences.sum()) * (1 - 1e-12)))


def compare(env_id: str, seeds: range) -> dict[str, Any]:
    """Trains all seeds on each number of devices; returns the mean return of each, and the p-values against one."""
    found = {number: curves(env_id, TASKS[env_id], number, seeds) for number in NUMBERS}
    score = {number: np.nanmean(curve, axis=1) for number, curve in found.items()}
    tail = {number: np.nanmean(curve[:, -curve.shape[1] // 10 :], axis=1) for number, curve in found.items()}
    results: dict[str, Any] = {}
    for number in NUMBERS:
        same = float(np.nanmax(np.abs(found[number][:, :2] - found[1][:, :2])))
        p = sign_flip_p(score[number] - score[1])
        print(
            f"{env_id}  {number} devices  mean return over the run {score[number].mean():.4g}, at its end "
            f"{tail[number].mean():.4g}  p = {p:.2f}  first two updates' returns differ by {same:.1g}",
            flush=True,
        )
        results[str(number)] = {"over_the_run": score[number].tolist(), "at_the_end": tail[number].tolist(), "p": p}
    return results


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--out", type=Path, help="write the scores as JSON")
    arguments = options.parse_args()
    os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(max(NUMBERS)), NPROC="1")
    results = {env_id: compare(env_id, range(arguments.seeds)) for env_id in TASKS}
    if arguments.out:
        arguments.out.write_text(json.dumps({"seeds": arguments.seeds, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
