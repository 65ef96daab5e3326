"""The optimizer, built from the hyperparameters inside the traced function, and their schedules over a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.registry import Registry

Schedule = Callable[[jax.Array], Any]  # progress of the run, [] in [0, 1] -> factor []

OPTIMIZERS: Registry[Callable[[Hyperparams], optax.GradientTransformation]] = Registry(
    "optimizer",
    {
        "adam": lambda hp: optax.adam(hp.learning_rate, eps=1e-5),
        "adamw": lambda hp: optax.adamw(hp.learning_rate, eps=1e-5, weight_decay=1e-4),
        "sgd": lambda hp: optax.sgd(hp.learning_rate),
        "rmsprop": lambda hp: optax.rmsprop(hp.learning_rate),
        "muon": lambda hp: optax.contrib.muon(hp.learning_rate),  # with Adam for what is not a matrix
    },
)


def register_optimizer(name: str, factory: Callable[[Hyperparams], optax.GradientTransformation]) -> None:
    """Makes an optimizer of one's own known by name, to settings, flags and saved runs.

    Args:
      name: no built-in one's; one's own may be registered again.
      factory: `factory(hp)` returns the transformation, without a clip of the gradient's norm, which is put before it.
        It is called while the update is traced, and `hp.learning_rate` may be traced.
    """
    OPTIMIZERS.register(name, factory)


def make_optimizer(config: TrainConfig, hp: Hyperparams) -> optax.GradientTransformation:
    """Returns the optimizer named by `config.optimizer` behind a clip of the gradient's global norm.

    `hp.learning_rate` and `hp.max_grad_norm` may be traced: the transformation lives only as long as the trace, and
    its state holds arrays only.
    """
    return optax.chain(_clip_by_norm(hp.max_grad_norm), OPTIMIZERS.lookup(config.optimizer)(hp))


def flat_norm(grads: Any) -> jax.Array:
    """Returns the L2 norm of all leaves together."""
    # Of one vector: on an accelerator, a reduction for each leaf would be two launches for each.
    return jnp.linalg.norm(ravel_pytree(grads)[0])


def _clip_by_norm(most: float | jax.Array) -> optax.GradientTransformation:
    """Returns the transformation of `optax.clip_by_global_norm`, with `flat_norm`."""

    def clip(grads: Any, _: Any = None) -> Any:
        norm = flat_norm(grads)
        return jax.tree.map(lambda x: jnp.where(norm < most, x, x / norm * most), grads)

    return optax.stateless(clip)


_WARM_UP, _BEGIN = 0.1, 0.1  # of a run, and of the rate


def _cosine(progress: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _warmup_cosine(progress: jax.Array) -> jax.Array:
    """Returns a factor that rises from a tenth to 1 over the first tenth of the run, and falls to 0 over the rest."""
    rising = _BEGIN + (1.0 - _BEGIN) * progress / _WARM_UP
    return jnp.where(progress < _WARM_UP, rising, _cosine((progress - _WARM_UP) / (1.0 - _WARM_UP)))


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": _cosine,
        "warmup_cosine": _warmup_cosine,
        "kl_adaptive": lambda progress: 1.0,  # adapted after each update in algorithms/adaptive_lr.py
    },
)


def register_schedule(name: str, schedule: Schedule) -> None:
    """Makes a schedule of one's own known by name, to settings, flags and saved runs.

    Args:
      name: no built-in one's; one's own may be registered again.
      schedule: `schedule(progress)` returns the factor by which a hyperparameter is multiplied; the progress is the
        part of the run's updates that is done, from 0 in the first one towards 1, and is traced.
    """
    SCHEDULES.register(name, schedule)


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
        learning_rate=hp.learning_rate * SCHEDULES.lookup(config.learning_rate_schedule)(progress),
        ent_coef=hp.ent_coef * SCHEDULES.lookup(config.ent_coef_schedule)(progress),
        clip_eps=hp.clip_eps * SCHEDULES.lookup(config.clip_eps_schedule)(progress),
    )


def check_names(config: TrainConfig) -> None:
    """Raises ConfigError for an unknown optimizer or schedule, which only a trace would find otherwise."""
    OPTIMIZERS.lookup(config.optimizer)
    for name in (config.learning_rate_schedule, config.ent_coef_schedule, config.clip_eps_schedule):
        SCHEDULES.lookup(name)
