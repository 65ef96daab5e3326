"""A setting is declared once: its check, its refusal, its flag and its documentation are derived from its field."""

import dataclasses
import importlib.util
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import purejaxppo
from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.setting import Range, facts_of, owners, range_of, setting, with_ranges
from purejaxppo.config.validate import validate_options, validate_value
from purejaxppo.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
TABLES = ROOT / "scripts" / "settings_tables.py"
RECORDS = (TrainConfig, Hyperparams, RunOptions)


def tables():
    spec = importlib.util.spec_from_file_location("settings_tables", TABLES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@with_ranges
@dataclasses.dataclass(frozen=True)
class Made:
    """A dataclass with one field of each kind, known only by its declaration."""

    share: float = setting(0.5, above=0, at_most=2, unit="per nat", of=("ppo_kl", "trpo"), source="Paper eq. 1")
    """What it is | and
    does."""
    limit: float | None = setting(None, at_least=0.5)
    """Or nothing."""
    count: int = setting(3, above=0, of=("trpo",))
    """trpo: from 1."""
    few: int = setting(3, at_least=2, at_most=9)
    """Not many."""
    layers: tuple[int, ...] = setting((8, 8), at_least=4, at_most=16)
    """Their widths."""
    word: Literal["one", "other"] = "one"
    """Which."""
    switch: bool = False
    """Or not."""
    name: str = "plain"
    """As one likes."""


FIELDS = {field.name: field for field in dataclasses.fields(Made)}


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (Range(0, low_allowed=False), [1e-300, 1e300, 10**400], [0, -1], "(0, inf)"),
        (Range(0), [0, 5], [-1e-300], "[0, inf)"),
        (Range(0.5, 2), [0.5, 2], [0.49, 2.01], "[0.5, 2]"),
        (Range(0.5, 2, low_allowed=False), [0.6, 2], [0.5], "(0.5, 2]"),
    ],
)
def test_range(bounds, inside, outside, text):
    """It includes its upper end, but never infinity."""
    assert all(number in bounds for number in inside)
    assert not any(number in bounds for number in [*outside, math.nan, math.inf, -math.inf])
    assert str(bounds) == text


@pytest.mark.parametrize("kind", [int, float, int | None, float | None, tuple[int, ...]])
def test_a_number_is_not_declared_without_a_range(kind):
    """The error at import says what to write."""
    record = dataclasses.make_dataclass("Made", [("novel", kind, 7)], frozen=True)
    with pytest.raises(TypeError, match=r"novel has no range; declare it as setting\(7, above=...\)"):
        with_ranges(record)
    with pytest.raises(TypeError, match="novel has no range"):
        range_of(dataclasses.fields(record)[0])


def test_a_number_has_one_lower_end():
    with pytest.raises(TypeError, match="above 0 or at least 1, not both"):
        setting(2, above=0, at_least=1)


def test_the_records_of_settings_demand_ranges():
    """All of their numbers have a range, with the default in it."""
    for field in (field for record in RECORDS for field in dataclasses.fields(record)):
        default = field.default if isinstance(field.default, tuple) else (field.default,)
        numbers = [x for x in default if isinstance(x, int | float) and not isinstance(x, bool)]
        assert all(number in range_of(field) for number in numbers)


# --- a made-up field --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("share", [0.1, 2, 1e-30]),
        ("limit", [None, 0.5, 1e30]),
        ("count", [1, 2**63 - 1]),
        ("few", [2, 9]),
        ("layers", [(), (4, 16)]),
        ("word", ["one", "other"]),
        ("switch", [True, False]),
        ("name", ["", "x"]),
    ],
)
def test_a_made_up_field_takes_what_it_declares(name, values):
    for value in values:
        validate_value(FIELDS[name], value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("share", 0, "share = 0 is outside (0, 2]."),
        ("share", 2.5, "share = 2.5 is outside (0, 2]."),
        ("share", None, "share = None is not a number."),
        ("share", True, "share = True is not a number."),
        ("limit", 0.4, "limit = 0.4 is outside [0.5, inf)."),
        ("limit", 1e39, "limit = 1e+39 is outside [0.5, inf)."),
        ("limit", "no", "limit = 'no' is not a number."),
        ("count", 0, "count = 0 is not a whole number from 1 to 2**63 - 1."),
        ("count", 2**63, f"count = {2**63} is not a whole number from 1 to 2**63 - 1."),
        ("few", 1, "few = 1 is not a whole number from 2 to 9."),
        ("few", 10, "few = 10 is not a whole number from 2 to 9."),
        ("layers", (8, 3), "layers has a layer of width 3; a width is a whole number from 4 to 16."),
        ("word", "on", "word = 'on' is unknown; choose from one, other. Did you mean 'one'?"),
        ("switch", 1, "switch = 1 is not true or false."),
        ("name", 1, "name = 1 is not text."),
    ],
)
def test_a_made_up_field_refuses_everything_else(name, value, message):
    with pytest.raises(ConfigError) as caught:
        validate_value(FIELDS[name], value)
    assert str(caught.value) == message


def test_a_made_up_number_of_the_host_is_validated():
    """It stays a Python float, so it may be beyond float32."""
    fields = [("minutes", float, setting(1.0, above=0, at_most=1e300, unit="minutes"))]
    record = with_ranges(dataclasses.make_dataclass("Made", fields, frozen=True))
    validate_options(record(1e299))
    with pytest.raises(ConfigError, match=r"minutes = 0 is not a number of minutes in \(0, 1e\+300\]\."):
        validate_options(record(0))


def test_a_made_up_kind_is_not_let_through():
    field = dataclasses.fields(dataclasses.make_dataclass("Made", [("when", bytes, b"")]))[0]
    with pytest.raises(TypeError, match="when is declared as"):
        validate_value(field, b"")


def test_a_made_up_field_is_owned():
    """It is owned by the algorithms that it names; if it names none, by all of them."""
    assert owners(Made, dataclasses.make_dataclass("More", [("novel", str, setting("a", of=("mine",)))])) == {
        "share": ("ppo_kl", "trpo"),
        "count": ("trpo",),
        "novel": ("mine",),
    }
    assert facts_of(FIELDS["word"]).of == ()


def test_a_made_up_field_is_documented():
    assert (
        tables().table(Made)
        == r"""
| name | default | unit | values | algorithms | meaning | source |
|---|---|---|---|---|---|---|
| `share` | `0.5` | per nat | `> 0, <= 2` | `ppo_kl`, `trpo` | What it is \| and does. | Paper eq. 1 |
| `limit` | `None` |  | `>= 0.5`, `None` |  | Or nothing. |  |
| `count` | `3` |  | `> 0` | `trpo` | from 1. |  |
| `few` | `3` |  | `2 to 9` |  | Not many. |  |
| `layers` | `8 8` |  | `4 to 16` |  | Their widths. |  |
| `word` | `one` |  | `one`, `other` |  | Which. |  |
| `switch` | `false` |  | `true`, `false` |  | Or not. |  |
| `name` | `plain` |  |  |  | As one likes. |  |
""".removeprefix("\n")
    )


# --- one declaration in fields.py -------------------------------------------------------------------------------------


@pytest.fixture
def declare(tmp_path):
    """Yields declare(dataclass's name, lines) -> run(Python's arguments) -> output of a package with that field."""

    def made(record, lines):
        package = tmp_path / "purejaxppo"
        shutil.copytree(Path(purejaxppo.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        fields = package / "config" / "fields.py"
        before, name, after = fields.read_text().partition(f"class {record}:")
        own, end, after = after.partition("\n    def ")
        fields.write_text(f"{before}{name}{own}{lines}{end}{after}")
        return run

    def run(*arguments):
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        return result.stdout + result.stderr

    return made


def test_one_declaration_is_all_that_a_hyperparameter_takes(declare, tmp_path):
    """It gives a flag with help and default, a check, a name in files, its algorithm and a row in the documentation."""
    run = declare(
        "Hyperparams",
        '''    novel: float = setting(0.25, at_least=0, at_most=1, unit="per nat", of=("ppo_kl",))
    """ppo_kl: made up."""
''',
    )
    train = ("-m", "purejaxppo", "train", "--algorithm")
    assert "--novel FLOAT ppo_kl: made up. (default: 0.25)" in " ".join(run(*train, "ppo_kl", "--help").split())
    assert "novel = 1.5 is outside [0, 1]." in run(*train, "ppo_kl", "--novel", "1.5")
    assert "novel is an option of ppo_kl, not of trpo" in run(*train, "trpo", "--novel", "0.5")
    (tmp_path / "config.json").write_text('{"novel": -0.5}')
    assert "novel = -0.5 is outside [0, 1]." in run(*train, "ppo_kl", "--config", "config.json")
    write = f"import sys; sys.path.append({str(TABLES.parent)!r}); import settings_tables as tables; "
    row = "| `novel` | `0.25` | per nat | `0 to 1` | `ppo_kl` | made up. |  |\n"
    assert row in run("-c", write + "print(tables.table(tables.Hyperparams))")


@pytest.mark.parametrize("record", [record.__name__ for record in RECORDS])
def test_a_setting_without_its_range_cannot_be_imported(declare, record):
    run = declare(record, "    novel: float = 0.25\n")
    assert "TypeError: novel has no range; declare it as setting(0.25, above=...)" in run("-m", "purejaxppo", "--help")


def test_the_documentation_is_that_of_the_declarations():
    text = tables().DOCS.read_text()
    written = tables().with_tables(text)
    assert written == text, "docs/hyperparameters.md is not up to date; run python scripts/settings_tables.py"


def test_tables_take_the_place_of_the_first_one_below_their_heading():
    """Everything else stays; without such a heading it is an error."""
    module = tables()
    old = "| old |\n|---|\n| row |\n"
    parts = [f"## {record.__name__}: words\n\nprose | with a bar\n\n{old}\nmore\n\n{old}" for record in RECORDS]
    written = module.with_tables("# Title\n\n" + "\n".join(parts) + "\n## Metrics\n")
    for record in RECORDS:
        expected = f"## {record.__name__}: words\n\nprose | with a bar\n\n{module.table(record)}\nmore\n\n{old}"
        assert expected in written
    assert written.startswith("# Title\n\n##")
    assert written.endswith("\n## Metrics\n")
    with pytest.raises(ValueError, match="no heading ## RunOptions with a table below"):
        module.with_tables("\n".join(parts[:2]))


def test_every_field_has_its_help():
    """The help of a setting of one algorithm begins with that algorithm's name."""
    for record in RECORDS:
        helps = tables().help_of(record)
        assert all(helps.values())
        assert [*helps] == [field.name for field in dataclasses.fields(record)]
        for field in dataclasses.fields(record):
            if len(facts_of(field).of) == 1:
                assert helps[field.name].startswith(f"{facts_of(field).of[0]}: ")
