"""Compiled programs, kept on the disk from one command to the next."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

_LIMIT_BYTES = 2 * 10**9  # beyond which JAX drops what has not been used for longest
_CPU_INFO = Path("/proc/cpuinfo")


def keep_programs() -> None:
    """Makes JAX keep what it compiles in the user's cache directory, where the next command finds it.

    JAX_COMPILATION_CACHE_DIR says otherwise: another directory, or none if it is empty. Without a directory that can be
    written, nothing is kept.
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


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _processor() -> str:
    """A name for what this processor can do: code compiled for another one, in a home that they share, may not run."""
    lines = _CPU_INFO.read_text(errors="replace").splitlines() if _CPU_INFO.exists() else []
    facts = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([platform.machine(), platform.processor(), *sorted(facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
