"""What a command says on standard output: JSON where it is asked for, and words, mostly tables, otherwise."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from purejaxppo.commands import Common


def show(common: Common, content: Any, words: Callable[[], None]) -> None:
    """Prints the content as JSON if --json was given, and otherwise lets `words` print."""
    if common.json:
        print(json.dumps(content, indent=2, allow_nan=False))
    else:
        words()


def note(text: str) -> None:
    """A line on standard error, beside the result."""
    print(f"purejaxppo: {text}", file=sys.stderr)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of text, the first being the head; as wide as they are where nobody looks at a screen."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    name, *others = rows[0]
    table = Table(Column(name, no_wrap=True, overflow="fold"), *others, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows[1:]:
        table.add_row(*map(Text, row))  # not a string, which may look like markup
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def describe_run(summary: dict[str, Any]) -> str:
    """What a run came to, in three or four lines."""
    ended = "finished" if summary["exit_reason"] == "finished" else f"stopped by {summary['exit_reason']}"
    lines = [
        f"{ended}: {summary['env_steps']:,} env steps in {summary['train_seconds']:.1f} s "
        f"(+ {summary['compile_seconds']:.1f} s compilation), {summary['env_steps_per_second']:,.0f} env steps/s",
    ]
    if summary["evaluation"]:
        lines.append(describe_evaluation(summary["evaluation"]))
    if "seconds" in summary:
        lines.append(describe_seconds(summary["seconds"]))
    lines.append(f"run directory {summary['run_dir']}")
    return "\n".join(lines)


def describe_seconds(seconds: dict[str, float]) -> str:
    """The whole time of a command, and its phases of at least 0.1 s."""
    phases = ", ".join(f"{name} {x:.1f} s" for name, x in seconds.items() if x >= 0.1)
    return f"{sum(seconds.values()):.1f} s in all: {phases}"


def describe_evaluation(result: dict[str, Any]) -> str:
    """An evaluation in half a sentence."""
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
    """A table of what a survey of checkpoints found, its head first."""
    table = [["checkpoint", "env steps", "training return", "MB", "state"]]
    for row in rows:
        known = "-" if row["train_return"] is None else f"{row['train_return']:.4g}"
        size = f"{row['bytes'] / 1e6:.2f}"
        table.append([row["checkpoint"], f"{row['env_steps']:,}", known, size, row["fault"] or "sound"])
    return table


def describe_envs(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A table of environments, its head first."""
    table = [["environment", "observation", "actions", "step limit", "preset"]]
    for row in rows:
        if "error" in row:
            table.append([row["env"], row["error"]])
        else:
            shape = " x ".join(map(str, row["observation"]))
            limit = str(row["step_limit"] or "-")
            table.append([row["env"], shape, row["actions"], limit, "yes" if row["preset"] else ""])
    return table
