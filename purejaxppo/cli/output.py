"""The output of commands: JSON with --json, otherwise text, mostly tables."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from purejaxppo.cli.arguments import Common
from purejaxppo.errors import CheckpointError, PureJaxPPOError


def show(common: Common, content: Any, print_text: Callable[[], None]) -> None:
    """Prints the content as JSON if --json was given, and otherwise calls `print_text`.

    Raises CheckpointError if standard output cannot be written.
    """
    with flushed_output():
        if common.json:
            print(json.dumps(content, indent=2, allow_nan=False))
        else:
            print_text()


@contextlib.contextmanager
def flushed_output() -> Iterator[None]:
    """Flushes standard output at its end: when the process ends, an error could no longer be reported.

    Raises CheckpointError if it cannot be written, but BrokenPipeError if nobody reads it any more.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (PureJaxPPOError, BrokenPipeError):
        raise
    except OSError as error:
        raise CheckpointError(
            f"cannot write to standard output: {error.strerror}; what was done before that stands, only the result is "
            f"not printed."
        ) from error


def note(text: str) -> None:
    """Prints a line on standard error; it is lost if it cannot be written."""
    with contextlib.suppress(OSError):
        print(f"purejaxppo: {text}", file=sys.stderr)


def fill_closed_streams() -> None:
    """Opens the null device in place of each standard stream that is closed.

    Otherwise the next file that is opened would get the descriptor of the stream, and the output of C code with it. The
    replacement of standard output is read-only, so that writing still fails; standard error is discarded.
    """
    for name, mode, flags in [("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)]:
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)  # the lowest free number: the closed one's
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115


def discard_unwritten() -> None:
    """Discards output that could not be written; Python would try again when the process ends, and print an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of text, the head first, fitted to the terminal, or in full width if there is none."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    name, *others = rows[0]
    table = Table(Column(name, no_wrap=True, overflow="fold"), *others, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows[1:]:
        table.add_row(*map(Text, row))  # in a str, rich would interpret markup
    console = Console(width=None if sys.stdout.isatty() else 1000)
    with console.capture() as text:  # printing itself, rich would end the process if nobody reads
        console.print(table)
    print(text.get(), end="")


def describe_run(summary: dict[str, Any]) -> str:
    """Returns the summary of a run in three to five lines."""
    ended = "finished" if summary["exit_reason"] == "finished" else f"stopped by {summary['exit_reason']}"
    lines = [
        f"{ended}: {summary['env_steps']:,} env steps in {summary['train_seconds']:.1f} s "
        f"(+ {summary['compile_seconds']:.1f} s compilation), {summary['env_steps_per_second']:,.0f} env steps/s",
    ]
    if summary["evaluation"]:
        lines.append(describe_evaluation(summary["evaluation"]))
    if summary.get("train_info"):
        reported = ", ".join(f"{name} {'-' if x is None else f'{x:.4g}'}" for name, x in summary["train_info"].items())
        lines.append(f"the environment reports, at the ends of the episodes of the last tenth: {reported}")
    if "seconds" in summary:
        lines.append(describe_seconds(summary["seconds"]))
    lines.append(f"run directory {summary['run_dir']}")
    return "\n".join(lines)


def describe_seconds(seconds: dict[str, float]) -> str:
    """Returns the total time of a command, and its phases of at least 0.1 s."""
    phases = ", ".join(f"{name} {x:.1f} s" for name, x in seconds.items() if x >= 0.1)
    return f"{sum(seconds.values()):.1f} s in all: {phases}"


def describe_evaluation(result: dict[str, Any]) -> str:
    """Returns an evaluation as part of a line."""
    unfinished = f", {result['unfinished']} broken off unfinished" if "unfinished" in result else ""
    mean, std, iqm = (
        "not finite" if result[name] is None else f"{result[name]:.{digits}g}"
        for name, digits in (("return_mean", 4), ("return_std", 3), ("return_iqm", 4))
    )
    return (
        f"evaluation over {result['episodes']} episodes{unfinished}: return {mean} +- {std} "
        f"(interquartile mean {iqm}), length {result['length_mean']:.4g}"
    )


def describe_checkpoints(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns a table of checkpoints, its head first, from the rows of `survey`.

    It has a column of evaluations while training if a checkpoint is ranked by them.
    """
    returns = {"train_return": "training return"}
    if any(row["ranked_by"] == "evaluation_return" for row in rows):
        returns["evaluation_return"] = "evaluation return (best by this)"
    table = [["checkpoint", "env steps", *returns.values(), "MB", "state"]]
    for row in rows:
        known = ["-" if row[name] is None else f"{row[name]:.4g}" for name in returns]
        size = f"{row['bytes'] / 1e6:.2f}"
        table.append([row["checkpoint"], f"{row['env_steps']:,}", *known, size, row["fault"] or "sound"])
    return table


def describe_envs(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns a table of environments, its head first."""
    table = [["environment", "observation", "actions", "step limit", "preset"]]
    for row in rows:
        if "error" in row:
            table.append([row["env"], row["error"]])
        else:
            shape = _describe_shapes(row["observation"])
            limit = str(row["step_limit"] or "-")
            table.append([row["env"], shape, row["actions"], limit, "yes" if row["preset"] else ""])
    return table


def _describe_shapes(shapes: Sequence[int] | dict[str, Sequence[int]]) -> str:
    """Returns the shape of an observation, or of each of its arrays: `10 x 10 x 4`, or `obs 2, action_mask 3`."""
    if isinstance(shapes, dict):
        return ", ".join(f"{key} {_describe_shapes(shape)}" for key, shape in shapes.items())
    return " x ".join(map(str, shapes))
