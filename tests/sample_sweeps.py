"""Small sweeps, and what might have come of them."""

import numpy as np

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.sweeps.tables import Curve, Outcome

BATCH = 8


def sweep_of(points, seeds=(5, 6), updates=6, **options):
    """A sweep of these points, all of this many updates of 8 steps unless they say otherwise."""
    config = {"num_envs": 2, "num_steps": 4, "num_minibatches": 1, "total_timesteps": BATCH * updates}
    settings = []
    for point in points:
        mine = {k: v for k, v in point.items() if k in TrainConfig.__dataclass_fields__}
        hp = {k: v for k, v in point.items() if k not in mine}
        settings.append((TrainConfig(**config | mine), Hyperparams(**hp)))
    axes = tuple(dict.fromkeys(axis for point in points for axis in point))
    return SweepSettings(axes, tuple(points), tuple(settings), tuple(seeds), RunOptions(), **options)


def outcome_of(returns, env_steps=48, rung=0):
    """Of runs with these returns; those that are NaN diverged in update 3."""
    returns = np.ravel(np.array(returns, float))
    steps, rung = (np.broadcast_to(np.ravel(x), returns.shape).copy() for x in (env_steps, rung))
    return Outcome(steps, returns, np.where(np.isnan(returns), 3, 0), rung)


def curves_of(sweep, returns=0.0):
    """One episode in every update of every run, of these returns (to be broadcast to [S, n, U])."""
    updates = sweep.settings[0][0].num_updates
    total = np.broadcast_to(np.asarray(returns, float), (len(sweep.settings), len(sweep.seeds), updates))
    steps = BATCH * np.arange(1, updates + 1)
    return [Curve(steps, t, np.ones(t.shape, int)) for t in total]
