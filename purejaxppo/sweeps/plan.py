"""What a sweep comes to: its programs, how many runs of each are side by side, its rungs, and what that takes."""

import hashlib
import json
import math
from functools import cached_property
from typing import Any, NamedTuple

import jax

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.resolve import settings_record
from purejaxppo.devices.memory import explain, readable
from purejaxppo.sweeps.compiled_group import CompiledGroup, available_bytes
from purejaxppo.sweeps.directory import Sizes, sweep_record
from purejaxppo.sweeps.scoring import finite
from purejaxppo.sweeps.spec import SweepSettings, value_text


class Plan:
    """Groups of runs, and how many of each group's are side by side."""

    def __init__(self, sweep: SweepSettings, allow_download: bool = False, sizes: Sizes | None = None) -> None:
        """Builds everything, and compiles nothing. Raises ConfigError or EnvError.

        Args:
          sizes: of the sweep's directory; without them `fit` has to settle them.
        """
        self.sweep = sweep
        self.groups = [CompiledGroup(sweep, settings, allow_download) for settings in sweep.programs()]
        self.sizes = sizes or Sizes((), len(jax.devices()))
        for group in self.groups:  # what is wrong with one of them should be known before hours of work
            group.shapes(1)

    @cached_property
    def rungs(self) -> tuple["Rung", ...]:
        """The stretches of a sweep: one, or as many as the settings can be divided by `halving` and one."""
        factor, settings = self.sweep.halving, len(self.sweep.settings)
        if factor is None:
            return (Rung(settings, 1),)
        shortest = min(group.config.num_updates for group in self.groups)
        count = 0
        while factor ** (count + 1) <= min(settings, shortest):
            count += 1
        return tuple(Rung(settings // factor**k, factor ** (count - k)) for k in range(count + 1))

    def fit(self) -> None:
        """Compiles the first rung's programs, with as many runs side by side as fit into memory.

        Raises OutOfMemoryError if a program does not fit with a single run per device.
        """
        self.sizes = self.sizes._replace(runs=tuple(map(self._fit, self.groups)))

    def _fit(self, group: CompiledGroup) -> int:
        size = self.balanced(len(group.runs), group.most(self.sizes.devices))
        while True:
            needed = group.needed_bytes(size, self.chunk(group, size))
            if needed <= available_bytes(group.layout(size).mesh.size):
                return size
            if size == 1:
                raise explain(group.config, group.env, None if math.isinf(needed) else int(needed))
            size = self.balanced(len(group.runs), size // 2)

    def balanced(self, runs: int, most: int) -> int:
        """The size of batches of about equal length, at most so long, which fills the devices evenly if it can."""
        devices = self.sizes.devices
        if min(runs, most) < devices:
            return min(runs, most)
        batches = math.ceil(runs / (most // devices * devices))
        return math.ceil(math.ceil(runs / batches) / devices) * devices

    def chunk(self, group: CompiledGroup, size: int) -> int:
        """Updates per call in every rung, so that there is one program for each number of runs side by side."""
        return group.chunk(size, self.rungs[0].updates(group.config))

    def metric_names(self) -> list[str]:
        """Of all groups, in alphabetical order."""
        return sorted({name for group in self.groups for name in group.metric_names()})

    @cached_property
    def fingerprint(self) -> str:
        """The hash of everything that decides the result. What is at its default does not count: an older version may
        not know it.
        """
        record = sweep_record(self.sweep)
        usual = settings_record(TrainConfig(), Hyperparams())
        record["shared"] = {name: x for name, x in record["shared"].items() if name not in usual or x != usual[name]}
        # NumPy's scalars as `write_json` writes them.
        text = json.dumps(record, sort_keys=True, default=lambda scalar: scalar.item())
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def env_steps(self) -> int:
        """Of all runs together, if none diverges and halving keeps the settings with the most steps."""
        total = 0
        for rung, before in zip(self.rungs, (None, *self.rungs), strict=False):
            steps = [
                (rung.updates(config) - (before.updates(config) if before else 0)) * config.batch_size
                for config, _ in self.sweep.settings
            ]
            total += sum(sorted(steps, reverse=True)[: rung.settings]) * len(self.sweep.seeds)
        return total


class Rung(NamedTuple):
    """A stretch of a sweep."""

    settings: int  # that are trained in it
    divisor: int  # of the budget

    def updates(self, config: TrainConfig) -> int:
        """Updates that a run has done at its end."""
        return math.ceil(config.num_updates / self.divisor)


def make_plan(sweep: SweepSettings, *, allow_download: bool = False) -> Plan:
    """The plan of a sweep, with its programs compiled. Raises PureJaxPPOError."""
    plan = Plan(sweep.plain(), allow_download)
    plan.fit()
    return plan


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it; bytes are per device."""
    sweep, devices = plan.sweep, jax.devices()
    alike = len({config.env_steps for config, _ in sweep.settings}) == 1
    return {
        "env": sweep.env,
        "runs": sweep.num_runs,
        "settings": len(sweep.settings),
        "seeds": len(sweep.seeds),
        "env_steps": plan.env_steps,
        "env_steps_are_exact": sweep.halving is None or alike,  # or else at most so many
        "devices": f"{len(devices)} x {devices[0].device_kind}",
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
        "predicted_bytes": finite(group.needed_bytes(size, plan.chunk(group, size))),
        "available_bytes": finite(available_bytes(layout.mesh.size)),
    }


def describe_plan(record: dict[str, Any]) -> list[list[str]]:
    """A `plan_record` as rows of name and text."""
    programs = record["programs"]
    rows = [
        ["runs", f"{record['runs']:,} = {record['settings']:,} settings x {record['seeds']:,} seeds"],
        ["env steps", f"{'' if record['env_steps_are_exact'] else 'at most '}{record['env_steps']:,} in all"],
        ["devices", record["devices"]],
        ["programs to compile", f"{len(programs)}{', each anew for fewer runs' if len(record['rungs']) > 1 else ''}"],
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
