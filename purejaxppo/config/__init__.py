"""Settings: their declaration, tuned values, the order in which sources override each other, and their checks.

Nothing in this folder imports JAX, so that `purejaxppo --help` and wrong settings need not wait for it.
"""

from purejaxppo.config.fields import Hyperparams, RunOptions, TrainConfig

__all__ = ["Hyperparams", "RunOptions", "TrainConfig"]
