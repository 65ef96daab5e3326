"""Plugins: modules by name or path are imported once, and every mistake is reported in one line."""

import sys

import pytest

from purejaxppo.cli.plugins import import_plugins
from purejaxppo.errors import EnvError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Runs every test in an empty working directory, and undoes its imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    """Returns a function: write(path, text) writes a file in the working directory, and returns its path as given."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
        return path

    return write


@pytest.mark.parametrize("spelling", ["grid_plugin", "grid_plugin.py", "./grid_plugin.py", "{}/grid_plugin.py"])
def test_a_module_by_its_name_and_by_its_path(write, tmp_path, spelling):
    write("grid_plugin.py", "size = 3")
    import_plugins([spelling.format(tmp_path)])
    assert sys.modules["grid_plugin"].size == 3


def test_a_file_elsewhere_may_import_its_neighbours_and_be_imported(write):
    """It has its file's name as a module, and its classes know that."""
    write("far/neighbour_plugin.py", "size = 4")
    write("far/my-grid.py", "from neighbour_plugin import size\n\nclass Grid:\n    pass")
    import_plugins(["far/my-grid.py"])
    module = sys.modules["my_grid"]
    assert module.size == 4
    assert sys.modules[module.Grid.__module__] is module


def test_what_is_named_twice_is_run_once(write):
    """It is named by its path, by its name, and by its path again."""
    write("once_plugin.py", "import sys\nsys.runs = getattr(sys, 'runs', 0) + 1")
    try:
        import_plugins(["once_plugin.py", "once_plugin", "./once_plugin.py"])
        assert sys.runs == 1
    finally:
        del sys.runs


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        ("missing.py", "is not there"),
        ("./missing.py", "is not there"),
        ("far/grid.txt", "is not a Python file"),
        ("./far", "is not a Python file"),
        ("far.py", "is not there"),
        ("json.py", "has the name of another module"),
        ("far/pytest.py", "has the name of another module"),
        ("far/raises.py", "cannot be imported: ZeroDivisionError"),
        ("far/garbled.py", "cannot be imported: SyntaxError"),
        ("far/refuses.py", "'far/refuses.py' cannot be imported: EnvError: no such world"),
        ("nowhere_to_be_found", "cannot be imported: ModuleNotFoundError"),
        ("one_plugin,two_plugin", "write them apart: one_plugin two_plugin"),
        ("a\0b.py", "is not there"),
    ],
)
def test_mistakes(write, tmp_path, plugin, says):
    """One line names the plugin, and no half-imported module is left."""
    (tmp_path / "far.py").mkdir()
    for name, text in {"grid.txt": "", "pytest.py": "", "raises.py": "1 / 0", "garbled.py": "x ="}.items():
        write(f"far/{name}", text)
    write("far/refuses.py", "from purejaxppo.errors import EnvError\nraise EnvError('no such world')")
    write("json.py", "")
    before = set(sys.modules)
    with pytest.raises(EnvError) as error:
        import_plugins([plugin])
    assert says in str(error.value)
    assert repr(plugin) in str(error.value)
    assert "\n" not in str(error.value)
    assert set(sys.modules) == before
