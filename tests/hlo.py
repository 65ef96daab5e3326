"""What is to be found in compiled programs."""

import re

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "collective-broadcast", "reduce-scatter")


def collectives(program):
    """What a compiled program exchanges between devices."""
    text = program.as_text()
    return [name for name in COLLECTIVES if re.search(rf"\b{name}\b", text)]
