"""A run's directory: made new, never into something that holds files; and read back."""

import dataclasses
import importlib.metadata
import re
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from purejaxppo.checkpoint import read_json, write_json, write_text
from purejaxppo.config import Hyperparams, TrainConfig, validate_config, validate_hyperparams
from purejaxppo.errors import CheckpointError


def create_run_dir(config: TrainConfig, seed: int, out: Path | None) -> Path:
    """Makes a new directory for a run, by default runs/<env>__<algorithm>__s<seed>__<UTC time>."""
    return create_dir(out, f"{config.env}__{config.algorithm}__s{seed}")


def create_dir(out: Path | None, name: str) -> Path:
    """Makes a new directory: `out`, or runs/<name>__<UTC time>. One that holds anything is never touched."""
    if out is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        safe = re.sub(r"[^\w.-]", "_", name)
        base = Path("runs") / f"{safe}__{stamp}"
        out = next(p for p in (base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 1000))) if not p.exists())
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out} exists already and is not an empty directory; choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot create the directory {str(out)!r}: {error}") from error
    return out


def write_inputs(run_dir: Path, config: TrainConfig, hp: Hyperparams, seed: int) -> None:
    """config.json, and what `write_origin` writes."""
    write_json(run_dir / "config.json", {"format_version": 1, "seed": seed, **settings_record(config, hp)})
    write_origin(run_dir)


def settings_record(config: TrainConfig, hp: Hyperparams) -> dict[str, Any]:
    """Every field of both, as JSON has it."""
    return {**dataclasses.asdict(config), **dataclasses.asdict(hp), "env_params": dict(config.env_params)}


def write_origin(directory: Path) -> None:
    """versions.json and command.txt: what the results came from."""
    device = jax.devices()[0]
    versions = {
        **installed_versions(),
        "device": device.device_kind,
        "platform": device.client.platform_version.split("\n")[0],
    }
    write_json(directory / "versions.json", versions)
    write_text(directory / "command.txt", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\n")


def installed_versions() -> dict[str, str | None]:
    """Of Python, of this package and of what it computes with; None for what is not installed as a package."""
    names = ("purejaxppo", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint", "numpy")
    return {"python": sys.version.split()[0], **{name: _version(name) for name in names}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_config(run_dir: Path) -> tuple[TrainConfig, Hyperparams]:
    """The settings that a run was started with. Raises CheckpointError if the directory is not a run's."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a run directory: it has no config.json.")
    content = read_json(path)
    try:
        if content["format_version"] != 1:
            raise CheckpointError(f"{path} has format version {content['format_version']}; this version reads 1.")
        config = TrainConfig(**{f.name: content[f.name] for f in dataclasses.fields(TrainConfig)})
        hp = Hyperparams(**{f.name: content[f.name] for f in dataclasses.fields(Hyperparams)})
        validate_config(config)
        validate_hyperparams(hp)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a run's configuration: {error!r}") from error
    return config, hp
