"""Compiles training programs for a device that need not be there, and reports what it would run.

    bash scripts/benchmark.sh --for h100
    bash scripts/benchmark.sh --for v5e --programs 2048x128 --list 2048x128
    bash scripts/benchmark.sh --for h100x8 --programs 2048x128 runs-1024
    bash scripts/benchmark.sh --for v5e-2x4 --programs 2048x128

Nothing is executed. Launches (kernels and copies, each as often as the loops around it run), CUDA graphs, bytes and
memory are read off the compiled program; milliseconds and env steps per second are a model of them: a launch takes
1.5 us, or as long as its bytes take at the bandwidth of the device's memory, if that is more. XLA_FLAGS are those of
the environment and, for ours, those that the package sets where there is a GPU; they are recorded.

Exit code 1 if a program could not be compiled, or if one of ours has a transfer to the host, a callback, a sort, or a
loop with an unknown number of rounds; 2 if nothing could be begun, 130 if it was interrupted.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib import device_target
from benchmarks.lib.launches import LAUNCH_US
from benchmarks.lib.report import Row, count, figure, parser, progress, table
from benchmarks.lib.worker_process import (
    WorkerError,
    WorkerProcess,
    call,
    end_workers_when_terminated,
    environment,
    module_command,
)
from benchmarks.run import RefusedError, check_out
from benchmarks.sections.throughput import MINATAR, cartpole
from benchmarks.trainers.protocol import Settings

LIMIT = 1200.0  # seconds that a compilation may take before it counts as hanging
FIRST_GUESS = {"cuda": 45.0, "tpu": 110.0}  # seconds of a program, until one has been compiled, on two cores
HEAD = {
    "cuda": ["program", "launches", "kernels", "copies", "graphs", "MB moved", "MB temporary", "MB arguments",
             "model ms", "model M steps/s", "compile s", "findings"],
    "tpu": ["program", "operations", "MB moved", "MB temporary", "MB arguments", "ms for the bytes", "compile s",
            "findings"],
}  # fmt: skip


class Program(NamedTuple):
    """What is compiled: a trainer of workers/compile_worker.py and its settings."""

    trainer: str
    settings: Settings


def programs() -> dict[str, Program]:
    """Returns the programs by the names that the options take."""
    wide: dict[str, Any] = {"num_envs": 2048, "num_steps": 128}
    ours = {
        "64x128": cartpole(64, 128),
        "256x128": cartpole(256, 128),
        "2048x128": cartpole(2048, 128),
        "breakout": Settings("Breakout-MinAtar", **wide, config=MINATAR),
        "pendulum": Settings("Pendulum-v1", **wide),
        "gru": Settings(**wide, config={"policy": "gru"}),
        "runs-16": cartpole(4, 128, 16),
        "runs-256": cartpole(4, 128, 256),
        "runs-1024": cartpole(4, 128, 1024),
    }
    return {
        **{name: Program("ours", settings) for name, settings in ours.items()},
        "common-shape": Program("common_shape", cartpole(2048, 128)),
    }


def request(target: device_target.Target, program: Program, devices: int, keep: str = "") -> dict[str, Any]:
    """Returns what the worker is asked for."""
    settings = asdict(program.settings)
    if devices > 1 and program.settings.num_runs == 1:  # each device needs shards of its own
        settings["config"] = {**settings["config"], "num_shards": devices}
    return {
        "target": target.id, "trainer": program.trainer, "settings": settings, "devices": devices, "keep": keep,
    }  # fmt: skip


def compiled(asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the worker's answer. Raises WorkerError."""
    command = module_command("benchmarks.workers.compile_worker", json.dumps(asked))
    with WorkerProcess("compile_worker", command, environment()) as process:
        return process.receive(LIMIT)


def row_of(name: str, program: Program, target: device_target.Target, answer: dict[str, Any]) -> Row:
    """Returns the row of a program, with the figures that two files are compared by."""
    update, memory = answer["per_update"], answer["memory"]
    counts = {
        "launches per update": ("launches", update["launches"]),
        "CUDA graphs per update": ("graphs", update["graphs"]),
        "bytes per update": ("bytes", update["bytes"]),
        "temporary memory": ("bytes", memory["temporary_bytes"]),
    }
    return {
        "name": name, "work": program.settings.name, "trainer": program.trainer, **answer,
        "env_steps_per_s": 1e3 * answer["env_steps_per_update"] / answer["ms_per_update"],
        "settings": asdict(program.settings),
        "figures": [
            *(count(f"{name} {what}", unit, number) for what, (unit, number) in counts.items() if number),
            figure(f"{name} compilation", "s", [answer["compile_s"]], "lower"),
        ],
    }  # fmt: skip


def found(row: Row) -> str:
    """Returns what a program has that costs more than its launches show, in words; empty if there is nothing."""
    return ", ".join(f"{len(names)} {what.replace('_', ' ')}" for what, names in row["findings"].items() if names)


def cells(row: Row, compiler: str) -> list[str]:
    """Returns a row of the table."""
    if "error" in row:
        return [row["name"], row["error"], *[""] * (len(HEAD[compiler]) - 2)]
    update, memory = row["per_update"], row["memory"]
    sizes = [update["bytes"], memory["temporary_bytes"], memory["argument_bytes"]]
    megabytes = [f"{size / 1e6:,.1f}" for size in sizes]
    end = [f"{row['compile_s']:.0f}", found(row) or "none"]
    if compiler == "tpu":
        return [row["name"], f"{update['launches']:,.0f}", *megabytes, f"{row['bytes_ms_per_update']:.2f}", *end]
    numbers = [f"{update[name]:,.0f}" for name in ("launches", "kernels", "copies", "graphs")]
    modelled = [f"{row['ms_per_update']:.2f}", f"{row['env_steps_per_s'] / 1e6:.1f}"]
    return [row["name"], *numbers, *megabytes, *modelled, *end]


def loop_table(row: Row) -> str:
    """Returns the loops of a program as a table, those inside another indented."""
    lines = [
        [
            f"{'  ' * (loop['depth'] - 1)}{loop['loop']}", loop["source"], f"{loop['per_update']:g}",
            str(loop["kernels"]), str(loop["copies"]), str(loop["graphs"]), f"{loop['bytes'] / 1e6:,.2f}",
            f"{loop['ms_per_update']:.2f}",
        ]
        for loop in row["loops"]
    ]  # fmt: skip
    return table(["loop", "from", "rounds", "kernels", "copies", "graphs", "MB a round", "model ms per update"], lines)


def launch_table(row: Row) -> str:
    """Returns the launches of a program by the function that they come from, and the largest of them."""
    functions = [
        [x["source"] or "-", f"{x['launches']:g}", f"{x['bytes'] / 1e6:,.1f}", f"{x['ms_per_update']:.3f}"]
        for x in row["sources"]
    ]
    lines = [
        [
            x["name"], x["source"], x["loop"], f"{x['per_update']:g}", x["grid"] or "-", f"{x['read_mb']:,.3f}",
            f"{x['written_mb']:,.3f}", f"{x['ms_per_update']:.3f}",
        ]
        for x in row["largest"]
    ]  # fmt: skip
    head = ["launch", "from", "loop", "per update", "blocks x threads", "MB read", "MB written", "ms per update"]
    return f"{table(['from', 'launches', 'MB', 'ms per update'], functions)}\n\n{table(head, lines)}"


def exchanges(row: Row) -> str:
    """Returns the collectives of a program as a table."""
    lines = [
        [x["kind"], x["name"], x["source"], f"{x['per_update']:g}", f"{x['bytes']:,.0f}"] for x in row["collectives"]
    ]
    return table(["exchange", "name", "from", "per update", "bytes each"], lines)


def machine_of(target: device_target.Target, devices: int) -> dict[str, Any]:
    """Returns the machine that compiles, with the device that it compiles for in place of its own."""
    machine = call("machine_info", env={"JAX_PLATFORMS": "cpu"})
    given = {name: value for name, value in machine["environment"].items() if name != "JAX_PLATFORMS"}
    return {
        **machine, "platform": target.platform, "device": target.name, "devices_compiled_for": devices,
        "environment": given,
    }  # fmt: skip


def measure(arguments: argparse.Namespace, target: device_target.Target, rows: list[Row]) -> int:
    """Compiles the programs, adding each to the file as soon as it is done, and returns the exit code."""
    known, names = programs(), arguments.programs
    machine = machine_of(target, arguments.devices)
    print(f"compiling {len(names)} programs for {target.name}, jax {machine['versions']['jax']}, {machine['commit']}")
    content: dict[str, Any] = {"status": "done", "note": "", "launch_us": LAUNCH_US, "rows": rows}
    content |= {"bytes_per_s": target.bytes_per_s, "compiler": target.compiler}
    quick = set(names) < set(known)  # so that what was left out has not vanished
    result = {"machine": machine, "quick": quick, "started": time.time(), "sections": {"compiled": content}}
    taken: list[float] = []
    for number, name in enumerate(names):
        left = (len(names) - number) * (statistics.mean(taken) if taken else FIRST_GUESS[target.compiler])
        progress(f"[{number + 1}/{len(names)}] {name}: {known[name].settings.name}; about {left:.0f} s left")
        start = time.perf_counter()
        keep = str(arguments.keep.absolute() / f"{target.id}-{name}.hlo.txt") if arguments.keep else ""
        try:
            answer = compiled(request(target, known[name], arguments.devices, keep))
            rows.append(row_of(name, known[name], target, answer))
        except WorkerError as error:
            rows.append({"name": name, "work": known[name].settings.name, "error": str(error)})
        taken.append(time.perf_counter() - start)
        content["wall_s"] = round(sum(taken), 1)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return report(arguments, target, rows)


def report(arguments: argparse.Namespace, target: device_target.Target, rows: list[Row]) -> int:
    """Prints the tables, draws the picture and returns the exit code."""
    print(f"\nper update, {target.name}")
    print(table(HEAD[target.compiler], [cells(row, target.compiler) for row in rows]))
    model = f"the bytes at {target.bytes_per_s / 1e12:.2f} TB/s"
    if target.compiler == "cuda":
        model = f"each launch {LAUNCH_US} us, or {model} if that is more; nothing was run"
    print(f"the model: {model}")
    for row in (row for row in rows if "error" not in row):
        if row["name"] in arguments.list or len(rows) == 1:
            print(f"\n{row['name']}: {row['work']}\n{loop_table(row)}")
        if row["name"] in arguments.list:
            print(f"\n{launch_table(row)}")
        if row["collectives"]:
            print(f"\n{row['name']}: exchanges between {arguments.devices} devices\n{exchanges(row)}")
    draw = [sys.executable, "-m", "benchmarks.lib.plots", str(arguments.out)]
    pictures = subprocess.run(draw, env=environment(), check=False)
    print(f"written to {os.path.relpath(arguments.out)}")
    bad = [row["name"] for row in rows if "error" in row or (row["trainer"] == "ours" and found(row))]
    for name in bad:
        print(f"error: {name} could not be compiled, or has what an update should not have", file=sys.stderr)
    return 1 if bad or pictures.returncode else 0


def _several(text: str) -> tuple[str, int]:
    try:
        return device_target.several(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """Compiles what the options name, and returns the exit code."""
    options = parser(__doc__)
    options.add_argument("target", type=_several, help="the device to compile for, or several of it: h100x8, v5e-2x4")
    options.add_argument("--programs", nargs="+", choices=programs(), default=list(programs()), help="by default all")
    options.add_argument("--list", nargs="+", choices=programs(), default=[], help="programs whose launches to list")
    options.add_argument("--keep", type=Path, metavar="DIR", help="keep each program's HLO in this directory")
    options.add_argument("--out", type=Path, help="JSON file to write, by default benchmarks/results/aot-DEVICE.json")
    arguments = options.parse_args(argv)
    name, arguments.devices = arguments.target
    if arguments.devices > 1:
        arguments.programs = [name for name in arguments.programs if name != "common-shape"]
    arguments.programs += [name for name in arguments.list if name not in arguments.programs]
    end_workers_when_terminated()
    rows: list[Row] = []
    try:
        target = device_target.load(name)
        number = f"-x{arguments.devices}" if arguments.devices > 1 else ""
        default = Path(__file__).parent / "results" / f"aot-{target.id}{number}.json"
        arguments.out = arguments.out or default
        check_out(arguments.out)
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
        return measure(arguments, target, rows)
    except RefusedError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(f"benchmark: JAX does not start here: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"benchmark: interrupted; {len(rows)} programs are in {os.path.relpath(arguments.out)}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
