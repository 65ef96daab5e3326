"""Batches and rungs worked out by hand, and which results of batches are accepted from the disk."""

import itertools
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_sweeps import BATCH, sweep_of

from purejaxppo.experiment.atomic_files import write_json
from purejaxppo.experiment.statistics import interquartile_mean
from purejaxppo.sweeps.batches import (
    BatchResult,
    RunBatch,
    batch_dir,
    batches_of_rung,
    begun_batches,
    read_result,
    survivors,
)
from purejaxppo.sweeps.directory import Sizes, survey_batches
from purejaxppo.sweeps.plan import Plan


def plan_of(points, sizes, seeds=(5, 6), updates=6, halving=None):
    """Returns a plan without traced programs: its groups have a configuration and runs, and nothing else."""
    plan = object.__new__(Plan)
    plan.sweep, plan.sizes = sweep_of(points, seeds, updates, halving=halving), Sizes(tuple(sizes), len(jax.devices()))
    configs = [config for config, _ in plan.sweep.settings]
    plan.groups = []
    for config in dict.fromkeys(configs):
        mine = [i for i, other in enumerate(configs) if other == config]
        runs = [i * len(seeds) + j for i in mine for j in range(len(seeds))]
        plan.groups.append(SimpleNamespace(config=config, runs=runs))
    return plan


def clips(number):
    return [{"clip_eps": (i + 1) / 100} for i in range(number)]


def result_of(returns, updates=6, metrics_bytes=100):
    """Returns the result of a batch whose runs have these returns; None is one that diverged in update 2."""
    ends = [updates if value is not None else 1 for value in returns]
    return BatchResult(ends, [2 if value is None else 0 for value in returns], list(returns), metrics_bytes, 0.5)


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    """Returns a function: devices(3) makes the plan see three devices; without a call it sees two."""

    def use(number):
        monkeypatch.setattr(jax, "devices", lambda: [None] * number)

    use(2)
    return use


# --- rungs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "updates", "halving", "rungs"),
    [
        (8, 800, None, [(8, 1)]),
        (8, 800, 2, [(8, 8), (4, 4), (2, 2), (1, 1)]),
        (7, 800, 2, [(7, 4), (3, 2), (1, 1)]),
        (9, 800, 3, [(9, 9), (3, 3), (1, 1)]),
        (10, 800, 3, [(10, 9), (3, 3), (1, 1)]),
        (26, 800, 3, [(26, 9), (8, 3), (2, 1)]),
        (16, 800, 4, [(16, 16), (4, 4), (1, 1)]),
        (5, 800, 4, [(5, 4), (1, 1)]),
        (5, 800, 5, [(5, 5), (1, 1)]),
        (2, 800, 2, [(2, 2), (1, 1)]),
        (8, 8, 2, [(8, 8), (4, 4), (2, 2), (1, 1)]),  # of one update in the first
        (8, 7, 2, [(8, 4), (4, 2), (2, 1)]),  # too few updates for another
        (8, 3, 2, [(8, 2), (4, 1)]),
        (8, 1, 2, [(8, 1)]),
    ],
)
def test_rungs(settings, updates, halving, rungs):
    plan = plan_of(clips(settings), [2], updates=updates, halving=halving)
    assert [tuple(rung) for rung in plan.rungs] == rungs


@pytest.mark.parametrize(
    ("updates", "halving", "ends"),
    [
        (800, 2, [100, 200, 400, 800]),
        (10, 2, [2, 3, 5, 10]),  # rounded up
        (9, 2, [2, 3, 5, 9]),
        (100, 3, [34, 100]),
        (100, 4, [25, 100]),
        (101, 4, [26, 101]),
    ],
)
def test_updates_at_the_end_of_each_rung(updates, halving, ends):
    plan = plan_of(clips(8), [2], updates=updates, halving=halving)
    assert [rung.updates(plan.groups[0].config) for rung in plan.rungs] == ends


def test_the_shortest_settings_decide_on_the_number_of_rungs():
    """48 steps are 6 updates of 8 or 3 of 16. Each setting divides its own number of updates by the same factors."""
    plan = plan_of([{"num_envs": n, "clip_eps": e} for n in (2, 4) for e in (0.1, 0.2)], [2, 2], halving=2)
    assert [tuple(rung) for rung in plan.rungs] == [(4, 2), (2, 1)]
    assert [[rung.updates(group.config) for rung in plan.rungs] for group in plan.groups] == [[3, 6], [2, 3]]


@given(settings=st.integers(2, 100), updates=st.integers(1, 3000), halving=st.integers(2, 5))
def test_every_rung_has_something_to_do(settings, updates, halving):
    """Each rung has more updates and fewer settings than the one before, and the last one has the whole budget."""
    plan = plan_of(clips(settings), [2], updates=updates, halving=halving)
    ends = [rung.updates(plan.groups[0].config) for rung in plan.rungs]
    assert ends[-1] == updates
    assert all(0 < a < b for a, b in itertools.pairwise(ends))
    assert plan.rungs[0].settings == settings
    assert all(b.settings == a.settings // halving > 0 for a, b in itertools.pairwise(plan.rungs))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_of_one_size():
    """Six runs in batches of four: the second batch has two runs, and two copies to fill it up."""
    assert batches_of_rung(plan_of(clips(3), [4]), 0, {0, 1, 2}) == [
        RunBatch("rung0_program1_batch1", 0, 0, (0, 1, 2, 3), 4, 0, 6),
        RunBatch("rung0_program1_batch2", 0, 0, (4, 5), 4, 0, 6),
    ]


def test_a_batch_for_each_program():
    """Every other setting has more environments, hence 3 updates instead of 6. Its program has a batch of its own."""
    plan = plan_of([{"num_envs": n, "clip_eps": e} for e in (0.1, 0.2) for n in (2, 4)], [4, 2])
    assert batches_of_rung(plan, 0, {0, 1, 2, 3}) == [
        RunBatch("rung0_program1_batch1", 0, 0, (0, 1, 4, 5), 4, 0, 6),
        RunBatch("rung0_program2_batch1", 1, 0, (2, 3), 2, 0, 3),
        RunBatch("rung0_program2_batch2", 1, 0, (6, 7), 2, 0, 3),
    ]


def test_later_rungs_go_on_where_the_one_before_ended():
    """The settings that are left are trained in batches no larger than necessary."""
    plan = plan_of(clips(8), [16], updates=10, halving=2)
    assert [(batch.runs, batch.size, batch.since, batch.until) for batch in batches_of_rung(plan, 1, {0, 3, 4, 7})] == [
        ((0, 1, 6, 7, 8, 9, 14, 15), 8, 2, 3)
    ]
    assert batches_of_rung(plan, 3, {4}) == [RunBatch("rung3_program1_batch1", 0, 3, (8, 9), 2, 5, 10)]


def test_a_program_that_has_no_settings_left_has_no_batch():
    """The other program keeps its number, and its own count of updates."""
    plan = plan_of([{"num_envs": n, "clip_eps": e} for n in (2, 4) for e in (0.1, 0.2)], [4, 4], halving=2)
    assert batches_of_rung(plan, 1, {2, 3}) == [RunBatch("rung1_program2_batch1", 1, 1, (4, 5, 6, 7), 4, 2, 3)]
    assert batches_of_rung(plan, 1, set()) == []


@pytest.mark.parametrize(
    ("number", "size", "expected"),
    [
        (1, 6, [5]),
        (2, 6, [6]),  # as many as fill the devices
        (1, 4, [3, 3]),  # about even
        (2, 4, [4, 4]),
        (1, 3, [3, 3]),
        (2, 3, [2, 2, 2]),  # never more than fit, and as many as fill the devices
        (1, 2, [2, 2, 2]),
        (3, 4, [3, 3]),
        (4, 8, [8]),
        (8, 8, [5]),  # fewer runs than devices
    ],
)
def test_batches_of_a_later_rung(devices, number, size, expected):
    """Five runs are left on this many devices; `size` is that of the first rung's batches."""
    devices(number)
    plan = plan_of(clips(10), [size], seeds=(7,), halving=2, updates=800)
    assert {batch.size for batch in batches_of_rung(plan, 0, set(range(10)))} == {size}
    batches = batches_of_rung(plan, 1, {0, 2, 4, 6, 8})
    assert [batch.size for batch in batches] == expected
    assert [run for batch in batches for run in batch.runs] == [0, 2, 4, 6, 8]


@given(data=st.data(), settings=st.integers(1, 12), seeds=st.integers(1, 5), programs=st.integers(1, 3))
def test_every_run_is_in_one_batch(data, settings, seeds, programs):
    """Within a program, runs are in the order of their numbers, and only its last batch has copies to fill it up."""
    points = [{"num_epochs": 1 + i % programs, "gamma": i / 100} for i in range(settings)]
    halving = data.draw(st.integers(2, settings)) if settings > 1 else None
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=programs, max_size=programs))
    plan = plan_of(points, sizes, seeds=tuple(range(seeds)), updates=100, halving=halving)
    names = set()
    for rung, (count, _) in enumerate(plan.rungs):
        chosen = set(range(settings)) if rung == 0 else set(data.draw(st.permutations(range(settings)))[:count])
        batches = batches_of_rung(plan, rung, chosen)
        runs = [run for batch in batches for run in batch.runs]
        assert sorted(runs) == [s * seeds + i for s in sorted(chosen) for i in range(seeds)]
        for batch, after in itertools.pairwise([*batches, None]):
            assert 0 < len(batch.runs) <= batch.size <= sizes[batch.group]
            assert batch.runs == tuple(sorted(batch.runs))
            assert {run // seeds % programs for run in batch.runs} == {batch.group}
            if after and after.group == batch.group:
                assert len(batch.runs) == batch.size == after.size
                assert batch.runs[-1] < after.runs[0]
        assert names.isdisjoint(batch.name for batch in batches)
        names |= {batch.name for batch in batches}
        assert len({batch.name for batch in batches}) == len(batches)


@pytest.mark.parametrize("halving", [None, 2, 3])
def test_the_plans_env_steps_are_those_of_its_parts(halving):
    plan = plan_of(clips(7), [4], updates=20, halving=halving)
    total = 0
    for rung, (count, _) in enumerate(plan.rungs):
        for batch in batches_of_rung(plan, rung, set(range(count))):
            total += (batch.until - batch.since) * len(batch.runs) * BATCH
    assert plan.env_steps == total


# --- who goes on ------------------------------------------------------------------------------------------------------


def finished_of(plan, rung, returns):
    """Returns the batches of a rung with their results, from the returns of each setting's runs (one per seed)."""
    batches = batches_of_rung(plan, rung, set(returns))
    seeds = len(plan.sweep.seeds)
    return [(batch, result_of([returns[run // seeds][run % seeds] for run in batch.runs])) for batch in batches]


def test_all_settings_are_in_the_first_rung():
    assert survivors(plan_of(clips(5), [4], halving=2), 0, []) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("size", [2, 3, 8, 20])
def test_the_best_interquartile_means_go_on(size):
    """The interquartile means of four seeds are 2.5, 4.5, 3 and -1. How the runs are batched makes no difference."""
    plan = plan_of(clips(4), [size], seeds=(1, 2, 3, 4), halving=2)
    returns = {0: [1, 2, 3, 900], 1: [9, 4, 5, 0], 2: [3, 3, -500, 3], 3: [-1, -1, -1, -1]}
    assert survivors(plan, 1, finished_of(plan, 0, returns)) == {1, 2}


def test_one_in_three_rounded_down():
    plan = plan_of(clips(8), [16], updates=800, halving=3)
    returns = {i: [(i * 5) % 8] * 2 for i in range(8)}  # 0 5 2 7 4 1 6 3
    assert survivors(plan, 1, finished_of(plan, 0, returns)) == {3, 6}


def test_a_diverged_run_is_the_worst():
    """The interquartile mean of four runs leaves out one diverged run, but not two."""
    plan = plan_of(clips(3), [12], seeds=(1, 2, 3, 4), halving=3)
    returns = {0: [-100, -100, -100, -100], 1: [None, None, 900, 900], 2: [None, 2, 2, 2]}
    finished = finished_of(plan, 0, returns)
    assert survivors(plan, 1, finished) == {2}
    returns[2] = [None, None, None, None]
    assert survivors(plan, 1, finished_of(plan, 0, returns)) == {0}


def test_equal_ones_go_on_by_their_number():
    """The order of their batches makes no difference. Settings all of whose runs diverged are equal, too."""
    plan = plan_of([{"num_epochs": 1 + i % 2, "gamma": i / 10} for i in range(6)], [2, 2], updates=800, halving=2)
    finished = finished_of(plan, 0, {i: [3, 3] for i in range(6)})
    assert [batch.runs[0] // 2 for batch, _ in finished] == [0, 2, 4, 1, 3, 5]
    assert survivors(plan, 1, finished) == {0, 1, 2}
    nothing = {i: [None, None] for i in range(6)} | {4: [-7, -7]}
    assert survivors(plan, 1, finished_of(plan, 0, nothing)) == {4, 0, 1}


def test_only_the_rung_before_counts():
    """Setting 0 was far ahead in the first rung, and is the worst of those that went on."""
    plan = plan_of(clips(4), [8], updates=800, halving=2)
    first = finished_of(plan, 0, {0: [90, 90], 1: [5, 5], 2: [4, 4], 3: [6, 6]})
    assert survivors(plan, 1, first) == {0, 3}
    assert survivors(plan, 2, first + finished_of(plan, 1, {0: [-1, -1], 3: [0, 0]})) == {3}


@given(st.lists(st.lists(st.none() | st.integers(-3, 3), min_size=3, max_size=3), min_size=2, max_size=9))
def test_nobody_who_goes_on_is_worse_than_one_who_does_not(returns):
    plan = plan_of(clips(len(returns)), [4], seeds=(1, 2, 3), updates=800, halving=2)
    chosen = survivors(plan, 1, finished_of(plan, 0, dict(enumerate(returns))))
    assert len(chosen) == len(returns) // 2
    score = [interquartile_mean(np.array([-math.inf if x is None else x for x in row])) for row in returns]
    others = set(range(len(returns))) - chosen
    assert all(score[i] > score[j] or (score[i] == score[j] and i < j) for i in chosen for j in others)


# --- how a batch ended ------------------------------------------------------------------------------------------------

RUN_BATCH = RunBatch("rung0_program1_batch1", 0, 0, (4, 7), 4, 0, 6)
RESULT = result_of([1.5, None])


@pytest.fixture
def place(tmp_path):
    """Writes a valid result.json of the batch, and returns its path."""
    path = batch_dir(tmp_path, RUN_BATCH) / "result.json"
    path.parent.mkdir(parents=True)
    write_json(path, RESULT._asdict())
    return path


def test_a_result_there_and_back(tmp_path, place):
    assert place == tmp_path / "parts" / "rung0_program1_batch1" / "result.json"
    assert read_result(tmp_path, RUN_BATCH) == RESULT
    whole = RESULT._replace(returns=[0.1 + 0.2, -1e-30], metrics_bytes=2**40, seconds=1 / 3)
    write_json(place, whole._asdict())
    assert repr(read_result(tmp_path, RUN_BATCH)) == repr(whole)


def test_a_part_without_a_result_has_not_ended(tmp_path, place):
    assert read_result(tmp_path, RUN_BATCH._replace(name="rung0_program1_batch2")) is None
    place.unlink()
    assert read_result(tmp_path, RUN_BATCH) is None
    place.mkdir()
    assert read_result(tmp_path, RUN_BATCH) is None


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[]", b"3", b"\xff\xfe", b"{}", b"[" * 100_000])
def test_a_result_that_is_garbage(tmp_path, place, text):
    place.write_bytes(text)
    assert read_result(tmp_path, RUN_BATCH) is None


@pytest.mark.parametrize("name", [name for name in BatchResult._fields if name not in BatchResult._field_defaults])
def test_a_result_of_which_something_is_missing(tmp_path, place, name):
    write_json(place, {key: value for key, value in RESULT._asdict().items() if key != name})
    assert read_result(tmp_path, RUN_BATCH) is None


def test_a_result_of_a_version_that_did_not_count_unfinished_episodes(tmp_path, place):
    content = RESULT._asdict()
    del content["unfinished"]
    write_json(place, content)
    assert read_result(tmp_path, RUN_BATCH) == RESULT


def test_a_result_with_something_else(tmp_path, place):
    write_json(place, RESULT._asdict() | {"extra": 1})
    assert read_result(tmp_path, RUN_BATCH) is None


@pytest.mark.parametrize("name", ["updates", "diverged_at", "returns"])
@pytest.mark.parametrize("value", [None, 3, "ab", {}, {"a": 1, "b": 2}, [], [1], [1, 2, 3]])
def test_a_result_of_other_runs(tmp_path, place, name, value):
    write_json(place, RESULT._asdict() | {name: value})
    assert read_result(tmp_path, RUN_BATCH) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("updates", [1.0, 6]),
        ("updates", [-1, 6]),
        ("updates", [None, 6]),
        ("updates", ["6", 6]),
        ("diverged_at", [True, 0]),
        ("diverged_at", [[0], 0]),
        ("returns", ["1.5", None]),
        ("returns", [True, None]),
        ("returns", [math.nan, None]),
        ("returns", [math.inf, None]),
        ("returns", [10**400, None]),
        ("metrics_bytes", 1.5),
        ("metrics_bytes", -1),
        ("metrics_bytes", None),
        ("unfinished", -1),
        ("unfinished", 0.5),
        ("seconds", None),
        ("seconds", "1"),
        ("seconds", math.nan),
    ],
)
def test_a_result_of_other_kinds(tmp_path, place, name, value):
    place.write_text(json.dumps(RESULT._asdict() | {name: value}))
    assert read_result(tmp_path, RUN_BATCH) is None


@given(st.data())
def test_a_result_with_a_byte_changed(tmp_path_factory, data):
    """It may hold another number, but one of the right type."""
    directory = tmp_path_factory.getbasetemp() / "changed"
    path = batch_dir(directory, RUN_BATCH) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = bytearray(json.dumps(RESULT._asdict()).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(text)
    result = read_result(directory, RUN_BATCH)
    if result:
        assert [type(x) for x in [*result.updates, *result.diverged_at, result.metrics_bytes]] == [int] * 5
        assert np.isfinite([x for x in [*result.returns, result.seconds] if x is not None]).all()


def test_a_result_cut_off_anywhere(tmp_path, place):
    content = place.read_bytes()
    for end in range(len(content.rstrip())):
        place.write_bytes(content[:end])
        assert read_result(tmp_path, RUN_BATCH) is None


# --- what has begun ---------------------------------------------------------------------------------------------------


def checkpoint(directory, batch, updates):
    """Makes a directory with the name of a checkpoint."""
    (batch_dir(directory, batch) / "checkpoints" / f"step_{updates * BATCH:012d}").mkdir(parents=True)


def finish(directory, plan, batch, returns):
    checkpoint(directory, batch, batch.until)
    write_json(batch_dir(directory, batch) / "result.json", result_of(returns)._asdict())


def begun(directory, plan):
    return [(batch.name, batch.runs) for batch in begun_batches(directory, plan)]


def test_batches_that_have_begun(tmp_path):
    """Batches come in the order of their training, up to the first without a result; later rungs when they are known.

    Settings 0 to 3 are in batches of two. Settings 1 and 2 go on, then setting 1.
    """
    plan = plan_of(clips(4), [4], updates=800, halving=2)
    first, second = batches_of_rung(plan, 0, {0, 1, 2, 3})
    (third,) = batches_of_rung(plan, 1, {1, 2})
    (last,) = batches_of_rung(plan, 2, {1})
    names = [(batch.name, batch.runs) for batch in (first, second, third, last)]
    assert [runs for _, runs in names] == [(0, 1, 2, 3), (4, 5, 6, 7), (2, 3, 4, 5), (2, 3)]
    checkpoint(tmp_path, last, 5)  # it cannot have begun yet
    assert begun(tmp_path, plan) == []
    checkpoint(tmp_path, first, 3)
    assert begun(tmp_path, plan) == names[:1]
    finish(tmp_path, plan, first, [1, 1, 9, 9])
    assert begun(tmp_path, plan) == names[:1]
    checkpoint(tmp_path, second, 3)
    assert begun(tmp_path, plan) == names[:2]
    finish(tmp_path, plan, second, [8, 8, None, None])
    assert begun(tmp_path, plan) == names[:2]
    finish(tmp_path, plan, third, [5, 5, 4, 4])
    assert begun(tmp_path, plan) == names
    finish(tmp_path, plan, last, [5, 5])
    assert begun(tmp_path, plan) == names
    (batch_dir(tmp_path, first) / "result.json").write_text("{")  # who went on is not known any more
    assert begun(tmp_path, plan) == names[:1]


def test_a_part_that_has_lost_its_checkpoints_is_passed_over(tmp_path):
    plan = plan_of(clips(2), [2])
    first, second = batches_of_rung(plan, 0, {0, 1})
    batch_dir(tmp_path, first).mkdir(parents=True)
    write_json(batch_dir(tmp_path, first) / "result.json", result_of([1, 2])._asdict())
    checkpoint(tmp_path, second, 1)
    assert begun(tmp_path, plan) == [(second.name, second.runs)]


def test_survey_of_batches(tmp_path):
    """Checkpoints are listed with their batches' names and with what is wrong with them."""
    assert survey_batches(tmp_path) == []
    plan = plan_of(clips(2), [2])
    first, second = batches_of_rung(plan, 0, {0, 1})
    for batch, updates in [(second, 1), (first, 2), (first, 6)]:
        checkpoint(tmp_path, batch, updates)
    (tmp_path / "parts" / "notes.txt").write_text("")
    rows = survey_batches(tmp_path)
    assert [(row["checkpoint"], row["env_steps"]) for row in rows] == [
        ("rung0_program1_batch1/step_000000000048", 48),
        ("rung0_program1_batch1/step_000000000016", 16),
        ("rung0_program1_batch2/step_000000000008", 8),
    ]
    assert {row["fault"] for row in rows} == {"COMMIT is missing"}
    json.dumps(rows, allow_nan=False)
