"""Run directories: creating one, never over existing files, and reading its settings back."""

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import AnyPath, whole
from purejaxppo.config.resolve import differences, settings_record, upgraded
from purejaxppo.config.validate import validate_config, validate_hyperparams, validate_options, validate_seed
from purejaxppo.devices.machine import code_revision, installed_versions
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import is_file, is_temporary, read_json, write_json, write_text
from purejaxppo.experiment.lock import LOCK, check_free

FORMAT_VERSION = 1
_LONGEST_PATH = 4096 - 256  # bytes: Linux's limit, less the longest path that is created below a run directory
# Fields of versions.json that `changed_versions` compares. A change of the platform or of the number of devices may
# change the last bit of a result; a change of the code may change more, and is known only within a git checkout.
_PLATFORM_FIELDS = ("jax", "jaxlib", "device", "platform")
_FIELDS_IF_KNOWN = ("devices", "commit", "dirty")


class RunSettings(NamedTuple):
    """The request for one run: its settings, its seed, and what the host does around training."""

    config: TrainConfig
    hp: Hyperparams
    seed: int
    options: RunOptions

    def record(self) -> dict[str, Any]:
        """Returns what determines the result, seed and settings, as JSON values."""
        return {"seed": self.seed, **settings_record(self.config, self.hp)}

    def plain(self) -> "RunSettings":
        """Returns the same settings with Python's own numbers, which `TrainConfig` and `RunOptions` have anyway."""
        return self._replace(hp=self.hp.plain(), seed=whole(self.seed))

    def validate(self) -> None:
        """Raises ConfigError for settings that are not valid."""
        validate_config(self.config)
        validate_hyperparams(self.hp)
        validate_seed(self.seed)
        validate_options(self.options)


def _check_free(run_dir: Path) -> None:
    """Raises RunDirInUseError if another process holds the lock of `run_dir`, which need not exist."""
    with contextlib.suppress(OSError, ValueError):  # there is no such directory, or no directory can have that name
        check_free(run_dir)


def create_run_dir(settings: RunSettings, out: AnyPath | None) -> Path:
    """Creates a new run directory, by default runs/<env>__<algorithm>__s<seed>__<UTC time>, as `create_dir` does."""
    config = settings.config
    return create_dir(out, f"{config.env}__{config.algorithm}__s{settings.seed}")


def create_dir(out: AnyPath | None, name: str) -> Path:
    """Creates a new directory: `out`, or runs/<name>__<UTC time>. A directory with files in it is never touched.

    Raises:
      RunDirInUseError: another process is training in it.
      CheckpointError: it is not empty, or cannot be created.
    """
    if out is None:
        return _create_named(name)
    out = Path(out)
    try:
        check_free(out)
        if out.exists() and (not out.is_dir() or _holds_anything(out)):
            ours = is_file(out / "config.json") or is_file(out / "sweep.json")
            resume = f", or continue it by `purejaxppo resume {out}`" if ours else ""
            raise CheckpointError(f"{out} exists already and is not an empty directory; choose another --out{resume}.")
        if len(str(out.absolute()).encode()) > _LONGEST_PATH:  # a name that is not UTF-8 raises ValueError
            raise CheckpointError(f"the path of {out.name[:50]!r} is too long; choose a shorter --out.")
        out.mkdir(parents=True, exist_ok=True)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise _no_directory(out, error) from error
    return out


def _no_directory(path: Path, error: Exception) -> CheckpointError:
    """Returns the error for a directory that cannot be created."""
    return CheckpointError(f"cannot create the directory {str(path)!r} ({error}); choose another with --out.")


def _create_named(name: str) -> Path:
    """Creates a directory below runs/, with a number at its end if another process has just taken the name."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    safe = re.sub(r"[^\w.-]", "_", name)
    base = Path("runs") / f"{safe}__{stamp}"
    for path in (base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 1000))):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise _no_directory(path, error) from error
    raise CheckpointError(f"{base} and 998 more like it exist already; choose an --out.")


def _holds_anything(directory: Path) -> bool:
    """Returns whether a directory holds more than a run leaves that was killed before it wrote config.json."""
    early = (LOCK, "versions.json", "command.txt")
    return any(path.name not in early and not is_temporary(path) for path in directory.iterdir())


def write_inputs(run_dir: Path, settings: RunSettings, devices: int | None) -> None:
    """Writes config.json, versions.json and command.txt, for a run that is trained on so many devices, if any yet.

    Raises CheckpointError if the directory is no longer empty.
    """
    if _holds_anything(run_dir):
        raise CheckpointError(f"{run_dir} has just been taken by another run; choose another --out.")
    write_origin(run_dir, devices)
    write_settings(run_dir, settings)


def write_settings(run_dir: Path, settings: RunSettings) -> None:
    """Writes config.json, by which a directory is recognised as a run's."""
    content = {"format_version": FORMAT_VERSION, **settings.record(), **dataclasses.asdict(settings.options)}
    write_json(run_dir / "config.json", content)


def write_origin(directory: Path, devices: int | None = None) -> None:
    """Writes versions.json and command.txt: the software, hardware and command that the results come from.

    `devices` is the number of devices that a single run is trained on.
    """
    write_json(directory / "versions.json", _versions(devices))
    write_text(directory / "command.txt", _command())


def add_command(run_dir: Path) -> None:
    """Appends the command of this process to command.txt."""
    path = run_dir / "command.txt"
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    write_text(path, before + _command())


def changed_versions(run_dir: Path, devices: int | None = None) -> list[str]:
    """Returns what has changed of JAX, the devices and the package's code since the run began, as `name old -> new`."""
    try:
        then = read_json(run_dir / "versions.json")
    except CheckpointError:  # it is only for information, so a run can be resumed without it
        return [f"{run_dir / 'versions.json'} cannot be read; JAX or the device may have changed"]
    now = _versions(devices)
    names = [
        *_PLATFORM_FIELDS,
        *(name for name in _FIELDS_IF_KNOWN if then.get(name) is not None and now[name] is not None),
    ]
    changed = differences({name: then.get(name) for name in names}, {name: now[name] for name in names})
    return list(changed.values())


def begun_on(run_dir: AnyPath) -> int | None:
    """Returns the number of devices that a run was begun on; None if that is not known."""
    try:
        number = read_json(Path(run_dir) / "versions.json").get("devices")
    except CheckpointError:
        return None
    return number if type(number) is int and number > 0 else None


def _command() -> str:
    return f"{program_name()} {shlex.join(sys.argv[1:])}".rstrip() + "\n"


def program_name() -> str:
    """Returns how this process was started, without its arguments: a script's name, or `python -m` and a module's."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.origin != sys.argv[0]:
        return shlex.quote(Path(sys.argv[0]).name)
    return f"{shlex.quote(Path(sys.executable).name)} -m {spec.name.removesuffix('.__main__')}"


def _versions(devices: int | None) -> dict[str, Any]:
    from purejaxppo.devices import selection  # which imports JAX; the settings of a run are read without it

    device = selection.first()
    return {
        **installed_versions(),
        **code_revision(),
        "device": device.device_kind,
        "devices": devices,
        "platform": device.client.platform_version.split("\n")[0],
        "xla_flags": os.environ.get("XLA_FLAGS"),
    }


def refuse_others(directory: Path) -> None:
    """Raises CheckpointError if a directory is a sweep's or a comparison's, where a run's is expected."""
    refuse_comparison(directory)
    if is_file(directory / "sweep.json"):
        raise CheckpointError(
            f"{directory} is a sweep's directory, not a run's: `purejaxppo extract {directory} --member best "
            f"--out NEW` makes a run of one member; evaluate and export take --member."
        )


def refuse_comparison(directory: Path) -> None:
    """Raises CheckpointError if a directory was made by `purejaxppo compare`, which leaves results only."""
    if is_file(directory / "comparison.json"):
        raise CheckpointError(
            f"{directory} is a comparison's directory: it holds tables and curves, and no checkpoint to go on from or "
            f"to look at. `purejaxppo compare` again with another --out, or `purejaxppo sweep --algorithm A B`, which "
            f"keeps checkpoints."
        )


def read_run_settings(run_dir: AnyPath) -> RunSettings:
    """Returns the settings of a run. Raises CheckpointError if the directory is not a run's.

    A setting that is missing, as the run is of an older version, has its default: the behaviour of that version.
    """
    run_dir = Path(run_dir)
    path = run_dir / "config.json"
    refuse_others(run_dir)
    if not is_file(path):
        _check_free(run_dir)  # a run may have begun there a moment ago
        raise CheckpointError(f"{run_dir} is not a run directory: it has no config.json.")
    content = read_json(path)
    try:
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {content['format_version']}; this version reads {FORMAT_VERSION}."
            )
        content = upgraded(content)
        settings = RunSettings(
            TrainConfig(
                **{**fields_of(TrainConfig, content), "env": content["env"], "algorithm": content["algorithm"]}
            ),
            Hyperparams(**fields_of(Hyperparams, content)),
            content["seed"],
            RunOptions(**fields_of(RunOptions, content)),
        )
        settings.validate()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a run's configuration: {error!r}") from error
    return settings


def fields_of(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those values of a file's content that are fields of a dataclass, by name."""
    return {field.name: content[field.name] for field in dataclasses.fields(kind) if field.name in content}
