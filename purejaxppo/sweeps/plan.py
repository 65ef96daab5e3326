"""The plan of a sweep: its compiled programs, the batch size of each, its rungs, and the memory that they need."""

import hashlib
import json
import math
from functools import cached_property
from typing import Any, NamedTuple

import jax

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.resolve import settings_record
from purejaxppo.devices import processes, selection
from purejaxppo.devices.machine import installed_versions
from purejaxppo.devices.memory import explain, readable
from purejaxppo.devices.vectorize import usable_devices
from purejaxppo.sweeps.compiled_group import CompiledGroup, available_bytes
from purejaxppo.sweeps.directory import Sizes, sweep_record
from purejaxppo.sweeps.scoring import finite_or_none
from purejaxppo.sweeps.spec import SweepSettings, value_text


class Plan:
    """The programs of a sweep, with their runs, and the batch size of each."""

    def __init__(self, sweep: SweepSettings, allow_download: bool = False, sizes: Sizes | None = None) -> None:
        """Builds everything, and compiles nothing. Raises ConfigError or EnvError.

        Args:
          sweep: what to train.
          allow_download: let an environment fetch its data set.
          sizes: from the directory of a sweep that is resumed; for a new sweep `fit` determines them.
        """
        # All processes plan the same, as they compile the same programs in the same order.
        processes.check_same({**sweep_record(sweep), **vars(sweep.options), **installed_versions()})
        self.sweep = sweep
        self.groups = [CompiledGroup(sweep, settings, allow_download) for settings in sweep.programs()]
        self.sizes = sizes or Sizes((), usable_devices(), processes.number())
        # What cannot be traced, or cannot be shared by the processes, is found before hours of work on what can. The
        # batches of later rungs have the smallest size, or a multiple of the devices'.
        later = [self._smallest] if sweep.halving or not self.sizes.runs else []
        for i, group in enumerate(self.groups):
            for size in [*self.sizes.runs[i : i + 1], *later]:
                group.shapes(size)

    @cached_property
    def rungs(self) -> tuple["Rung", ...]:
        """Returns the rungs of the sweep, a single one without `halving`.

        With it there are 1 + log_halving(n), rounded down, where n is the number of settings, or that of the updates of
        the shortest budget if it is smaller.
        """
        factor, settings = self.sweep.halving, len(self.sweep.settings)
        if factor is None:
            return (Rung(settings, 1),)
        shortest = min(group.config.num_updates for group in self.groups)
        count = 0
        while factor ** (count + 1) <= min(settings, shortest):
            count += 1
        # The last rung has the whole budget; the one before has 1 / factor of it, and factor times as many settings.
        return tuple(Rung(settings // factor**k, factor ** (count - k)) for k in range(count + 1))

    def fit(self) -> None:
        """Compiles the programs of the first rung, for batches as large as memory permits, and sets `sizes`.

        Raises OutOfMemoryError if a program does not fit with a single run.
        """
        self.sizes = self.sizes._replace(runs=tuple(map(self._fit, self.groups)))

    def _fit(self, group: CompiledGroup) -> int:
        """Returns the batch size of a program: the estimated one, halved until the compiled program fits.

        It fits in all processes, which compile the same programs in the same order.
        """
        size = self.balanced_size(len(group.runs), processes.min_of(group.estimated_size(self.sizes.devices)))
        while True:
            needed = group.needed_bytes(size, self.chunk_length(group, size))
            if not processes.any_of(needed > available_bytes(group.layout(size).mesh.size)):
                return size
            if size == self._smallest:
                raise explain(group.config, group.env, None if math.isinf(needed) else int(needed))
            size = self.balanced_size(len(group.runs), size // 2)

    @property
    def _smallest(self) -> int:
        """Returns the size of a batch of one run."""
        return self.balanced_size(1, 1)

    def balanced_size(self, runs: int, most: int) -> int:
        """Returns the size R of batches into which runs are divided.

        R is a multiple of the number of devices, unless there are too few runs or `most` is too small for that. Where
        several processes train, it is so always: each of them has to take part, with copies if need be.

        Args:
          runs: how many there are.
          most: the largest R that is allowed.
        """
        devices = self.sizes.devices
        if min(runs, most) < devices:
            return min(runs, most) if self.sizes.processes == 1 else devices
        # As few batches as possible, then as equal as possible, which leaves the fewest copies in the last one.
        batches = math.ceil(runs / (most // devices * devices))
        return math.ceil(math.ceil(runs / batches) / devices) * devices

    def chunk_length(self, group: CompiledGroup, size: int) -> int:
        """Returns the updates per call of a batch, the same in every rung, so that each batch size has one program."""
        return group.chunk_length(size, self.rungs[0].updates(group.config))

    def metric_names(self) -> list[str]:
        """Returns the names of the metrics of all programs, in alphabetical order."""
        return sorted({name for group in self.groups for name in group.metric_names()})

    @cached_property
    def fingerprint(self) -> str:
        """Returns the hash of everything that determines the results; checkpoints carry it.

        A field that all settings have at its default is left out, so that a field which a later version adds does not
        change the hashes of earlier sweeps; one that was renamed is hashed under its first name.
        """
        record = sweep_record(self.sweep)
        usual = settings_record(TrainConfig(), Hyperparams())
        record["shared"] = {name: x for name, x in record["shared"].items() if name not in usual or x != usual[name]}
        record["axes"] = [_FIRST_NAMES.get(name, name) for name in record["axes"]]
        record["shared"] = _first_names(record["shared"])
        for kind in ("points", "settings"):
            record[kind] = [_first_names(settings) for settings in record[kind]]
        # NumPy's scalars as `write_json` writes them.
        text = json.dumps(record, sort_keys=True, default=lambda scalar: scalar.item())
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def env_steps(self) -> int:
        """Returns the env steps of all runs together, if none diverges.

        With halving, it is an upper bound if budgets differ: the settings with the most steps are assumed to go on.
        """
        total = 0
        for rung, before in zip(self.rungs, (None, *self.rungs), strict=False):
            steps = [
                (rung.updates(config) - (before.updates(config) if before else 0)) * config.batch_size
                for config, _ in self.sweep.settings
            ]
            total += sum(sorted(steps, reverse=True)[: rung.settings]) * len(self.sweep.seeds)
        return total


# What settings were called when the first sweeps were hashed. The other name that `policy` has here keeps them apart.
_FIRST_NAMES = {"action_distribution": "policy", "policy": "network"}


def _first_names(settings: dict[str, Any]) -> dict[str, Any]:
    return {_FIRST_NAMES.get(name, name): value for name, value in settings.items()}


class Rung(NamedTuple):
    """A stage of successive halving: a share of the budget, and how many settings train up to it."""

    settings: int  # how many are trained in it
    divisor: int  # its runs end after 1 / divisor of their budget

    def updates(self, config: TrainConfig) -> int:
        """Returns the updates that a run has done at the end of the rung."""
        return math.ceil(config.num_updates / self.divisor)


def make_plan(sweep: SweepSettings, *, allow_download: bool = False) -> Plan:
    """Returns the plan of a sweep, with the programs of the first rung compiled. Raises PureJaxPPOError."""
    plan = Plan(sweep.plain(), allow_download)
    plan.fit()
    return plan


def plan_record(plan: Plan) -> dict[str, Any]:
    """Returns the plan as a dictionary for JSON; bytes are per device."""
    sweep, devices = plan.sweep, selection.devices()
    alike = len({config.env_steps for config, _ in sweep.settings}) == 1
    joined = f" of {processes.number()} processes" if processes.number() > 1 else ""
    return {
        "env": sweep.env,
        "runs": sweep.num_runs,
        "settings": len(sweep.settings),
        "seeds": len(sweep.seeds),
        "env_steps": plan.env_steps,
        "env_steps_are_exact": sweep.halving is None or alike,  # otherwise an upper bound
        "devices": f"{len(devices)} x {devices[0].device_kind}{joined}",
        "programs": [_program_record(plan, i) for i in range(len(plan.groups))],
        "rungs": [rung._asdict() for rung in plan.rungs],
    }


def _program_record(plan: Plan, i: int) -> dict[str, Any]:
    group, size = plan.groups[i], plan.sizes.runs[i]
    config, layout = group.config, group.layout(size)
    return {
        "values": {axis: getattr(config, axis) for axis in plan.sweep.axes if hasattr(config, axis)},
        "runs": len(group.runs),
        "batches": math.ceil(len(group.runs) / size),
        "runs_per_batch": size,
        "devices": layout.mesh.size,
        "side_by_side": layout.batching is jax.vmap,
        "env_steps_per_run": config.env_steps,
        "updates_per_run": config.num_updates,
        "num_envs": config.num_envs,
        "num_steps": config.num_steps,
        "predicted_bytes": finite_or_none(group.needed_bytes(size, plan.chunk_length(group, size))),
        "available_bytes": finite_or_none(available_bytes(layout.mesh.size)),
    }


def describe_plan(record: dict[str, Any]) -> list[list[str]]:
    """Returns a `plan_record` as rows of name and text."""
    programs = record["programs"]
    again = ", compiled again for the smaller batches of later rungs" if len(record["rungs"]) > 1 else ""
    rows = [
        ["runs", f"{record['runs']:,} = {record['settings']:,} settings x {record['seeds']:,} seeds"],
        ["env steps", f"{'' if record['env_steps_are_exact'] else 'at most '}{record['env_steps']:,} in all"],
        ["devices", record["devices"]],
        ["programs to compile", f"{len(programs)}{again}"],
    ]
    for number, program in enumerate(programs, start=1):
        rows.append([f"program {number}", _runs_text(program)])
        budget = f"{program['env_steps_per_run']:,} env steps = {program['updates_per_run']:,} updates"
        rows.append(["  each run", f"{budget} of {program['num_envs']:,} envs x {program['num_steps']:,} steps"])
        rows.append(["  laid out", _layout_text(program)])
        memory = readable(program["predicted_bytes"])
        limit = "" if program["available_bytes"] is None else f" of {readable(program['available_bytes'])}"
        rows.append(["  memory", f"{memory}{limit} that may be used, per device"])
    for number, rung in enumerate(record["rungs"][:-1], start=2):
        here, after = record["rungs"][number - 2], record["rungs"][number - 1]
        rows.append(
            [
                f"rung {number}",
                f"the best {after['settings']:,} of {rung['settings']:,} settings go on after "
                f"1/{here['divisor']} of the budget",
            ]
        )
    return rows


def _runs_text(program: dict[str, Any]) -> str:
    values = "".join(f"{axis} {value_text(value)}, " for axis, value in program["values"].items())
    batches, size = program["batches"], program["runs_per_batch"]
    return f"{values}{program['runs']:,} runs in {f'{batches:,} batches of {size:,}' if batches > 1 else 'one batch'}"


def _layout_text(program: dict[str, Any]) -> str:
    how = "side by side" if program["side_by_side"] else "one after the other"
    return f"{how} on {'one device' if program['devices'] == 1 else 'each of ' + str(program['devices']) + ' devices'}"
