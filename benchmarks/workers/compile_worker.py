"""Answers with what a program would run on a device that need not be there: launches, bytes, memory, exchanges.

    python -m benchmarks.workers.compile_worker '{"target": "h100", "trainer": "ours", "settings": {"num_envs": 64}}'

Nothing is executed: JAX traces on the CPU, and the compiler comes with the build of jax for the device.
"""

import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.lib import device_target
from benchmarks.lib.hlo_text import Module
from benchmarks.lib.launches import (
    Loop,
    by_source,
    collectives,
    findings,
    largest,
    loops_of_text,
    loops_of_thunks,
    modelled,
    per_update,
    totals,
)
from benchmarks.lib.thunks import read_thunks
from benchmarks.lib.worker_process import answer_channel
from benchmarks.trainers.protocol import Settings
from purejaxppo.devices.gpu import missing_flags

UPDATES = 4  # in the program; XLA removes a loop of one
LISTED = 40  # of the largest launches

_CALLBACK = re.compile(r"\b(debug_print|\w+_callback)\[")

Program = tuple[Callable[[Any], Any], Any]  # a step, and the shapes and shardings of its state


def read_request(text: str) -> dict[str, Any]:
    """Returns a request with what it leaves out: one device, nothing around the trainer, no file of the program."""
    return {"trainer": "ours", "settings": {}, "devices": 1, "around": "", "keep": "", **json.loads(text)}


def with_shardings(tree: Any, sharding: Any) -> Any:
    """Returns the shapes of a tree on devices; `sharding` is one, or a tree of them."""
    import jax
    import numpy as np

    if isinstance(sharding, jax.sharding.Sharding):
        one = sharding
        sharding = jax.tree.map(lambda _: one, tree)
    return jax.tree.map(
        # Plain numbers are those of the hyperparameters, float32 like all of them.
        lambda x, where: jax.ShapeDtypeStruct(np.shape(x), getattr(x, "dtype", np.float32), sharding=where),
        tree,
        sharding,
    )


def ours(settings: Settings, devices: Sequence[Any], around: Callable[[Any], Any]) -> Program:
    """Returns UPDATES updates of purejaxppo, as its own loop and its sweeps run them."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

    import purejaxppo
    from benchmarks.trainers.ours import HYPERPARAMS, train_config
    from purejaxppo.devices.data_parallel import mesh_of, partition_specs
    from purejaxppo.devices.vectorize import layout_for

    config = train_config(settings)
    hp = purejaxppo.Hyperparams(**{name: getattr(settings, name) for name in HYPERPARAMS})
    if settings.num_runs > 1:
        trainer = around(purejaxppo.trainer_from_config(config))
        layout = layout_for(settings.num_runs, devices=devices)
        hps, seeds = purejaxppo.grid(hp, range(settings.num_runs))
        runs = jax.eval_shape(lambda: purejaxppo.make_runs(trainer, hps, seeds, layout=layout))

        def advance_all(state: Any) -> Any:
            runs, metrics = purejaxppo.advance_runs(trainer, state[0], state[1], UPDATES, layout)
            return (state[0], runs), metrics

        return advance_all, with_shardings((hps, runs), layout.sharding)

    one = len(devices) == 1
    trainer = purejaxppo.trainer_from_config(config) if one else purejaxppo.spread_trainer(config, devices=devices)
    trainer = around(trainer)
    # `init` of several devices asks for their memory, which is not there; its shapes are those of one device.
    alone = purejaxppo.trainer_from_config(config)
    runner = jax.eval_shape(lambda: alone.init(jax.random.key(0), jax.tree.map(jnp.float32, hp)))

    def advance_one(state: Any) -> Any:
        runner, metrics = purejaxppo.advance(trainer, state[0], state[1], UPDATES)
        return (state[0], runner), metrics

    if one:
        return advance_one, with_shardings((hp, runner), SingleDeviceSharding(devices[0]))
    mesh = mesh_of(devices)
    specs = jax.tree.map(lambda spec: NamedSharding(mesh, spec), partition_specs(runner))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return advance_one, (with_shardings(hp, everywhere), with_shardings(runner, specs))


def common_shape(settings: Settings, devices: Sequence[Any], around: Callable[[Any], Any]) -> Program:
    """Returns UPDATES updates of the common shape, on one device."""
    import jax
    from jax.sharding import SingleDeviceSharding

    from benchmarks.trainers.common_shape import advance, make_train

    if len(devices) > 1 or settings.num_runs > 1:
        raise ValueError("the common shape is compiled for one run on one device.")
    train = around(make_train(settings))
    runner = jax.eval_shape(lambda: train.init(jax.random.key(0)))
    return lambda state: advance(train, state, UPDATES), with_shardings(runner, SingleDeviceSharding(devices[0]))


PROGRAMS = {"ours": ours, "common_shape": common_shape}


def find_around(name: str) -> Callable[[Any], Any]:
    """Returns the function MODULE:FUNCTION, which changes the trainer; by default nothing is changed."""
    if not name:
        return lambda trainer: trainer
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def xla_flags(target: device_target.Target, trainer: str) -> str:
    """Returns the XLA_FLAGS of a trainer: those of the environment, and what purejaxppo adds where there is a GPU."""
    ours = trainer == "ours" and target.compiler == "cuda"
    return missing_flags(os.environ, version("jaxlib")) if ours else os.environ.get("XLA_FLAGS", "")


def compile_for(request: dict[str, Any], dump: Path) -> dict[str, Any]:
    """Compiles and returns all that is known of the program. XLA's dump goes to `dump`."""
    target = device_target.load(request["target"])
    flags = xla_flags(target, request["trainer"])
    if target.compiler == "cuda":
        dumping = f"--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_block.*"
        os.environ["XLA_FLAGS"] = f"{flags} {dumping}".strip()
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    import jax
    from jax.experimental import topologies

    from purejaxppo.core.target import compiling_for

    settings = Settings(**request["settings"])
    number = request["devices"]
    platform, shape = device_target.topology(target, number)

    def lowered(sorts: bool) -> Any:
        if platform == "cuda":
            config = device_target.target_config(target, sorts)
            there = topologies.get_topology_desc(platform=platform, target_config=config, topology=shape)
        else:
            there = topologies.get_topology_desc(shape, platform)
        make = PROGRAMS[request["trainer"]]
        step, state = make(settings, there.devices[:number], find_around(request["around"]))

        def block(state: Any) -> Any:
            return step(state)

        traced = jax.jit(block, donate_argnums=0).trace(state)
        refuse_callbacks(str(traced.jaxpr))
        return traced.lower(lowering_platforms=(platform,))

    start = time.perf_counter()
    with compiling_for(target.platform):
        program = lowered(sorts=False)
        if platform == "cuda" and "stablehlo.sort" in program.as_text():
            program = lowered(sorts=True)
        traced = time.perf_counter()
        compiled = program.compile()
    done = time.perf_counter()
    text = compiled.as_text()
    if request["keep"]:
        Path(request["keep"]).write_text(text)
    module = Module(text, target.fast_memory)
    memory = compiled.memory_analysis()
    return {
        "env_steps_per_update": settings.env_steps,
        "xla_flags": flags,
        "trace_s": traced - start,
        "compile_s": done - traced,
        "memory": {
            "temporary_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
        },
        **described(target, module, read_loops(module, dump if platform == "cuda" else None)),
    }


def refuse_callbacks(jaxpr: str) -> None:
    """Raises ValueError if a program calls Python: JAX cannot lower that for a GPU that is not there."""
    called = sorted(set(_CALLBACK.findall(jaxpr)))
    if called:
        raise ValueError(
            f"the program has a callback of Python ({', '.join(called)}), for which the device waits; take it out of "
            f"the update."
        )


def read_loops(module: Module, dump: Path | None) -> list[Loop]:
    """Returns the loops, by what the runtime does if XLA has dumped that."""
    if dump is None:
        return loops_of_text(module)
    sequence, metadata = (
        next(dump.glob(f"*.{name}.txt")).read_text() for name in ("thunk_sequence_after_thunk_passes", "thunk_metadata")
    )
    return loops_of_thunks(module, read_thunks(sequence, metadata))


def described(target: device_target.Target, module: Module, loops: list[Loop]) -> dict[str, Any]:
    """Returns what a program has, per update but for what is done once per call."""
    update = per_update(loops, UPDATES)
    rows = [
        {
            "loop": loop.name, "source": loop.source, "depth": loop.depth, "trips": loop.trips,
            "per_update": loop.rounds,
            "kernels": sum(launch.kind == "kernel" for launch in loop.launches),
            "copies": sum(launch.kind == "copy" for launch in loop.launches),
            "graphs": loop.graphs, "bytes": loop.bytes(),
            "ms_per_update": 1e3 * modelled([loop], target.bytes_per_s),
        }
        for loop in update
    ]  # fmt: skip
    return {
        "per_update": totals(update),
        "per_call": totals([loop for loop in loops if loop.depth == 0]),
        "ms_per_update": 1e3 * modelled(update, target.bytes_per_s),
        "bytes_ms_per_update": 1e3 * totals(update)["bytes"] / target.bytes_per_s,
        "loops": rows,
        "findings": findings(module),
        "collectives": collectives(module, update),
        "sources": by_source(update, target.bytes_per_s),
        "largest": largest(update, target.bytes_per_s, LISTED),
    }


def main() -> None:
    answer = answer_channel()
    with tempfile.TemporaryDirectory() as dump:
        answer(compile_for(read_request(sys.argv[1]), Path(dump)))


if __name__ == "__main__":
    main()
