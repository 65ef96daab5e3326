"""A plan: one program per static setting, batches that fill the devices and end in time, and its description."""

import dataclasses
import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from setting_values import other_value

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.sweeps import compiled_group as groups
from purejaxppo.sweeps.directory import Sizes
from purejaxppo.sweeps.plan import Plan, describe_plan, plan_record
from purejaxppo.sweeps.spec import SweepSettings

SMALL = TrainConfig(num_envs=4, num_steps=8, num_epochs=1, num_minibatches=2, hidden_sizes=(4,), total_timesteps=320)
OTHER = {field.name: other_value(field) for field in dataclasses.fields(Hyperparams)}


def sweep_of(*pairs, seeds=(0, 1, 2), **options):
    points = tuple({} for _ in pairs)
    return SweepSettings((), points, tuple(pairs), seeds, RunOptions(eval_episodes=4), **options)


@pytest.mark.parametrize("name", OTHER)
def test_every_hyperparameter_is_an_axis_of_one_program(name):
    """Only None beside numbers takes another program."""
    values = [Hyperparams(), Hyperparams(**{name: OTHER[name]})]
    programs = sweep_of(*((SMALL, hp) for hp in values)).programs()
    assert programs == ([[0], [1]] if getattr(values[0], name) is None else [[0, 1]])
    if getattr(values[0], name) is None:
        two = [Hyperparams(**{name: x}) for x in (OTHER[name], 2 * OTHER[name])]
        assert sweep_of(*((SMALL, hp) for hp in two)).programs() == [[0, 1]]


def test_static_settings_are_programs_of_their_own():
    configs = [SMALL, dataclasses.replace(SMALL, num_envs=8), SMALL, dataclasses.replace(SMALL, hidden_sizes=(8,))]
    assert sweep_of(*((config, Hyperparams()) for config in configs)).programs() == [[0, 2], [1], [3]]


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 9))
def test_batches_are_even_fit_and_fill_the_devices(runs, most, devices):
    plan = object.__new__(Plan)
    plan.sizes = Sizes((), devices)
    size = plan.balanced_size(runs, most)
    batches = math.ceil(runs / size)
    if size > devices:
        assert size <= most
    assert size % devices == 0 or size < devices
    assert batches * size - runs < max(batches, 1) * devices  # no batch is filled by more than the devices ask for
    if min(runs, most) < devices:
        assert size == min(runs, most)


@pytest.mark.parametrize(("runs", "most", "size"), [(1, 1, 4), (3, 8, 4), (8, 8, 8), (9, 100, 12), (8, 3, 4)])
def test_several_processes_always_fill_their_devices(runs, most, size):
    plan = object.__new__(Plan)
    plan.sizes = Sizes((), 4, processes=2)
    assert plan.balanced_size(runs, most) == size


@pytest.fixture
def group():
    return Plan(sweep_of((SMALL, Hyperparams()))).groups[0]


def test_mapped_runs_are_no_more_than_make_a_call_of_a_second(group, monkeypatch):
    """This is so however much memory there is; with two devices there are twice as many."""
    monkeypatch.setattr(groups, "available_bytes", lambda devices: math.inf)
    _, runs = group.shapes(1)
    work = 32 * sum(x.size for x in jax.tree.leaves(runs.learner.params))
    monkeypatch.setattr(groups, "work_per_call", lambda backend: 7.5 * work)
    assert group.estimated_size(1) == 7
    assert group.estimated_size(2) == 15
    monkeypatch.setattr(groups, "work_per_call", lambda backend: 0.1 * work)
    assert group.estimated_size(1) == 1


def test_as_many_as_are_likely_to_fit(group, monkeypatch):
    """More memory fits more runs, and there is at least one."""
    monkeypatch.setattr(groups, "work_per_call", lambda backend: math.inf)
    most = []
    for available in (10, 1e6, 2e6, 4e6):
        monkeypatch.setattr(groups, "available_bytes", lambda devices, available=available: available)
        most.append(group.estimated_size(1))
    assert most[0] == 1
    assert 1 < most[1] < most[2] < most[3]


def test_the_plan_in_numbers_and_in_words(monkeypatch):
    """Nothing is compiled here: the bytes that a program needs are made up."""
    wide = dataclasses.replace(SMALL, num_envs=8)
    pairs = [(SMALL, Hyperparams()), (SMALL, Hyperparams(gamma=0.5)), (wide, Hyperparams())]
    points = ({"gamma": 0.99, "num_envs": 4}, {"gamma": 0.5, "num_envs": 4}, {"gamma": 0.99, "num_envs": 8})
    sweep = sweep_of(*pairs)._replace(axes=("gamma", "num_envs"), points=points)
    monkeypatch.setattr(groups.CompiledGroup, "needed_bytes", lambda group, size, updates: 1e6 * size)
    plan = Plan(sweep, sizes=Sizes((4, 3), 2))
    record = plan_record(plan)
    assert (record["runs"], record["settings"], record["seeds"], record["env_steps"]) == (9, 3, 3, 9 * 320)
    first, second = record["programs"]
    assert first["values"] == {"num_envs": 4}
    assert (first["runs"], first["batches"], first["runs_per_batch"], first["devices"]) == (6, 2, 4, 2)
    assert (second["runs"], second["batches"], second["devices"]) == (3, 1, 1)
    text = dict(describe_plan(record))
    assert text["runs"] == "9 = 3 settings x 3 seeds"
    assert text["env steps"] == "2,880 in all"
    assert text["programs to compile"] == "2"
    assert text["program 1"] == "num_envs 4, 6 runs in 2 batches of 4"
    assert text["program 2"] == "num_envs 8, 3 runs in one batch"
    assert text["  laid out"].startswith("one after the other on one device")
    halved = plan_record(Plan(sweep._replace(halving=2), sizes=Sizes((4, 3), 2)))
    words = dict(describe_plan(halved))
    assert words["programs to compile"] == "2, compiled again for the smaller batches of later rungs"
    assert words["rung 2"] == "the best 1 of 3 settings go on after 1/2 of the budget"
