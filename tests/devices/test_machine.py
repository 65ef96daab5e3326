"""The machine as it is found: what git says of the code. The rest of `machine` is looked at with the doctor."""

import inspect
import os
import subprocess
import time
from pathlib import Path

import pytest

import purejaxppo
from purejaxppo.devices import machine
from purejaxppo.devices.machine import code_revision

UNKNOWN = {"commit": None, "dirty": None}
IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")


def git(directory, *command):
    done = subprocess.run(["git", *IDENTITY, *command], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a repository of one commit, with all the time that git may take on a busy machine."""
    monkeypatch.setattr(machine, "_GIT_SECONDS", 60.0)
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / ".gitignore").write_text(".venv\n")
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", "--all")
    git(package, "commit", "--quiet", "--message", "one")
    return package


@pytest.fixture
def fake_git(tmp_path, monkeypatch):
    """Puts a shell script in git's place."""

    def put(script):
        program = tmp_path / "bin" / "git"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


def test_the_default_is_the_whole_package():
    """Not the folder that the function happens to be in: a change anywhere in the package counts."""
    assert inspect.signature(code_revision).parameters["package"].default == Path(purejaxppo.__file__).parent


def test_the_commit_that_is_checked_out(package, monkeypatch, tmp_path):
    """Wherever the process is, and whatever repository a hook of git is at work in."""
    commit = git(package, "rev-parse", "HEAD")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))
    assert code_revision(package) == {"commit": commit, "dirty": False}


@pytest.mark.parametrize("change", ["edit", "add", "stage", "remove"])
def test_uncommitted_changes(package, change):
    file = package / ("__init__.py" if change in ("edit", "remove") else "new.py")
    file.unlink() if change == "remove" else file.write_text("x = 1\n")
    if change == "stage":
        git(package, "add", "new.py")
    assert code_revision(package)["dirty"] is True


def test_what_is_beside_the_package_or_compiled_is_no_change(package):
    (package.parent / "runs").mkdir()
    (package.parent / "runs" / "summary.json").touch()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "module.pyc").touch()
    assert code_revision(package)["dirty"] is False


@pytest.mark.parametrize("place", [".venv", "env"])
def test_a_package_installed_within_a_repository_is_not_of_it(package, place):
    """Ignored there, or merely not added."""
    installed = package.parent / place / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert code_revision(installed) == UNKNOWN


def test_no_repository(package, tmp_path):
    (tmp_path / "alone").mkdir()
    assert code_revision(tmp_path / "alone") == UNKNOWN
    assert code_revision(tmp_path / "missing") == UNKNOWN
    git(tmp_path / "alone", "init", "--quiet")  # without a commit
    assert code_revision(tmp_path / "alone") == UNKNOWN


def test_git_refuses(package, monkeypatch):
    """Because of "dubious ownership", as in a container that mounts somebody else's directory."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert code_revision(package) == UNKNOWN


def test_no_git(package, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_revision(package) == UNKNOWN


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("exec sleep 60", UNKNOWN),
        ('case "$*" in *status*) exec sleep 60;; *) echo c0ffee;; esac', {"commit": "c0ffee", "dirty": None}),
    ],
)
def test_a_slow_git_is_not_waited_for(package, fake_git, monkeypatch, script, found):
    fake_git(script)
    monkeypatch.setattr(machine, "_GIT_SECONDS", 2.0)
    began = time.monotonic()
    assert code_revision(package) == found
    assert time.monotonic() - began < 30
