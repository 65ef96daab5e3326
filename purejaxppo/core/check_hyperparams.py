"""Checks of hyperparameters, of one run or of many."""

import dataclasses
from typing import Any

import jax
import numpy as np

from purejaxppo.config import Hyperparams
from purejaxppo.config.validate import validate_kl_range, validate_seed, validate_value
from purejaxppo.errors import ConfigError


def check_hyperparams(hp: Hyperparams) -> None:
    """Raises ConfigError for a number that is not finite or outside its range; traced values cannot be checked.

    Args:
      hp: of one run with scalar leaves, or of R runs with leaves [R].
    """
    known = {name: np.asarray(value) for name, value in vars(hp).items() if not isinstance(value, jax.core.Tracer)}
    for field in dataclasses.fields(hp):
        if field.name in known:
            for value in set(known[field.name].ravel().tolist()):
                validate_value(field, value)
    if "kl_min" in known and "kl_max" in known:
        pairs = np.broadcast_arrays(known["kl_min"], known["kl_max"])
        for low, high in set(zip(*(x.ravel().tolist() for x in pairs), strict=True)):
            validate_kl_range(low, high)


def check_runs(hps: Hyperparams, seeds: Any) -> None:
    """Raises ConfigError unless hyperparameters and seeds are within range and have the same shape [R]."""
    check_hyperparams(hps)
    shape = np.shape(seeds)
    for name, value in vars(hps).items():
        if value is not None and (len(shape) != 1 or np.shape(value) != shape):
            raise ConfigError(
                f"{name} has the shape {np.shape(value)} and seeds {shape}, where both have to be [R], one per run; "
                f"purejaxppo.grid makes them."
            )
    if not isinstance(seeds, jax.core.Tracer):
        for seed in set(np.asarray(seeds).tolist()):
            validate_seed(seed)
