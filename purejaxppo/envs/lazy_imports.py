"""Lazy imports: gymnax imports drawing libraries, which a training run never uses.

The standard library's `importlib.util.LazyLoader` does not help: a second `import` of a lazily loaded module reads its
`__spec__`, which loads it, so gymnax's own imports would load everything at once (measured with Python 3.11 and 3.12:
importing gymnax took 1.3 s with the stand-ins below, and 7.5 s with LazyLoader).
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _LazyModule(ModuleType):
    """A stand-in for a module, which imports it when one of its attributes is first used."""

    def __getattr__(self, name: str) -> Any:
        # Dunder lookups, for example by `inspect` or by another import, must not trigger the import.
        if name.startswith("__") or sys.modules.get(self.__name__) is self:
            raise AttributeError(f"module {self.__name__!r} is not imported yet")
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def imported_lazily(names: Sequence[str]) -> Iterator[None]:
    """Makes imports within the context bind stand-ins for these modules, unless they have been imported already.

    Modules that are imported within the context keep the stand-ins; later imports elsewhere get the real modules.

    Args:
      names: of the modules, parents before their submodules.
    """
    stand_ins = {name: _LazyModule(name) for name in names if name not in sys.modules}
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent in stand_ins:
            setattr(stand_ins[parent], child, module)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
