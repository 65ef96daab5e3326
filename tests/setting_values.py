"""Values of settings other than their defaults, for the tests that go through every field."""

from typing import Literal, get_args, get_origin

from purejaxppo.config.setting import facts_of, range_of

# So far from the default that two updates show it. A new hyperparameter needs such a value, which nothing can tell.
FAR = {
    "learning_rate": 1e-2,
    "gamma": 0.5,
    "gae_lambda": 0.2,
    "clip_eps": 1e-3,
    "vf_coef": 2.0,
    "ent_coef": 0.5,
    "max_grad_norm": 1e-3,
    "vf_clip_eps": 1e-3,
    "target_kl": 1e-6,
    "kl_coef": 20.0,
    "kl_coef_factor": 20.0,
    "kl_min": 1e2,
    "kl_max": 1e3,
    "cg_damping": 1.0,
}


def other_value(field, nth=0):
    """A valid value of a choice, a switch or a number that is not its default, whatever the other fields are.

    Numbers differ for different nth, up to 48.
    """
    if field.type is bool:
        return not field.default
    if get_origin(field.type) is Literal:
        return next(choice for choice in get_args(field.type) if choice != field.default)
    if parts := facts_of(field).built_in:
        return next(part for part in parts if part != field.default)
    bounds = range_of(field)
    step = 1 if field.type in (int, int | None) else min(1.0, bounds.high - bounds.low) / 50
    return next(number for i in (1, 2) if (number := bounds.low + (nth + i) * step) != field.default)
