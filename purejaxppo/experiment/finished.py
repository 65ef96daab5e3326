"""Runs that are finished already, which their files tell.

No JAX in here: it takes seconds to load, and has nothing to do where nothing is left to train.
"""

from pathlib import Path
from typing import Any

from purejaxppo.config import TrainConfig
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.checkpoints.directory import fault, list_steps

_OF_SUMMARY = {"exit_reason", "env_steps", "train_seconds", "compile_seconds", "env_steps_per_second", "evaluation"}


def finished_run(run_dir: Path, config: TrainConfig) -> dict[str, Any] | None:
    """Returns the summary of a run that has done what `config` asks for, and whose final state is there and sound."""
    try:
        summary = read_json(run_dir / "summary.json")
    except CheckpointError:  # missing, or not to be read: it will be written again
        return None
    done = summary.keys() >= _OF_SUMMARY and summary["exit_reason"] == "finished"
    done = done and summary["env_steps"] == config.env_steps
    done = done and any(step.env_steps == config.env_steps and fault(step.path) is None for step in list_steps(run_dir))
    return {**summary, "run_dir": str(run_dir)} if done else None


def already_finished(summary: dict[str, Any]) -> str:
    """Returns what `resume` says of the finished run that a summary is of."""
    after = f"after {summary['env_steps']:,} env steps; --total-timesteps goes on beyond."
    return f"{summary['run_dir']} is finished already, {after}"
