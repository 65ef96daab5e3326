"""Settings either fail at once, with one line that names the numbers and the remedy, or they train."""

import dataclasses
import math
import re
from typing import Literal, get_origin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.validate import (
    nearest_divisors,
    seeds_from,
    suggestion,
    validate_config,
    validate_hyperparams,
    validate_options,
    validate_seed,
    validate_seeds,
)
from purejaxppo.errors import ConfigError, PureJaxPPOError

COUNTS = ("total_timesteps", "num_envs", "num_steps", "num_epochs", "num_minibatches")
POSITIVE = ("learning_rate", "clip_eps", "max_grad_norm", "vf_clip_eps", "target_kl")
NOT_NEGATIVE = ("vf_coef", "ent_coef")
UNIT_INTERVAL = ("gamma", "gae_lambda")
# Fields of TrainConfig that take one word of a few.
CHOICES = [field.name for field in dataclasses.fields(TrainConfig) if get_origin(field.type) is Literal]


def refusal(validate, setting) -> str:
    """Returns the message of the ConfigError that `validate(setting)` must raise."""
    with pytest.raises(ConfigError) as caught:
        validate(setting)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, PureJaxPPOError)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_valid():
    """What a user gets without a single flag trains."""
    validate_config(TrainConfig())
    validate_hyperparams(Hyperparams())
    validate_options(RunOptions())


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, -(2**40), 2**63, 64.5, 2.0**63, math.nan, math.inf, True, "64", None])
def test_count_must_be_a_whole_number_from_1(name, value):
    """Zero, negative, too large, fractional, boolean and textual counts are refused with name, value and range."""
    message = refusal(validate_config, TrainConfig(**{name: value}))
    assert f"{name} = {value!r}" in message
    assert "from 1 to 2**63 - 1" in message


def test_budget_above_int32_is_exact():
    """A budget above 2^31 is accepted, and its derived counts do not wrap."""
    config = TrainConfig(total_timesteps=2**31 + 8192 * 3 + 5, num_envs=64, num_steps=128)
    validate_config(config)
    assert config.num_updates == 2**31 // 8192 + 3
    assert config.env_steps == 2**31 + 8192 * 3


def test_largest_budget_is_accepted():
    """2^63 - 1 environment steps are allowed as long as the number of updates fits into int32."""
    config = TrainConfig(total_timesteps=2**63 - 1, num_envs=2**20, num_steps=2**10 * 2 - 1, num_minibatches=1)
    assert config.num_updates >= 2**31
    message = refusal(validate_config, config)
    assert str(config.num_updates) in message
    assert "raise num_envs or num_steps" in message
    validate_config(dataclasses.replace(config, total_timesteps=config.batch_size * (2**31 - 1)))


def test_budget_below_one_update():
    """The message says how many steps one update takes, and from which two numbers."""
    message = refusal(validate_config, TrainConfig(total_timesteps=8191, num_envs=64, num_steps=128))
    for number in ("8191", "8192", "num_envs 64", "num_steps 128"):
        assert number in message
    validate_config(TrainConfig(total_timesteps=8192, num_envs=64, num_steps=128))


def test_rows_per_update_fit_into_int32():
    """Row indices are int32, so that a batch of 2^31 rows is refused and one row per environment less is not."""
    config = TrainConfig(total_timesteps=2**40, num_envs=2**16, num_steps=2**15)
    assert str(2**31) in refusal(validate_config, config)
    validate_config(dataclasses.replace(config, num_steps=2**15 - 1))


@pytest.mark.parametrize(
    ("num_envs", "number", "remedy"), [(12, 8, "try 4, 6 or 12"), (12, 5, "try"), (4, 8, "try"), (4, 0, "")]
)
def test_shards_that_do_not_divide_are_refused(num_envs, number, remedy):
    config = TrainConfig(num_envs=num_envs, num_steps=32, num_minibatches=2, num_shards=number)
    message = refusal(validate_config, config)
    assert f"num_shards = {number}" in message
    assert remedy in message


@pytest.mark.parametrize(("num_envs", "num_steps", "shards"), [(64, 128, 4), (16, 128, 1), (2048, 32, 8), (63, 128, 1)])
def test_the_number_of_shards_follows_from_the_shapes_or_is_given(num_envs, num_steps, shards):
    """As many as leave each 512 rows of a minibatch."""
    config = TrainConfig(num_envs=num_envs, num_steps=num_steps, num_minibatches=4)
    assert config.shard_count == shards
    validate_config(config)
    assert dataclasses.replace(config, num_shards=1).shard_count == 1
    assert dataclasses.replace(config, num_shards=1.0).num_shards == 1


def test_indivisible_minibatches_name_the_nearest_divisors():
    """1000 rows in 3 minibatches: 2 and 4 would do."""
    message = refusal(validate_config, TrainConfig(num_envs=100, num_steps=10, num_minibatches=3))
    assert "num_envs * num_steps = 1000" in message
    assert "num_minibatches = 3" in message
    remedy = message.split("try")[1]
    assert {2, 4} <= {int(number) for number in re.findall(r"\d+", remedy)}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2000))
def test_suggested_minibatches_are_themselves_valid(num_envs, num_steps, num_minibatches):
    """Following the remedy leads to a configuration that passes, not to the next error."""
    config = TrainConfig(num_envs=num_envs, num_steps=num_steps, num_minibatches=num_minibatches)
    try:
        validate_config(config)
    except ConfigError as error:
        if "try" not in str(error):
            return
        for number in re.findall(r"\d+", str(error).split("try")[1]):
            validate_config(dataclasses.replace(config, num_minibatches=int(number)))


def test_single_row_minibatch_cannot_be_standardised():
    """One row per minibatch has no spread: refused per minibatch, allowed per batch or off."""
    config = TrainConfig(num_envs=4, num_steps=8, num_minibatches=32, total_timesteps=1000)
    message = refusal(validate_config, config)
    assert "num_minibatches = 32" in message
    assert "batch or off" in message
    validate_config(dataclasses.replace(config, normalize_advantage="batch"))
    validate_config(dataclasses.replace(config, normalize_advantage="off"))
    validate_config(dataclasses.replace(config, num_minibatches=16))


@pytest.mark.parametrize("width", [0, -1, 10**6, 65_537, 1.5, True, "64", None])
def test_impossible_width(width):
    """Widths of 0, a million and of other types are refused with the value and the range."""
    message = refusal(validate_config, TrainConfig(hidden_sizes=(64, width)))
    assert repr(width) in message
    assert "from 1 to 65536" in message


@pytest.mark.parametrize("sizes", [(), (1,), (65_536,), (8, 16, 32)])
def test_possible_widths(sizes):
    """The limits themselves are allowed, and so is no hidden layer at all."""
    validate_config(TrainConfig(hidden_sizes=sizes))


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["sigmoid", "", None, 1, ["tanh"]])
def test_unknown_choice_lists_the_known_ones(name, value):
    """A value outside a Literal is refused with all the values inside it."""
    message = refusal(validate_config, TrainConfig(**{name: value}))
    assert f"{name} = {value!r}" in message
    for choice in {f.name: f.type for f in dataclasses.fields(TrainConfig)}[name].__args__:
        assert choice in message
        validate_config(TrainConfig(**{name: choice}))


@pytest.mark.parametrize("name", ["shared_torso", "normalize_observation", "normalize_reward"])
@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_switch_must_be_a_bool(name, value):
    """`1` and `"false"` are truthy, hence dangerous as switches."""
    assert f"{name} = {value!r} is not true or false" in refusal(validate_config, TrainConfig(**{name: value}))


@pytest.mark.parametrize("name", ["env", "algorithm"])
def test_name_must_be_text(name):
    """A number where a name belongs is refused."""
    assert f"{name} = 7 is not text" in refusal(validate_config, TrainConfig(**{name: 7}))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_seed_within_32_bits(seed):
    """Both ends of the range are seeds."""
    validate_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.0, math.nan, True, "1", None])
def test_seed_outside_32_bits(seed):
    """Seeds that jax.random.key would wrap onto another one are refused with the range."""
    message = refusal(validate_seed, seed)
    assert repr(seed) in message
    assert "[0, 2**32)" in message


def test_several_seeds():
    """Each must be valid, and none may occur twice; the seed that is repeated most is named in the caller's message."""
    validate_seeds([0, 2**32 - 1, 7], "{} twice")
    assert refusal(lambda seeds: validate_seeds(seeds, "{} twice"), [5, 3, 3, 5]) == "5 twice"
    assert "seed = -1 is not" in refusal(lambda seeds: validate_seeds(seeds, "{} twice"), [3, 3, -1])


def test_seeds_in_a_row():
    """The last of them may be 2^32 - 1."""
    assert [*seeds_from(2**32 - 3, 3)] == [2**32 - 3, 2**32 - 2, 2**32 - 1]
    message = refusal(lambda count: seeds_from(2**32 - 3, count), 4)
    assert message == f"--seed {2**32 - 3} --seeds 4 goes beyond 2**32 - 1; start lower."
    assert "seed = -1 is not" in refusal(lambda first: seeds_from(first, 1), -1)


def test_seeds_at_the_ends_give_different_keys():
    """The accepted range is where jax.random.key tells seeds apart; one further, 2^32 is 0 again."""
    import jax

    def words(seed):
        return tuple(jax.random.key_data(jax.random.key(seed)).tolist())

    assert len({words(0), words(1), words(2**31), words(2**32 - 1)}) == 4
    assert words(2**32) == words(0)


@pytest.mark.parametrize("name", [*POSITIVE, *NOT_NEGATIVE, *UNIT_INTERVAL])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, -1, "0.1", True, [0.1]])
def test_impossible_hyperparameter(name, value):
    """NaN, infinite, negative and non-numeric values are refused by name."""
    message = refusal(validate_hyperparams, Hyperparams(**{name: value}))
    assert message.startswith(f"{name} = ")


@pytest.mark.parametrize("name", [*POSITIVE, *NOT_NEGATIVE, *UNIT_INTERVAL])
@pytest.mark.parametrize("value", [pytest.param(10**400, id="no-float"), pytest.param(1e39, id="no-float32")])
def test_hyperparameter_must_be_finite_where_it_is_used(name, value):
    """What would overflow to infinity on the device (float32) is refused too."""
    message = refusal(validate_hyperparams, Hyperparams(**{name: value}))
    assert message.startswith(f"{name} = ")


@pytest.mark.parametrize("name", POSITIVE)
def test_zero_is_outside_open_ranges(name):
    """A step size, clip range, norm or KL limit of 0 trains nothing."""
    assert f"{name} = 0.0 is outside (0, inf)" in refusal(validate_hyperparams, Hyperparams(**{name: 0.0}))
    validate_hyperparams(Hyperparams(**{name: 1e-12}))


@pytest.mark.parametrize("name", [*NOT_NEGATIVE, *UNIT_INTERVAL])
def test_zero_is_inside_closed_ranges(name):
    """No entropy bonus, no discounting of a one-step task: allowed."""
    validate_hyperparams(Hyperparams(**{name: 0}))


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_discounts_end_at_one(name):
    """1 is allowed; the float after it is not, and the message has the range."""
    validate_hyperparams(Hyperparams(**{name: 1.0}))
    assert "[0, 1]" in refusal(validate_hyperparams, Hyperparams(**{name: math.nextafter(1.0, 2.0)}))


@pytest.mark.parametrize("name", ["learning_rate", "gamma", "clip_eps", "ent_coef"])
def test_only_optional_hyperparameters_may_be_none(name):
    """None means `off` for the two optional fields and nothing for the others."""
    validate_hyperparams(Hyperparams(vf_clip_eps=None, target_kl=None))
    assert f"{name} = None" in refusal(validate_hyperparams, Hyperparams(**{name: None}))


def test_every_hyperparameter_is_validated():
    """A new field without a range fails here."""
    for field in dataclasses.fields(Hyperparams):
        refusal(validate_hyperparams, Hyperparams(**{field.name: math.nan}))


@pytest.mark.parametrize("value", [1.5, np.float64(1.5), np.float32("nan"), np.array(2.5), np.bool_(True)])
def test_what_is_not_whole_is_refused_as_a_count_by_its_value(value):
    """The message shows the value as a Python number, also if it came from NumPy."""
    message = refusal(validate_config, TrainConfig(num_envs=value))
    own = value.item() if hasattr(value, "item") else value
    assert message == f"num_envs = {own!r} is not a whole number from 1 to 2**63 - 1."


@given(st.integers(1, 5000), st.integers(1, 6000))
def test_nearest_divisors(number, target):
    """There are up to three, nearest first and without repeats, and no other divisor is nearer."""
    found = nearest_divisors(number, target)
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    assert set(found) <= set(divisors)
    assert len(found) == len(set(found)) == min(3, len(divisors))
    assert [abs(d - target) for d in found] == sorted(abs(d - target) for d in divisors)[:3]


def test_suggestion():
    """A close word is offered, a strange one is not."""
    assert suggestion("ppo_clp", ["ppo_clip", "trpo"]) == " Did you mean 'ppo_clip'?"
    assert suggestion("xyzzy", ["ppo_clip", "trpo"]) == ""


# --- options of the host, algorithms ----------------------------------------------------------------------------------

OPTION_COUNTS = {
    "eval_episodes": 1,
    "eval_every_episodes": 1,
    "keep_newest": 2,
    "keep_best": 0,
}  # and the least allowed


@pytest.mark.parametrize(("name", "low"), OPTION_COUNTS.items())
def test_counts_of_options(name, low):
    """They may be from their minimum to 2^31 - 1, of Python or NumPy."""
    for value in (low, 2**31 - 1, np.int64(7), 8.0):
        validate_options(RunOptions(**{name: value}))
    for value in (low - 1, -5, 2**31, 2.5, True, "3", None, math.nan):
        message = refusal(validate_options, RunOptions(**{name: value}))
        assert message.startswith(f"{name} = {value!r} is not a whole number from {low} to")


@pytest.mark.parametrize("value", [0, 1, 1e6, np.int64(7), 2**62])
def test_eval_every(value):
    """It is in environment steps, of which there may be more than 2^31; 0 is never."""
    validate_options(RunOptions(eval_every=value))


@pytest.mark.parametrize("value", [-1, 0.5, math.nan, 2**63, True, "3", None])
def test_impossible_eval_every(value):
    message = refusal(validate_options, RunOptions(eval_every=value))
    assert message.startswith(f"eval_every = {value!r} is not a whole number from 0 to 2**63 - 1")


@pytest.mark.parametrize("value", [0, 0.5, 60, 1e9, np.float32(3)])
def test_checkpoint_seconds(value):
    """0 means after every call of the compiled program."""
    validate_options(RunOptions(checkpoint_seconds=value))


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, -math.inf, "60", None, True])
def test_impossible_checkpoint_seconds(value):
    message = refusal(validate_options, RunOptions(checkpoint_seconds=value))
    assert message.startswith(f"checkpoint_seconds = {value!r} is not a number of seconds")


def test_every_option_is_validated():
    """A new option without a check fails here."""
    for field in dataclasses.fields(RunOptions):
        assert field.name in refusal(validate_options, RunOptions(**{field.name: "no"}))


@pytest.mark.parametrize("value", ["stop", "skip", "rollback"])
def test_on_nonfinite(value):
    validate_config(TrainConfig(on_nonfinite=value))


@pytest.mark.parametrize("value", ["Stop", "ignore", "", None, True])
def test_unknown_on_nonfinite(value):
    message = refusal(validate_config, TrainConfig(on_nonfinite=value))
    likely = " Did you mean 'stop'?" if value == "Stop" else ""
    assert message == f"on_nonfinite = {value!r} is unknown; choose from stop, skip, rollback.{likely}"


@pytest.mark.parametrize("name", ["gaussian", "tanh_gaussian"])
def test_a_distribution_is_no_policy(name):
    """The setting that is called policy was that of the distribution."""
    message = refusal(validate_config, TrainConfig(policy=name))
    assert f"--action-distribution {name}" in message


@pytest.mark.parametrize("name", ["ent_coef_schedule", "clip_eps_schedule"])
def test_kl_adaptive_is_for_the_learning_rate(name):
    assert f"{name} = kl_adaptive is for the learning rate alone" in refusal(
        validate_config, TrainConfig(**{name: "kl_adaptive"})
    )
