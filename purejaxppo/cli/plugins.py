"""Import of a user's modules, which only the command line can name: no file that is read makes a program import one."""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from purejaxppo.config.validate import apart
from purejaxppo.errors import EnvError
from purejaxppo.experiment.atomic_files import is_file


def import_plugins(names: Iterable[str]) -> None:
    """Imports modules by name, also from the working directory, and files by their path, which ends in .py.

    A file becomes the module of its name, and may import modules beside it. Both directories come last on `sys.path`,
    so that nothing in them hides an installed module.

    Raises:
      EnvError: a module does not exist, has the name of another one, or raises.
    """
    for name in names:
        file = _file(name) if name.endswith(".py") or "/" in name or os.sep in name else None
        _add_to_path(file.parent if file else Path.cwd())
        try:
            _import_file(file) if file else importlib.import_module(name)
        except Exception as error:
            several = f"; write them apart: {apart(name)}" if "," in name else ""
            raise EnvError(f"plugin {name!r} cannot be imported: {type(error).__name__}: {error}{several}") from error


def _file(name: str) -> Path:
    """Returns the absolute path of a file that can be imported. Raises EnvError."""
    path = Path(name)
    if path.suffix != ".py":
        raise EnvError(f"plugin {name!r} is not a Python file; give a file.py, or the name of a module.")
    if not is_file(path):
        raise EnvError(f"plugin {name!r} is not there; give the path of a file.py, or the name of a module.")
    path = path.absolute()
    there = _source_of(_module_name(path))
    if there is not None and not (is_file(Path(there)) and path.samefile(there)):
        raise EnvError(
            f"plugin {name!r} has the name of another module ({there}), which it would hide; rename the file."
        )
    return path


def _module_name(path: Path) -> str:
    return re.sub(r"\W", "_", path.stem)


def _source_of(module_name: str) -> str | None:
    """Returns the file from which a module is or would be imported, or "built in"; None if there is no such module."""
    if module_name in sys.modules:
        return getattr(sys.modules[module_name], "__file__", None) or "built in"
    spec = importlib.util.find_spec(module_name)
    return None if spec is None else str(spec.origin)


def _import_file(path: Path) -> None:
    name = _module_name(path)
    if name in sys.modules:  # imported already
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _add_to_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
