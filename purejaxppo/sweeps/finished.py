"""Recognition of a finished sweep by its files. It imports no JAX, as `purejaxppo.experiment.finished` does not."""

from pathlib import Path
from typing import Any

from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import is_file, read_json
from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps
from purejaxppo.experiment.metrics_log import whole_rows
from purejaxppo.sweeps.directory import METRICS

_OUTPUTS = (METRICS, "results.csv", "table.md", "plots/learning_curves.png")
_SUMMARY_FIELDS = {"exit_reason", "runs", "diverged", "settings", "best_run"}


def finished_sweep(directory: Path) -> dict[str, Any] | None:
    """Returns the summary of a finished sweep; None if it is not finished, or a file is missing or damaged."""
    try:
        summary = read_json(directory / "summary.json")
        results = [read_json(path) for path in (directory / "parts").glob("*/result.json")]
    except CheckpointError:  # missing or unreadable; resuming writes it again
        return None
    if not summary.keys() >= _SUMMARY_FIELDS or summary["exit_reason"] != "finished":
        return None
    if not all(map(_is_valid_result, results)) or not all(is_file(directory / name) for name in _OUTPUTS):
        return None
    batches = [path for path in (directory / "parts").glob("*") if path.is_dir()]
    steps = [list_steps(batch) for batch in batches]
    if not all(steps) or any(invalid_reason(step.path) for of_batch in steps for step in of_batch):
        return None
    complete = whole_rows(directory / METRICS, 2**63) == max((result["metrics_bytes"] for result in results), default=0)
    return {**summary, "out": str(directory)} if complete else None


def already_finished(summary: dict[str, Any]) -> str:
    """Returns the message of `resume` about a sweep that is finished."""
    return f"{summary['out']} is finished already."


def _is_valid_result(result: dict[str, Any]) -> bool:
    """Returns whether a batch's result.json has the right form, as far as it is known without the sweep's plan."""
    lists = [result.get(name) for name in ("updates", "diverged_at", "returns")]
    sizes = {len(values) if isinstance(values, list) else None for values in lists}
    return len(sizes) == 1 and None not in sizes and type(result.get("metrics_bytes")) is int
