"""The runs of a sweep that share a compiled program: its compilation, its memory, and their evaluation."""

import math
from collections.abc import Sequence
from functools import cached_property

import jax
import numpy as np

from purejaxppo.config import Hyperparams
from purejaxppo.devices import processes, selection
from purejaxppo.devices.memory import device_bytes, program_bytes, traced_bytes
from purejaxppo.devices.vectorize import Layout, Runs, advance_runs, layout_for, make_runs, one_by_one
from purejaxppo.envs.registry import make_env
from purejaxppo.errors import is_out_of_memory
from purejaxppo.evaluate import Episodes, evaluate_runner, evaluation_key
from purejaxppo.experiment.chunked_loop import chunk_lengths, work_per_call
from purejaxppo.policies.registry import make_policy
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.train import trainer_from_config

_MEMORY_FRACTION = 0.8  # of a device's memory that a program may take
# XLA reuses buffers: all intermediate arrays of an update together have 8.8 to 17 times the size of what the compiled
# update allocates (six programs, three environments, trpo among them; jax 0.10.2, vmapped, for CPU). This is below all.
_BUFFER_REUSE = 6


class CompiledGroup:
    """The runs that share a `TrainConfig`. For each batch size R there is one compiled program."""

    def __init__(self, sweep: SweepSettings, settings: Sequence[int], allow_download: bool) -> None:
        """Builds environment and trainer, and compiles nothing.

        Args:
          sweep: what is trained.
          settings: numbers of settings with equal `TrainConfig`s, whose `Hyperparams` are None in the same fields.
          allow_download: let the environment fetch its data set.
        """
        self.settings = tuple(settings)
        self.config = sweep.settings[settings[0]][0]
        self.env = make_env(self.config, allow_download=allow_download)
        self.trainer = trainer_from_config(self.config, self.env)
        self._eval_env = make_env(self.config, sweep.options.eval_episodes, allow_download=allow_download)
        self._sweep = sweep
        self._programs: dict[tuple[int, int], jax.stages.Compiled] = {}
        self._evaluators: dict[int, jax.stages.Compiled] = {}

    @property
    def runs(self) -> list[int]:
        """Returns the numbers of the runs."""
        seeds = len(self._sweep.seeds)
        return [setting * seeds + i for setting in self.settings for i in range(seeds)]

    def layout(self, size: int) -> Layout:
        """Returns the layout of `size` runs over the devices."""
        return layout_for(size, self._sweep.exact)

    def values(self, runs: Sequence[int], size: int) -> tuple[Hyperparams, np.ndarray]:
        """Returns the hyperparameters [size] and seeds [size] of runs.

        Copies of the last run fill up what the runs leave of the size.
        """
        filled = [*runs, *[runs[-1]] * (size - len(runs))]
        settings, seeds = np.divmod(filled, len(self._sweep.seeds))
        hps = [self._sweep.settings[setting][1] for setting in settings]
        stacked = jax.tree.map(lambda *values: np.array(values, np.float32), *hps)
        return stacked, np.array(self._sweep.seeds, np.uint32)[seeds]

    def arguments(self, runs: Sequence[int], size: int) -> tuple[Hyperparams, jax.Array]:
        """Returns the `values` on their devices."""
        sharding = self.layout(size).sharding
        return jax.tree.map(lambda leaf: processes.place(leaf, sharding), self.values(runs, size))

    def shapes(self, size: int) -> tuple[Hyperparams, Runs]:
        """Returns the shapes and shardings of the hyperparameters and states of `size` runs."""
        sharding = self.layout(size).sharding
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=sharding), self._shapes_of_one
        )

    @cached_property
    def _shapes_of_one(self) -> tuple[Hyperparams, Runs]:
        """The shapes of one run's hyperparameters and state. They are one object, so that JAX traces an update once."""
        one = layout_for(1, devices=[selection.first()])
        hps, seeds = self.values(self.runs[:1], 1)
        runs = jax.eval_shape(lambda hps, seeds: make_runs(self.trainer, hps, seeds, 0, one), hps, seeds)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (hps, runs))

    def metric_names(self) -> set[str]:
        """Returns the names of an update's metrics, without the bit mask `nonfinite`."""
        hps, runs = self._shapes_of_one
        _, metrics = jax.eval_shape(self.trainer.update, hps, runs.runner)
        return set(metrics) - {"nonfinite"}

    def chunk_length(self, size: int, updates: int) -> int:
        """Returns the updates per call that divide `updates` into calls of one length, each of about a second.

        One length means one program. The last call may be longer than what is left; the runs are frozen by then.
        """
        _, run = self._shapes_of_one
        each = math.ceil(size / self.layout(size).mesh.size)
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct((each, *x.shape), x.dtype), run.learner.params)
        wanted = chunk_lengths(self.config, params, jax.default_backend())[0]
        calls = math.ceil(updates / wanted)
        return math.ceil(updates / calls)

    def estimated_size(self, devices: int) -> int:
        """Returns an estimate of how many runs fit on this many devices, so that compiling once usually suffices.

        Under `jax.lax.map` it is also no more than the runs whose single update takes a second: a larger batch would
        not be faster, and stop signals are heard between calls only.
        """
        hps, run = self._shapes_of_one
        one_at_a_time = self.layout(devices).batching is one_by_one
        # Runs per device: of r vmapped runs each has a state and the intermediate arrays of its own update; of r runs
        # under `lax.map` each has a state, and one at a time has the intermediate arrays.
        most = work_per_call(jax.default_backend()) / self._work_per_update(run) if one_at_a_time else math.inf
        available = available_bytes(devices)
        if math.isfinite(available):
            work = traced_bytes(self.trainer.update, hps, run.runner) / _BUFFER_REUSE
            state = 4 * _tree_bytes(run)  # argument, result, and two copies while it is saved
            most = min(most, (available - work) / state if one_at_a_time else available / (state + work))
        return len(self.runs) if math.isinf(most) else max(1, int(devices * most))

    def _work_per_update(self, run: Runs) -> int:
        """Returns the work of one update of one run, in the units of `work_per_call`."""
        return (
            self.config.batch_size * self.config.num_epochs * sum(x.size for x in jax.tree.leaves(run.learner.params))
        )

    def needed_bytes(self, size: int, num_updates: int) -> float:
        """Returns the bytes that `size` runs need per device, by XLA's analysis of their compiled program.

        On a CPU, whose memory the host shares, copies for saving are included. It is infinite for a program that is
        too large to be compiled.
        """
        try:
            program = program_bytes(self.program(size, num_updates))
        except Exception as error:
            if is_out_of_memory(error):
                return math.inf
            raise
        if selection.first().platform != "cpu":
            return program
        _, runs = self.shapes(size)
        # Each process has copies of the whole state while it is saved.
        return program + 2 * _tree_bytes(runs) * processes.number() // self.layout(size).mesh.size

    def program(self, size: int, num_updates: int) -> jax.stages.Compiled:
        """Returns the compiled program (hyperparameters, states) -> (states, metrics [size, num_updates]).

        The states are donated. The program is compiled at the first call.
        """
        if (size, num_updates) not in self._programs:
            hps, runs = self.shapes(size)
            lowered = advance_runs.lower(self.trainer, hps, runs, num_updates, self.layout(size))
            self._programs[size, num_updates] = lowered.compile()
        return self._programs[size, num_updates]

    def evaluate(self, seeds: jax.Array, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
        """Plays greedy episodes with each of R runs, the same as the final evaluation of a single run plays.

        Returns:
          The mean return [R], NaN for a run that diverged, and the number of episodes [R] that were cut off before
          their end.
        """
        if len(seeds) not in self._evaluators:
            self._evaluators[len(seeds)] = self._compile_evaluation(seeds, runs)
        episodes = self._evaluators[len(seeds)](seeds, runs)
        episodes, diverged_at = processes.on_host((episodes, runs.diverged))
        returns = np.asarray(episodes.episode_return, np.float64).mean(axis=1)
        unfinished = np.sum(~episodes.finished, axis=1)
        diverged = diverged_at > 0
        return np.where(diverged, np.nan, returns), np.where(diverged, 0, unfinished)

    def _compile_evaluation(self, seeds: jax.Array, runs: Runs) -> jax.stages.Compiled:
        """Compiles the evaluation of all runs, in the layout of training; by `lax.map` if it does not fit vmapped."""
        policy = make_policy(self.config, self.env)

        def play(seed: jax.Array, run: Runs) -> Episodes:
            return evaluate_runner(evaluation_key(seed), self.config, self._eval_env, policy, run.runner)

        layout = self.layout(len(seeds))
        program = jax.jit(layout.over_runs(play)).lower(seeds, runs).compile()
        too_large = processes.any_of(program_bytes(program) > available_bytes(layout.mesh.size))
        if layout.batching is jax.vmap and too_large:
            program = jax.jit(layout._replace(batching=one_by_one).over_runs(play)).lower(seeds, runs).compile()
        return program


def available_bytes(devices: int) -> float:
    """Returns the bytes that a program may take of each of several devices; the devices of a CPU share its memory.

    It is infinite if a device does not tell.
    """
    first = selection.first()
    here = devices * processes.number_here() / processes.number()  # of them, on this machine
    share = _MEMORY_FRACTION / (here if first.platform == "cpu" else 1)
    return share * (device_bytes(first) or math.inf)


def _tree_bytes(tree: object) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
