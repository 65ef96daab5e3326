"""Settings: their declarations, tuned values, the merge of their sources, and their checks.

Nothing in this folder imports JAX, so that `purejaxppo --help` and wrong settings are answered without waiting for it.
"""

from purejaxppo.config.fields import Hyperparams, RunOptions, TrainConfig

__all__ = ["Hyperparams", "RunOptions", "TrainConfig"]
