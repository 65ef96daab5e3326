"""Detection of finished runs by their files.

Without JAX, which takes seconds to import and is not needed where nothing is left to train.
"""

from pathlib import Path
from typing import Any

from purejaxppo.config import TrainConfig
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps

_REQUIRED = {"exit_reason", "env_steps", "train_seconds", "compile_seconds", "env_steps_per_second", "evaluation"}


def finished_run(run_dir: Path, config: TrainConfig) -> dict[str, Any] | None:
    """Returns the summary of a run that has finished the budget of `config`, with a valid last checkpoint, or None."""
    try:
        summary = read_json(run_dir / "summary.json")
    except CheckpointError:  # missing or unreadable: `resume` writes it again
        return None
    done = summary.keys() >= _REQUIRED and summary["exit_reason"] == "finished"
    done = done and summary["env_steps"] == config.env_steps
    done = done and any(
        step.env_steps == config.env_steps and invalid_reason(step.path) is None for step in list_steps(run_dir)
    )
    return {**summary, "run_dir": str(run_dir)} if done else None


def already_finished(summary: dict[str, Any]) -> str:
    """Returns the message of `resume` for a finished run, by its summary."""
    after = f"after {summary['env_steps']:,} env steps; --total-timesteps goes on beyond."
    return f"{summary['run_dir']} is finished already, {after}"
