"""Reads the text of a compiled program (`compiled.as_text()`): instructions, loops, bytes, and where they come from.

The text is HLO as XLA prints it after all its passes. It has no specification that is kept, so what is read here is
what jax 0.11.2 prints for CUDA and for TPUs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# Bytes of an element; what is missing (tokens, opaque types) has none.
_ITEM_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^  (ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([\w\-]+)\(")
_SAME_BUFFER = {"bitcast", "reshape"}
_PARTS = {"dynamic-slice", "slice", "gather"}  # read only what they return of their first operand
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # write only this operand into their first
_NAMELESS = {"scan_over_time"}  # functions that say nothing about what a loop is for


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str  # as printed, with layouts
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # what stands between the parentheses
    attributes: str  # what follows them
    root: bool

    def attribute(self, name: str) -> str:
        """Returns the name of the computation, or the word, that an attribute holds; empty if there is none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """The path of JAX's primitives that it was made of."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """The instructions of a computation by name, in the order in which they are scheduled."""

    name: str
    instructions: dict[str, Instruction]

    @cached_property
    def root(self) -> Instruction:
        return next(x for x in self.instructions.values() if x.root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(x.arguments): x for x in self.instructions.values() if x.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for user in self.instructions.values():
            for operand in user.operands:
                found.setdefault(operand, []).append(user)
        return found

    def uses(self, name: str) -> Iterator[tuple[Instruction, str]]:
        """Yields who uses a value, through bitcasts, and by what name."""
        for user in self.users.get(name, []):
            if user.opcode in _SAME_BUFFER:
                yield from self.uses(user.name)
            else:
                yield user, name

    def behind(self, instruction: Instruction, through: set[str] = _SAME_BUFFER) -> Instruction:
        """Returns the instruction whose value this is, through bitcasts, or other opcodes."""
        while instruction.opcode in through and instruction.operands[0] in self.instructions:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


class Module:
    """A compiled program.

    Args:
      text: its HLO.
      fast: a memory space whose bytes are not counted, for example 1 on a TPU: its vector memory.
    """

    def __init__(self, text: str, fast: int | None = None) -> None:
        self.computations: dict[str, Computation] = {}
        self.home: dict[str, Computation] = {}  # of each instruction
        self._fast = f"S({fast})" if fast is not None else None
        self._tables = _tables(text)
        entry = ""
        now: Computation | None = None
        for line in text.splitlines():
            if head := _HEAD.match(line):
                now = self.computations[head[2]] = Computation(head[2], {})
                entry = now.name if head[1] else entry
            elif now and (found := _parse(line)):
                now.instructions[found.name] = found
                self.home[found.name] = now
        if not entry:
            raise ValueError("this is no HLO of a compiled program: it has no ENTRY computation.")
        self.entry = self.computations[entry]

    def find(self, name: str) -> Instruction | None:
        """Returns the instruction of this name."""
        home = self.home.get(name)
        return home.instructions[name] if home else None

    def size(self, shape: str, with_fast: bool = False) -> float:
        """Returns the bytes of a shape, or of all parts of a tuple, without those in the fast memory by default.

        A TPU keeps arrays in tiles, and what fills up the last ones is moved as well.
        """
        total = 0.0
        for kind, dimensions, layout in _ARRAY.findall(shape):
            if with_fast or not (self._fast and self._fast in layout):
                total += _ITEM_BYTES.get(kind, 0) * math.prod(_padded(dimensions, layout))
        return total

    def trips(self, loop: Instruction) -> int | None:
        """Returns how often a loop runs; None if only the running program can know."""
        if known := re.search(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', loop.attributes):
            return int(known[1])
        return self._counted(loop)

    def _counted(self, loop: Instruction) -> int | None:
        # `i < N` with N and the first i constants, as `jax.lax.scan` makes it, whose step is 1; TPUs print no more.
        condition = self.computations[loop.attribute("condition")]
        test = condition.root
        if test.opcode == "fusion":
            test = self.computations[test.attribute("calls")].root
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        bound = re.findall(r" constant\((\d+)\)", "".join(f" {x.opcode}({x.arguments})" for x in self._all(condition)))
        indices = {x.attribute("index") for x in condition.instructions.values() if x.opcode == "get-tuple-element"}
        body = self.computations[loop.attribute("body")]
        if len(set(bound)) != 1 or len(indices) != 1:
            return None
        index = int(indices.pop())
        home = self.home[loop.name]
        start = home.instructions.get(loop.operands[0])
        if start is None or start.opcode != "tuple" or body.root.opcode != "tuple":
            return None
        first = home.behind(home.instructions[start.operands[index]], {"copy", "bitcast"})
        step = body.instructions[body.root.operands[index]]
        if first.opcode != "constant" or not first.arguments.isdigit() or step.opcode not in ("add", "fusion"):
            return None
        return int(bound[0]) - int(first.arguments)

    def _all(self, computation: Computation) -> Iterator[Instruction]:
        for instruction in computation.instructions.values():
            yield instruction
            if inside := self.computations.get(instruction.attribute("calls")):
                yield from self._all(inside)

    def moved(self, instruction: Instruction) -> tuple[float, float]:
        """Returns the bytes that an instruction reads and writes.

        What is sliced or gathered counts as the part that is taken, what is updated in place as the part that changes,
        and each operand once, whatever the caches do.
        """
        home = self.home[instruction.name]
        inside = self.computations.get(instruction.attribute("calls"))
        if inside is None:
            inside = Computation("", {**_alone(instruction, home)})
        read = sum(self._read(inside, parameter) for parameter in inside.parameters.values())
        root = inside.behind(inside.root)
        roots = [inside.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return read, sum(self._written(inside, inside.behind(x)) for x in roots)

    def _read(self, inside: Computation, parameter: Instruction) -> float:
        whole, part = self.size(parameter.shape), 0.0
        for user, name in inside.uses(parameter.name):
            first = user.operands[0] == name
            if first and user.opcode in _PARTS:
                part += self.size(user.shape)
            elif not (first and user.opcode in _IN_PLACE) and user.opcode != "tuple":
                return whole
        return min(whole, part)

    def _written(self, inside: Computation, value: Instruction) -> float:
        operand = _IN_PLACE.get(value.opcode)
        if value.opcode == "parameter":  # returned as it came
            return 0.0
        if operand is not None and operand < len(value.operands):
            changed = inside.instructions[value.operands[operand]].shape
            return self.size(changed) if self.size(value.shape) else 0.0
        return self.size(value.shape)

    def source(self, instruction: Instruction) -> str:
        """Returns the innermost function of Python that an instruction comes from, without those that name nothing."""
        frames, locations, functions = (
            self._tables[name] for name in ("StackFrames", "FileLocations", "FunctionNames")
        )
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        number = int(frame[1]) if frame else 0
        for _ in range(len(frames)):
            if number not in frames:
                break
            place, parent = (int(n) for n in re.findall(r"_id=(\d+)", frames[number])[:2])
            function = re.search(r"function_name_id=(\d+)", locations.get(place, ""))
            name = functions.get(int(function[1]), "").strip('"') if function else ""
            name = name.removesuffix(".<lambda>").replace(".<locals>", "")
            if name and name not in _NAMELESS:
                return name
            number = parent - 1  # printed with 1 added, and 0 is none
        return ""


def _padded(dimensions: str, layout: str) -> list[int]:
    """Returns the lengths of an array as they are stored: {1,0:T(8,128)} is in tiles of 8 x 128, dimension 1 last."""
    lengths = [int(n) for n in dimensions.split(",") if n]
    found = re.match(r"\{([\d,]*):T\(([\d,]+)\)", layout)
    if found:
        order = [int(n) for n in found[1].split(",") if n]  # the last dimension first
        for dimension, tile in zip(order, reversed(found[2].split(",")), strict=False):
            lengths[dimension] = -(-lengths[dimension] // int(tile)) * int(tile)
    return lengths


def _parse(line: str) -> Instruction | None:
    """Returns the instruction of a line; None if it has none."""
    found = _LINE.match(line)
    if not found:
        return None
    rest = found[3]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = _OPCODE.match(rest)
    if not opcode:
        return None
    end = _closing(rest, opcode.end() - 1)
    arguments = rest[opcode.end() : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(found[2], shape, opcode[1], operands, arguments, rest[end + 1 :], bool(found[1]))


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


def _alone(instruction: Instruction, home: Computation) -> dict[str, Instruction]:
    """Returns an instruction as a fusion of it alone, so that both are counted in the same way."""
    inside = {}
    for number, name in enumerate(dict.fromkeys(instruction.operands)):
        shape = home.instructions[name].shape if name in home.instructions else ""
        inside[name] = Instruction(name, shape, "parameter", (), str(number), "", root=False)
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and shape.startswith("("):
        shape = _ARRAY.search(shape)[0] if _ARRAY.search(shape) else ""  # type: ignore[index]  # its target
    alone = Instruction(
        instruction.name, shape, instruction.opcode, instruction.operands, instruction.arguments, "", root=True
    )
    return {**inside, instruction.name: alone}


def _tables(text: str) -> dict[str, dict[int, str]]:
    """Returns the numbered lists that say where instructions come from."""
    tables: dict[str, dict[int, str]] = {}
    for name in ("FunctionNames", "FileLocations", "StackFrames"):
        section = re.search(rf"^{name}\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
        lines = section[1].splitlines() if section else []
        tables[name] = {int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in lines}
    return tables
