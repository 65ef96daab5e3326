"""The persistent compilation cache: compiled programs are kept on disk from one command to the next."""

import contextlib
import glob
import hashlib
import os
import platform
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

_LIMIT_BYTES = 2 * 10**9  # beyond this size JAX evicts the least recently used programs
_CPU_INFO = Path("/proc/cpuinfo")
_WARNING = "Error (reading|writing) persistent compilation cache entry for '(.*?)'"  # as JAX words it
_ENTRY, _STAMP = (
    "-cache",
    "-atime",
)  # suffixes of JAX's two files per entry: the program, and when it was last used


def keep_programs() -> Path | None:
    """Makes JAX keep compiled programs in the user's cache directory, where the next process finds them.

    Every command of the command line does so; a program calls it before it compiles anything. The directory is that of
    the processor, within $XDG_CACHE_HOME or ~/.cache, and holds up to 2 GB. The environment variable
    JAX_COMPILATION_CACHE_DIR, or the same setting of JAX, overrides it with another directory, or with no cache if it
    is empty. Damaged entries of the user's cache are replaced silently.

    Returns:
      Where programs are kept; None if nothing is kept: that was asked for, or there is no writable directory.
    """
    import jax

    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is not None:
        return Path(chosen) if chosen else None
    with contextlib.suppress(OSError, RuntimeError):  # no writable cache directory, or no home directory
        directory = _user_cache() / "purejaxppo" / f"programs-{_processor()}"
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            return None
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_compilation_cache_max_size", _LIMIT_BYTES)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        _replace_damaged_entries(directory)
        return directory
    return None


def _replace_damaged_entries(directory: Path) -> None:
    """Removes each entry of the cache that JAX warns about, and does not show that warning to the user.

    JAX compiles a program whose entry it cannot read, but never overwrites an entry, and so would warn in every later
    process. It warns before it compiles: once the entry is removed, that same compilation writes it again. An entry
    that cannot be removed costs its compilation each time, and nothing else.
    """
    show = warnings.showwarning

    def remove_or_show(message: Warning | str, *where: Any, **options: Any) -> None:
        warning = re.match(_WARNING, str(message))
        if warning is None:
            show(message, *where, **options)
            return
        with contextlib.suppress(OSError):  # it cannot be removed, or another process has removed it
            for path in _damaged_files(directory, warning[1], warning[2], sys.exception()):
                _remove(path)

    warnings.filterwarnings("always", _WARNING)
    warnings.showwarning = remove_or_show


def _damaged_files(directory: Path, action: str, program: str, error: BaseException | None) -> list[Path]:
    """Returns the two files of the entry that a warning is about, or an empty list if they are unknown.

    The warning names the program, but not the file. If an operating system error caused it, that names a file.
    Otherwise the content is damaged: JAX has just read the entry, so it is the program's most recently used one.
    """
    if isinstance(error, OSError):
        file = Path(str(error.filename)).name  # it may be JAX's lock file, which is no entry
    elif action == "reading":
        stamps = directory.glob(f"{glob.escape(program)}-*{_STAMP}")
        file = max(stamps, key=lambda stamp: stamp.stat().st_mtime_ns, default=directory).name
    else:
        return []
    named = re.fullmatch(f"(.+)({_ENTRY}|{_STAMP})", file)
    return [directory / f"{named[1]}{ending}" for ending in (_ENTRY, _STAMP)] if named else []


def _remove(path: Path) -> None:
    """Removes a file, or a directory of that name. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _processor() -> str:
    """Returns a name for the instruction set of this processor.

    Machines that share a home directory may have different processors, and code compiled for one may not run on
    another.
    """
    lines = _CPU_INFO.read_text(errors="replace").splitlines() if _CPU_INFO.exists() else []
    facts = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([platform.machine(), platform.processor(), *sorted(facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
