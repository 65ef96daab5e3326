"""Registries of parts: what a name is, what cannot be one, and what a part by value is called."""

import functools

import pytest

from purejaxppo.algorithms import ALGORITHMS, ppo_clip, trpo
from purejaxppo.config import TrainConfig
from purejaxppo.config.registry import Registry
from purejaxppo.config.resolve import FIELDS
from purejaxppo.config.setting import facts_of
from purejaxppo.core.optimizer import OPTIMIZERS, SCHEDULES
from purejaxppo.errors import ConfigError
from purejaxppo.policies.registry import POLICIES


def first():
    return 1


def second():
    return 2


@pytest.fixture
def registry():
    return Registry("optimizer", {"first": first}, reserved=lambda: ("gaussian",))


def test_ones_own_is_found_and_may_be_registered_again(registry):
    registry.register("mine", first)
    registry.register("mine", second)
    assert registry.lookup("mine") is second
    assert registry.lookup("first") is first
    assert [*registry] == registry.names() == ["first", "mine"]
    assert registry.built_in() == ["first"]
    registry.remove("mine")
    registry.remove("mine")
    assert "mine" not in registry


def test_an_unknown_name_is_answered_with_the_nearest_and_the_remedy(registry):
    with pytest.raises(ConfigError, match=r"optimizer 'firts' is unknown; choose from first\. Did you mean 'first'\?"):
        registry.lookup("firts")
    with pytest.raises(ConfigError, match=r"register_optimizer\('mine', \.\.\.\).*--plugin.*optimizer="):
        registry.lookup("mine")


@pytest.mark.parametrize("name", ["first", "gaussian"])
def test_what_is_built_in_cannot_be_replaced(registry, name):
    with pytest.raises(ConfigError, match="built in"):
        registry.register(name, second)
    assert registry.names() == ["first"]


@pytest.mark.parametrize("name", ["", "a b", "a,b", "../a", "a\n", 3, None])
def test_what_is_no_name(registry, name):
    with pytest.raises(ConfigError, match="cannot name a part"):
        registry.register(name, second)


def test_what_cannot_make_a_part(registry):
    with pytest.raises(ConfigError, match="cannot be called"):
        registry.register("mine", 3)


def test_a_part_by_value_has_the_name_of_its_function(registry):
    assert registry.name_for("anything") == "anything"
    assert registry.name_for(first) == "first"
    assert registry.name_for(second) == "second"
    assert registry.lookup("second") is second
    registry.register("mine", lambda: 3)
    assert registry.name_for(registry.lookup("mine")) == "mine"
    assert (ALGORITHMS.name_for(trpo), ALGORITHMS.name_for(ppo_clip)) == ("trpo", "ppo_clip")


def test_a_part_by_value_without_a_name(registry):
    def other():
        return 3

    other.__name__ = "first"
    for part in (lambda: 1, functools.partial(first), other):
        with pytest.raises(ConfigError, match=r"give it a name by register_optimizer\(NAME, \.\.\.\)"):
            registry.name_for(part)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("algorithm", ALGORITHMS.built_in()),
        ("policy", POLICIES.built_in()),
        ("optimizer", OPTIMIZERS.built_in()),
        ("learning_rate_schedule", SCHEDULES.built_in()),
        ("ent_coef_schedule", [x for x in SCHEDULES.built_in() if x != "kl_adaptive"]),
        ("clip_eps_schedule", [x for x in SCHEDULES.built_in() if x != "kl_adaptive"]),
    ],
)
def test_declarations_name_what_is_built_in(name, known):
    """The declarations import no JAX, and so no registry; the help has the names too."""
    assert [*facts_of(FIELDS[name]).built_in] == known
    assert getattr(TrainConfig(), name) in (None, *known)
