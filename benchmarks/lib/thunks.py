"""Reads XLA's dump of what the runtime of a GPU does: a tree of thunks (kernels, copies, loops, CUDA graphs).

The tree is `*.thunk_sequence_after_thunk_passes.txt` of `--xla_dump_to`, and the HLO instruction of each thunk is in
`*.thunk_metadata.txt`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_THUNK = re.compile(r"^( *)(\d+): (k\w+)(.*)$")
_PART = re.compile(r"^ *(\w+):\s*$")  # of a loop: its condition or its body
_GRID = re.compile(r"grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), (\d+), (\d+)\]")


@dataclass
class Thunk:
    """A node of the tree."""

    kind: str  # kCustomKernel, kCopy, kWhile, kCommandBuffer, ...
    instruction: str = ""  # the HLO instruction's name
    grid: str = ""  # blocks x threads of a kernel
    part: str = ""  # of its parent, if that is a loop: condition or body
    inside: list["Thunk"] = field(default_factory=list)

    def walk(self) -> Iterator["Thunk"]:
        """Yields itself and all that is inside."""
        yield self
        for thunk in self.inside:
            yield from thunk.walk()


def read_thunks(sequence: str, metadata: str) -> Thunk:
    """Returns the root of the tree that the two texts of the dump describe. Raises ValueError if there is none."""
    names = {}
    for block in metadata.split("thunk_metadata {")[1:]:
        number, called = re.search(r"thunk_id: (\d+)", block), re.search(r'profile_annotation: "([^"]*)"', block)
        if number and called:
            names[int(number[1])] = called[1]
    root = Thunk("root")
    above = [(-1, root)]  # with how far each is indented
    part = ""
    for line in sequence.splitlines():
        if heading := _PART.match(line):
            part = heading[1]
        elif found := _THUNK.match(line):
            indent = len(found[1])
            while above[-1][0] >= indent:
                above.pop()
            parent = above[-1][1]
            grid = _GRID.search(found[4])
            # Graphs have the number 0, which is that of another thunk.
            name = "" if found[3] == "kCommandBuffer" else names.get(int(found[2]), "")
            size = [int(n) for n in grid.groups()] if grid else []
            shape = f"{size[0] * size[1] * size[2]}x{size[3] * size[4] * size[5]}" if size else ""
            thunk = Thunk(found[3], name, shape, part if parent.kind == "kWhile" else "")
            parent.inside.append(thunk)
            above.append((indent, thunk))
    if not root.inside:
        raise ValueError("the dump has no thunks; XLA may print them in another way than jax 0.11.2.")
    return root
