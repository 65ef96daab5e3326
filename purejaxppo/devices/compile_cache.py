"""Compiled programs, kept on the disk from one command to the next."""

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

_LIMIT_BYTES = 2 * 10**9  # beyond which JAX drops what has not been used for longest
_CPU_INFO = Path("/proc/cpuinfo")
_COMPLAINT = "Error (reading|writing) persistent compilation cache entry for '(.*?)'"  # JAX's warning
_ENTRY, _STAMP = "-cache", "-atime"  # how JAX ends the name of a program's file, and of that with the time of its use


def keep_programs() -> None:
    """Makes JAX keep what it compiles in the user's cache directory, where the next command finds it.

    JAX_COMPILATION_CACHE_DIR says otherwise: another directory, or none if it is empty. Without a directory that can be
    written, nothing is kept. What is damaged in the user's cache directory is replaced without a word.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    with contextlib.suppress(OSError, RuntimeError):  # it cannot be made, or nobody's home is known
        directory = _user_cache() / "purejaxppo" / f"programs-{_processor()}"
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_compilation_cache_max_size", _LIMIT_BYTES)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        _replace_damaged_entries(directory)


def _replace_damaged_entries(directory: Path) -> None:
    """Removes each entry of JAX's cache that JAX warns of, and keeps the warning from the user.

    JAX compiles a program whose entry it cannot read, but never writes over an entry, and so would warn in every
    process to come. It warns before it compiles: once the entry is gone, that same compilation writes it anew. An entry
    that cannot be removed costs its compilation each time, and nothing else.
    """
    show = warnings.showwarning

    def hear(message: Warning | str, *where: Any, **options: Any) -> None:
        complaint = re.match(_COMPLAINT, str(message))
        if complaint is None:
            show(message, *where, **options)
            return
        with contextlib.suppress(OSError):  # it cannot be removed, or another process has done it
            for path in _damaged_files(directory, complaint[1], complaint[2], sys.exception()):
                _remove(path)

    warnings.filterwarnings("always", _COMPLAINT)
    warnings.showwarning = hear


def _damaged_files(directory: Path, action: str, program: str, error: BaseException | None) -> list[Path]:
    """Returns the two files of the entry that a warning is about, which itself names only the program; or nothing.

    An error of the system names a file. Any other comes from what is in an entry, which JAX has just read and stamped.
    """
    if isinstance(error, OSError):
        file = Path(str(error.filename)).name  # it may be the lock, which is no entry
    elif action == "reading":
        stamps = directory.glob(f"{glob.escape(program)}-*{_STAMP}")
        file = max(stamps, key=lambda stamp: stamp.stat().st_mtime_ns, default=directory).name
    else:
        return []
    named = re.fullmatch(f"(.+)({_ENTRY}|{_STAMP})", file)
    return [directory / f"{named[1]}{ending}" for ending in (_ENTRY, _STAMP)] if named else []


def _remove(path: Path) -> None:
    """Removes a file, or a directory in the place of one. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _processor() -> str:
    """A name for what this processor can do: code compiled for another one, in a home that they share, may not run."""
    lines = _CPU_INFO.read_text(errors="replace").splitlines() if _CPU_INFO.exists() else []
    facts = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([platform.machine(), platform.processor(), *sorted(facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
