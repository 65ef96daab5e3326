"""The layout of the help: an overview that fits one screen, and the settings of a command under headings."""

import dataclasses
import math
import re

import pytest

from purejaxppo.cli import main as cli
from purejaxppo.cli.arguments import COMMANDS, Common
from purejaxppo.config.resolve import FIELDS, OPTION_FIELDS
from purejaxppo.config.setting import facts_of

HEADINGS = [
    "run",
    "environment",
    "rollout and batch",
    "optimisation",
    "algorithm",
    "policy",
    "normalisation",
    "evaluation",
    "checkpoint",
]


@pytest.fixture
def help_of(capfd, monkeypatch):
    """Yields help_of(arguments) -> the help, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def text(*argv):
        with pytest.raises(SystemExit) as stop:
            cli.run([*argv, "--help"])
        assert not stop.value.code
        return capfd.readouterr().out

    return text


def sections(text):
    """Returns heading -> its flags, in the order of the help."""
    flags = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+) ─+╮", line):
            section = flags.setdefault(title[1].removesuffix(" options"), [])
        if flag := re.match(r"│ --([a-z-]+)", line):
            section.append(flag[1].replace("-", "_"))
    return flags


# --- overview ---------------------------------------------------------------------------------------------------------


def test_the_overview_fits_one_screen(help_of):
    """It is 24 lines of 80 columns; the terminal breaks longer lines."""
    assert sum(max(1, math.ceil(len(line) / 80)) for line in help_of().splitlines()) <= 24


def test_the_overview_has_one_line_for_each_command(help_of):
    lines = help_of().splitlines()
    listed = [line.strip("│ ").removeprefix("• ").split(maxsplit=1) for line in lines if "•" in line]
    assert [name for name, _ in listed] == [*COMMANDS]
    assert all(re.fullmatch(r"[A-Z][^.]+\.", summary) for _, summary in listed)
    assert "Example" not in " ".join(lines)


@pytest.mark.parametrize("command", [*COMMANDS])
def test_a_command_begins_its_help_with_its_line_in_the_overview(help_of, command):
    summary = re.search(rf"• {command} +(.+?) +│", help_of())[1]
    text = help_of(command)
    assert text.splitlines()[2] == summary
    assert f"Example: purejaxppo {command}" in text


# --- headings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "sweep", "compare", "resume"])
def test_settings_are_under_their_headings(help_of, command):
    """Each is there once; what is no setting is under run, and the options of every command come last."""
    found = sections(help_of(command))
    headings = [heading for heading in found if heading not in ("positional arguments", "options")]
    without = ["checkpoint"] if command == "compare" else []
    assert headings == [*(heading for heading in HEADINGS if heading not in without), "general"]
    expected = {name: facts_of(field).heading for name, field in (FIELDS | OPTION_FIELDS).items()}
    if command == "compare":  # which evaluates at the end alone
        expected = {name: heading for name, heading in expected.items() if not name.startswith("eval_every")}
    shown = [(name, heading) for heading, names in found.items() for name in names if name in expected]
    assert len(shown) == len(dict(shown))
    assert dict(shown) == {name: heading for name, heading in expected.items() if heading not in without}
    assert found["general"] == [field.name for field in dataclasses.fields(Common)]
    own = {"train": "seed", "sweep": "samples", "compare": "algorithms", "resume": "strict"}[command]
    assert own in found["run"]


def test_headings_are_those_that_a_reader_looks_for(help_of):
    found = sections(help_of("train"))
    assert found["run"][:4] == ["seed", "config", "out", "total_timesteps"]
    assert found["environment"] == ["env", "env_params"]
    assert {"num_envs", "num_steps"} <= {*found["rollout and batch"]}
    assert {"learning_rate", "learning_rate_schedule", "max_grad_norm"} <= {*found["optimisation"]}
    assert {"algorithm", "gamma", "clip_eps", "kl_coef", "cg_damping"} <= {*found["algorithm"]}
    assert {"hidden_sizes", "activation"} <= {*found["policy"]}
    assert {"normalize_observation", "normalize_reward"} <= {*found["normalisation"]}
    assert found["evaluation"] == ["eval_episodes", "eval_every", "eval_every_episodes"]
    assert found["checkpoint"] == ["checkpoint_seconds", "keep_newest", "keep_best"]


def test_a_command_without_settings_has_no_headings(help_of):
    assert [*sections(help_of("verify"))] == ["positional arguments", "options"]


def test_the_headings_do_not_change_what_is_refused(capfd):
    """An argument that only looks like --help is refused as ever: as a value that is missing, or after --."""
    for argv, message in [
        (["--out", "--help"], "--out has no value; give it one, as `purejaxppo train --help` has it."),
        (["--gamma", "x", "--seed", "-h"], "--seed has no value; give it one, as `purejaxppo train --help` has it."),
        (["--", "--help"], "--help is unknown. `purejaxppo train --help` lists what there is."),
    ]:
        assert cli.run(["train", *argv]) == 2
        assert capfd.readouterr().err == f"purejaxppo: error: {message}\n"
