"""metrics.csv: rows worked out by hand, up to each run's end, with the exact numbers in the text."""

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_sweeps import BATCH, sweep_of

from purejaxppo.core.nonfinite import WATCHED
from purejaxppo.experiment.chunked_loop import Chunk
from purejaxppo.sweeps.metrics_csv import SweepRows, metrics_head, used_name

NAN, INF = math.nan, math.inf
NAMES = ["episode/count", "episode/return", "kl"]
POINTS = [{"learning_rate": 1e-3, "hidden_sizes": (4, 2)}, {"learning_rate": 0.1 + 0.2}, {"hidden_sizes": ()}]
FOREVER = 10**6
SWEEP = sweep_of(POINTS)  # three settings x seeds 5 and 6, of 8 steps per update


def chunk_of(first_update, kl, bits=0, **others):
    """Returns a chunk [R, updates] with this KL, one episode of return 2.5 in each update, and only finite numbers."""
    kl = np.array(kl, np.float32)
    metrics = {"kl": kl, "nonfinite": np.broadcast_to(np.int32(bits), kl.shape)}
    metrics |= {"episode/count": np.ones(kl.shape, np.int32), "episode/return": np.full(kl.shape, np.float32(2.5))}
    return Chunk(first_update, 0.0, 1.0, {**metrics, "learning_rate": np.zeros(kl.shape, np.float32), **others})


def writer(runs, names=NAMES, until=FOREVER, diverged=None, sweep=SWEEP):
    return SweepRows(sweep, runs, names, until, np.zeros(len(runs), np.int32) if diverged is None else diverged)


def read(text, names=NAMES, sweep=SWEEP):
    """Returns the rows as a CSV reader has them, each as long as the head."""
    rows = list(csv.DictReader(io.StringIO(metrics_head(sweep, names) + text), restkey="extra"))
    assert not any("extra" in row or None in row.values() for row in rows)
    return rows


def columns(text, *names):
    return [tuple(row[name] for name in names) for row in read(text)]


# --- head -------------------------------------------------------------------------------------------------------------


def test_head():
    expected = "run,seed,learning_rate,hidden_sizes,update,env_steps,episode/count,episode/return,kl,nonfinite\n"
    assert metrics_head(SWEEP, NAMES) == expected


def test_head_of_seeds_alone():
    assert metrics_head(sweep_of([{}]), []) == "run,seed,update,env_steps,nonfinite\n"


def test_a_metric_that_is_called_like_a_swept_field():
    """`learning_rate` is the initial value; the value in use has a column of its own."""
    names = ["kl", "learning_rate"]
    head = metrics_head(SWEEP, names)
    assert head == "run,seed,learning_rate,hidden_sizes,update,env_steps,kl,learning_rate_used,nonfinite\n"
    used = np.array([[0.0005]], np.float32)
    (row,) = read(writer([0], names)(chunk_of(1, [[0.5]], learning_rate=used)), names)
    assert (row["learning_rate"], row["learning_rate_used"]) == ("0.001", "0.000500000024")
    assert metrics_head(sweep_of([{"clip_eps": 0.1}]), names).endswith(",kl,learning_rate,nonfinite\n")


def test_used_name():
    assert used_name(("gamma", "kl"), "kl") == "kl_used"
    assert used_name(("gamma", "kl"), "entropy") == "entropy"
    assert used_name((), "kl") == "kl"


# --- rows by hand -----------------------------------------------------------------------------------------------------


def test_rows_by_hand():
    """Two runs have two updates each: run by run, swept values are exact or empty."""
    rows = writer([1, 2])
    assert rows(chunk_of(1, [[0.5, 0.25], [1e-9, 3.0]])) == (
        "1,6,0.001,4 2,1,8,1,2.5,0.5,\n"
        "1,6,0.001,4 2,2,16,1,2.5,0.25,\n"
        "2,5,0.30000000000000004,,1,8,1,2.5,9.99999972e-10,\n"
        "2,5,0.30000000000000004,,2,16,1,2.5,3,\n"
    )
    assert rows(chunk_of(3, [[7.0], [8.0]])) == (
        "1,6,0.001,4 2,3,24,1,2.5,7,\n2,5,0.30000000000000004,,3,24,1,2.5,8,\n"
    )


@pytest.mark.parametrize("run", range(6))
def test_what_each_run_was_given(run):
    """Seeds change fastest. A field that a setting does not have is empty, and so is a network without layers."""
    given = ["0.001,4 2", "0.30000000000000004,", ","][run // 2]
    assert writer([run])(chunk_of(1, [[0.5]])) == f"{run},{(5, 6)[run % 2]},{given},1,8,1,2.5,0.5,\n"


def test_none_and_booleans_are_words():
    points = [{"target_kl": None, "normalize_reward": True}]
    assert writer([0], ["kl"], sweep=sweep_of(points))(chunk_of(1, [[0.5]])) == "0,5,None,True,1,8,0.5,\n"


def test_env_steps_are_those_of_the_runs_own_batches():
    other = sweep_of([{"num_envs": 2}, {"num_envs": 4}, {"num_envs": 1}])
    for run, batch in [(0, BATCH), (2, 2 * BATCH), (5, BATCH // 2)]:
        text = writer([run], sweep=other)(chunk_of(3, [[0.5, 0.5]]))
        assert [row["env_steps"] for row in read(text, sweep=other)] == [str(3 * batch), str(4 * batch)]


def test_many_updates_are_whole_numbers():
    """2^31 - 1 updates of 8 steps are written exactly."""
    text = writer([0], until=2**31 - 1)(chunk_of(2**31 - 1, [[0.5]]))
    assert columns(text, "update", "env_steps") == [("2147483647", "17179869176")]


def test_columns_that_the_runs_do_not_have_stay_empty():
    """They do so wherever they are among the others."""
    names = ["a", "episode/return", "kl", "kl_coef", "z"]
    text = writer([0], names)(chunk_of(1, [[0.5]]))
    assert text == "0,5,0.001,4 2,1,8,,2.5,0.5,,,\n"
    assert read(text, names)[0]["kl_coef"] == ""


def test_metrics_without_a_column_are_left_out():
    assert writer([0], ["kl"])(chunk_of(1, [[0.5]], secret=np.ones((1, 1)))) == "0,5,0.001,4 2,1,8,0.5,\n"


def test_what_is_not_finite_is_empty():
    """Such values may be neighbours, the last ones, or negative; a swept value that looks like one stays."""
    names = ["a", "b", "c", "d", "e"]
    values = {name: np.array([[x]], np.float32) for name, x in zip(names, [NAN, INF, 1.5, -INF, -NAN], strict=True)}
    text = writer([0], names)(chunk_of(1, [[0.5]], **values))
    assert text == "0,5,0.001,4 2,1,8,,,1.5,,,\n"
    text = writer([0], ["a"], sweep=sweep_of([{"activation": "nano"}]))(chunk_of(1, [[0.5]], **values))
    assert text == "0,5,nano,1,8,,\n"


def test_an_update_without_an_episode_is_a_row():
    none = {"episode/return": np.array([[NAN, 4.0]], np.float32), "episode/count": np.array([[0, 3]])}
    text = writer([0])(chunk_of(1, [[0.5, 0.5]], **none))
    assert columns(text, "episode/return", "episode/count", "nonfinite") == [("", "0", ""), ("4", "3", "")]


# --- a run's end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(len(WATCHED)))
def test_the_row_of_the_divergence_says_what(i):
    """It names the first quantity that was not finite. The run has no rows after it, in this chunk or later ones."""
    rows = writer([0, 1])
    bits = [[0, 1 << i | 1 << len(WATCHED) - 1, 0], [0, 0, 0]]
    text = rows(chunk_of(4, [[0.1, NAN, NAN], [0.1, 0.2, 0.3]], bits))
    expected = [("0", "4", ""), ("0", "5", WATCHED[i]), ("1", "4", ""), ("1", "5", ""), ("1", "6", "")]
    assert columns(text, "run", "update", "nonfinite") == expected
    text = rows(chunk_of(7, [[NAN, NAN], [0.1, 0.2]]))
    assert columns(text, "run", "update") == [("1", "7"), ("1", "8")]


@pytest.mark.parametrize("bad", [0, 3])
def test_a_divergence_at_the_end_of_a_chunk(bad):
    rows = writer([0])
    text = rows(chunk_of(1, [[0.5] * 4], [[int(u == bad) for u in range(4)]]))
    assert [row["update"] for row in read(text)] == [str(u) for u in range(1, bad + 2)]
    assert rows(chunk_of(5, [[0.5]])) == ""


def test_a_run_that_had_diverged_before_has_no_rows():
    """This is so after a resume and in a later rung; the array that was passed in is not changed."""
    diverged = np.array([3, 0], np.int32)
    rows = writer([0, 1], diverged=diverged)
    text = rows(chunk_of(5, [[NAN], [0.5]], [[0], [2]]))
    assert columns(text, "run", "nonfinite") == [("1", WATCHED[1])]
    np.testing.assert_array_equal(diverged, [3, 0])


@pytest.mark.parametrize(("until", "updates"), [(4, ""), (5, "5"), (6, "56"), (7, "567"), (8, "5678"), (9, "5678")])
def test_rows_beyond_the_runs_end_are_left_out(until, updates):
    """In a last chunk that is too long, runs are frozen."""
    text = writer([0, 1], until=until)(chunk_of(5, [[0.1] * 4, [0.2] * 4]))
    assert columns(text, "run", "update") == [(run, update) for run in "01" for update in updates]


def test_what_is_not_finite_beyond_the_end_is_none_of_the_runs():
    rows = writer([0], until=2)
    assert columns(rows(chunk_of(1, [[0.5] * 3], [[0, 0, 4]])), "update", "nonfinite") == [("1", ""), ("2", "")]


def test_what_fills_the_devices_is_left_out():
    """Copies of the last run have the same numbers as it."""
    text = writer([2, 5])(chunk_of(1, [[0.1], [0.2], [0.3], [NAN]], [[0], [0], [0], [1]]))
    assert columns(text, "run", "kl") == [("2", "0.100000001"), ("5", "0.200000003")]


# --- the text ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_every_float32_is_the_same_after_the_text(values):
    """Every bit is, the sign of zero and subnormal numbers included."""
    values = np.array([values], np.float32)
    texts = [row["kl"] for row in read(writer([0])(chunk_of(1, values)))]
    assert np.array([np.float32(text) for text in texts]).tobytes() == values.tobytes()
    assert np.array([float(text) for text in texts]).astype(np.float32).tobytes() == values.tobytes()


def test_every_exponent_of_float32():
    """The neighbours of every power of two need 9 digits to be told apart; 8 would not do."""
    powers = np.float32(2.0) ** np.arange(-126, 128, dtype=np.float32)
    values = np.sort(np.concatenate([np.nextafter(powers, np.float32(0)), powers, np.nextafter(powers, np.float32(4))]))
    texts = [row["kl"] for row in read(writer([0])(chunk_of(1, values[None])))]
    assert np.array(texts, np.float32).tobytes() == values.tobytes()
    assert len(set(texts)) == len(set(values.tolist()))


@given(st.data())
def test_how_many_updates_a_call_has_changes_no_rows(data):
    """Neither does a new writer, as after a resume, which is given the earlier divergences."""
    updates, until = 12, data.draw(st.integers(1, 12))
    kl = np.arange(3 * updates, dtype=np.float32).reshape(3, updates) / 7
    bits = np.zeros((3, updates), np.int32)
    for run in range(3):
        for update in data.draw(st.sets(st.integers(0, updates - 1), max_size=2)):
            bits[run, update] = 4
    ends = sorted({*data.draw(st.sets(st.integers(1, updates))), updates})

    def rows_by_run(ends, resumed):
        lines, first, rows = [], 0, writer([0, 1, 3], until=until)
        for end in ends:
            if first >= until:
                break
            if first in resumed:
                bad = [np.flatnonzero(b[:first]) for b in bits]
                rows = writer([0, 1, 3], until=until, diverged=np.array([b[0] + 1 if b.size else 0 for b in bad]))
            lines += rows(chunk_of(first + 1, kl[:, first:end], bits[:, first:end])).splitlines()
            first = end
        return sorted(lines, key=lambda line: line[0])  # which leaves each run's in their order

    whole = rows_by_run([updates], [])
    assert rows_by_run(ends, data.draw(st.sets(st.sampled_from(ends)))) == whole
    assert len(whole) == sum(min([until, *np.flatnonzero(b)[:1] + 1]) for b in bits)
