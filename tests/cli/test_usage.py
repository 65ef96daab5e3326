"""Wrong arguments are answered with one sentence, which says what is wrong and what to write."""

import pytest

from purejaxppo.cli.handlers import validate
from purejaxppo.cli.parse import parse
from purejaxppo.errors import ConfigError


def refused(line):
    """Returns the sentence with which a command line is refused."""
    with pytest.raises(ConfigError) as error:
        validate(parse(line.split()))
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        # Unknown flags.
        ("train --learning-rte 1", "--learning-rte is unknown. Did you mean --learning-rate?"),
        ("train --lr 1e-3", "--lr is unknown. Did you mean --learning-rate?"),
        ("train --LR=1e-3", "--LR is unknown. Did you mean --learning-rate?"),
        ("resume x --n_steps 4", "--n_steps is unknown. Did you mean --num-steps?"),
        ("compare --ent-coeff 0", "--ent-coeff is unknown. Did you mean --ent-coef?"),
        ("sweep --clip-range 0.1 0.2", "--clip-range is unknown. Did you mean --clip-eps?"),
        ("train --no-anneal-lr", "Did you mean --learning-rate-schedule (it takes linear or constant)?"),
        ("train --xyzzy 1 --lr 1", "--xyzzy is unknown. `purejaxppo train --help` lists what there is."),
        ("plot a --outt x", "--outt is unknown. Did you mean --out?"),
        ("sweep --algorithms trpo ppo_clip", "--algorithms is unknown. Did you mean --algorithm?"),
        ("train -x", "-x is unknown."),
        # Words that belong to no flag.
        ("train CartPole-v1", "'CartPole-v1' stands alone, but purejaxppo train takes flags only, such as --env CartP"),
        ("envs all", "'all' stands alone, but purejaxppo envs takes flags only."),
        ("evaluate a b", "'b' is one too many: purejaxppo evaluate takes RUN_DIR and flags."),
        ("train --num-envs 8 8", "--num-envs takes one value, and '8' is one more; leave it out."),
        ("train --seed -1 -2", "--seed takes one value, and '-2' is one more"),
        (
            "train --shared-torso yes",
            "--shared-torso takes no value, but 'yes' follows; write --shared-torso or --no-s",
        ),
        ("train --no-shared-torso=1", "--no-shared-torso takes no value, but '1' follows; write --shared-torso or --n"),
        ("envs --json true", "--json takes no value, but 'true' follows"),
        # What is missing.
        ("train --seed", "--seed has no value; give it one, as `purejaxppo train --help` has it."),
        ("evaluate", "the command is not complete: it is `purejaxppo evaluate RUN_DIR`"),
        ("resume", "the command is not complete: it is `purejaxppo resume RUN_DIR`"),
        ("export a", "it is `purejaxppo export RUN_DIR --out OUT`"),
        ("extract --member 1", "it is `purejaxppo extract RUN_DIR --member MEMBER`"),
        # Values of another type.
        ("train --num-envs 1.5", "--num-envs: '1.5' is not a whole number."),
        ("train --gamma high", "--gamma: 'high' is not a number."),
        ("train --target-kl off", "--target-kl: 'off' is neither a number nor none."),
        ("evaluate a --step x", "--step: 'x' is neither a whole number nor none."),
        (
            "train --activation tahn",
            "--activation: 'tahn' is unknown; choose from tanh, relu, elu, gelu, silu. Did you",
        ),
        ("train --env-params gravity", "--env-params: 'gravity' is not of the form name=value."),
        ("train --env-params g=x", "--env-params: 'g=x': 'x' is not a number, true or false."),
        # Commas where blanks are meant.
        ("train --hidden-sizes 64,64", "--hidden-sizes: '64,64' is not a whole number; write 64 64."),
        ("resume x --hidden-sizes [64,32]", "--hidden-sizes: '[64,32]' is not a whole number; write 64 32."),
        ("compare --hidden-sizes=64,64", "--hidden-sizes: '64,64' is not a whole number; write 64 64."),
        ("train --env-params a=1,b=2", "--env-params: 'a=1,b=2' is not of the form name=value; write a=1 b=2."),
        ("sweep --seeds 1,2", "--seeds: '1,2' is not a whole number; write them apart: 1 2."),
        ("sweep --gamma 0.9,0.8", "gamma = '0.9,0.8' is not a number; write them apart: 0.9 0.8."),
        ("sweep --algorithm ppo_clip,trpo", "Write them apart: ppo_clip trpo."),
        # How many runs.
        ("compare --seeds 0", "--seeds 0 is no number of runs; give one from 1 to 1000000."),
        ("compare --seeds -1", "--seeds -1 is no number of runs; give one from 1 to 1000000."),
        ("compare --seeds 1.5", "--seeds: '1.5' is not a whole number."),
        ("compare --seeds", "--seeds has no value; give it one"),
        ("compare --seeds 1 2", "--seeds takes one value, and '2' is one more"),
        ("train --seeds 0", "--seeds is unknown. Did you mean --seed?"),
        (
            "sweep --seeds 0",
            "--seeds 0 is no number of runs: one number alone is a count, from 1 to 1000000; a certain ",
        ),
        ("sweep --seeds -1", "--seeds -1 is no number of runs"),
        ("sweep --seeds 1.5", "--seeds: '1.5' is not a whole number."),
        ("sweep --seeds", "--seeds has no value; give their number, or two and more seeds."),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_bad_lines(monkeypatch, line, says, columns):
    """They are whole sentences on one line at any terminal width, without the box that tyro draws."""
    monkeypatch.setenv("COLUMNS", columns)
    message = refused(line)
    assert says in message
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert "----" not in message
    assert "error" not in message.lower()


def test_a_long_value_is_shown_as_it_was_typed(monkeypatch):
    """This is so although tyro breaks it into several lines."""
    monkeypatch.setenv("COLUMNS", "40")
    value = "a--b  " + 60 * "x"
    with pytest.raises(ConfigError) as error:
        parse(["train", "--num-envs", value])
    assert str(error.value) == f"--num-envs: {value!r} is not a whole number."


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
def test_none_may_be_written_small(word):
    assert parse(["train", "--target-kl", word, "--vf-clip-eps", word]).hp.target_kl is None


def test_good_values_stay_what_they_are():
    argv = "train --num-envs 1e2 --hidden-sizes 8 4 --env-params a=1 b=.5 c=true --target-kl 1 --learning-rate=-1"
    train = parse([*argv.split(), "--activation", "relu"])
    assert (train.settings.num_envs, train.settings.hidden_sizes, train.settings.activation) == (100, (8, 4), "relu")
    assert train.settings.env_params == (("a", 1), ("b", 0.5), ("c", True))
    assert (train.hp.target_kl, train.hp.learning_rate) == (1.0, -1.0)
    assert parse(["train", "--hidden-sizes"]).settings.hidden_sizes == ()
