"""What a sweep comes to: its programs, how many runs of each are side by side, and what that takes."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo.comparison import finite
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.envs import from_gymnax
from purejaxppo.evaluate import Episodes, evaluate_runner, evaluation_key
from purejaxppo.host_loop import Program, chunk_lengths
from purejaxppo.memory import device_bytes, explain, program_bytes, readable, traced_bytes
from purejaxppo.networks import make_network
from purejaxppo.runs import Runs, advance_runs, make_runs
from purejaxppo.sharding import Layout, layout_for, one_by_one
from purejaxppo.sweeps.settings import SweepSettings, value_text
from purejaxppo.train import trainer_from_config

_SHARE = 0.8  # of the memory that a program may take: a state on its way to the disk is there twice
# The arrays of an update take so many times the memory that a compiled update does, which uses places again: 8.8 to 17
# in six programs (three environments, trpo among them; jax 0.10.2, vmapped, for CPU).
_REUSE = 6


class Group:
    """The runs that share a `TrainConfig`, and so a compiled program for each number of them side by side."""

    def __init__(self, sweep: SweepSettings, settings: Sequence[int], allow_download: bool) -> None:
        """`settings` are those of one `TrainConfig`, and with the same optional hyperparameters left out."""
        self.settings = tuple(settings)
        self.config: TrainConfig = sweep.settings[settings[0]][0]
        params = dict(self.config.env_params)
        self.env = from_gymnax(self.config.env, self.config.num_envs, allow_download=allow_download, **params)
        self.trainer = trainer_from_config(self.config, self.env)
        self._copies = from_gymnax(
            self.config.env, sweep.options.eval_episodes, allow_download=allow_download, **params
        )
        self._sweep = sweep
        self._programs: dict[tuple[int, int], jax.stages.Compiled] = {}
        self._players: dict[int, jax.stages.Compiled] = {}

    @property
    def runs(self) -> list[int]:
        """Their numbers."""
        seeds = len(self._sweep.seeds)
        return [setting * seeds + i for setting in self.settings for i in range(seeds)]

    def layout(self, size: int) -> Layout:
        """Of so many runs side by side."""
        return layout_for(size, self._sweep.exact)

    def arguments(self, runs: Sequence[int], size: int) -> tuple[Hyperparams, jax.Array]:
        """Hyperparameters [size] and seeds [size] of runs, the last of which fills what is left."""
        padded = [*runs, *[runs[-1]] * (size - len(runs))]
        settings, seeds = np.divmod(padded, len(self._sweep.seeds))
        hps = [self._sweep.settings[setting][1] for setting in settings]
        stacked = jax.tree.map(lambda *values: np.array(values, np.float32), *hps)
        return jax.device_put((stacked, np.uint32(np.asarray(self._sweep.seeds)[seeds])), self.layout(size).sharding)

    def shapes(self, size: int) -> tuple[Hyperparams, Runs]:
        """Hyperparameters and states of so many runs, without their numbers."""
        hps, seeds = self.arguments(self.runs[:1], size)
        runs = jax.eval_shape(lambda hps, seeds: make_runs(self.trainer, hps, seeds, 0, self.layout(size)), hps, seeds)
        sharding = self.layout(size).sharding
        return hps, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), runs)

    def metric_names(self) -> set[str]:
        """What an update reports, but for the bits that say what was not finite."""
        hps, runs = self.shapes(1)
        step = advance_runs.eval_shape(self.trainer, hps, runs, 1, self.layout(1))
        return set(step[1]) - {"nonfinite"}

    def chunk(self, size: int, updates: int) -> int:
        """Updates per call of a stretch. All calls are of one length: where the last one's is too long, runs rest."""
        _, runs = self.shapes(size)
        wish = chunk_lengths(self.config, runs.learner.params, jax.default_backend())[0]
        return math.ceil(updates / math.ceil(updates / wish))

    def program(self, size: int, num_updates: int) -> jax.stages.Compiled:
        """Compiled once: (hyperparameters, states) -> (states, metrics [size, num_updates]), the states given away."""
        if (size, num_updates) not in self._programs:
            hps, runs = self.shapes(size)
            lowered = advance_runs.lower(self.trainer, hps, runs, num_updates, self.layout(size))
            self._programs[size, num_updates] = lowered.compile()
        return self._programs[size, num_updates]

    def advance(self, size: int, num_updates: int, hps: Hyperparams) -> Program:
        """The same for the host loop, with its hyperparameters."""
        program = self.program(size, num_updates)
        return Program(lambda runs: program(hps, runs), program_bytes(program))

    def evaluate(self, seeds: jax.Array, runs: Runs) -> np.ndarray:
        """Mean return [R] of greedy episodes, those of `train`'s own final evaluation; NaN for a run that diverged."""
        if len(seeds) not in self._players:
            self._players[len(seeds)] = self._player(seeds, runs)
        episodes = self._players[len(seeds)](seeds, runs)
        returns = np.asarray(episodes.episode_return, np.float64).mean(axis=1)
        return np.where(np.asarray(runs.diverged) > 0, np.nan, returns)

    def _player(self, seeds: jax.Array, runs: Runs) -> jax.stages.Compiled:
        """Compiled to play all runs side by side if the layout does so and it fits, else one after the other."""
        apply = make_network(self.config, self.env).apply

        def play(seed: jax.Array, run: Runs) -> Episodes:
            return evaluate_runner(evaluation_key(seed), self.config, self._copies, apply, run.runner)

        layout = self.layout(len(seeds))
        player = jax.jit(layout.over_runs(play)).lower(seeds, runs).compile()
        if layout.batching is jax.vmap and program_bytes(player) > available_bytes():
            player = jax.jit(layout._replace(batching=one_by_one).over_runs(play)).lower(seeds, runs).compile()
        return player


class Plan:
    """Groups of runs, and how many of each group's are side by side."""

    def __init__(self, sweep: SweepSettings, allow_download: bool = False) -> None:
        """Builds everything, and compiles nothing. Raises ConfigError or EnvError."""
        self.sweep = sweep
        self.groups = [Group(sweep, settings, allow_download) for settings in sweep.programs()]
        self.sizes: tuple[int, ...] = ()
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

    def fit(self, sizes: Sequence[int] = ()) -> None:
        """Compiles the first rung's programs, as many runs side by side as fit into memory, or as `sizes` says.

        Raises OutOfMemoryError if a program does not fit with a single run per device.
        """
        self.sizes = tuple(sizes) or tuple(map(self._fit, self.groups))

    def _fit(self, group: Group) -> int:
        size = balanced(len(group.runs), _likely(group))
        while True:
            program = group.program(size, self.chunk(group, size))
            needed, available = program_bytes(program), available_bytes()
            if needed <= available:
                return size
            if size == padded(1):
                raise explain(group.config, group.env, needed)
            size = balanced(len(group.runs), max(1, min(size // 2, int(size * available / needed))))

    def predicted_bytes(self, group: int) -> int:
        """What a group's program needs at a time on each device, by the compiler's own account."""
        chosen, size = self.groups[group], self.sizes[group]
        return program_bytes(chosen.program(size, self.chunk(chosen, size)))

    def chunk(self, group: Group, size: int) -> int:
        """Updates per call in every rung, so that there is one program for each number of runs side by side."""
        return group.chunk(size, self.rungs[0].updates(group.config))

    def metric_names(self) -> list[str]:
        """Of all groups, in alphabetical order."""
        return sorted({name for group in self.groups for name in group.metric_names()})

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
    plan = Plan(sweep, allow_download)
    plan.fit()
    return plan


def padded(runs: int) -> int:
    """The number of runs that fills the devices evenly."""
    devices = len(jax.devices())
    return runs if runs < devices else math.ceil(runs / devices) * devices


def balanced(runs: int, most: int) -> int:
    """The size of batches of about equal length, at most so long."""
    return padded(math.ceil(runs / math.ceil(runs / max(1, most))))


def available_bytes() -> float:
    """What a program may take of each device; the CPU's devices share one memory."""
    devices = jax.devices()
    share = _SHARE / (len(devices) if devices[0].platform == "cpu" else 1)
    return share * (device_bytes(devices[0]) or math.inf)


def _likely(group: Group) -> int:
    """Runs that are likely to fit, so that the first compilation is, as a rule, the only one."""
    available = available_bytes()
    if math.isinf(available):
        return len(group.runs)
    hps, runs = group.shapes(1)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (hps, runs.runner))
    work = traced_bytes(group.trainer.update, *one) / _REUSE
    state = 2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(runs))
    side_by_side = group.layout(1).batching is jax.vmap
    fitting = available / (state + work) if side_by_side else (available - work) / state
    return max(1, int(len(jax.devices()) * fitting))


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it; bytes are per device."""
    sweep, devices = plan.sweep, jax.devices()
    return {
        "env": sweep.env,
        "runs": sweep.num_runs,
        "settings": len(sweep.settings),
        "seeds": len(sweep.seeds),
        "env_steps": plan.env_steps,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "programs": [_program_record(plan, i) for i in range(len(plan.groups))],
        "rungs": [rung._asdict() for rung in plan.rungs],
    }


def _program_record(plan: Plan, i: int) -> dict[str, Any]:
    group, size = plan.groups[i], plan.sizes[i]
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
        "predicted_bytes": plan.predicted_bytes(i),
        "available_bytes": finite(available_bytes()),
    }


def describe_plan(record: dict[str, Any]) -> list[list[str]]:
    """A `plan_record` as rows of name and text."""
    programs = record["programs"]
    rows = [
        ["runs", f"{record['runs']:,} = {record['settings']:,} settings x {record['seeds']:,} seeds"],
        ["env steps", f"{record['env_steps']:,} in all"],
        ["devices", record["devices"]],
        ["programs to compile", str(len(programs))],
    ]
    for number, program in enumerate(programs, start=1):
        rows.append([f"program {number}", _describe_program(program)])
        budget = f"{program['env_steps_per_run']:,} env steps = {program['updates_per_run']:,} updates"
        rows.append(["  each run", f"{budget} of {program['num_envs']:,} envs x {program['num_steps']:,} steps"])
        rows.append(["  laid out", _describe_layout(program)])
        memory = readable(program["predicted_bytes"])
        limit = "" if program["available_bytes"] is None else f" of {readable(program['available_bytes'])}"
        rows.append(["  memory", f"{memory}{limit} that may be used, per device"])
    if len(record["rungs"]) > 1:
        steps = [f"{rung['settings']:,} settings to 1/{rung['divisor']} of the budget" for rung in record["rungs"]]
        rows.append(["halving", ", then the best ".join(steps)])
    return rows


def _describe_program(program: dict[str, Any]) -> str:
    values = "".join(f"{axis} {value_text(value)}, " for axis, value in program["values"].items())
    batches, size = program["batches"], program["runs_per_batch"]
    return f"{values}{program['runs']:,} runs in {f'{batches:,} batches of {size:,}' if batches > 1 else 'one batch'}"


def _describe_layout(program: dict[str, Any]) -> str:
    how = "side by side" if program["side_by_side"] else "one after the other"
    return f"{how} on {'one device' if program['devices'] == 1 else 'each of ' + str(program['devices']) + ' devices'}"
