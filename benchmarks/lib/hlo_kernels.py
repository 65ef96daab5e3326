"""Estimates how many kernels a compiled program launches one after the other, from its own text.

Each fusion, library call, reduction and the like counts as one, loops as often as they are known to run.
"""

import re
from collections.abc import Callable

_KERNELS = {
    "fusion", "custom-call", "dot", "convolution", "reduce", "reduce-window", "sort", "scatter", "gather", "copy",
    "select-and-scatter", "rng-bit-generator", "dynamic-update-slice", "dynamic-slice", "transpose", "concatenate",
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPCODE = re.compile(r"= (?:\([^=]*?\)|\S+) ([a-z][\w\-]*)\(")
_TRIPS = re.compile(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)')


def count_kernels(text: str) -> int:
    """Counts the kernels in a program's HLO, `compiled.as_text()`."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)
    known: dict[str, int] = {}

    def total(computation: str) -> int:
        if computation not in known:
            known[computation] = sum(_of_line(line, total) for line in bodies.get(computation, []))
        return known[computation]

    return total(entry)


def _of_line(line: str, total: Callable[[str], int]) -> int:
    opcode = _OPCODE.search(line)
    if not opcode:
        return 0
    if opcode[1] == "while":
        trips = _TRIPS.search(line)
        return int(trips[1] if trips else 1) * total(_called(line, "body"))
    if opcode[1] == "call":
        return total(_called(line, "to_apply"))
    if opcode[1] == "conditional":
        branches = re.findall(r"%([\w.\-]+)", line.partition("computations={")[2].partition("}")[0])
        branches += re.findall(r"(?:true|false)_computation=%([\w.\-]+)", line)
        return max(map(total, branches), default=0)
    return int(opcode[1] in _KERNELS)


def _called(line: str, attribute: str) -> str:
    found = re.search(rf"{attribute}=%?([\w.\-]+)", line)
    return found[1] if found else ""
