"""What a compiled program launches per loop and per update, and a model of how long that takes.

The model: each launch (a kernel or a copy) takes 1.5 us, or as long as its bytes take at the bandwidth of the device's
memory, if that is more; launches follow each other. An H100 took 1.2 us for each launch of programs whose kernels are
tiny, and what the model says to a tenth for four of those that move more (log.md has the table). Arithmetic, caches,
how well a kernel uses the bandwidth, and what runs side by side are left out.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib.hlo_text import Computation, Instruction, Module
from benchmarks.lib.thunks import Thunk

LAUNCH_US = 1.5
# Opcodes that are no work of the device: names of buffers, and the ends of what was started.
_NO_LAUNCH = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "domain", "get-dimension-size",
}  # fmt: skip
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COPIES = {"kCopy", "kMemcpy", "kMemzero", "kMemset32BitValue", "kMemset"}
_HOST_OPCODES = {"infeed", "outfeed", "send", "recv"}
_HOST_SPACE = "S(5)"  # host memory, in a layout


@dataclass
class Launch:
    """A kernel or a copy of one round of a loop."""

    kind: str  # kernel or copy
    name: str  # of the HLO instruction
    source: str  # the function of Python that it comes from
    read: float  # bytes
    written: float
    grid: str = ""  # blocks x threads

    def seconds(self, bytes_per_s: float) -> float:
        """Returns the modelled seconds."""
        return max(LAUNCH_US * 1e-6, (self.read + self.written) / bytes_per_s)


@dataclass
class Loop:
    """A loop without the loops inside it."""

    name: str
    source: str
    trips: int | None  # None if unknown; it is then counted as one
    rounds: float  # per call of the program, with those of the loops around it
    depth: int
    launches: list[Launch] = field(default_factory=list)
    graphs: int = 0  # CUDA graphs that are started in one round

    def bytes(self) -> float:
        """Returns the bytes that one round moves."""
        return sum(launch.read + launch.written for launch in self.launches)


def loops_of_text(module: Module) -> list[Loop]:
    """Returns the program's own level and its loops, with a launch for each instruction that is work."""
    found: list[Loop] = []

    def walk(computation: Computation, loop: Loop) -> None:
        for x in computation.instructions.values():
            if x.opcode == "while":
                walk(module.computations[x.attribute("body")], _loop(module, x, loop, found))
            elif x.opcode == "call":
                walk(module.computations[x.attribute("to_apply")], loop)
            elif x.opcode == "conditional":
                for name in branches(x):  # all of them, as which one is taken is not known
                    walk(module.computations[name], loop)
            elif x.opcode not in _NO_LAUNCH and not x.opcode.endswith(("-done", "-update")):
                loop.launches.append(_launch(module, x, "copy" if x.opcode.startswith("copy") else "kernel"))

    walk(module.entry, _top(found))
    return found


def loops_of_thunks(module: Module, root: Thunk) -> list[Loop]:
    """Returns the same from what the runtime does; loops inside a CUDA graph start none of their own.

    The stages of a sort count as one launch: XLA can emit its own sort here, but a real device calls a library for it.
    """
    found: list[Loop] = []

    def walk(thunk: Thunk, loop: Loop, name: str) -> None:
        name = thunk.instruction if module.find(thunk.instruction) else name
        if thunk.kind == "kWhile":
            instruction = module.find(thunk.instruction)
            loop = _loop(module, instruction, loop, found) if instruction else loop
        if thunk.kind == "kCommandBuffer":
            loop.graphs += 1
        for inner in thunk.inside:
            if inner.part != "condition":  # of a loop whose rounds are known, it is never evaluated
                walk(inner, loop, name)
        if thunk.inside or thunk.kind == "kAsyncDone":
            return
        instruction = module.find(name)
        if instruction and instruction.opcode == "sort" and any(x.name == name for x in loop.launches):
            return
        kind = "copy" if thunk.kind in _COPIES else "kernel"
        launch = _launch(module, instruction, kind) if instruction else Launch(kind, name or thunk.kind, "", 0, 0)
        launch.grid = thunk.grid
        loop.launches.append(launch)

    top = _top(found)
    for thunk in root.inside:
        walk(thunk, top, "")
    return found


def branches(conditional: Instruction) -> list[str]:
    """Returns the computations of which a condition takes one."""
    text = conditional.attributes.partition("branch_computations={")[2].partition("}")[0]
    names = [name.strip().lstrip("%") for name in text.split(",") if name.strip()]
    return names or [conditional.attribute("true_computation"), conditional.attribute("false_computation")]


def _top(found: list[Loop]) -> Loop:
    found.append(Loop("entry", "", 1, 1, 0))
    return found[0]


def _loop(module: Module, x: Instruction, around: Loop, found: list[Loop]) -> Loop:
    trips = module.trips(x)
    found.append(Loop(x.name, module.source(x), trips, around.rounds * (trips or 1), around.depth + 1))
    return found[-1]


def _launch(module: Module, x: Instruction, kind: str) -> Launch:
    read, written = module.moved(x)
    return Launch(kind, x.name, module.source(x), read, written)


def update_loop(loops: list[Loop], updates: int) -> int:
    """Returns the place of the loop over updates. Raises ValueError if there is no such loop."""
    for place, loop in enumerate(loops):
        if loop.depth == 1 and loop.trips == updates:
            return place
    raise ValueError(f"the program has no loop over its {updates} updates; XLA may have unrolled it.")


def per_update(loops: list[Loop], updates: int) -> list[Loop]:
    """Returns the loop over updates and those inside it, with `rounds` per update."""
    start = update_loop(loops, updates)
    end = next((i for i in range(start + 1, len(loops)) if loops[i].depth == 1), len(loops))
    return [Loop(**{**vars(loop), "rounds": loop.rounds / updates}) for loop in loops[start:end]]


def modelled(loops: list[Loop], bytes_per_s: float) -> float:
    """Returns the modelled seconds of loops, by the model above."""
    return sum(loop.rounds * launch.seconds(bytes_per_s) for loop in loops for launch in loop.launches)


def totals(loops: list[Loop]) -> dict[str, float]:
    """Returns the launches, kernels, copies, CUDA graphs and bytes of loops."""
    kinds = {
        kind: sum(loop.rounds * sum(launch.kind == kind for launch in loop.launches) for loop in loops)
        for kind in ("kernel", "copy")
    }
    return {
        "launches": round(sum(kinds.values()), 3),
        "kernels": round(kinds["kernel"], 3),
        "copies": round(kinds["copy"], 3),
        "graphs": round(sum(loop.rounds * loop.graphs for loop in loops), 3),
        "bytes": sum(loop.rounds * loop.bytes() for loop in loops),
    }


def largest(loops: list[Loop], bytes_per_s: float, number: int) -> list[dict[str, Any]]:
    """Returns the launches with most modelled time per update, at the shorter time of a launch.

    Those of a loop that differ in their number alone are one row: an unrolled loop has each of its launches many times.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for loop in loops:
        for x in loop.launches:
            what = re.sub(r"[.\d]+$", "", x.name)
            row = rows.setdefault((loop.name, what, x.source, x.grid, x.read, x.written), {
                "name": what, "kind": x.kind, "source": x.source, "loop": loop.name, "grid": x.grid,
                "per_update": 0, "read_mb": x.read / 1e6, "written_mb": x.written / 1e6, "ms_per_update": 0.0,
            })  # fmt: skip
            row["per_update"] += loop.rounds
            row["ms_per_update"] += 1e3 * loop.rounds * x.seconds(bytes_per_s)
    return sorted(rows.values(), key=lambda row: -row["ms_per_update"])[:number]


def by_source(loops: list[Loop], bytes_per_s: float) -> list[dict[str, Any]]:
    """Returns launches, bytes and modelled milliseconds per update of each function of Python, most launches first."""
    rows: dict[str, dict[str, Any]] = {}
    for loop in loops:
        for x in loop.launches:
            row = rows.setdefault(x.source, {"source": x.source, "launches": 0, "bytes": 0.0, "ms_per_update": 0.0})
            row["launches"] += loop.rounds
            row["bytes"] += loop.rounds * (x.read + x.written)
            row["ms_per_update"] += 1e3 * loop.rounds * x.seconds(bytes_per_s)
    return sorted(rows.values(), key=lambda row: -row["launches"])


def findings(module: Module) -> dict[str, list[str]]:
    """Returns the instructions that an update should not have, by what they are; all lists are empty in a good one.

    host_transfers: what goes to the host's memory or comes from it. callbacks: calls of Python. sorts: which a GPU does
    in many passes. unknown_trips: loops after each round of which a GPU waits for the host to read their condition.
    """
    found: dict[str, list[str]] = {"host_transfers": [], "callbacks": [], "sorts": [], "unknown_trips": []}
    for home in module.computations.values():
        for x in home.instructions.values():
            target = _target(x)
            if "callback" in target:
                found["callbacks"].append(x.name)
            elif (
                x.opcode.removesuffix("-done") in _HOST_OPCODES
                or "MoveToHost" in target
                or (_HOST_SPACE in x.shape and x.opcode.startswith("copy"))
            ):
                found["host_transfers"].append(x.name)
            elif x.opcode == "sort" or "sort" in target.lower():
                found["sorts"].append(x.name)
            elif x.opcode == "while" and module.trips(x) is None:
                found["unknown_trips"].append(x.name)
    return found


def _target(x: Instruction) -> str:
    """Returns the function that a custom call calls; empty for anything else."""
    if x.opcode != "custom-call":
        return ""
    return x.attributes.partition('custom_call_target="')[2].partition('"')[0]


def collectives(module: Module, loops: list[Loop]) -> list[dict[str, Any]]:
    """Returns the exchanges between devices, with how often each is made and the bytes that a device gives.

    XLA may make a kernel of its own of a small one; it is then a fusion with the exchange inside.
    """
    rows = []
    for loop in loops:
        for launch in loop.launches:
            x = module.find(launch.name)
            inside = module.computations.get(x.attribute("calls")) if x else None
            for exchange in inside.instructions.values() if inside else [x] if x else []:
                kind = exchange.opcode.removesuffix("-start")
                if kind in _COLLECTIVES:
                    home = module.home[exchange.name].instructions
                    size = sum(module.size(home[name].shape, with_fast=True) for name in exchange.operands)
                    where = {"name": launch.name, "source": module.source(exchange), "per_update": loop.rounds}
                    rows.append({"kind": kind, **where, "bytes": size})
    return rows
