"""Final returns over seeds, against the targets: trains each environment with its preset and evaluates greedily.

    python benchmarks/learning.py --env CartPole-v1 Acrobot-v1 --seeds 10

Reports the interquartile mean over seeds of the final evaluation's mean return, with a 95 % bootstrap interval; one
JSON file per environment under benchmarks/results/. Seeds used for tuning presets start at 1000.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.envs import from_gymnax
from purejaxppo.evaluate import evaluate, summarize
from purejaxppo.host_loop import chunk_lengths
from purejaxppo.networks import make_network
from purejaxppo.settings import resolve
from purejaxppo.train import advance, trainer_from_config
from purejaxppo.wrappers import evaluation_env, observation_stats

# Environment -> the lower 95 % bound of the interquartile mean that has to be reached.
TARGETS = {
    "CartPole-v1": 475,
    "Acrobot-v1": -90,
    "MountainCar-v0": -130,
    "MountainCarContinuous-v0": 85,
    "Pendulum-v1": -200,
    "Catch-bsuite": 0.95,
    "DiscountingChain-bsuite": 1.05,
    "FourRooms-misc": 0.9,
    "Asterix-MinAtar": 12,
    "Breakout-MinAtar": 25,
    "Freeway-MinAtar": 50,
    "SpaceInvaders-MinAtar": 110,
}
RESULTS = Path(__file__).parent / "results"


def iqm(x: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis, the outer quarters cut with fractional weight."""
    x = np.sort(x, axis=-1)
    n = x.shape[-1]
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return (x * weight).sum(axis=-1) / weight.sum()


def interval(x: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the interquartile mean over seeds."""
    rows = np.random.default_rng(0).integers(0, len(x), (draws, len(x)))
    low, high = np.quantile(iqm(x[rows]), [0.025, 0.975])
    return float(low), float(high)


def learn(env_id: str, seeds: list[int], settings: dict[str, Any], episodes: int) -> dict[str, Any]:
    """Trains one seed after the other with one compiled program; returns what the results file holds."""
    config, hp = resolve(env_id, settings)
    env = from_gymnax(config.env, config.num_envs, **dict(config.env_params))
    trainer = trainer_from_config(config, env)
    network = make_network(config, env)
    copies = from_gymnax(config.env, episodes, **dict(config.env_params))
    traced = jax.tree.map(jnp.float32, hp)
    init = jax.jit(trainer.init)
    program = jax.jit(lambda runner, n: advance(trainer, traced, runner, n), static_argnums=1, donate_argnums=0)

    @jax.jit
    def play(key: jax.Array, runner: Any) -> Any:
        frozen = evaluation_env(config, copies, observation_stats(runner.env_state))
        return evaluate(key, frozen, network.apply, runner.learner.params)

    returns, train_returns, seconds = [], [], []
    for seed in seeds:
        runner, curve = init(jax.random.key(seed), traced), []
        start = time.perf_counter()
        for length in chunk_lengths(config, jax.default_backend()):
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
    low, high = interval(np.array(returns))
    return {
        "env": env_id,
        "config": {**dataclasses.asdict(config), **dataclasses.asdict(hp)},
        "env_steps": config.env_steps,
        "seeds": seeds,
        "episodes": episodes,
        "return_mean": returns,
        "train_return": train_returns,
        "iqm": float(iqm(np.array(returns))),
        "interval": [low, high],
        "target": TARGETS.get(env_id),
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="overrides as JSON, for tuning; nothing is saved"
    )
    args = parser.parse_args()
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
