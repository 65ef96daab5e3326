"""A sweep's directory: its files, and reading and writing sweep.json.

sweep.json            the settings of the sweep, and the batch size of each program
metrics.csv           a row per run and update
parts/<name>/         a batch of runs: checkpoints/, and result.json once they are evaluated
results.csv           a row per run
table.md summary.json plots/
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import AnyPath
from purejaxppo.config.resolve import settings_record, upgraded
from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.experiment.atomic_files import is_file, read_json, write_json
from purejaxppo.experiment.checkpoints.directory import FORMAT_VERSION, survey
from purejaxppo.experiment.directory import fields_of, refuse_comparison
from purejaxppo.sweeps.spec import SweepSettings

METRICS = "metrics.csv"


class Sizes(NamedTuple):
    """The batch sizes of a sweep, fixed when it starts: a resumed sweep keeps them, whatever its devices."""

    runs: tuple[int, ...]  # per program, the number of runs in a batch of the first rung
    devices: int  # number of devices for which they were chosen
    processes: int = 1  # and of the processes that these belong to


def is_sweep(directory: AnyPath) -> bool:
    """Returns whether a directory is a sweep's."""
    return is_file(Path(directory) / "sweep.json")


def survey_batches(directory: AnyPath) -> list[dict[str, Any]]:
    """Returns the rows of `checkpoints.directory.survey` for every batch of a sweep, with its name in `checkpoint`."""
    return [
        {**row, "checkpoint": f"{batch.name}/{row['checkpoint']}"}
        for batch in sorted(path for path in (Path(directory) / "parts").glob("*") if path.is_dir())
        for row in survey(batch)
    ]


def sweep_record(sweep: SweepSettings) -> dict[str, Any]:
    """Returns everything that determines the results, for JSON: values that all settings share, and each one's own."""
    records = [settings_record(*pair) for pair in sweep.settings]
    shared = {name: value for name, value in records[0].items() if all(record[name] == value for record in records)}
    return {
        "axes": list(sweep.axes),
        "points": list(sweep.points),
        "shared": shared,
        "settings": [{name: value for name, value in record.items() if name not in shared} for record in records],
        "seeds": list(sweep.seeds),
        "halving": sweep.halving,
        "exact": sweep.exact,
        "target": sweep.target,
        "eval_episodes": sweep.options.eval_episodes,
    }


def write_sweep(directory: Path, sweep: SweepSettings, sizes: Sizes) -> None:
    """Writes sweep.json, which makes a directory a sweep's; `sizes` are the plan's."""
    options = {name: value for name, value in vars(sweep.options).items() if name != "eval_episodes"}
    content = {
        "format_version": FORMAT_VERSION,
        **sweep_record(sweep),
        **options,
        "sizes": list(sizes.runs),
        "devices": sizes.devices,
        "processes": sizes.processes,
    }
    write_json(directory / "sweep.json", content)


def read_sweep(directory: AnyPath) -> tuple[SweepSettings, Sizes]:
    """Reads the settings and batch sizes of a sweep.

    Raises CheckpointError if the directory is not a sweep's, or its sweep.json is invalid.
    """
    directory = Path(directory)
    path = directory / "sweep.json"
    if not is_file(path):
        refuse_comparison(directory)
        kind = "a run's directory, not a sweep's" if is_file(directory / "config.json") else "not a sweep's directory"
        raise CheckpointError(f"{directory} is {kind}: it has no sweep.json; `purejaxppo sweep` makes one.")
    content = read_json(path)
    try:
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {content['format_version']!r}; this version reads {FORMAT_VERSION}. Sweep "
                f"again, or use the version of purejaxppo that made it."
            )
        points = [upgraded(point) for point in content["points"]]
        swept = {name for point in points for name in point}
        sweep = SweepSettings(
            # An axis of an earlier version has the name that its points have now.
            axes=tuple(name if name in swept else "action_distribution" for name in content["axes"]),
            points=tuple({name: _hashable(value) for name, value in point.items()} for point in points),
            settings=tuple(_pair(upgraded({**content["shared"], **own})) for own in content["settings"]),
            seeds=tuple(content["seeds"]),
            options=RunOptions(**fields_of(RunOptions, content)),
            halving=content["halving"],
            exact=content["exact"],
            target=content["target"],
        )
        sweep.validate()
        sizes = Sizes(tuple(content["sizes"]), content["devices"], content.get("processes", 1))
        if len(sizes.runs) != len(sweep.programs()) or not all(
            type(x) is int and x > 0 for x in (*sizes.runs, sizes.devices, sizes.processes)
        ):
            raise ValueError(f"sizes = {sizes.runs} are not those of {len(sweep.programs())} programs")
        return sweep, sizes
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a sweep's configuration: {error!r}; start a new one.") from error


def _pair(record: Mapping[str, Any]) -> tuple[TrainConfig, Hyperparams]:
    return TrainConfig(**fields_of(TrainConfig, record)), Hyperparams(**fields_of(Hyperparams, record))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
