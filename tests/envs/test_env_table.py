"""The table of environments."""

import gymnax

from purejaxppo.core.types import Box, Discrete, MultiDiscrete
from purejaxppo.envs.env_table import describe_actions, env_table
from purejaxppo.envs.gymnax_adapter import registered_envs


def test_table_has_a_row_per_id_and_says_why_one_does_not_build(monkeypatch):
    """Of three ids; that all the others can be built is above."""
    names = ["CartPole-v1", "MNISTBandit-bsuite", "Pendulum-v1"]
    monkeypatch.setattr(gymnax.registration, "registered_envs", names)
    rows = {row["env"]: row for row in env_table()}
    assert list(rows) == registered_envs() == names
    assert rows["CartPole-v1"] == {
        "env": "CartPole-v1",
        "observation": [4],
        "actions": "2 discrete",
        "step_limit": 500,
    }
    assert [name for name, row in rows.items() if "error" in row] == ["MNISTBandit-bsuite"]
    assert "allow-download" in rows["MNISTBandit-bsuite"]["error"]


def test_actions_in_words():
    assert describe_actions(Discrete(3)) == "3 discrete"
    assert describe_actions(Box((2,), (0.0, 0.0), (1.0, 1.0))) == "2 continuous"
    assert describe_actions(MultiDiscrete((3, 2))) == "3 x 2 discrete"
    assert describe_actions(Box((2, 3))) == "2 x 3 continuous"
    assert describe_actions(Box(())) == "1 continuous"
