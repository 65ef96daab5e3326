"""Measures final returns over seeds: trains each environment with its preset and evaluates greedily.

    python -m benchmarks.studies.learning --env CartPole-v1 Acrobot-v1 --seeds 10

Reports the interquartile mean over seeds of the final evaluation's mean return, with a 95 % bootstrap interval; one
JSON file per environment under benchmarks/results/. Seeds used for tuning presets start at 1000.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib.report import parser
from purejaxppo.config.presets import TARGETS
from purejaxppo.config.resolve import resolve
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.evaluate import evaluate_runner
from purejaxppo.experiment.chunked_loop import chunk_lengths
from purejaxppo.experiment.evaluation import summarize
from purejaxppo.experiment.statistics import bootstrap_interval, interquartile_mean
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import advance, trainer_from_config

RESULTS = Path(__file__).parent.parent / "results"


def learn(env_id: str, seeds: list[int], settings: dict[str, Any], episodes: int) -> dict[str, Any]:
    """Trains one seed after the other with one compiled program; returns the content of the results file."""
    config, hp = resolve(env_id, settings)
    env = from_gymnax(config.env, config.num_envs, **dict(config.env_params))
    trainer = trainer_from_config(config, env)
    policy = make_policy(config, env)
    copies = from_gymnax(config.env, episodes, **dict(config.env_params))
    traced = jax.tree.map(jnp.float32, hp)
    init = jax.jit(trainer.init)
    program = jax.jit(lambda runner, n: advance(trainer, traced, runner, n), static_argnums=1, donate_argnums=0)

    play = jax.jit(lambda key, runner: evaluate_runner(key, config, copies, policy, runner))

    returns, train_returns, seconds = [], [], []
    for seed in seeds:
        runner, curve = init(jax.random.key(seed), traced), []
        start = time.perf_counter()
        for length in chunk_lengths(config, runner.learner.params, jax.default_backend()):
            runner, metrics = program(runner, length)
            curve.append(np.asarray(metrics["episode/return"]))
        jax.block_until_ready(runner)
        seconds.append(time.perf_counter() - start)
        returns.append(summarize(play(jax.random.key(seed + 2**31), runner))["return_mean"])
        tail = np.concatenate(curve)[-math.ceil(config.num_updates / 10) :]
        train_returns.append(float(np.nanmean(tail)) if np.isfinite(tail).any() else math.nan)
        print(
            f"{env_id}  seed {seed}  {returns[-1]:.4g}  (training {train_returns[-1]:.4g})  {seconds[-1]:.0f} s",
            flush=True,
        )
    low, high = bootstrap_interval(np.array(returns), draws=10_000)
    return {
        "env": env_id,
        "config": {**dataclasses.asdict(config), **dataclasses.asdict(hp)},
        "env_steps": config.env_steps,
        "seeds": seeds,
        "episodes": episodes,
        "return_mean": returns,
        "train_return": train_returns,
        "iqm": float(interquartile_mean(np.array(returns))),
        "interval": [float(low), float(high)],
        "target": TARGETS.get(env_id),
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--env", nargs="+", default=list(TARGETS))
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--episodes", type=int, default=128)
    options.add_argument(
        "--settings", type=json.loads, default={}, help="overrides as JSON, for tuning; nothing is saved"
    )
    args = options.parse_args()
    for env_id in args.env:
        seeds = list(range(args.first_seed, args.first_seed + args.seeds))
        result = learn(env_id, seeds, args.settings, args.episodes)
        low, high = result["interval"]
        target = result["target"]
        verdict = "" if target is None else f"  target {target}: {'reached' if low >= target else 'MISSED'}"
        steps = result["env_steps"]
        print(
            f"{env_id}  {steps:,} env steps  IQM {result['iqm']:.4g}  95 % [{low:.4g}, {high:.4g}]{verdict}", flush=True
        )
        if not args.settings and args.first_seed == 0:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"learning-{env_id}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
