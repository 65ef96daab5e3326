"""The checks of `purejaxppo doctor`: the machine, whether training works on it, and which settings suit it.

A module that may be missing or broken is imported only within a check.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from purejaxppo.cli.self_check import SELF_CHECKS, Status, Verdict
from purejaxppo.config import TrainConfig
from purejaxppo.config.fields import AnyPath
from purejaxppo.config.presets import PRESETS
from purejaxppo.devices.machine import PLATFORM_VARIABLES, cuda_extra, find_machine, out_of_range, pip_install

_FREE_BYTES = 1e9  # less free space on the disk gives a warning
_FEW_CORES = 4  # with fewer, purejaxppo/__init__.py sets NPROC

_DEVICE_SOURCES = f"{', '.join(PLATFORM_VARIABLES)} or --device"
Facts = dict[str, Any]


class Check(NamedTuple):
    """The result of one check."""

    name: str
    status: Status
    detail: str  # one line
    seconds: float


def examine(directory: AnyPath) -> Facts:
    """Examines the machine and tries everything that training needs; takes under ten seconds besides the imports.

    A check that fails, or raises, is reported and raises nothing here.

    Args:
      directory: where runs would be written. It need not exist, and nothing is left in it.

    Returns:
      The facts of `find_machine`, with `directory`, `checks` (a dictionary per `Check`), `ok` (no check failed; there
      may be warnings) and `recommendations` (sentences). All of it can be written as JSON.
    """
    facts = {"directory": str(directory), **find_machine()}
    checks = [_run(name, partial(check, facts)) for name, check in _MACHINE_CHECKS.items()]
    checks += [_run(name, check) for name, check in SELF_CHECKS.items()]
    return {
        "ok": all(check.status != "failed" for check in checks),
        **facts,
        "checks": [check._asdict() for check in checks],
        "recommendations": recommend(facts),
    }


def describe_checks(report: Facts) -> list[list[str]]:
    """Returns a table of the checks, its head first."""
    rows = [[c["name"], c["status"], c["detail"], f"{c['seconds']:.1f}"] for c in report["checks"]]
    return [["check", "status", "detail", "seconds"], *rows]


def _run(name: str, check: Callable[[], Verdict]) -> Check:
    status: Status
    began = time.perf_counter()
    try:
        status, detail = check()
    except Exception as error:
        status, detail = "failed", _reason(error)
    return Check(name, status, detail, round(time.perf_counter() - began, 3))


def _reason(error: Exception) -> str:
    """Returns an exception in one line; some have no text."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def _check_versions(facts: Facts) -> Verdict:
    """Checks that the version of every dependency is in the range that the package allows."""
    if not facts["requirements"]:
        return (
            "warning",
            "purejaxppo is not installed as a package, so what it requires is unknown; in the clone, "
            f"`{pip_install('.')}` installs it.",
        )
    wrong = out_of_range(facts["versions"], facts["requirements"])
    if wrong:
        return "failed", f"{'; '.join(wrong)}. bash scripts/setup.sh installs the versions that were tested."
    return "ok", f"jax {facts['versions']['jax']} and the others are in the supported ranges"


def _check_devices(facts: Facts) -> Verdict:
    """Checks that JAX starts, and that it sees the GPU if there is one."""
    import jax

    from purejaxppo.devices import selection

    asked = getattr(jax.config, "jax_platforms", None) or facts["environment"].get("JAX_PLATFORM_NAME", "")
    try:
        platforms = [device.platform for device in jax.devices()]
    except Exception as error:
        if asked:
            return "failed", f"JAX cannot start on {asked}, as {_DEVICE_SOURCES} asks ({_reason(error)})."
        raise
    found, nvidia = ", ".join(sorted(set(platforms))), facts["nvidia"]
    if nvidia["problem"]:
        return "warning", f"JAX uses {found}; {nvidia['problem']}."
    if not nvidia["gpus"] or set(platforms) != {"cpu"}:
        chosen = f", of which --devices takes {len(selection.devices())}" if selection.were_chosen() else ""
        return "ok", f"JAX uses {len(platforms)} x {found}{chosen}"
    there = f"{nvidia['gpus'][0]} is there (driver {nvidia['driver']}), but JAX sees only the CPU"
    if asked and not {"cuda", "gpu"} & set(asked.split(",")):
        return "warning", f"{there}: it was told to use {asked} by {_DEVICE_SOURCES}."
    if facts["environment"].get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "warning", f"{there}: CUDA_VISIBLE_DEVICES hides it; unset it."
    extra = cuda_extra(nvidia["driver"])
    if extra is None:
        return "warning", f"{there}: the driver is too old; the extra cuda13 needs 580, cuda12 needs 525."
    return (
        "warning",
        f"{there}: in the clone, `PUREJAXPPO_EXTRA={extra} bash scripts/setup.sh` installs into .venv again, or "
        f"`{pip_install(f'.[{extra}]')}` adds what is missing.",
    )


def _check_directory(facts: Facts) -> Verdict:
    """Checks that a file can be made, synced to the disk and removed where runs would be written."""
    directory = Path(facts["directory"])
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    with tempfile.NamedTemporaryFile(dir=existing, prefix=".purejaxppo-doctor-") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    free = shutil.disk_usage(existing).free
    if free < _FREE_BYTES:
        return "warning", f"{existing} can be written, but has only {free / 1e6:.0f} MB left; checkpoints need some."
    return "ok", f"{existing} can be written, {free / 1e9:.1f} GB free"


_MACHINE_CHECKS: dict[str, Callable[[Facts], Verdict]] = {
    "versions": _check_versions,
    "devices": _check_devices,
    "directory": _check_directory,
}


def recommend(facts: Facts) -> list[str]:
    """Returns sentences about settings that suit the machine, each with the measurement or estimate behind it."""
    platforms = {device["platform"] for device in facts["devices"]}
    threads = facts["environment"].get("NPROC")
    advice = []
    if threads in ("2", "3"):
        advice.append(f"NPROC={threads}: unset it; with two or three threads vmapped training may hang on a CPU.")
    if "gpu" in platforms:
        advice += _for_gpus()
    elif platforms == {"cpu"}:
        advice += _for_cpus(facts["cpu_cores"])
    ranges = [line for line in facts["requirements"] if "<" in line or ">" in line]
    if ranges:
        advice.append(f"Supported versions: {', '.join(ranges)}.")
    return advice


def _for_gpus() -> list[str]:
    return [
        "num_envs: 2048 or more fill a GPU: an H100 trained CartPole with 46 M env steps/s at 2048 x 128 "
        "(docs/performance.md). The larger batch wants another learning_rate.",
        "Several seeds: purejaxppo sweep --seeds 64 trains them side by side, and over all GPUs without any exchange; "
        "one run takes several GPUs from 32,768 rows of a minibatch for each on, or by --devices (docs/scaling.md).",
    ]


def _for_cpus(cores: int) -> list[str]:
    sizes = [settings.get("num_envs", TrainConfig.num_envs) for settings in PRESETS.values()]
    advice = [
        f"num_envs: as in the presets, {min(sizes)} to {max(sizes)}; 2048 were not faster than 64 on two cores "
        "(benchmarks/log.md).",
        "Several seeds: purejaxppo sweep --seeds 8 trains them on all cores, on each core one after the other by "
        "lax.map, which is faster there than vmap.",
    ]
    if cores < _FEW_CORES:
        advice.append(
            f"With fewer than {_FEW_CORES} cores, import purejaxppo before JAX is used: it sets NPROC={_FEW_CORES}, "
            "unless it is set; with two or three threads vmapped training may hang (docs/architecture.md)."
        )
    if 1 < cores < _FEW_CORES:
        advice.append(
            "In a program of your own, purejaxppo.use_all_cores() and spread_trainer(config) train as the command line "
            "does: a device of one thread per core (benchmarks/log.md)."
        )
    return advice
