"""The host loop: the length of chunks changes no result, rows, and what the host does between chunks."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_envs import walk

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.nonfinite import WATCHED, NonfiniteLimit
from purejaxppo.errors import DivergedError
from purejaxppo.experiment import chunked_loop
from purejaxppo.experiment.checkpoints.state import state_sha256
from purejaxppo.experiment.chunked_loop import (
    Chunk,
    advance_in_chunks,
    chunk_lengths,
    compile_chunks,
    remaining,
    steady_speed,
)
from purejaxppo.experiment.training import RunRows
from purejaxppo.train import trainer_from_config

HP = Hyperparams(learning_rate=1e-3)
SMALL = {"num_envs": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2, "hidden_sizes": (4,)}
UPDATES = 6
CONFIG = TrainConfig(env_params={"max_steps_in_episode": 6}, total_timesteps=32 * UPDATES + 5, **SMALL)


@pytest.fixture
def short_chunks(monkeypatch):
    """Yields a function: short_chunks(2, 4) makes the host loop run CONFIG's updates in chunks of these lengths."""

    def use(*lengths):
        assert sum(lengths) == UPDATES
        monkeypatch.setattr(chunked_loop, "chunk_lengths", lambda config, params, backend: list(lengths))

    return use


def without_time(row):
    """Returns rows without the clock and without NaN, which is not equal to itself, so that they can be compared."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items() if k != "seconds"}


# --- chunks -----------------------------------------------------------------------------------------------------------


def params_of(size):
    return {"w": np.zeros(size - size // 2, np.float32), "b": np.zeros(size // 2, np.float32)}


@given(
    updates=st.integers(1, 5000),
    batch=st.sampled_from([1, 32, 256, 8192, 10**6, 2**31 - 1]),
    epochs=st.integers(1, 10),
    size=st.sampled_from([2, 100, 10**4, 10**6]),
    backend=st.sampled_from(["cpu", "gpu", "tpu"]),
)
def test_chunks_sum_to_the_number_of_updates(updates, batch, epochs, size, backend):
    """All have one length, except perhaps a shorter last one; none is longer than twice the target of 64 updates."""
    config = TrainConfig(
        num_envs=batch, num_steps=1, num_epochs=epochs, num_minibatches=1, total_timesteps=updates * batch
    )
    lengths = chunk_lengths(config, params_of(size), backend)
    assert sum(lengths) == updates
    assert set(lengths[:-1]) <= {lengths[0]}
    assert 1 <= lengths[-1] <= lengths[0] <= 128


@given(
    updates=st.integers(1, 2000),
    period=st.integers(1, 3000),
    batch=st.sampled_from([1, 256, 8192, 10**6]),
    size=st.sampled_from([2, 10**4, 10**6]),
    done=st.integers(0, 2000),
)
def test_chunks_end_at_every_multiple_of_a_period(updates, period, batch, size, done):
    """They do so with three lengths at most, and also in a run that goes on from anywhere."""
    config = TrainConfig(num_envs=batch, num_steps=1, num_minibatches=1, total_timesteps=updates * batch)
    lengths = chunk_lengths(config, params_of(size), "cpu", period)
    assert sum(lengths) == updates
    assert min(lengths) >= 1
    assert max(lengths) <= 128
    assert len(set(lengths)) <= 3
    ends = {*np.cumsum(lengths)}
    assert ends >= {*range(period, updates + 1, period)}
    left = remaining(lengths, min(done, updates))
    assert {*(min(done, updates) + np.cumsum(left))} == {end for end in ends if end > done}
    if period >= updates:
        assert lengths == chunk_lengths(config, params_of(size), "cpu")


def test_one_program_where_chunks_that_are_short_are_few():
    """A run of 146 updates with a period of 15 has chunks of one update; one of 10,001 has a rest after the last."""

    def lengths(updates, period):
        config = TrainConfig(num_envs=8, total_timesteps=updates * 1024)
        return chunk_lengths(config, params_of(10), "cpu", period)

    assert {*lengths(146, 15)} == {1}
    assert {*lengths(120, 12)} == {12}
    assert {*lengths(640, 128)} == {64}
    assert lengths(10_001, 1000) == [*[50] * 200, 1]


def test_a_divisor_is_taken_where_there_is_one_of_about_the_right_size():
    """100 and 127 updates take one program, with chunks of 50 and 127; 2 x 67 would do too, and 2 x 137 are too long.

    The prime 257 has no divisor between 64 / 16 and 2 * 64, so its last chunk is shorter.
    """

    def lengths(updates):
        return chunk_lengths(TrainConfig(num_envs=8, total_timesteps=updates * 1024), params_of(10), "cpu")

    assert lengths(100) == [50, 50]
    assert lengths(127) == [127]
    assert lengths(134) == [67, 67]
    assert lengths(257) == [64, 64, 64, 64, 1]


def test_chunks_are_about_as_long_as_the_work_in_them():
    """Work is rows x epochs x parameters: with ten times the work per update a chunk has a tenth of the updates."""
    config = TrainConfig(num_envs=8, num_steps=128, num_epochs=4, total_timesteps=1024 * 1024)
    size = int(chunked_loop._CHUNK_WORK["cpu"] / (config.batch_size * config.num_epochs * 32))
    assert chunk_lengths(config, params_of(size), "cpu")[0] == 32
    assert chunk_lengths(config, params_of(8 * size), "cpu")[0] == 4
    assert chunk_lengths(dataclasses.replace(config, num_epochs=8), params_of(size), "cpu")[0] == 16
    assert chunk_lengths(config, params_of(1000 * size), "cpu")[0] == 1
    assert chunk_lengths(config, params_of(8 * size), "gpu")[0] > 4


@pytest.fixture(scope="module")
def walked():
    """Yields (trainer, a replacement of _compile_advance that compiles each length once) for CONFIG on the walk."""
    trainer = trainer_from_config(CONFIG, walk(CONFIG.num_envs))
    compiled, real = {}, chunked_loop._compile_advance

    def compile_advance(trainer, hp, runner, num_updates):
        if num_updates not in compiled:
            compiled[num_updates] = real(trainer, hp, runner, num_updates)
        return compiled[num_updates]

    return trainer, compile_advance


def chunks_of(trainer, runner=None, **asked):
    """Returns the chunks of CONFIG from a state, by default the first one of seed 3."""
    hp = jax.tree.map(jnp.float32, HP)
    runner = trainer.init(jax.random.key(3), hp) if runner is None else runner
    done = int(runner.updates)
    lengths = remaining(chunked_loop.chunk_lengths(CONFIG, runner.learner.params, "cpu"), done)
    programs = compile_chunks(trainer, hp, runner, lengths)
    calls = {length: partial(program, hp) for length, program in programs.items()}
    return advance_in_chunks(calls, lengths, runner, done, **asked)


def train_walking(trainer, sinks, runner=None, **asked):
    """Returns the last state and chunk of CONFIG; its rows go to the sinks."""
    rows, chunk = rows_of(CONFIG, sinks), None
    for chunk in chunks_of(trainer, runner, **asked):
        rows.write(chunk)
    return chunk.state, chunk


def rows_of(config, sinks, seconds=0.0, bad=0):
    return RunRows(config, sinks, NonfiniteLimit(config.on_nonfinite, bad), seconds)


@pytest.mark.parametrize("others", [([4, 2],), pytest.param(([4, 2], [6]), marks=pytest.mark.slow)])
def test_the_chunks_length_changes_nothing(walked, short_chunks, monkeypatch, others):
    """State and metrics are bitwise identical for three chunks, two of different lengths, and (slow) a single one."""
    trainer, compile_advance = walked
    monkeypatch.setattr(chunked_loop, "_compile_advance", compile_advance)
    results = []
    for lengths in ([2, 2, 2], *others):
        short_chunks(*lengths)
        rows = []
        runner, last = train_walking(trainer, [lambda step, row, rows=rows: rows.append(row)])
        assert last.end > 0
        results.append((state_sha256(runner), [without_time(row) for row in rows]))
    assert [row["update"] for row in results[0][1]] == list(range(1, UPDATES + 1))
    assert all(result == results[0] for result in results)


def test_chunks_are_reported_in_order_with_their_times(walked, short_chunks, monkeypatch):
    """Each chunk begins where the one before ended, and has the metrics of its own updates."""
    trainer, compile_advance = walked
    monkeypatch.setattr(chunked_loop, "_compile_advance", compile_advance)
    short_chunks(4, 2)
    chunks = list(chunks_of(trainer))
    assert [chunk.first_update for chunk in chunks] == [1, 5]
    assert [{len(x) for x in chunk.metrics.values()} for chunk in chunks] == [{4}, {2}]
    assert chunks[0].begin == 0
    assert chunks[0].end == chunks[1].begin < chunks[1].end
    assert chunks[0].state is None  # the next one has been started
    assert int(chunks[1].state.updates) == UPDATES


def test_the_speed_is_that_after_the_first_chunk():
    """With ten env steps per update: 2 updates in 4 s, then 3 in 1 s and 1 in 1 s."""
    sizes, ends = (2, 3, 1), (0.0, 4.0, 5.0, 6.0)
    chunks = [
        Chunk(sum(sizes[:i]) + 1, ends[i], ends[i + 1], {"learning_rate": np.zeros(size)})
        for i, size in enumerate(sizes)
    ]
    assert steady_speed(chunks[0], chunks[2], 10) == 20.0
    assert steady_speed(chunks[0], chunks[0], 10) == 5.0
    assert steady_speed(None, None, 10) == 0.0


def test_pauses_are_not_counted(monkeypatch):
    """A chunk takes a second to start; after the first the caller does something else for 1,000 s."""
    now, paused, wants = [0.0], [0.0], [True, False]
    monkeypatch.setattr(chunked_loop.time, "perf_counter", lambda: now[0])

    def program(state):
        now[0] += 1.0
        return state, {"learning_rate": np.zeros(2)}

    asked = {"wants_state": lambda _: wants.pop(0), "pauses": lambda: paused[0]}
    times = []
    for chunk in advance_in_chunks({2: program}, [2, 2, 2], 0, 0, **asked):
        times.append((chunk.begin, chunk.end))
        if chunk.first_update == 1:
            now[0], paused[0] = 1001.0, 1000.0
    assert times == [(0.0, 1.0), (1.0, 3.0), (3.0, 3.0)]


def test_one_compilation_for_any_number_of_chunks(walked, short_chunks, monkeypatch):
    trainer, compile_advance = walked
    asked = []

    def counted(trainer, hp, runner, num_updates):
        asked.append(num_updates)
        return compile_advance(trainer, hp, runner, num_updates)

    monkeypatch.setattr(chunked_loop, "_compile_advance", counted)
    short_chunks(2, 2, 2)
    train_walking(trainer, [])
    assert asked == [2]


def test_the_host_looks_between_chunks(walked, short_chunks, monkeypatch):
    """Chunks that were started are finished and reported; then the loop stops."""
    trainer, compile_advance = walked
    monkeypatch.setattr(chunked_loop, "_compile_advance", compile_advance)
    short_chunks(2, 2, 2)
    rows = []
    runner, _ = train_walking(trainer, [lambda step, row: rows.append(row)], stop=lambda: len(rows) >= 2)
    assert int(runner.updates) == len(rows) == 4
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert [row["env_steps"] for row in rows] == [32, 64, 96, 128]


# --- going on from a state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", range(UPDATES + 1))
def test_what_is_left_is_cut_at_the_same_places(done):
    left = remaining([2, 3, 1], done)
    ends = [UPDATES - sum(left[i + 1 :]) for i in range(len(left))]
    assert ends == [end for end in (2, 5, 6) if end > done]
    assert sum(left) == UPDATES - done


def test_a_run_in_two_parts_is_the_whole_run(walked, short_chunks, monkeypatch):
    """State and rows are bitwise identical, though the run was stopped after 4 of 6 updates."""
    trainer, compile_advance = walked
    monkeypatch.setattr(chunked_loop, "_compile_advance", compile_advance)
    short_chunks(2, 2, 2)
    whole, first, second = [], [], []
    expected, _ = train_walking(trainer, [lambda _, row: whole.append(without_time(row))])
    sink = [lambda _, row: first.append(without_time(row))]
    half, _ = train_walking(trainer, sink, stop=lambda: len(first) >= 2)
    end, _ = train_walking(trainer, [lambda _, row: second.append(without_time(row))], half)
    assert state_sha256(end) == state_sha256(expected)
    assert len(first) == 4
    assert first + second == whole


def test_nothing_left_to_do(walked, short_chunks, monkeypatch):
    trainer, compile_advance = walked
    monkeypatch.setattr(chunked_loop, "_compile_advance", compile_advance)
    short_chunks(2, 2, 2)
    done = trainer.init(jax.random.key(3), HP)._replace(updates=jnp.int32(UPDATES))
    assert list(chunks_of(trainer, done)) == []


def test_a_wanted_state_is_that_after_what_was_reported(walked, short_chunks, monkeypatch):
    """The state is yielded before another chunk is started, and asking for it changes no result."""
    trainer, compile_advance = walked
    monkeypatch.setattr(chunked_loop, "_compile_advance", compile_advance)
    short_chunks(2, 2, 2)
    wants = iter([True, False])
    seen, asked = [], []
    for chunk in chunks_of(trainer, wants_state=lambda update: asked.append(update) or next(wants)):
        seen.append((chunk.last_update, None if chunk.state is None else state_sha256(chunk.state)))
    assert asked == [2, 4]  # the ends of the chunks that were running
    *_, last = chunks_of(trainer)
    assert [(update, sha is None) for update, sha in seen] == [(2, False), (4, True), (6, False)]
    assert seen[2][1] == state_sha256(last.state)


def test_a_stop_before_the_first_chunk_starts_nothing(walked, short_chunks, monkeypatch):
    trainer, compile_advance = walked
    monkeypatch.setattr(chunked_loop, "_compile_advance", compile_advance)
    short_chunks(2, 2, 2)
    assert list(chunks_of(trainer, stop=lambda: "SIGTERM")) == []


# --- rows that are not finite -----------------------------------------------------------------------------------------


def chunk_of(*bits, first_update=1):
    """Returns a chunk of updates with these bits of non-finite quantities."""
    ones = np.ones(len(bits), np.float32)
    metrics = {"learning_rate": ones, "episode/count": ones, "nonfinite": np.array(bits, np.int32)}
    return Chunk(first_update, 0.0, 1.0, metrics)


def test_rows_stop_at_the_first_that_is_not_finite():
    rows = []
    with pytest.raises(DivergedError, match=r"^reward is not finite at update 12 \(384 env steps\)") as caught:
        rows_of(CONFIG, [lambda _, row: rows.append(row)]).write(chunk_of(0, 0b1010, 0, first_update=11))
    assert caught.value.update == 12
    assert [row["update"] for row in rows] == [11]
    assert "nonfinite" not in rows[0]


def advice_for(quantity, first_update, config=CONFIG, updates=1, bad=0):
    """Returns the advice of the error when a run stops because of this quantity."""
    bits = [1 << WATCHED.index(quantity)] * updates
    with pytest.raises(DivergedError) as caught:
        rows_of(config, [], bad=bad).write(chunk_of(*bits, first_update=first_update))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("quantity", ["observation", "reward", "normalizer"])
def test_the_environment_is_named_where_it_is_the_cause(quantity):
    """In the first update it alone can be the cause; later a policy may have driven it there, and both are named."""
    first, later = advice_for(quantity, 1), advice_for(quantity, 7)
    assert "comes from the environment, as nothing had been learnt yet" in first
    assert "learning_rate" not in first
    assert "comes from the environment" in later
    assert "policy" in later
    assert "lower learning_rate" in later


def test_the_learner_is_advised_where_it_is_the_cause():
    for quantity in set(WATCHED) - {"observation", "reward", "normalizer"}:
        for update in (1, 7):
            assert "Try a lower learning_rate" in advice_for(quantity, update)
            assert "environment" not in advice_for(quantity, update)


def test_nothing_is_learnt_by_updates_that_were_undone():
    """After ten bad updates in a row from the first one on, in one command or two, the environment alone is named."""
    skip = dataclasses.replace(CONFIG, on_nonfinite="skip")
    assert "nothing had been learnt" in advice_for("reward", 1, skip, updates=10)
    assert "nothing had been learnt" in advice_for("reward", 5, skip, updates=6, bad=4)
    assert "policy" in advice_for("reward", 2, skip, updates=10)


def test_rows_of_updates_that_were_undone_go_on_for_a_while():
    """Nine in a row, twice, are allowed; the tenth in a row ends the run."""
    rows = []
    consume = rows_of(dataclasses.replace(CONFIG, on_nonfinite="skip"), [lambda _, row: rows.append(row)]).write
    consume(chunk_of(*[1] * 9, 0, *[1] * 5))
    consume(chunk_of(*[2] * 4, 0, first_update=16))
    assert [row.get("nonfinite") for row in rows] == [
        *["observation"] * 9, None, *["observation"] * 5, *["reward"] * 4, None
    ]  # fmt: skip
    with pytest.raises(DivergedError, match=r"at update 30 .* in 10 updates in a row"):
        consume(chunk_of(*[1] * 10, first_update=21))


def test_seconds_go_on_from_those_before():
    rows = []
    rows_of(CONFIG, [lambda _, row: rows.append(row)], seconds=100.0).write(chunk_of(0, 0))
    assert [row["seconds"] for row in rows] == [100.5, 101.0]
