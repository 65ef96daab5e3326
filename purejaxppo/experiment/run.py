"""One run on the host: training, saving, evaluating and plotting it, and resuming one that was stopped."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import AnyPath, whole
from purejaxppo.config.resolve import describe_settings, refuse_changes
from purejaxppo.config.validate import validate_evaluation
from purejaxppo.core.types import RunnerState, VecEnv
from purejaxppo.devices import processes
from purejaxppo.devices.data_parallel import devices_for, spread_trainer
from purejaxppo.devices.machine import installed_versions
from purejaxppo.devices.memory import out_of_memory_explained
from purejaxppo.envs.registry import make_env
from purejaxppo.errors import ConfigError, OutOfMemoryError
from purejaxppo.evaluate import evaluation_key
from purejaxppo.experiment.at_work import at_work, console_of
from purejaxppo.experiment.atomic_files import write_json
from purejaxppo.experiment.checkpoints.directory import clean
from purejaxppo.experiment.checkpoints.state import state_sha256
from purejaxppo.experiment.chunked_loop import Timing
from purejaxppo.experiment.directory import (
    RunSettings,
    add_command,
    begun_on,
    changed_versions,
    create_run_dir,
    read_run_settings,
    write_inputs,
    write_settings,
)
from purejaxppo.experiment.evaluation import Evaluator, summarize
from purejaxppo.experiment.finished import already_finished, finished_run
from purejaxppo.experiment.load_run import SavedRun
from purejaxppo.experiment.metrics_log import Sink, mean_return, read_metrics, reported_means
from purejaxppo.experiment.parts import Parts, know_parts, with_parts
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.plots import plot_runs
from purejaxppo.experiment.progress import remark, say
from purejaxppo.experiment.signals import INTERRUPTED, StopRequest, listening, when_interrupted
from purejaxppo.experiment.training import Run, Saved, load_saved, train
from purejaxppo.experiment.watchdog import announced
from purejaxppo.policies.registry import make_policy

_OPTIONS = RunOptions()
_PICTURE = Path("plots") / "learning_curve.png"


def run_experiment(
    config: TrainConfig,
    hp: Hyperparams,
    seed: int,
    *,
    options: RunOptions = _OPTIONS,
    out: AnyPath | None = None,
    allow_download: bool = False,
    console: Console | None = None,
    sinks: Sequence[Sink] = (),
    stop: StopRequest | None = None,
    phases: Phases | None = None,
    **parts: Unpack[Parts],
) -> dict[str, Any]:
    """Trains, saves, evaluates and plots a run in a new run directory.

    Args:
      config: the static settings.
      hp: the hyperparameters.
      seed: of all random numbers.
      options: what the host does around training.
      out: the run directory; by default runs/<env>__<algorithm>__s<seed>__<UTC time>.
      allow_download: let the environment download its data set.
      console: for progress; by default standard error.
      sinks: further receivers of metrics, each called as sink(env_steps, metrics) once per update.
      stop: asked whether the run shall stop; by default SIGINT, SIGTERM and SIGUSR1 request it.
      phases: measures the seconds by phase that the summary reports; by default from this call on.
      **parts: env, policy, algorithm, optimizer or schedule in place of what the config names (`Parts`).

    Returns:
      The summary, which is also written to `summary.json`.

    Raises:
      PureJaxPPOError: the subclass says what went wrong. Files that have been written stay.
    """
    console, phases = console_of(console), phases or Phases()
    (config,) = with_parts([config], **parts)
    settings = RunSettings(config, hp, seed, options).plain()
    settings.validate()
    with listening(stop) as stop:
        with stop.ending_at_once("no run had begun.", INTERRUPTED):
            env, devices = make_env(config, allow_download=allow_download), devices_for(config)
            trainer = spread_trainer(config, env, devices)
            _check_same(settings)
            run_dir = Path(processes.from_leader(lambda: str(create_run_dir(settings, out))))
        with at_work(run_dir) as files:
            if processes.leads():
                write_inputs(run_dir, settings, len(devices))
            when_interrupted(f"`purejaxppo resume {run_dir}` goes on from its last checkpoint, if it has one.")
            evaluator = _while_training(settings, env)
            run = Run(run_dir, files, settings, env, trainer, devices, console, stop, phases, sinks, evaluator)
            say(console, _headline(run))
            say(console, describe_settings([(settings.config, settings.hp)]))
            phases.end("setup")
            runner, timing = train(run, Saved())
            return _finish(run, runner, timing)


def resume_experiment(
    run_dir: AnyPath,
    *,
    settings: RunSettings | None = None,
    strict: bool = False,
    allow_download: bool = False,
    console: Console | None = None,
    sinks: Sequence[Sink] = (),
    stop: StopRequest | None = None,
    phases: Phases | None = None,
    **parts: Unpack[Parts],
) -> dict[str, Any]:
    """Resumes a run from its newest valid checkpoint, to a result bitwise identical to that of an uninterrupted run.

    A run that is finished already is left as it is.

    Args:
      run_dir: the run's directory.
      settings: by default the run's own, from which `total_timesteps`, `on_nonfinite` and the options may differ.
      strict: take the newest checkpoint or none, instead of falling back to an older one.
      allow_download, console, sinks, stop, phases: as in `run_experiment`.
      **parts: those of one's own that the run's settings name (`Parts`).

    Returns:
      The summary, which is also written to `summary.json`.

    Raises:
      PureJaxPPOError: the subclass says what went wrong.
    """
    console, phases = console_of(console), phases or Phases()
    run_dir = Path(run_dir)
    own = read_run_settings(run_dir)
    know_parts([own.config], **parts)
    settings = settings.plain() if settings else own
    settings.validate()
    refuse_changes(own.record(), settings.record(), f"leave them as they are in {run_dir / 'config.json'}.")
    config = settings.config
    _check_same(settings, strict=strict)
    with listening(stop) as stop, at_work(run_dir) as files:
        when_interrupted(f"`purejaxppo resume {run_dir}` goes on from its last checkpoint, if it has one.")
        summary = processes.from_leader(lambda: finished_run(run_dir, config))
        if summary:
            say(console, already_finished(summary))
            if processes.leads():
                _draw(run_dir, console)
            return summary
        if processes.leads():
            clean(run_dir)
        env, devices = make_env(config, allow_download=allow_download), devices_for(config, begun_on(run_dir))
        trainer, evaluator = spread_trainer(config, env, devices), _while_training(settings, env)
        run = Run(run_dir, files, settings, env, trainer, devices, console, stop, phases, sinks, evaluator)
        with announced(run.note, f"checking and loading a checkpoint of {run_dir}"):
            saved = load_saved(run, strict)
        _check_budget(run, saved)
        if len(devices_for(config)) > len(devices):
            run.note(f"it goes on on {len(devices)} device(s), as it began; with --devices all its rounding changes.")
        for change in changed_versions(run_dir, len(devices)):
            run.note(f"{change} since the run began; its results may differ, as those of another seed do.")
        if processes.leads():
            write_settings(run_dir, settings)
            (run_dir / "summary.json").unlink(missing_ok=True)  # it describes the run before this command
            add_command(run_dir)
        say(console, f"{_headline(run)}  resumed at {saved.updates * config.batch_size:,} env steps")
        phases.end("setup")
        runner, timing = train(run, saved)
        return _finish(run, runner, timing)


def _check_same(settings: RunSettings, **more: Any) -> None:
    """Raises ConfigError unless all processes have these settings, options, versions, and what else is given."""
    own = {**settings.record(), "seed": settings.seed, **dataclasses.asdict(settings.options)}
    processes.check_same({**own, **installed_versions(), **more})


def _check_budget(run: Run, saved: Saved) -> None:
    """Raises ConfigError for a budget below what is done; notes a longer budget under a schedule."""
    config = run.settings.config
    if config.num_updates < saved.updates:
        raise ConfigError(
            f"total_timesteps = {config.total_timesteps} is less than what {run.run_dir} has done, "
            f"{saved.updates * config.batch_size} env steps; give more, or leave it out."
        )
    before = read_run_settings(run.run_dir).config
    schedules = {config.learning_rate_schedule, config.ent_coef_schedule, config.clip_eps_schedule}
    scheduled = schedules - {"constant", "kl_adaptive"}
    if scheduled and saved.updates and before.num_updates != config.num_updates:
        run.note(
            f"a {' and '.join(sorted(scheduled))} schedule now ends at {config.env_steps:,} env steps instead of "
            f"{before.env_steps:,}: from here on this is another run than one with this budget from its start."
        )


def _finish(run: Run, runner: RunnerState, timing: Timing) -> dict[str, Any]:
    """Evaluates and plots a run that has been trained, unless a signal stopped it; returns its summary."""
    processes.exchange("")  # the first one has saved the state
    history = read_metrics(run.metrics_file)
    summary = _summary(run, runner, timing, history)
    run.phases.end("saving")
    stopped = processes.first_of(run.stop())
    if not stopped:
        stop_message = f"the trained state is saved; `purejaxppo resume {run.run_dir}` evaluates it."
        with run.stop.ending_at_once(stop_message):
            summary["evaluation"] = _evaluate_at_the_end(run, runner)
        run.phases.end("evaluation")
    summary["exit_reason"] = stopped or processes.first_of(run.stop()) or "finished"
    if summary["exit_reason"] == "finished":
        when_interrupted(f"{run.run_dir} is trained and evaluated; `purejaxppo resume {run.run_dir}` shows its result.")
    _write_summary(run, summary)  # the plot shows the evaluation in it
    if processes.leads():
        (run.run_dir / _PICTURE).unlink(missing_ok=True)
        _draw(run.run_dir, run.console)
    run.phases.end("picture")
    _write_summary(run, summary)
    return summary


def _write_summary(run: Run, summary: dict[str, Any]) -> None:
    """Writes summary.json, with the seconds of all phases that have ended."""
    summary["seconds"] = run.phases.seconds()
    write_json(run.files / "summary.json", summary)


def _draw(run_dir: Path, console: Console) -> None:
    """Plots the learning curve, unless the file exists already or no episode has finished."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    if not (run_dir / _PICTURE).exists() and any(row["episode/return"] is not None for row in rows):
        with announced(partial(remark, console), "drawing the learning curve"):
            plot_runs([run_dir], run_dir / _PICTURE)


def _summary(run: Run, runner: RunnerState, timing: Timing, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    config = run.settings.config
    updates = int(runner.updates)
    last = rows[len(rows) - math.ceil(len(rows) / 10) :]
    info = reported_means(last)
    return {
        "env": config.env,
        "algorithm": config.algorithm,
        "seed": run.settings.seed,
        "env_steps": updates * config.batch_size,
        "updates": updates,
        "compile_seconds": round(timing.compile_seconds, 3),
        "train_seconds": round(timing.train_seconds, 3),
        "env_steps_per_second": round(timing.env_steps_per_second or _mean_speed(run, updates, timing), 1),
        "train_return": mean_return(last),
        **({"train_info": info} if info else {}),
        "evaluation": None,
        "state_sha256": state_sha256(runner),
        "exit_reason": None,
        "seconds": {},
        "run_dir": str(run.run_dir),
    }


def _mean_speed(run: Run, updates: int, timing: Timing) -> float:
    """Returns env steps per second over the whole run, for a command that had nothing left to train."""
    return updates * run.settings.config.batch_size / timing.train_seconds if timing.train_seconds else 0.0


def _evaluate_at_the_end(run: Run, runner: RunnerState) -> dict[str, Any]:
    config, _, seed, options = run.settings
    too_large = (
        f"out of memory in the evaluation of {options.eval_episodes} episodes side by side; the trained state is "
        f"saved: `purejaxppo resume {run.run_dir} --eval-episodes {max(1, options.eval_episodes // 4)}`."
    )
    with out_of_memory_explained(lambda: OutOfMemoryError(too_large)):
        return _evaluate(config, run.env, runner, options.eval_episodes, seed, greedy=True, note=run.note)


def evaluate_saved(
    saved: SavedRun,
    *,
    episodes: int = 128,
    greedy: bool = True,
    seed: int = 0,
    allow_download: bool = False,
    note: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Evaluates a saved policy with its normalisers frozen.

    Args:
      saved: from `load_run` or `load_member`.
      episodes: their number; they are played in as many environments at once.
      greedy: take the most probable action instead of a sample.
      seed: of the environments and of sampling.
      allow_download: let the environment download its data set.
      note: called with progress messages if it takes longer than a few seconds.

    Returns:
      `env_steps` of the policy's training, and the statistics of `summarize`.

    Raises:
      PureJaxPPOError: the subclass says what went wrong.
    """
    episodes, seed = whole(episodes), whole(seed)
    validate_evaluation(episodes, seed)
    summary = _evaluate(saved.config, saved.env, saved.runner, episodes, seed, greedy, note, allow_download)
    return {"env_steps": saved.meta["env_steps"], **summary}


def _evaluate(
    config: TrainConfig,
    env: VecEnv,
    runner: RunnerState,
    episodes: int,
    seed: int,
    greedy: bool,
    note: Callable[[str], object],
    allow_download: bool = True,
) -> dict[str, Any]:
    evaluator = _evaluator(config, env, episodes, greedy, allow_download)
    played = evaluator.play(evaluation_key(seed), runner, note)
    assert played is not None  # nothing asks it to stop
    return summarize(played)


def _evaluator(
    config: TrainConfig, env: VecEnv, episodes: int, greedy: bool = True, allow_download: bool = True
) -> Evaluator:
    copies = make_env(config, episodes, allow_download=allow_download)
    return Evaluator(config, copies, make_policy(config, env), greedy)


def _while_training(settings: RunSettings, env: VecEnv) -> Evaluator | None:
    """Returns what plays the evaluations of a run while it trains, if it has any."""
    options = settings.options
    return _evaluator(settings.config, env, options.eval_every_episodes) if options.eval_every else None


def _headline(run: Run) -> str:
    config = run.settings.config
    device, *others = run.devices
    several = f"{1 + len(others)} x " if others else ""
    joined = f" of {processes.number()} processes" if processes.number() > 1 else ""
    shards = f" in {config.shard_count} shards" if config.shard_count > 1 else ""
    slow = " (no accelerator)" if device.platform == "cpu" else ""
    rounded = f" (of {config.total_timesteps:,} asked for)" if config.env_steps != config.total_timesteps else ""
    return (
        f"{config.env}  {config.algorithm}  {config.env_steps:,} env steps{rounded} = {config.num_updates:,} updates "
        f"of {config.num_envs} envs x {config.num_steps} steps{shards}  "
        f"device {several}{device.device_kind}{joined}{slow}  seed {run.settings.seed}  {run.run_dir}"
    )
