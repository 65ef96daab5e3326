"""What is installed: the package's files and what it depends on, as pyproject.toml has them."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import purejaxppo

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_types_are_found_by_those_who_install_the_package():
    """PEP 561: without the marker, mypy takes every name of an installed package for Any."""
    assert (files("purejaxppo") / "py.typed").is_file()
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["purejaxppo"]}  # nothing is left out


def test_every_dependency_has_a_lower_bound():
    """An accelerator's build of jax has that of jax."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    assert [line for line in lines if not re.match(r"[\w-]+>=\d|jax\[", line)] == []


def test_the_environment_of_the_scripts_has_a_pip():
    """Without one, `pip` in the activated environment is another Python's."""
    assert "pip" in PROJECT["dependency-groups"]["dev"]


def test_the_public_names_can_be_looked_up():
    """By `dir`, and so by whatever completes names, before any of them is loaded."""
    assert set(purejaxppo.__all__) <= set(dir(purejaxppo))
    assert all(getattr(purejaxppo, name) is not None for name in purejaxppo.__all__)


def test_the_public_names_are_documented():
    """Each in the table of docs/python.md, which has no others."""
    text = (ROOT / "docs" / "python.md").read_text()
    table = text.split("## The public names")[1].split("\n## ")[0].split("|---|---|")[1]
    assert sorted(re.findall(r"`(\w+)`", table)) == purejaxppo.__all__
