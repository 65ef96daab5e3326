"""The specification of a sweep: `SweepSettings`, their checks, and `sweep_grid`, which makes them in Python."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import plain, whole
from purejaxppo.config.validate import (
    suggestion,
    validate_config,
    validate_hyperparams,
    validate_options,
    validate_seeds,
)
from purejaxppo.errors import ConfigError

MAX_RUNS = 1_000_000
NO_EVALUATION_WHILE_TRAINING = (
    "a sweep and a comparison evaluate their runs when they are trained, not while they train. Leave it out."
)


class SweepSettings(NamedTuple):
    """A sweep over S settings, each trained with every seed. Run `setting * len(seeds) + i` has seed `seeds[i]`."""

    axes: tuple[str, ...]  # the swept fields of TrainConfig and Hyperparams
    points: tuple[dict[str, Any], ...]  # [S] swept field -> value; without the fields that an algorithm does not have
    settings: tuple[tuple[TrainConfig, Hyperparams], ...]  # [S] complete, all of one environment
    seeds: tuple[int, ...]
    options: RunOptions
    halving: int | None = None  # after each rung, one in this many settings goes on
    exact: bool = False  # on one device, where every run is bitwise identical to a single run
    target: float | None = None  # return whose first arrival `steps to target` reports

    @property
    def env(self) -> str:
        """The environment's id."""
        return self.settings[0][0].env

    @property
    def num_runs(self) -> int:
        """The number of runs: settings x seeds."""
        return len(self.settings) * len(self.seeds)

    def with_configs(self, configs: Sequence[TrainConfig]) -> "SweepSettings":
        """Returns the sweep with other static settings [S]."""
        return self._replace(settings=tuple((c, hp) for c, (_, hp) in zip(configs, self.settings, strict=True)))

    def plain(self) -> "SweepSettings":
        """Returns the sweep with Python's own numbers, and with the points' values converted to their fields' types."""
        settings = tuple((config, hp.plain()) for config, hp in self.settings)
        points = tuple(self.points)
        if len(points) == len(settings):  # otherwise `validate` raises
            points = tuple(_as_fields(*pair) for pair in zip(points, settings, strict=True))
        return self._replace(
            points=points,
            settings=settings,
            seeds=tuple(whole(seed) for seed in self.seeds),
            halving=whole(self.halving),
            exact=plain(self.exact),
            target=plain(self.target),
        )

    def validate(self) -> None:
        """Raises ConfigError if a value is out of range, or values contradict each other."""
        if not self.settings or not self.seeds:
            raise ConfigError("a sweep takes at least one setting and one seed.")
        if self.num_runs > MAX_RUNS:
            raise ConfigError(
                f"{len(self.settings)} settings x {len(self.seeds)} seeds = {self.num_runs} runs are more than "
                f"{MAX_RUNS}; take fewer."
            )
        validate_seeds(self.seeds, "seed {} is given twice, which would be the same run twice; take different ones.")
        for config, hp in self.settings:
            validate_config(config)
            validate_hyperparams(hp)
            if config.on_nonfinite != "stop":
                raise ConfigError(
                    f"on_nonfinite = {config.on_nonfinite}: a sweep freezes the runs that diverge and counts them; "
                    f"leave it at stop."
                )
        if len({(config.env, config.env_params) for config, _ in self.settings}) > 1:
            raise ConfigError(
                "the settings are of different environments, whose returns do not compare; sweep each apart."
            )
        self._validate_points()
        validate_options(self.options)
        if self.options.eval_every:
            raise ConfigError(f"eval_every = {self.options.eval_every}: {NO_EVALUATION_WHILE_TRAINING}")
        if self.target is not None and not _is_finite_number(self.target):
            raise ConfigError(f"target = {self.target!r}; it takes a finite return.")
        if self.halving is not None and not (_is_a(self.halving, Integral) and 2 <= self.halving <= len(self.settings)):
            raise ConfigError(
                f"halving = {self.halving!r}: after each rung one setting in N goes on, so N is 2 to "
                f"{len(self.settings)}, the number of settings."
            )
        shortest = min(config.num_updates for config, _ in self.settings)
        if self.halving is not None and self.halving > shortest:
            raise ConfigError(
                f"halving = {self.halving} divides a budget of {shortest} updates; raise total_timesteps, or take no "
                f"more than that."
            )

    def _validate_points(self) -> None:
        """Raises ConfigError unless `points` and `settings` agree."""
        if len(self.points) != len(self.settings):
            raise ConfigError(f"{len(self.points)} points are not {len(self.settings)} settings; give each its own.")
        for i, (point, pair) in enumerate(zip(self.points, self.settings, strict=True)):
            fields = {**vars(pair[0]), **vars(pair[1])}
            for name, value in point.items():
                if name not in self.axes or name not in fields or fields[name] != value:
                    raise ConfigError(f"point {i} has {name} = {value!r}, which its setting or the axes do not have.")

    def programs(self) -> list[list[int]]:
        """Returns the settings' numbers by program, i.e. by `TrainConfig` and by which hyperparameters are None."""
        groups: dict[Any, list[int]] = {}
        for i, (config, hp) in enumerate(self.settings):
            # None has no leaf in the pytree of hyperparameters, so it is compiled in, too.
            absent = tuple(name for name, value in vars(hp).items() if value is None)
            groups.setdefault((config, absent), []).append(i)
        return list(groups.values())


def sweep_grid(
    config: TrainConfig,
    hp: Hyperparams,
    seeds: Sequence[int],
    *,
    options: RunOptions | None = None,
    halving: int | None = None,
    exact: bool = False,
    target: float | None = None,
    **axes: Sequence[Any],
) -> SweepSettings:
    """Returns the sweep over all combinations of the axes' values, of which the first changes most slowly.

    Args:
      config, hp: the values of the settings that are not swept.
      seeds: in [0, 2**32).
      options, halving, exact, target: as in `SweepSettings`.
      axes: names of fields of TrainConfig or Hyperparams, each with the values to try.

    Raises:
      ConfigError: an unknown axis, one without a value, or what `SweepSettings.validate` refuses.
    """
    fields = {**vars(config), **vars(hp)}
    for name, values in axes.items():
        if name not in fields:
            raise ConfigError(f"{name} is no field of TrainConfig or Hyperparams.{suggestion(name, fields)}")
        if len(values) == 0:
            raise ConfigError(f"{name} has no value; give at least one.")
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def with_point(record: Any, point: dict[str, Any]) -> Any:
        return dataclasses.replace(record, **{name: value for name, value in point.items() if name in vars(record)})

    settings = tuple((with_point(config, point), with_point(hp, point)) for point in points)
    sweep = SweepSettings(
        tuple(axes), tuple(points), settings, tuple(seeds), options or RunOptions(), halving, exact, target
    ).plain()
    sweep.validate()
    return sweep


def _as_fields(point: dict[str, Any], pair: tuple[TrainConfig, Hyperparams]) -> dict[str, Any]:
    """Returns a point whose values are converted as `TrainConfig` and `Hyperparams` convert their fields."""
    owner = {name: record for record in pair for name in vars(record)}
    return {
        name: getattr(dataclasses.replace(owner[name], **{name: value}), name) if name in owner else value
        for name, value in point.items()
    }


def _is_a(value: Any, kind: type) -> bool:
    """Returns whether a value is a number of a kind; a bool is none, though Python counts it as an integer."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_finite_number(value: Any) -> bool:
    try:
        return _is_a(value, Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def value_text(value: Any) -> str:
    """Returns a swept value as text for people, with four digits for a float and spaces between a tuple's items."""
    if isinstance(value, tuple | list):
        return " ".join(value_text(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
