"""Runs every section of the benchmark, and writes one JSON file and pictures of it.

    bash scripts/benchmark.sh [--quick] [--sections throughput breakdown] [--out FILE]

A section is a program of `sections/`, `python -m MODULE [--quick] --out FILE`, in a process with a time limit.
One that fails or hangs is reported as such, with what it had written until then, and the others go on. Exit code 1 if
any did, 2 if nothing could be begun, 130 if it was interrupted.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from benchmarks.lib.report import section_parser
from benchmarks.lib.worker_process import PLATFORM_VARIABLE, WorkerError, call, environment


class Section(NamedTuple):
    """A section's module and title, and the seconds after which it is ended."""

    module: str
    title: str
    quick_s: float
    accelerator_s: float
    cpu_s: float


SECTIONS = {
    "throughput": Section("benchmarks.sections.throughput", "steady-state training", 600, 1200, 600),
    "breakdown": Section("benchmarks.sections.update_breakdown", "where the time of an update goes", 120, 150, 300),
    "scaling": Section("benchmarks.sections.scaling", "speed and memory as things grow", 180, 240, 420),
    "startup": Section("benchmarks.sections.startup", "from the command to the first update", 120, 180, 300),
    "clock": Section("benchmarks.sections.time_to_target", "learning against the clock", 180, 240, 600),
    "peers": Section("benchmarks.sections.other_trainers", "other trainers", 240, 300, 600),
}


class RefusedError(Exception):
    """Nothing can be measured; the message is one line that says why, and what to do."""


def run_section(module: str, quick: bool, limit: float, env: dict[str, str]) -> dict[str, Any]:
    """Runs a section and returns what it has found, with its status: done, failed or timed out."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "section.json"
        command = [sys.executable, "-m", module, *(["--quick"] if quick else []), "--out", str(out)]
        start = time.perf_counter()
        # A session of its own, so that it can be ended with all that it has started.
        process = subprocess.Popen(command, env=env, start_new_session=True)
        try:
            code = process.wait(limit)
            status, note = ("done", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, note = "timed out", f"ended after {limit:.0f} s"
        finally:
            end(process)
        content: dict[str, Any] = {"rows": []}
        if out.exists():
            with contextlib.suppress(ValueError):  # ended while it was writing
                content = json.loads(out.read_text())
    if status == "done" and not content["rows"]:
        status, note = "failed", "it has written no rows"
    return {"status": status, "note": note, "wall_s": round(time.perf_counter() - start, 1), **content}


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a section and what it has started: with time to end those that have sessions of their own, then at once."""
    with uninterrupted():
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Blocks signals until its end: a second Ctrl-C would leave behind what the first one was about to end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def limit_of(section: Section, quick: bool, platform: str) -> float:
    """Returns the seconds after which a section is ended."""
    return section.quick_s if quick else section.cpu_s if platform == "cpu" else section.accelerator_s


def default_out(device: str) -> Path:
    """Returns benchmarks/results/benchmark-<device>.json."""
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)|CPU|@.*", "", device).lower()).strip("-")
    return Path(__file__).parent / "results" / f"benchmark-{slug or 'unknown'}.json"


def report(sections: dict[str, dict[str, Any]]) -> bool:
    """Prints how each section ended and returns whether all went well."""
    print("\nsection       status     seconds")
    for name, content in sections.items():
        print(f"{name:12}  {content['status']:9}  {content.get('wall_s', 0):7.1f}  {content['note']}".rstrip())
    broken = [row["error"] for content in sections.values() for row in content["rows"] if row.get("error")]
    for error in broken:
        print(f"error: {error}")
    return not broken and all(content["status"] == "done" for content in sections.values())


def check_out(out: Path) -> None:
    """Raises RefusedError if the file cannot be written, which is better known now than after ten minutes."""
    try:
        new = not out.exists()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a").close()
        if new:
            out.unlink()
    except OSError as error:
        raise RefusedError(f"--out {out} cannot be written ({error.strerror}); give a file that can.") from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Holds this user's lock, which ends with the process. Raises RefusedError if another benchmark has it."""
    path = Path(tempfile.gettempdir()) / f"purejaxppo-benchmark-{os.getuid()}.lock"
    try:
        with FileLock(path, blocking=False):
            yield
    except Timeout as error:
        raise RefusedError("another benchmark is running, and both would be slow; wait until it has ended.") from error
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be locked ({error.strerror}); set TMPDIR to a directory of your own."
        ) from error


def measure(arguments: argparse.Namespace, machine: dict[str, Any], sections: dict[str, Any]) -> int:
    """Runs the sections, adding each as soon as it is in the file, and returns the exit code."""
    out = arguments.out
    print(f"{machine['device']}, {machine['cpu_cores']} cores, jax {machine['versions']['jax']}, {machine['commit']}")
    env = environment(**{PLATFORM_VARIABLE: machine["platform"]})
    result: dict[str, Any] = {"machine": machine, "quick": arguments.quick, "started": time.time(), "sections": {}}
    for i, name in enumerate(arguments.sections):
        section = SECTIONS[name]
        print(f"\n[{i + 1}/{len(arguments.sections)}] {name}: {section.title}", flush=True)
        limit = limit_of(section, arguments.quick, machine["platform"])
        content = run_section(section.module, arguments.quick, limit, env)
        result["sections"][name] = content
        out.write_text(json.dumps(result, indent=1) + "\n")  # after each, so that what there is survives
        sections[name] = content
        print(" ".join(filter(None, [f"{name}: {content['status']}", content["note"]])), flush=True)
    fine = report(sections)
    draw = [sys.executable, "-m", "benchmarks.lib.plots", str(out)]
    pictures = subprocess.run(draw, env=environment(), check=False)
    print(f"written to {os.path.relpath(out)}")
    return 0 if fine and pictures.returncode == 0 else 1


def main(argv: list[str] | None = None) -> int:
    """Runs the sections that the options name, and returns the exit code."""
    options = section_parser(__doc__)
    options.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="by default all")
    arguments = options.parse_args(argv)
    sections: dict[str, Any] = {}
    try:
        if arguments.out:
            check_out(arguments.out)
        with alone():
            machine = call("machine_info")
            if not arguments.out:
                arguments.out = default_out(machine["device"])
                check_out(arguments.out)
            return measure(arguments, machine, sections)
    except RefusedError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(f"benchmark: JAX does not start here: {error}\nbenchmark: purejaxppo doctor tells more", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        done = f"{', '.join(sections)} in {os.path.relpath(arguments.out)}" if sections else "nothing was measured yet"
        print(f"benchmark: interrupted; {done}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the section would outlive this program
    sys.exit(main())
