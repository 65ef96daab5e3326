"""The runs of a sweep that share a program: compiled for so many of them at a time, advanced, evaluated."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from purejaxppo.config import Hyperparams
from purejaxppo.devices.memory import device_bytes, program_bytes, traced_bytes
from purejaxppo.devices.vectorize import Layout, Runs, advance_runs, layout_for, make_runs, one_by_one
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.errors import is_out_of_memory
from purejaxppo.evaluate import Episodes, evaluate_runner, evaluation_key
from purejaxppo.experiment.chunked_loop import chunk_lengths, work_per_call
from purejaxppo.policies.networks import make_network
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.train import trainer_from_config

_SHARE = 0.8  # of the memory that may be taken
# The arrays of an update take so many times the memory that a compiled update does, which uses places again: 8.8 to 17
# in six programs (three environments, trpo among them; jax 0.10.2, vmapped, for CPU).
_REUSE = 6


class CompiledGroup:
    """The runs that share a `TrainConfig`, and so a compiled program for each number of them side by side."""

    def __init__(self, sweep: SweepSettings, settings: Sequence[int], allow_download: bool) -> None:
        """`settings` are those of one `TrainConfig`, and with the same optional hyperparameters left out."""
        self.settings = tuple(settings)
        self.config = sweep.settings[settings[0]][0]
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
        filled = [*runs, *[runs[-1]] * (size - len(runs))]
        settings, seeds = np.divmod(filled, len(self._sweep.seeds))
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
        _, runs = self.shapes(math.ceil(size / self.layout(size).mesh.size))
        wish = chunk_lengths(self.config, runs.learner.params, jax.default_backend())[0]
        return math.ceil(updates / math.ceil(updates / wish))

    def most(self, devices: int) -> int:
        """Runs that are likely to fit on so many devices, so that the first compilation is, as a rule, the only one.

        Where they are computed one after the other no more of them than make a call of about a second: more would gain
        nothing, and signals are heard between calls.
        """
        hps, runs = self.shapes(1)
        most = math.inf
        if self.layout(1).batching is one_by_one:
            most = work_per_call(jax.default_backend()) / self._work(runs)
        available = available_bytes(devices)
        if math.isfinite(available):
            one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (hps, runs.runner))
            work = traced_bytes(self.trainer.update, *one) / _REUSE
            state = 4 * _bytes(runs)  # given, returned, and twice on its way to the disk
            alone = self.layout(1).batching is one_by_one
            most = min(most, (available - work) / state if alone else available / (state + work))
        return len(self.runs) if math.isinf(most) else max(1, int(devices * most))

    def _work(self, runs: Runs) -> int:
        """Of one update of one run, in the units of `work_per_call`."""
        return (
            self.config.batch_size * self.config.num_epochs * sum(x.size for x in jax.tree.leaves(runs.learner.params))
        )

    def needed_bytes(self, size: int, num_updates: int) -> float:
        """What the compiled program of so many runs takes of each device, and what saving does beside it.

        By the compiler's own account; infinite for what is too large to be compiled.
        """
        try:
            program = program_bytes(self.program(size, num_updates))
        except Exception as error:
            if is_out_of_memory(error):
                return math.inf
            raise
        if jax.devices()[0].platform != "cpu":
            return program
        _, runs = self.shapes(size)
        return program + 2 * _bytes(runs) // self.layout(size).mesh.size  # on its way to the disk

    def program(self, size: int, num_updates: int) -> jax.stages.Compiled:
        """Compiled once: (hyperparameters, states) -> (states, metrics [size, num_updates]), the states given away."""
        if (size, num_updates) not in self._programs:
            hps, runs = self.shapes(size)
            lowered = advance_runs.lower(self.trainer, hps, runs, num_updates, self.layout(size))
            self._programs[size, num_updates] = lowered.compile()
        return self._programs[size, num_updates]

    def evaluate(self, seeds: jax.Array, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
        """Greedy episodes, those of `train`'s own final evaluation.

        Returns:
          The mean return [R], NaN for a run that diverged; and how many episodes [R] were broken off unfinished.
        """
        if len(seeds) not in self._players:
            self._players[len(seeds)] = self._player(seeds, runs)
        episodes = self._players[len(seeds)](seeds, runs)
        returns = np.asarray(episodes.episode_return, np.float64).mean(axis=1)
        unfinished = np.sum(~np.asarray(episodes.finished), axis=1)
        diverged = np.asarray(runs.diverged) > 0
        return np.where(diverged, np.nan, returns), np.where(diverged, 0, unfinished)

    def _player(self, seeds: jax.Array, runs: Runs) -> jax.stages.Compiled:
        """Compiled to play all runs side by side if the layout does so and it fits, else one after the other."""
        apply = make_network(self.config, self.env).apply

        def play(seed: jax.Array, run: Runs) -> Episodes:
            return evaluate_runner(evaluation_key(seed), self.config, self._copies, apply, run.runner)

        layout = self.layout(len(seeds))
        player = jax.jit(layout.over_runs(play)).lower(seeds, runs).compile()
        if layout.batching is jax.vmap and program_bytes(player) > available_bytes(layout.mesh.size):
            player = jax.jit(layout._replace(batching=one_by_one).over_runs(play)).lower(seeds, runs).compile()
        return player


def available_bytes(devices: int) -> float:
    """What may be taken of each of so many devices; a CPU's share one memory."""
    first = jax.devices()[0]
    share = _SHARE / (devices if first.platform == "cpu" else 1)
    return share * (device_bytes(first) or math.inf)


def _bytes(tree: object) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
