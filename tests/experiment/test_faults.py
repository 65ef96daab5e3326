"""Signals, full and read-only disks, two writers, no network: exit codes, errors of one line, and the same result.

Every command is a process of its own, forked by `fault_driver.Server`.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from itertools import product

import pytest
from fault_runs import BATCH, UPDATES, assert_one_line, outcome, side_by_side, train_flags

from purejaxppo.experiment.checkpoints.directory import clean, invalid_reason, list_steps
from purejaxppo.experiment.lock import LOCK

NAME = "ppo_kl"
FLAGS = train_flags(NAME)
SELDOM = ("--checkpoint-seconds", "1000")


@pytest.fixture(scope="module")
def whole(undisturbed):
    """The directory of an uninterrupted run."""
    return undisturbed(NAME)


@pytest.fixture(scope="module")
def half(server, whole, tmp_path_factory):
    """The directory of a run that was killed after some updates, with three checkpoints. Not to be changed."""
    directory = tmp_path_factory.mktemp("half")
    run_dir = directory / "run"
    child = server.start(directory / "log", "train", *FLAGS, "--out", run_dir, "--checkpoint-seconds", "0")
    assert child.until(lambda: len(list_steps(run_dir)) >= 3)
    child.kill(9)
    assert child.wait() == -9
    clean(run_dir)
    assert 3 <= len(list_steps(run_dir)) <= 4  # the fourth replaces one
    assert list_steps(run_dir)[0].env_steps <= 20 * BATCH
    return run_dir


def copied(run_dir, copy):
    shutil.copytree(run_dir, copy)
    return copy


def assert_resumes(server, run_dir, whole):
    """Asserts that a run ends like the uninterrupted one, and that damaged checkpoints are left for inspection."""
    damaged = [step.path for step in list_steps(run_dir) if invalid_reason(step.path)]
    code, stderr = server.run(run_dir.with_name(f"{run_dir.name}_resume"), "resume", run_dir, *SELDOM)
    assert code == 0, stderr
    for step_dir in damaged:
        shutil.rmtree(step_dir)
    assert outcome(run_dir) == outcome(whole)
    return stderr


# --- signals ----------------------------------------------------------------------------------------------------------


PHASES = {  # fault, what is said, whether it waits for the end of a chunk
    "compilation": ("compile_for_long", "no update had finished"),
    "rollout": ("slow_chunks", "the state is saved"),
    "saving": ("slow_saving", "the state is saved"),
    "evaluation": ("endless_evaluation", "the trained state is saved"),
}


def stop_in(server, directory, phase, name):
    """Sends a signal in a phase of a run; returns its directory."""
    run_dir, marker = directory / f"{phase}_{name}", directory / f"{phase}_{name}_marker"
    fault, said = PHASES[phase]
    every_chunk = "0" if phase == "saving" else "1000"
    flags = [*FLAGS, "--out", run_dir, "--checkpoint-seconds", every_chunk]
    child = server.start(f"{run_dir}_log", "train", *flags, faults=[f"{fault}={marker}"])
    assert child.until(marker.exists)
    time.sleep(0.2)  # into the midst of it
    sent = time.monotonic()
    child.kill(getattr(signal, name))
    code, seconds = child.wait(), time.monotonic() - sent
    lines = [line for line in child.stderr.splitlines() if line.startswith("purejaxppo:")]
    assert code == 75, (phase, name, child.stderr)
    assert len(lines) == 1, (phase, name, child.stderr)
    assert f"stopped by {name}" in lines[0]
    assert said in lines[0]
    assert f"purejaxppo resume {run_dir}" in lines[0]
    assert "Traceback" not in child.stderr
    assert seconds < (3 if phase in ("compilation", "evaluation") else 15)  # which end at once
    if phase == "compilation":
        assert marker.exists(), "XLA had finished; nothing was tested"
    if phase == "evaluation":
        assert not (run_dir / "summary.json").exists()
    steps = list_steps(run_dir)
    assert bool(steps) == (phase != "compilation")
    if phase in ("rollout", "saving"):
        assert 0 < steps[0].env_steps < UPDATES * BATCH
        assert len((run_dir / "metrics.jsonl").read_text().splitlines()) * BATCH == steps[0].env_steps
    return run_dir


def test_a_signal_in_every_phase(server, whole, tmp_path):
    """It takes effect at once during compilation and computation too; what is saved leads to the same result.

    One of the four is resumed, from the middle of its training; below all are. A run without a checkpoint is resumed in
    `test_the_lock_of_a_dead_process`, one that has only its evaluation before it in test_resume.py.
    """
    cases = [("compilation", "SIGTERM"), ("rollout", "SIGUSR1"), ("saving", "SIGINT"), ("evaluation", "SIGTERM")]
    _, _, saving, _ = side_by_side(lambda case: stop_in(server, tmp_path, *case), cases)
    assert_resumes(server, saving, whole)


@pytest.mark.slow
def test_every_signal_in_every_phase(server, whole, tmp_path):
    """Twelve cases; four by default."""
    cases = list(product(PHASES, ("SIGTERM", "SIGINT", "SIGUSR1")))
    side_by_side(lambda case: assert_resumes(server, stop_in(server, tmp_path, *case), whole), cases)


@pytest.mark.slow
def test_a_second_interrupt_aborts_at_once(server, whole, half, tmp_path):
    """The first one waits for a chunk that never ends, the second one aborts; older checkpoints are still valid."""
    run_dir, marker = copied(half, tmp_path / "run"), tmp_path / "marker"
    child = server.start(tmp_path / "log", "resume", run_dir, faults=[f"endless_chunk={marker}"])
    assert child.until(marker.exists)
    time.sleep(0.2)
    child.kill(signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    sent = time.monotonic()
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    assert time.monotonic() - sent < 3
    assert (
        f"interrupted again; `purejaxppo resume {run_dir}` goes on from its last checkpoint, if it has one."
        in child.stderr
    )
    assert "Traceback" not in child.stderr
    assert_resumes(server, run_dir, whole)


# --- damaged checkpoints, by the command line -------------------------------------------------------------------------


def largest(step_dir):
    return max((step_dir / "state").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def flip(step_dir):
    content = bytearray(largest(step_dir).read_bytes())
    content[len(content) // 2] ^= 4
    largest(step_dir).write_bytes(bytes(content))


DAMAGE = {
    "flipped bit": flip,
    "torn meta": lambda step_dir: os.truncate(step_dir / "meta.json", 50),
    "no COMMIT": lambda step_dir: (step_dir / "COMMIT").unlink(),
    "no state": lambda step_dir: shutil.rmtree(step_dir / "state"),
}


def damaged(half, run_dir, name, count):
    """Returns a copy of the run whose newest checkpoints are damaged."""
    shutil.copytree(half, run_dir)
    for step in list_steps(run_dir)[:count]:
        DAMAGE[name](step.path)
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [[("flipped bit", 1), ("no COMMIT", 2)], [("no state", 1), ("torn meta", 2), ("torn meta", 1)]]
)
def test_damaged_checkpoints_do_not_stop_a_run(server, whole, half, tmp_path, cases):
    """It goes on from an older checkpoint, prints why, and ends with the same result."""

    def resume(case):
        name, count = case
        run_dir = damaged(half, tmp_path / f"{name}_{count}", name, count)
        said = assert_resumes(server, run_dir, whole)
        assert said.count("passed over for step_") == count

    side_by_side(resume, cases)


def test_no_checkpoint_is_sound(server, half, tmp_path):
    """Exit code 4, with all reasons in one line, and nothing is trained again; `verify` has the same reasons."""
    run_dir = damaged(half, tmp_path / "run", "flipped bit", 4)
    before = (run_dir / "metrics.jsonl").read_bytes()

    def said(command):
        return server.run(tmp_path / f"{command}_log", command, run_dir)

    (code, stderr), (verified, table) = side_by_side(said, ["resume", "verify"])
    line = assert_one_line(stderr)
    assert (code, verified) == (4, 4)
    for step in list_steps(run_dir):
        assert f"{step.path.name}: {invalid_reason(step.path)}" in line
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    assert "checkpoints of" in assert_one_line(table)


# --- file systems -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Yields a function: small_disk(name) is the path of a file system of 4 MB."""
    disks = []

    def mount(name):
        disk = tmp_path / name
        disk.mkdir()
        options = ["-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
        if not shutil.which("mount") or subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk, left):
    """Fills a disk but for this many bytes."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left))


def assert_fails(server, run_dir, what, *flags, faults=()):
    """Asserts exit code 4, one line, which is returned, and an untouched older checkpoint."""
    before = list_steps(run_dir)
    log = run_dir.parent.with_name(f"{run_dir.parent.name}_log")
    code, stderr = server.run(log, "resume", run_dir, *flags, faults=faults)
    assert code == 4, stderr
    line = assert_one_line(stderr)
    assert what in line
    assert [invalid_reason(step.path) for step in list_steps(run_dir)] == [None] * len(list_steps(run_dir))
    assert set(before) <= set(list_steps(run_dir))
    assert not list((run_dir / "checkpoints").glob("*.tmp-*"))
    return line


def assert_a_full_disk_is_told(server, disk, left, seconds, what):
    """Asserts it with `left` KiB free, `seconds` between checkpoints, and `what` that cannot be written."""
    fill(disk, left * 1024)
    line = assert_fails(server, disk / "run", what, "--checkpoint-seconds", seconds)
    assert "space" in line.lower()
    (disk / "filler").unlink()


def test_a_full_disk(server, whole, half, small_disk):
    """It is full within the metrics, then within a checkpoint; with space again the run finishes."""
    disk = small_disk("disk")
    run_dir = copied(half, disk / "run")
    assert_a_full_disk_is_told(server, disk, 12, "1000", "metrics.jsonl")
    assert_a_full_disk_is_told(server, disk, 24, "0", "cannot save the checkpoint")
    assert_resumes(server, run_dir, whole)


@pytest.mark.slow
def test_a_disk_that_is_full_anywhere_in_a_checkpoint(server, whole, half, small_disk):
    """Any file may be the first without space; orbax and Python word the error in different ways. One by default."""

    def survive(left):
        disk = small_disk(f"disk_{left}")
        run_dir = copied(half, disk / "run")
        assert_a_full_disk_is_told(server, disk, left, "0", "cannot ")
        assert_resumes(server, run_dir, whole)

    side_by_side(survive, range(8, 80, 8))


@pytest.mark.slow
def test_a_write_that_fails(server, whole, half, tmp_path):
    """Where no disk can be mounted, errors are raised instead: no space for a state, or for a byte of a row."""
    size = (whole / "metrics.jsonl").stat().st_size * 3 // 4

    def fail(case):
        name, what, seconds, fault = case
        run_dir = copied(half, tmp_path / name / "run")
        assert list_steps(run_dir)[0].env_steps < UPDATES * BATCH // 2
        assert_fails(server, run_dir, what, "--checkpoint-seconds", seconds, faults=[fault])
        assert_resumes(server, run_dir, whole)

    side_by_side(
        fail,
        [
            ("state", "cannot save the checkpoint", "0", "no_space="),
            ("row", "metrics.jsonl", "1000", f"short_files={size}"),
        ],
    )


def test_a_read_only_disk(server, half, small_disk):
    """Exit code 4 and one line, for a new run and an old one; commands that only read still work."""
    disk = small_disk("disk")
    run_dir = copied(half, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    def fails(command):
        return server.run(disk.with_name(f"{command[0]}_log"), *command)

    (resumed, stderr), (trained, other), (verified, _) = side_by_side(
        fails, [["resume", run_dir], ["train", *FLAGS, "--out", disk / "new"], ["verify", run_dir]]
    )
    assert (resumed, trained, verified) == (4, 4, 0)
    for text in (stderr, other):
        assert "Read-only file system" in assert_one_line(text)


# --- two writers ------------------------------------------------------------------------------------------------------


def test_two_writers(server, whole, tmp_path):
    """The second is told the owner of the directory, and changes nothing; the lock of a dead process does not count."""
    run_dir, marker = tmp_path / "run", tmp_path / "marker"
    first = server.start(tmp_path / "first", "train", *FLAGS, "--out", run_dir, faults=[f"hold_compilation={marker}"])
    assert first.until(marker.exists)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    def second(command):
        code, stderr = server.run(tmp_path / command[0], *command)
        assert code == 6, stderr
        assert f"in use by process {first.pid} on {os.uname().nodename}" in assert_one_line(stderr)

    side_by_side(second, [["resume", run_dir], ["train", *FLAGS, "--out", run_dir]])
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    marker.unlink()
    assert first.wait() == 0
    assert outcome(run_dir) == outcome(whole)


def test_the_lock_of_a_dead_process(server, whole, tmp_path):
    run_dir, marker = tmp_path / "run", tmp_path / "marker"
    first = server.start(tmp_path / "first", "train", *FLAGS, "--out", run_dir, faults=[f"hold_compilation={marker}"])
    assert first.until(marker.exists)
    first.kill(9)
    assert first.wait() == -9
    assert json.loads((run_dir / LOCK).read_text())["pid"] == first.pid
    assert_resumes(server, run_dir, whole)
    assert json.loads((run_dir / LOCK).read_text())["pid"] != first.pid


# --- no network -------------------------------------------------------------------------------------------------------


def test_no_network(server, undisturbed, whole, tmp_path):
    """Training and resuming, of which `whole` has been made, do not use it, nor do evaluating and verifying."""
    assert not undisturbed.attempts.exists(), undisturbed.attempts.read_text()
    attempt = tmp_path / "attempt"
    for command in (["evaluate", whole, "--episodes", "4"], ["verify", whole]):
        code, stderr = server.run(tmp_path / "log", *command, faults=[f"no_network={attempt}"])
        assert code == 0, stderr
    assert not attempt.exists(), attempt.read_text()
