"""Compares two files of the benchmark, figure by figure: has anything become slower, or larger?

    python -m benchmarks.compare_results before.json after.json [--tolerance 5]

The ratio is that of the medians, turned so that above 1 is better, with a bootstrap interval over the repetitions. A
figure has regressed if its whole interval lies beyond the tolerance, in percent. One process differs from the next by
several percent, which no interval over the repetitions within one shows: for speeds, compare what `against the common
shape` says, or more than two files. A figure has vanished if the second file has its section, but not the figure: what
broke must not pass for what is as fast as before. A count (`run_compiled.py`) has no noise: it has regressed if it is
worse by more than 2 %, whatever the tolerance.

Exit codes: 0 nothing has regressed, 1 something has, or has vanished, 2 the files cannot be compared.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.intervals import Interval, ratio_interval
from benchmarks.lib.report import Row, parser, table

OTHERS = ("clock", "peers")  # sections with other people's trainers
EXACT_TOLERANCE = 2.0  # percent, of counts: another release of a dependency may add a kernel
FEWEST = 3  # repetitions, below which a figure is shown, not judged
MUST_AGREE = {"device": "device", "cpu": "CPU", "versions": "versions", "environment": "environment variables"}


class IncomparableError(Exception):
    """The files cannot be compared; the message is one line that says why."""


class Change(NamedTuple):
    """The change of a figure from one file to the other."""

    name: str
    unit: str
    ratio: Interval  # above 1 is better
    judged: bool
    exact: bool = False

    def regressed(self, tolerance: float) -> bool:
        """Returns whether the figure is worse by more than `tolerance` percent, with its whole interval."""
        tolerance = EXACT_TOLERANCE if self.exact else tolerance
        return self.judged and self.ratio.high < 1 - tolerance / 100


def read(path: Path) -> dict[str, Any]:
    """Reads a file of `run.py`. Raises IncomparableError."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise IncomparableError(f"{path} cannot be read: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("sections"), dict):
        raise IncomparableError(f"{path} is no file of benchmarks/run.py: it has no sections.")
    return result


def figures(result: dict[str, Any]) -> dict[tuple[str, str], Row]:
    """Returns every figure of a file, by its section and name; those of a row that broke do not count."""
    found: dict[tuple[str, str], Row] = {}
    for section, content in result["sections"].items():
        for row in content.get("rows", []):
            if isinstance(row, dict) and not row.get("error"):
                found |= {(section, figure["name"]): figure for figure in row.get("figures", [])}
    return found


def vanished(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the figures of the first file that the second should have: it has their section, and was not quick alone.

    Those of other trainers are not ours to answer for: one may not be installed, or may not have got there.
    """
    if after.get("quick") and not before.get("quick"):
        return []
    missing = figures(before).keys() - figures(after).keys()
    return sorted(place for place in missing if place[0] in after["sections"] and place[0] not in OTHERS)


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Returns the change of every figure of both files; raises IncomparableError if they have nothing in common."""
    changes = []
    old, new = figures(before), figures(after)
    for place in old.keys() & new.keys():
        a, b = old[place], new[place]
        if a["unit"] != b["unit"] or a["better"] != b["better"]:
            raise IncomparableError(f"{place[1]} is in {a['unit']} in one file and in {b['unit']} in the other.")
        if not a["samples"] or not b["samples"] or min(*a["samples"], *b["samples"]) <= 0:
            raise IncomparableError(f"{place[1]} has repetitions that are not positive numbers, or none.")
        pair = (b, a) if a["better"] == "higher" else (a, b)
        ratio = ratio_interval(*(figure["samples"] for figure in pair))
        exact = bool(a.get("exact") and b.get("exact"))
        judged = exact or min(len(a["samples"]), len(b["samples"])) >= FEWEST
        changes.append(Change(f"{place[0]}: {place[1]}", a["unit"], ratio, judged, exact))
    if not changes and not vanished(before, after):
        raise IncomparableError("the files have no figure in common.")
    return sorted(changes)


def warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns reasons to doubt a comparison, and the figures that only one file has."""
    machines = before.get("machine") or {}, after.get("machine") or {}
    doubts = [
        f"the files differ in {name}: {machines[0].get(key)} and {machines[1].get(key)}"
        for key, name in MUST_AGREE.items()
        if machines[0].get(key) != machines[1].get(key)
    ]
    old, new = figures(before), figures(after)
    alone = {"first": old.keys() - new.keys() - set(vanished(before, after)), "second": new.keys() - old.keys()}
    for which, places in alone.items():
        if places:
            names = ", ".join(name for _, name in sorted(places))
            doubts.append(f"only the {which} file has {len(places)} figures: {names}")
    return doubts


def main(argv: list[str] | None = None) -> int:
    """Prints the comparison and returns the exit code."""
    options = parser(__doc__)
    options.add_argument("before", type=Path)
    options.add_argument("after", type=Path)
    options.add_argument("--tolerance", type=float, default=5.0, help="percent")
    arguments = options.parse_args(argv)
    if not 0 <= arguments.tolerance < 100:
        print(
            f"compare_results: --tolerance {arguments.tolerance:g}; it takes 0 to less than 100 percent",
            file=sys.stderr,
        )
        return 2
    try:
        before, after = read(arguments.before), read(arguments.after)
        changes, gone = compare(before, after), vanished(before, after)
    except (IncomparableError, KeyError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, IncomparableError) else f"a row is not as it should be: {error!r}"
        print(f"compare_results: {reason}", file=sys.stderr)
        return 2
    for warning in warnings(before, after):
        print(f"warning: {warning}", file=sys.stderr)
    bad = [change for change in changes if change.regressed(arguments.tolerance)]
    cells = [
        [
            change.name, change.unit, f"{change.ratio.value:.3f}", f"{change.ratio.low:.3f} to {change.ratio.high:.3f}",
            "REGRESSED" if change in bad else "" if change.judged else "too few repetitions",
        ]
        for change in changes
    ]  # fmt: skip
    print(table(["figure", "unit", "ratio (above 1 is better)", "95 % interval", ""], cells))
    print(
        f"{len(bad)} of {len(changes)} figures are worse by more than {arguments.tolerance:g} % "
        f"({EXACT_TOLERANCE:g} % for counts)"
    )
    if gone:
        print(f"{len(gone)} figures have vanished: {', '.join(f'{section}: {name}' for section, name in gone)}")
    return 1 if bad or gone else 0


if __name__ == "__main__":
    sys.exit(main())
