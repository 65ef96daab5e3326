"""Imports that wait until they are used."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        # Whoever looks through all modules, as `inspect` does, asks for names like __file__ and is not to wake it.
        if name.startswith("__") or sys.modules.get(self.__name__) is self:
            raise AttributeError(f"module {self.__name__!r} is not imported yet")
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def later(names: Sequence[str]) -> Iterator[None]:
    """Whatever is imported within gets a stand-in for each of these modules, parents first, if it is not there yet.

    The stand-ins stay with those who imported them; everybody else imports the real modules afterwards.
    """
    stand_ins = {name: _Later(name) for name in names if name not in sys.modules}
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
