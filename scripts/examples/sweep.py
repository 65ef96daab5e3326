"""A sweep in Python: learning rates x clip ranges x seeds as one compiled program, and the score of each setting.

`purejaxppo sweep` adds what a long sweep needs: a plan that fits into memory, checkpoints, tables and pictures.
"""

import numpy as np

import purejaxppo
from purejaxppo.experiment.statistics import bootstrap_interval, interquartile_mean

LEARNING_RATES, CLIP_RANGES, SEEDS = (3e-4, 1e-3, 3e-3), (0.1, 0.2), range(4)


def main(total_timesteps: int = 50_000) -> float:
    """Trains on CartPole and returns the best setting's last return, of at most 500."""
    config = purejaxppo.TrainConfig(total_timesteps=total_timesteps, num_envs=8)
    trainer = purejaxppo.trainer_from_config(config)
    hps, seeds = purejaxppo.grid(purejaxppo.Hyperparams(), SEEDS, learning_rate=LEARNING_RATES, clip_eps=CLIP_RANGES)
    runs = purejaxppo.make_runs(trainer, hps, seeds)
    runs, metrics = purejaxppo.advance_runs(trainer, hps, runs, config.num_updates)  # metrics [R, updates]

    # Settings x seeds: the mean return of the episodes that ended in the last tenth.
    last = np.asarray(metrics["episode/return"])[:, -max(1, config.num_updates // 10) :]
    returns = np.nanmean(last, axis=1).reshape(-1, len(SEEDS))
    low, high = bootstrap_interval(returns)
    middle = interquartile_mean(returns)
    for s in np.argsort(-middle):
        learning_rate, clip_eps = (np.asarray(x)[s * len(SEEDS)] for x in (hps.learning_rate, hps.clip_eps))
        interval = f"{low[s]:.0f} to {high[s]:.0f}"
        print(f"learning rate {learning_rate:.0e}, clip range {clip_eps:.1f}: {middle[s]:.0f} ({interval})")
    print(f"{runs.diverged.size} runs, {int((runs.diverged > 0).sum())} of them diverged")
    return float(np.nanmax(middle))


if __name__ == "__main__":
    purejaxppo.use_all_cores()
    main()
