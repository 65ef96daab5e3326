"""Layouts: which devices take how many runs, and that no device ever waits for another."""

import json
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import collectives
from jax.sharding import PartitionSpec
from probe_envs import walk

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.devices import selection
from purejaxppo.devices.vectorize import (
    Layout,
    advance_runs,
    grid,
    layout_for,
    make_runs,
    one_by_one,
    usable_devices,
)
from purejaxppo.errors import ConfigError
from purejaxppo.train import advance, trainer_from_config


def pretend(platform, count, process=0):
    """Devices of which nothing but the platform and the process is known."""
    return [Mock(spec=["platform", "process_index"], platform=platform, process_index=process) for _ in range(count)]


# --- which devices, and how -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "there", "used"),
    [(1, 1, 1), (12, 1, 1), (1, 4, 1), (3, 2, 1), (4, 2, 2), (6, 4, 3), (9, 8, 3), (14, 8, 7), (16, 8, 8), (13, 8, 1)],
)
def test_as_many_devices_as_divide_the_runs(runs, there, used):
    """The first of them: 14 runs leave one of eight devices idle, 13 all but one."""
    devices = pretend("cpu", there)
    mesh = layout_for(runs, devices=devices).mesh
    assert mesh.axis_names == ("runs",)
    assert mesh.devices.tolist() == devices[:used]


@pytest.mark.parametrize(
    ("runs", "of_first", "of_second", "each"),
    [(4, 2, 2, 2), (8, 4, 4, 4), (6, 2, 2, 1), (2, 4, 4, 1), (12, 4, 3, 3), (16, 4, 3, 2), (6, 4, 3, 3)],
)
def test_every_process_takes_as_many(runs, of_first, of_second, each):
    first, second = pretend("cpu", of_first, 0), pretend("cpu", of_second, 1)
    assert layout_for(runs, devices=[*first, *second]).mesh.devices.tolist() == [*first[:each], *second[:each]]


@pytest.mark.parametrize(
    ("runs", "exact", "message"),
    [(3, False, "2 processes cannot share batches of 3 runs equally"), (4, True, "exact = True takes one device")],
)
def test_a_process_without_runs_is_refused(runs, exact, message):
    with pytest.raises(ConfigError, match=message):
        layout_for(runs, exact, [*pretend("cpu", 2, 0), *pretend("cpu", 2, 1)])


def test_as_many_devices_are_usable_as_each_process_has(monkeypatch):
    assert usable_devices() == len(jax.devices())
    monkeypatch.setattr(selection, "devices", lambda: [*pretend("cpu", 4, 0), *pretend("cpu", 3, 1)])
    assert usable_devices() == 6


@pytest.mark.parametrize(
    ("platform", "exact", "batching"),
    [
        ("cpu", False, one_by_one),
        ("cpu", True, one_by_one),
        ("gpu", False, jax.vmap),
        ("gpu", True, one_by_one),
        ("tpu", False, jax.vmap),
        ("tpu", True, one_by_one),
    ],
)
def test_side_by_side_on_an_accelerator_unless_it_shall_be_exact(platform, exact, batching):
    """Exact is one run after the other on one device: a program for several is compiled in another way."""
    layout = layout_for(4, exact, pretend(platform, 2))
    assert layout.batching is batching
    assert layout.mesh.size == (1 if exact else 2)


def test_all_devices_by_default():
    """Two of them here, see conftest.py; equal layouts are one static argument, and so one compilation."""
    layout = layout_for(4)
    assert layout.mesh.devices.tolist() == jax.devices()[:2]
    assert layout.batching is one_by_one
    assert layout == layout_for(4)
    assert hash(layout) == hash(layout_for(4))
    assert layout != layout_for(4, devices=jax.devices()[:1])


def test_a_layout_is_its_mesh_and_its_batching():
    """Any other batching can be given."""
    layout = Layout(layout_for(2).mesh, jax.vmap)
    assert layout == layout_for(2)._replace(batching=jax.vmap)
    assert layout != layout_for(2)


def test_each_device_holds_its_own_rows():
    """In order, with whatever comes after R left whole."""
    layout = layout_for(6)
    assert layout.sharding.spec == PartitionSpec("runs")
    x = jax.device_put(np.arange(12).reshape(6, 2), layout.sharding)
    shards = sorted(x.addressable_shards, key=lambda shard: shard.device.id)
    assert [np.asarray(shard.data)[:, 0].tolist() for shard in shards] == [[0, 2, 4], [6, 8, 10]]


# --- f over the runs --------------------------------------------------------------------------------------------------


def iterate(args, start):
    """So many steps of a chaotic map, and the largest value on the way; a rounding error would grow to be seen."""
    rate, steps = args

    def step(i, carry):
        x, highest = carry
        x = jnp.where(i < steps, jnp.tanh(rate @ x) * jnp.float32(3.1), x)
        return x, jnp.maximum(highest, jnp.max(x))

    x, highest = jax.lax.fori_loop(0, 40, step, (start["x"], jnp.float32(-jnp.inf)))
    return {"x": x, "steps": steps + 0}, highest


def arguments(runs):
    """((rate [R, 3, 3], steps [R]), {"x": start [R, 3]})."""
    rng = np.random.default_rng(0)
    rate, x = (rng.normal(size=shape).astype(np.float32) for shape in [(runs, 3, 3), (runs, 3)])
    return (rate, np.arange(runs, dtype=np.int32) * 7), {"x": x}


@pytest.mark.parametrize("batching", [one_by_one, jax.vmap])
@pytest.mark.parametrize("first", [0, 1])
def test_each_run_is_f_of_its_own_row(first, batching):
    """Bit for bit what f gives alone, or to rounding under vmap, in the order of the rows; and nothing is exchanged.

    Over both devices, or the second one alone.
    """
    layout, args = layout_for(6, devices=jax.devices()[first:])._replace(batching=batching), arguments(6)
    program = jax.jit(layout.over_runs(iterate)).lower(*args).compile()
    assert collectives(program) == []
    found = program(*args)
    assert all(x.sharding.is_equivalent_to(layout.sharding, x.ndim) for x in jax.tree.leaves(found))
    alone = jax.jit(iterate)
    for i in range(6):
        wanted = jax.tree.leaves(alone(*jax.tree.map(lambda x, i=i: x[i], args)))
        for x, y in zip(jax.tree.leaves(found), wanted, strict=True):
            if batching is one_by_one or x.dtype == np.int32:
                assert np.asarray(x[i]).tobytes() == np.asarray(y).tobytes()
            elif i < 2:  # so few steps that rounding has not grown
                np.testing.assert_allclose(x[i], y, rtol=1e-3, atol=1e-3)


def test_a_run_does_only_what_it_needs_one_by_one():
    """A branch stays a branch, so that a run which rests costs nothing; vmap computes both sides."""

    def branch(x):
        return jax.lax.cond(x[0] > 0, lambda x: jnp.sort(jnp.sin(x)), lambda x: x, x)

    args = (np.ones((2, 8), np.float32),)
    texts = [jax.jit(batch(branch)).lower(*args).compile().as_text() for batch in (one_by_one, jax.vmap)]
    assert ["conditional(" in text for text in texts] == [True, False]


def test_the_inspector_sees_an_exchange():
    """Which there is when the runs' mean is asked for."""
    layout = layout_for(4)
    mean = jax.shard_map(
        lambda x: jax.lax.pmean(jnp.mean(x), "runs"),
        mesh=layout.mesh,
        in_specs=layout.sharding.spec,
        out_specs=PartitionSpec(),
    )
    assert collectives(jax.jit(mean).lower(np.ones(4, np.float32)).compile()) == ["all-reduce"]


# --- four devices -----------------------------------------------------------------------------------------------------

E, T, RUNS, UPDATES = 4, 4, 8, 3
STOP_AT = [3, 0, 1, 2, 3, 3, 3, 1]


def train_eight_runs():
    """Prints what came of eight runs, in chunks of one update, as JSON; for a process of its own."""
    config = TrainConfig(
        num_envs=E, num_steps=T, num_epochs=1, num_minibatches=2, hidden_sizes=(4,), total_timesteps=UPDATES * E * T
    )
    trainer = trainer_from_config(config, walk(E))
    hps, seeds = grid(Hyperparams(), [0, 2**32 - 1], learning_rate=[1e-3, 3e-3], gamma=[0.9, 0.99])
    start = make_runs(trainer, hps, seeds, np.array(STOP_AT))
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), start)

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    counts = []
    runs = start
    for _ in range(UPDATES + 1):
        runs, _ = advance_runs(trainer, hps, runs, 1)
        counts.append(compiled.count("/jax/core/compile/backend_compile_duration"))

    init = jax.jit(trainer.init)
    step = jax.jit(lambda hp, runner: advance(trainer, hp, runner, 1))

    def alone(i):
        hp = jax.tree.map(lambda x: x[i], hps)
        runner = init(jax.random.key(int(seeds[i])), hp)
        for _ in range(STOP_AT[i]):
            runner, _ = step(hp, runner)
        return runner

    def digest(runner):
        plain = jax.tree.leaves(runner._replace(key=jax.random.key_data(runner.key)))
        return b"".join(np.asarray(x).tobytes() for x in plain)

    members = [digest(jax.tree.map(lambda x, i=i: x[i], runs.runner)) for i in range(RUNS)]
    report = {
        "devices": len({device.id for x in jax.tree.leaves(runs) for device in x.devices()}),
        "updates": runs.runner.updates.tolist(),
        "compilations": counts,
        "collectives": collectives(advance_runs.lower(trainer, hps, described, 1).compile()),
        "moved": sum(x.sharding != y.sharding for x, y in zip(*map(jax.tree.leaves, (described, runs)), strict=True)),
        "as alone": [members[i] == digest(alone(i)) for i in range(RUNS)],
        "different": len(set(members)),
    }
    print(json.dumps(report))


def test_four_devices(server, tmp_path):
    """Two runs on each, with the bits of each alone.

    Compiled as users have it: with the little that conftest.py lets LLVM do, vmap has the same bits, and here it has
    others.
    """
    here = Path(__file__)
    script = f"import sys; sys.path.append({str(here.parent)!r}); import {here.stem} as here; here.train_eight_runs()"
    as_users_have_it = {"XLA_FLAGS": None, "JAX_NUM_CPU_DEVICES": "4"}
    code, out, errors = server.script(tmp_path / "log", script, **as_users_have_it)
    assert code == 0, errors
    assert json.loads(out) == {
        "devices": 4,
        "updates": STOP_AT,
        "compilations": [1] * (UPDATES + 1),
        "collectives": [],
        "moved": 0,
        "as alone": [True] * RUNS,
        "different": RUNS,
    }
