"""The comparison of several algorithms on one environment, each trained with the same seeds."""

import csv
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from rich.console import Console

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import AnyPath
from purejaxppo.config.resolve import describe_settings, settings_record
from purejaxppo.core.nonfinite import Cause, every_run_diverged, first_nonfinite
from purejaxppo.devices import selection
from purejaxppo.devices.vectorize import layout_for
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.atomic_files import whole_file, write_json, write_text
from purejaxppo.experiment.chunked_loop import Chunk, advance_in_chunks, steady_speed
from purejaxppo.experiment.directory import create_dir, write_origin
from purejaxppo.experiment.parts import Parts, with_parts
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.plots import COLOURS, draw_runs, format_steps, save_figure
from purejaxppo.experiment.progress import ProgressDisplay, Terminal, remark, say
from purejaxppo.experiment.signals import when_interrupted
from purejaxppo.experiment.watchdog import announced
from purejaxppo.sweeps.batches import RunBatch
from purejaxppo.sweeps.compiled_group import CompiledGroup
from purejaxppo.sweeps.plan import Plan
from purejaxppo.sweeps.scoring import (
    RESULT_COLUMNS,
    Result,
    comparison_table,
    curve_columns,
    curve_rows,
    markdown_table,
    result_rows,
    table_row,
)
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.sweeps.train_batch import mean_of_chunk, new_runs

_FAMILY = ("ppo_clip", "ppo_kl", "trpo", "policy_gradient")
_PANELS = (
    ("episode/return", "return of finished episodes"),
    ("kl", "KL(old || new), nats"),
    ("ratio/effective_sample_size", "effective sample size / N"),
)


def compare(
    runs: Sequence[tuple[TrainConfig, Hyperparams]],
    seeds: Sequence[int],
    *,
    out: AnyPath | None = None,
    eval_episodes: int = 128,
    target: float | None = None,
    allow_download: bool = False,
    console: Console | None = None,
    phases: Phases | None = None,
    **parts: Unpack[Parts],
) -> dict[str, Any]:
    """Trains every algorithm with every seed, writes tables and a picture to `out`, and returns the summary.

    The files are curves.csv (a row per algorithm, seed and update), results.csv (a row per algorithm and seed),
    table.md, summary.json, comparison.png, and comparison.json with all settings. The tables and the summary are
    written again after each algorithm, the picture once at the end.

    Args:
      runs: one pair of settings per algorithm, all of the same environment.
      seeds: every algorithm is trained with each of them.
      out: new directory; by default runs/<env>__compare__<UTC time>.
      eval_episodes: greedy episodes per run at the end.
      target: return whose first arrival the column `steps to target` reports.
      allow_download: let an environment fetch its data set.
      console: for progress; by default standard error.
      phases: measures the seconds that the summary reports, by default from this call on.
      **parts: env, policy, optimizer or schedule in place of what the settings name; or the algorithm of one's own that
        one of them names (`Parts`).

    Raises:
      DivergedError: every run diverged.
      PureJaxPPOError: a subclass for each kind of failure; the results of finished algorithms remain in `out`.
    """
    console, phases = console or Terminal(), phases or Phases()
    configs = with_parts([config for config, _ in runs], **parts)
    runs = [(config, hp) for config, (_, hp) in zip(configs, runs, strict=True)]
    sweep = _as_sweep(runs, seeds, eval_episodes, target).plain()
    sweep.validate()
    runs, seeds, target = sweep.settings, sweep.seeds, sweep.target
    plan = Plan(sweep, allow_download)
    out = create_dir(out, f"{sweep.env}__compare")
    write_origin(out)
    record = [settings_record(config, hp) for config, hp in runs]
    write_json(out / "comparison.json", {"format_version": 1, "seeds": list(seeds), "runs": record})
    when_interrupted(f"{out} has the results of the algorithms that had finished; compare again with another --out.")
    say(console, _headline(runs, seeds, out))
    say(console, describe_settings(runs))
    phases.end("setup")

    results: list[Result] = []
    summary: dict[str, Any] = {"env": sweep.env, "seeds": list(seeds), "target": target}
    for group in plan.groups:
        results.append(_train_algorithm(plan, group, console, phases))
        summary |= {"algorithms": _write_tables(out, results, target), "out": str(out)}
        phases.end("tables")
        write_json(out / "summary.json", summary | {"seconds": phases.seconds()})
    with announced(partial(remark, console), "drawing the picture"):
        plot_comparison(results, sweep.env, target, out / "comparison.png")
    phases.end("picture")
    summary["seconds"] = phases.seconds()
    write_json(out / "summary.json", summary)
    if all(np.isnan(result.returns).all() for result in results):
        raise every_run_diverged([cause for result in results for cause in result.causes], str(out))
    return summary


def _as_sweep(
    runs: Sequence[tuple[TrainConfig, Hyperparams]], seeds: Sequence[int], eval_episodes: int, target: float | None
) -> SweepSettings:
    """Returns the comparison as a sweep over algorithms, each with settings of its own."""
    names = [config.algorithm for config, _ in runs]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"algorithms = {' '.join(names) or 'none'}: a comparison takes different ones, at least one.")
    for name in names:
        ALGORITHMS.lookup(name)
    points = tuple({"algorithm": name} for name in names)
    options = RunOptions(eval_episodes=eval_episodes)
    return SweepSettings(("algorithm",), points, tuple(runs), tuple(seeds), options, target=target)


def _train_algorithm(plan: Plan, group: CompiledGroup, console: Console, phases: Phases) -> Result:
    """Trains and evaluates all seeds of one algorithm as one compiled program."""
    config, seeds = group.config, plan.sweep.seeds
    number, size = plan.groups.index(group), plan.balanced_size(len(seeds), len(seeds) + plan.sizes.devices)
    batch = RunBatch(config.algorithm, number, 0, tuple(group.runs), size, since=0, until=config.num_updates)
    hps, all_seeds = group.arguments(batch.runs, size)
    length = plan.chunk_length(group, size)
    say(console, config.algorithm)
    with ProgressDisplay(console, config.env_steps * len(seeds)) as progress:
        curves = _Curves(config, len(seeds), progress)
        runs = new_runs(plan, batch)
        programs = {length: partial(group.program(size, length), hps)}
        phases.end("compilation")
        progress.start_clock()

        # All calls have one length, so that there is one program; runs that finish within the last call are frozen.
        first = chunk = None
        for chunk in advance_in_chunks(programs, [length] * -(-config.num_updates // length), runs, updates=0):
            curves.add(chunk)
            first = first or chunk
        runs = chunk.state if chunk else runs
    phases.end("training")
    with announced(partial(remark, console), f"evaluating {len(seeds):,} runs"):
        returns, unfinished = (x[: len(seeds)] for x in group.evaluate(all_seeds, runs))
    phases.end("evaluation")
    env_steps = np.arange(1, config.num_updates + 1) * config.batch_size
    diverged_at = np.asarray(runs.diverged)[: len(seeds)]
    metrics, speed = curves.collected(), steady_speed(first, chunk, config.batch_size * len(seeds))
    return Result(
        config.algorithm,
        seeds,
        env_steps,
        metrics,
        returns,
        diverged_at,
        speed,
        unfinished=int(unfinished.sum()),
        causes=curves.causes(),
    )


def _write_tables(out: Path, results: Sequence[Result], target: float | None) -> list[dict[str, Any]]:
    """Writes the tables of the algorithms that have finished, and returns the rows of table.md."""
    rows = [table_row(result, target) for result in results]
    _write_csv(out / "curves.csv", curve_columns(results), (row for x in results for row in curve_rows(x)))
    _write_csv(out / "results.csv", RESULT_COLUMNS, (row for x in results for row in result_rows(x, target)))
    write_text(out / "table.md", markdown_table(comparison_table(rows, target)))
    return rows


class _Curves:
    """Collects the metrics of all chunks, and shows progress with the mean return over the runs."""

    def __init__(self, config: TrainConfig, runs: int, progress: ProgressDisplay) -> None:
        self._config = config
        self._runs = runs
        self._progress = progress
        self._chunks: list[dict[str, np.ndarray]] = []

    def add(self, chunk: Chunk) -> None:
        """Adds the metrics of the next chunk, and moves the progress display."""
        self._chunks.append(chunk.metrics)
        done = min(chunk.last_update, self._config.num_updates)
        self._progress(done * self._config.batch_size * self._runs, {"episode/return": mean_of_chunk(chunk)})

    def collected(self) -> dict[str, np.ndarray]:
        """Returns the metrics [updates, runs], without copies of a run and without updates beyond the budget."""
        return {name: self._whole(name) for name in sorted(self._chunks[0].keys() - {"nonfinite"})}

    def causes(self) -> list[Cause]:
        """Returns the cause of each divergence."""
        # At most one update of a run has a bit set, as the run is frozen after it.
        updates, runs = np.nonzero(bits := self._whole("nonfinite"))
        return [Cause(int(u) + 1, str(first_nonfinite(int(bits[u, r])))) for u, r in zip(updates, runs, strict=True)]

    def _whole(self, name: str) -> np.ndarray:
        whole = np.concatenate([chunk[name] for chunk in self._chunks], axis=1)
        return whole[: self._runs, : self._config.num_updates].T


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a CSV file; columns that a row does not have are left empty."""
    with whole_file(path) as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _headline(runs: Sequence[tuple[TrainConfig, Hyperparams]], seeds: Sequence[int], out: Path) -> str:
    device, number = selection.first(), layout_for(len(seeds)).mesh.size
    several = f"{number} x " if number > 1 else ""
    slow = " (no accelerator)" if device.platform == "cpu" else ""
    each = ", ".join(f"{config.algorithm} {config.env_steps:,}" for config, _ in runs)
    count = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]} alone: no intervals, no bands"
    return f"{runs[0][0].env}  env steps per run: {each}  {count}  device {several}{device.device_kind}{slow}  {out}"


def plot_comparison(results: Sequence[Result], env: str, target: float | None, out: Path) -> Path:
    """Draws the interquartile mean over the runs and its 95 % bootstrap band per algorithm, and returns the path.

    A single run has no band. Diverged runs are left out and counted in the legend, as the mean over all runs would end
    where the first of them diverged.

    Raises CheckpointError if the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 8.4), layout="constrained")
    panels = figure.subplots(len(_PANELS), sharex=True, height_ratios=[2, 1, 1])
    for axes, (name, label) in zip(panels, _PANELS, strict=True):
        for result, colour in zip(results, _colours(results), strict=True):
            _draw(axes, result, name, colour)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    returns, kl, _ = panels
    if target is not None:
        returns.axhline(target, color="#6b7280", linestyle=":", linewidth=1, label=f"target {target:g}")
    runs = len(results[0].seeds)
    returns.set_title(
        f"{env}: {runs} runs each, interquartile mean and 95 % band" if runs > 1 else f"{env}: one run each"
    )
    returns.legend(loc="best", framealpha=0.85, edgecolor="none")
    if any((line.get_ydata() > 0).any() for line in kl.lines):
        kl.set_yscale("log")
    panels[-1].set_xlabel("environment steps")
    panels[-1].xaxis.set_major_formatter(format_steps)
    return save_figure(figure, out)


def _draw(axes: Any, result: Result, name: str, colour: str) -> None:
    alive = np.isfinite(result.returns)
    label = result.algorithm if alive.all() else f"{result.algorithm} ({(~alive).sum()} diverged)"
    values = result.metrics.get(name, np.empty((0, len(alive))))[:, alive]
    draw_runs(axes, result.env_steps, values, colour, label)


def _colours(results: Sequence[Result]) -> list[str]:
    """Returns a colour per result; an algorithm of this package has the same colour in every picture."""
    others = [result.algorithm for result in results if result.algorithm not in _FAMILY]
    order = [*_FAMILY, *others]
    return [COLOURS[order.index(result.algorithm) % len(COLOURS)] for result in results]
