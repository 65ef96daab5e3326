"""The optimizer, built from the hyperparameters inside the traced function, and their schedules over a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import LearningRateSchedule


def make_optimizer(hp: Hyperparams) -> optax.GradientTransformation:
    """Returns Adam (eps 1e-5) behind a clip of the gradient's global norm.

    `hp.learning_rate` and `hp.max_grad_norm` may be traced: the transformation lives only as long as the trace, and
    its state holds arrays only.
    """
    return optax.chain(
        optax.clip_by_global_norm(hp.max_grad_norm),
        optax.adam(hp.learning_rate, eps=1e-5),
    )


_SCHEDULES: dict[LearningRateSchedule, Callable[[jax.Array], Any]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "kl_adaptive": lambda progress: 1.0,  # adapted after each update in algorithms/adaptive_lr.py
}


def anneal(config: TrainConfig, hp: Hyperparams, updates: jax.Array) -> Hyperparams:
    """Returns the hyperparameters of one update: each that has a schedule is multiplied by the schedule's value.

    Args:
      config: with the schedules, and num_updates, over which they run.
      hp: the run's hyperparameters.
      updates: updates done before this one.
    """
    progress = jnp.minimum(updates / config.num_updates, 1.0)
    return dataclasses.replace(
        hp,
        learning_rate=hp.learning_rate * _SCHEDULES[config.learning_rate_schedule](progress),
        ent_coef=hp.ent_coef * _SCHEDULES[config.ent_coef_schedule](progress),
        clip_eps=hp.clip_eps * _SCHEDULES[config.clip_eps_schedule](progress),
    )
