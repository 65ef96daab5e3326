"""Other trainers' names: every answer is a name of ours, and none of theirs is accepted."""

import json

import pytest

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.parse import parse
from purejaxppo.config import synonyms
from purejaxppo.config.resolve import FIELDS, OPTION_FIELDS, read_settings
from purejaxppo.config.synonyms import note_on, our_name
from purejaxppo.config.validate import suggestion
from purejaxppo.errors import ConfigError

OF_COMMANDS = {"algorithms", "seed", "out", "device", "episodes"}


def test_every_answer_is_ours_and_no_name_of_theirs_is():
    ours = {*FIELDS, *OPTION_FIELDS, *ALGORITHMS, *OF_COMMANDS}
    assert set(synonyms._THEIRS) <= ours
    theirs = [name for names in synonyms._THEIRS.values() for name in names.split()]
    assert not ours & set(theirs)
    assert len(theirs) == len(set(theirs))
    assert set(synonyms._NOTES) <= set(theirs)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # CleanRL
        ("env-id", "env"),
        ("update_epochs", "num_epochs"),
        ("clip-coef", "clip_eps"),
        ("norm-adv", "normalize_advantage"),
        ("anneal-lr", "learning_rate_schedule"),
        ("no-anneal-lr", "learning_rate_schedule"),
        ("clip-vloss", "vf_clip_eps"),
        # Stable-Baselines3
        ("n_steps", "num_steps"),
        ("n_epochs", "num_epochs"),
        ("n_envs", "num_envs"),
        ("batch_size", "num_minibatches"),
        ("clip_range", "clip_eps"),
        ("net_arch", "hidden_sizes"),
        # PureJaxRL
        ("LR", "learning_rate"),
        ("ENV_NAME", "env"),
        ("UPDATE_EPOCHS", "num_epochs"),
        # brax
        ("num_timesteps", "total_timesteps"),
        ("entropy_cost", "ent_coef"),
        ("discounting", "gamma"),
        ("unroll_length", "num_steps"),
        ("num_updates_per_batch", "num_epochs"),
        # Stoix
        ("actor_lr", "learning_rate"),
        ("rollout_length", "num_steps"),
        # RLlib
        ("lambda", "gae_lambda"),
        ("vf_loss_coeff", "vf_coef"),
        ("entropy_coeff", "ent_coef"),
        ("kl_coeff", "kl_coef"),
        ("grad_clip", "max_grad_norm"),
        # what people write
        ("timesteps", "total_timesteps"),
        ("max-timesteps", "total_timesteps"),
        ("ent_coeff", "ent_coef"),
        ("num-env", "num_envs"),
        # algorithms
        ("ppo", "ppo_clip"),
        ("PPO2", "ppo_clip"),
        ("a2c", "policy_gradient"),
        ("reinforce", "policy_gradient"),
        ("vpg", "policy_gradient"),
    ],
)
def test_what_they_call_it(theirs, ours):
    assert our_name(theirs) == ours


def test_an_algorithm_is_suggested():
    with pytest.raises(ConfigError, match="Did you mean 'ppo_clip'"):
        ALGORITHMS.lookup("ppo")


def test_a_key_of_a_file_is_suggested_with_what_to_know_about_it(tmp_path):
    path = tmp_path / "c.json"
    for key in ("batch_size", "batch-size", "BATCH_SIZE"):
        path.write_text(json.dumps({key: 64}))
        with pytest.raises(ConfigError, match=r"Did you mean 'num_minibatches' \(it is how many minibatches"):
            read_settings(path)
    assert note_on("gamma") == ""


def test_nothing_is_suggested_that_there_is_not():
    """If our name for it is not among the known names, a similar one is suggested."""
    assert suggestion("ppo", ["trpo", "xyz"]) == " Did you mean 'trpo'?"
    assert suggestion("lr", ["gravity"]) == ""


@pytest.mark.parametrize("name", ["lr", "n_steps", "batch_size", "ppo_epoch"])
def test_nothing_is_accepted(name):
    with pytest.raises(ConfigError, match="is unknown"):
        parse(["train", f"--{name}", "1"])
