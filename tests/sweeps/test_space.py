"""Axes from words and points from axes, with expectations worked out by hand."""

import math
from collections import Counter

import pytest

from purejaxppo.config.resolve import FIELDS
from purejaxppo.config.setting import facts_of
from purejaxppo.errors import ConfigError
from purejaxppo.sweeps.space import MAX_POINTS, Axis, Span, all_points, parse_axis, parse_seeds, sample

RATES = Axis("learning_rate", (1e-4, 1e-3))
ENVS = Axis("num_envs", (8, 16, 32))


def refused(function, *args):
    """Returns the text of the error, which is one line."""
    with pytest.raises(ConfigError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "values"),
    [
        ("learning_rate", "1e-4 3e-4", (1e-4, 3e-4)),
        ("learning_rate", "1", (1.0,)),
        ("total_timesteps", "1e6 2000 1_000", (10**6, 2000, 1000)),
        ("normalize_observation", "true False", (True, False)),
        ("target_kl", "none 0.01", (None, 0.01)),
        ("vf_clip_eps", "0.2 None", (0.2, None)),
        ("activation", "tanh relu", ("tanh", "relu")),
        ("algorithm", "trpo ppo_clip", ("trpo", "ppo_clip")),
        ("hidden_sizes", "64 64", ((64, 64),)),
        ("hidden_sizes", "64", ((64,),)),
        ("hidden_sizes", "64,64", ((64, 64),)),
        ("hidden_sizes", "64,64 128,128", ((64, 64), (128, 128))),
        ("hidden_sizes", "64, 1e2,3 5", ((64,), (100, 3), (5,))),
        ("kl_min", "0.5 0.01", (0.5, 0.01)),  # beyond the default of kl_max, which may be swept along
        ("num_minibatches", "3 1e9", (3, 10**9)),  # whether it divides is a matter of the whole setting
        ("learning_rate", "1e-5..1e-2", Span(1e-5, 1e-2, False)),
        ("learning_rate", "log:1e-5..1e-2", Span(1e-5, 1e-2, True)),
        ("ent_coef", "0..0.5", Span(0.0, 0.5, False)),
        ("target_kl", "log:.01..1.", Span(0.01, 1.0, True)),
    ],
)
def test_words_become_values_of_the_fields_type(name, words, values):
    axis = parse_axis(name, words.split())
    assert axis == Axis(name, values)
    if not isinstance(values, Span):
        assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("learning_rate", "", "--learning-rate has no value"),
        ("learning_rate", "abc", "learning_rate = 'abc' is not a number"),
        ("learning_rate", "none", "learning_rate = 'none' is not a number"),
        ("target_kl", "0.1 off", "target_kl = 'off' is neither a number nor none"),
        ("learning_rate", "0 1e-3", "learning_rate = 0.0 is outside (0, inf)"),
        ("learning_rate", "1e-3 nan", "learning_rate = nan is outside"),
        ("learning_rate", "1e-3 1e400", "learning_rate = inf is outside"),
        ("gamma", "0.9 1.01", "gamma = 1.01 is outside [0, 1]"),
        ("num_envs", "64 0", "num_envs = 0 is not a whole number from 1"),
        ("num_envs", "64 1.5", "num_envs = '1.5' is not a whole number"),
        ("normalize_reward", "true yes", "normalize_reward = 'yes' is neither true nor false"),
        ("activation", "tahn relu", "Did you mean 'tanh'?"),
        ("hidden_sizes", "64,x 32", "hidden_sizes = '64,x' is not a list of whole numbers"),
        ("hidden_sizes", "64,0 32", "width 0"),
        ("hidden_sizes", ",", "','"),
        ("hidden_sizes", "64x64", "64x64"),
        ("clip_eps", "0.1 0.1", "clip_eps: 0.1 is given twice"),
        ("clip_eps", "0.1 1e-1", "clip_eps: 0.1 is given twice"),
        ("clip_eps", "0.1 0.1000000001", "0.1 and 0.1000000001 are one float32"),
        ("ent_coef", "0 0.1 -0", "given twice"),
        ("num_envs", "1000 1e3", "num_envs: 1000 is given twice"),
        ("shared_torso", "true True", "True is given twice"),
        ("target_kl", "none None", "None is given twice"),
        ("hidden_sizes", "4,4 4,4", "4,4 is given twice"),
        ("num_envs", "8..64", "num_envs = 8..64 is a span, which only hyperparameters take"),
        ("hidden_sizes", "8..64", "8..64"),
        ("learning_rate", "1e-4 1e-3..1e-2", "1e-3..1e-2 is a span, which stands alone"),
        ("learning_rate", "1e-2..1e-3", "1e-2..1e-3 is an empty span"),
        ("learning_rate", "1e-3..1e-3", "1e-3..1e-3 is an empty span"),
        ("ent_coef", "log:0..1", "log:0..1 is an empty span; it takes 0 < low < high"),
        ("ent_coef", "log:-1..1", "log:-1..1 is an empty span"),
        ("learning_rate", "0..1", "learning_rate = 0.0 is outside"),
        ("gamma", "0.9..1.5", "gamma = 1.5 is outside"),
        ("learning_rate", "1..inf", "learning_rate = inf is outside"),
        ("learning_rate", "nan..1", "nan..1 is no span"),
        ("learning_rate", "log:1e-3", "log:1e-3 is no span"),
        ("learning_rate", "1..", "1.. is no span"),
        ("learning_rate", "1...5", "1...5 is no span"),
        ("learning_rate", "1..2..3", "1..2..3 is no span"),
    ],
)
def test_words_that_are_refused(name, words, says):
    assert says in refused(parse_axis, name, words.split())


NAMES_OF_PARTS = {name for name, field in FIELDS.items() if facts_of(field).built_in}  # the registries refuse them


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"env", "env_params", "activation"} - NAMES_OF_PARTS))
def test_every_field_refuses_what_it_cannot_be(name):
    """The error names the field and the word, whatever the field's type."""
    message = refused(parse_axis, name, ["wrong"])
    assert name in message
    assert "'wrong'" in message


# --- all points -------------------------------------------------------------------------------------------------------


def test_the_first_axis_is_the_slowest():
    assert all_points([RATES, ENVS]) == [
        {"learning_rate": 1e-4, "num_envs": 8},
        {"learning_rate": 1e-4, "num_envs": 16},
        {"learning_rate": 1e-4, "num_envs": 32},
        {"learning_rate": 1e-3, "num_envs": 8},
        {"learning_rate": 1e-3, "num_envs": 16},
        {"learning_rate": 1e-3, "num_envs": 32},
    ]


def test_no_axis_is_one_setting():
    assert all_points([]) == [{}]


def test_a_grid_that_is_too_large_is_refused_before_it_is_built():
    """10^30 points could not be built in any time."""
    wide = Axis("num_envs", tuple(range(1, 1001)))
    assert len(all_points([wide, wide._replace(name="num_steps")])) == MAX_POINTS
    assert f"= {10**30} settings" in refused(all_points, [wide._replace(name=str(i)) for i in range(10)])
    assert "1000 x 1001 = 1001000" in refused(all_points, [wide, Axis("num_steps", tuple(range(1, 1002)))])


def test_a_grid_has_no_spans():
    message = refused(all_points, [ENVS, Axis("gamma", Span(0.9, 1.0, False))])
    assert "gamma = 0.9..1 is a span" in message
    assert "--samples" in message


# --- random points ----------------------------------------------------------------------------------------------------

LOG = Axis("learning_rate", Span(1e-5, 1e-1, True))
UNIFORM = Axis("gamma", Span(0.5, 1.0, False))


def test_the_same_seed_draws_the_same_points():
    assert sample([LOG, ENVS], 50, 3) == sample([LOG, ENVS], 50, 3)
    assert sample([LOG, ENVS], 50, 3) != sample([LOG, ENVS], 50, 4)


@pytest.mark.parametrize("axes", [[LOG, ENVS], [RATES, ENVS]])
def test_more_samples_go_on_where_fewer_end(axes):
    assert sample(axes, 3, 1) == sample(axes, 6, 1)[:3]


def test_points_have_the_fields_in_the_order_given():
    assert [list(point) for point in sample([ENVS, LOG], 2, 0)] == [["num_envs", "learning_rate"]] * 2


def test_spans_follow_their_law():
    """Uniform: a tenth of the points is in each tenth. Log-uniform: a quarter is in each of the four decades.

    Of 4000 draws the standard deviation of a count is below 28, and the bounds are more than four of them away.
    """
    points = sample([LOG, UNIFORM, ENVS], 4000, 0)
    decades = Counter(math.floor(math.log10(point["learning_rate"])) for point in points)
    assert decades.keys() == {-5, -4, -3, -2}
    assert all(880 < count < 1120 for count in decades.values())
    tenths = Counter(int((point["gamma"] - 0.5) * 20) for point in points)
    assert tenths.keys() == set(range(10))
    assert all(320 < count < 480 for count in tenths.values())
    values = Counter(point["num_envs"] for point in points)
    assert values.keys() == {8, 16, 32}
    assert all(1200 < count < 1470 for count in values.values())


def test_all_points_of_a_small_space_are_drawn_once():
    points = sample([RATES, ENVS], 6, 0)
    assert points != all_points([RATES, ENVS])
    assert sorted(map(str, points)) == sorted(map(str, all_points([RATES, ENVS])))


def test_each_point_of_a_small_space_is_as_likely():
    """The first of six points over 600 seeds is each of them 100 times, with a standard deviation of 9."""
    first = Counter(str(sample([RATES, ENVS], 1, seed)[0]) for seed in range(600))
    assert len(first) == 6
    assert all(60 < count < 140 for count in first.values())


def test_points_of_a_large_space_are_different():
    """Of 10^7 points, 5000 independent draws would contain a pair with probability 0.7."""
    wide = [Axis("num_envs", tuple(range(1, 10_001))), Axis("num_steps", tuple(range(1, 1001)))]
    points = sample(wide, 5000, 0)
    assert len({tuple(point.values()) for point in points}) == 5000


def test_a_span_of_few_float32_numbers():
    """Between 0.5 and 0.50000012 there are three of them, each 2^-24 from the next."""
    few = [Axis("gamma", Span(0.5, 0.5 + 2**-23, False))]
    assert len(sample(few, 3, 0)) == 3
    assert "--samples 4" in refused(sample, few, 4, 0)


@pytest.mark.parametrize(
    ("axes", "count", "seed", "says"),
    [
        ([], 3, 0, "--samples draws values of swept settings, and there are none"),
        ([LOG], 0, 0, "--samples 0"),
        ([LOG], -1, 0, "--samples -1"),
        ([LOG], MAX_POINTS + 1, 0, "--samples 1000001"),
        ([LOG], 1, -1, "--sample-seed -1"),
        ([RATES, ENVS], 7, 0, "--samples 7, but there are only 6 settings"),
    ],
)
def test_samples_that_are_refused(axes, count, seed, says):
    assert says in refused(sample, axes, count, seed)


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "first", "seeds"),
    [
        ("3", 0, (0, 1, 2)),
        ("3", 5, (5, 6, 7)),
        ("1", 9, (9,)),
        ("2e0", 0, (0, 1)),
        ("2", 2**32 - 2, (2**32 - 2, 2**32 - 1)),
        ("4 0 9", 0, (4, 0, 9)),
        ("1e3 4294967295", 0, (1000, 2**32 - 1)),
    ],
)
def test_one_number_is_a_count_and_several_are_seeds(words, first, seeds):
    assert parse_seeds(words.split(), first) == seeds


@pytest.mark.parametrize(
    ("words", "first", "says"),
    [
        ("", 0, "--seeds has no value"),
        ("0", 0, "--seeds 0"),
        ("-3", 0, "--seeds -3"),
        ("1000001", 0, "--seeds 1000001"),
        ("1e99", 0, "--seeds 1"),
        ("three", 0, "'three' is not a whole number"),
        ("1 2.5", 0, "'2.5' is not a whole number"),
        ("3 3", 0, "3 is given twice"),
        ("1 -1", 0, "seed = -1"),
        ("1 4294967296", 0, "seed = 4294967296"),
        ("2", -1, "seed = -1"),
        ("2", 2**32 - 1, "beyond 2**32 - 1"),
        ("1 2", 7, "--seed 7 is the first of a count"),
    ],
)
def test_seeds_that_are_refused(words, first, says):
    assert says in refused(parse_seeds, words.split(), first)
