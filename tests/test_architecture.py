"""The folders are the architecture: imports go down the list, and what is computed never touches the host."""

import ast
import graphlib
from pathlib import Path

import pytest

import purejaxppo

PACKAGE = Path(purejaxppo.__file__).parent
NAME = PACKAGE.name

# Each imports from those before it only; docs/architecture.md says what they hold.
ORDER = [
    "errors",
    "config",
    "core",
    "policies",
    "algorithms",
    "envs",
    "train",
    "evaluate",
    "devices",
    "experiment",
    "sweeps",
    "cli",
    "__main__",
]
WITHOUT_JAX = {"errors", "config"}
WITHOUT_HOST = {"core", "policies", "algorithms", "envs", "train", "evaluate"}
HOST_PACKAGES = {"time", "os", "pathlib", "logging", "orbax", "matplotlib", "rich"}
HOST_CALLS = {
    "io_callback",
    "block_until_ready",
    "device_get",
    "pure_callback",
    "jax.debug",
    "jax.experimental.io_callback",
}
CODE_FROM_DATA = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_YAML = {
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "yaml.full_load",
    "yaml.Loader",
}

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [file for file in FILES if file != PACKAGE / "__init__.py"]


def ids(file):
    return str(file.relative_to(PACKAGE))


def part_of(file):
    """The entry of ORDER that a file belongs to: a folder, or a module at the top."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def parse(file):
    return ast.parse(file.read_text(), str(file))


def imports(tree, file):
    """Full dotted names of everything imported, inside functions too: `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = (NAME, *file.relative_to(PACKAGE).parts[:-1])
                base = ".".join((*parent[: len(parent) - node.level + 1], *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def dotted(node):
    """`a.b.c` of an attribute or a name, or the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def names(tree, file):
    """Every name that a file mentions: imported, plain, as an attribute, and as a dotted path."""
    for name in imports(tree, file):
        yield name
        yield name.rsplit(".", 1)[-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield dotted(node)
        if isinstance(node, ast.Attribute):
            yield node.attr


def packages(tree, file):
    """The top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(tree, file)}


def upward_imports(file, tree):
    """What a file imports from entries of ORDER that come after its own, or from the package as a whole."""
    allowed = ORDER[: ORDER.index(part_of(file)) + 1]
    own = [name for name in imports(tree, file) if name.split(".")[0] == NAME]
    return [name for name in own if [*name.split("."), ""][1] not in allowed]


def host_traces(file, tree):
    """What a file imports or names of the host's."""
    return sorted((packages(tree, file) & HOST_PACKAGES) | (set(names(tree, file)) & HOST_CALLS))


def unsafe_calls(file, tree):
    """Ways to run code that came as data."""
    yield from packages(tree, file) & CODE_FROM_DATA
    yield from set(names(tree, file)) & UNSAFE_YAML
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "__import__"}:
                yield node.func.id
            if any(
                keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True) for keyword in node.keywords
            ):
                yield "allow_pickle"


def test_the_folders_are_the_architecture():
    """At most fifteen entries, and every one of them has its place in the order."""
    entries = {file.name for file in PACKAGE.iterdir() if file.name != "__pycache__"}
    assert entries <= {*ORDER, *(f"{name}.py" for name in ORDER), "__init__.py", "py.typed"}
    assert len(entries) <= 15


@pytest.mark.parametrize("file", MODULES, ids=ids)
def test_imports_go_down_the_folders(file):
    """Imports inside functions and imports for type checking count."""
    assert upward_imports(file, parse(file)) == []


def test_no_imports_go_round_in_circles():
    """Within a folder there is an order too."""
    known = {f"{NAME}." + ids(file).removesuffix(".py").replace("/", "."): file for file in MODULES}
    known = {name.removesuffix(".__init__"): file for name, file in known.items()}
    graph = {}
    for name, file in known.items():
        targets = {x if x in known else x.rpartition(".")[0] for x in imports(parse(file), file)}
        graph[name] = targets & known.keys() - {name}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(known)


@pytest.mark.parametrize("file", [file for file in MODULES if part_of(file) in WITHOUT_HOST], ids=ids)
def test_what_is_computed_never_touches_the_host(file):
    """No clock, disk, log or display, and no call out of a compiled function."""
    assert host_traces(file, parse(file)) == []


@pytest.mark.parametrize("file", [file for file in MODULES if part_of(file) in WITHOUT_JAX], ids=ids)
def test_settings_need_no_jax(file):
    """The command line reads them before it has decided to start JAX."""
    assert not packages(parse(file), file) & {"jax", "jaxlib", "flax", "optax", "chex", "numpy", "gymnax", "orbax"}


def test_only_its_adapter_imports_gymnax():
    """Another suite of environments is another file."""
    assert [ids(file) for file in FILES if "gymnax" in packages(parse(file), file)] == ["envs/gymnax_adapter.py"]


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_no_code_is_made_from_data(file):
    """No pickle, eval, exec or unsafe YAML anywhere: a checkpoint or a settings file cannot run anything."""
    assert list(unsafe_calls(file, parse(file))) == []


def test_modules_by_name_are_imported_where_the_user_asks_for_it():
    """By --plugin, as the public names of the package, and lazily; no file that is read can name one."""
    ways = {"import_module", "exec_module", "spec_from_file_location"}
    found = {ids(file) for file in FILES if ways & set(names(parse(file), file))}
    assert found == {"__init__.py", "envs/lazy_imports.py", "cli/plugins.py"}


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("core/losses.py", "import purejaxppo.train"),
        ("core/losses.py", "from purejaxppo import train"),
        ("core/losses.py", "from .. import train"),
        ("core/losses.py", "def f():\n    from ..train import train"),
        ("core/losses.py", "from purejaxppo import TrainConfig"),
        ("algorithms/ppo_clip.py", "from purejaxppo.envs.wrappers import bound_action"),
    ],
)
def test_upward_imports_are_seen_in_every_spelling(file, code):
    assert upward_imports(PACKAGE / file, ast.parse(code))


@pytest.mark.parametrize(
    "code", ["import os.path", "def f():\n    import time", "from jax import debug", "get = jax.device_get"]
)
def test_the_host_is_seen_in_every_spelling(code):
    assert host_traces(PACKAGE / "core/losses.py", ast.parse(code))


@pytest.mark.parametrize("code", ["import pickle", "eval('1')", "yaml.load(f)", "np.load(f, allow_pickle=True)"])
def test_unsafe_calls_are_seen(code):
    assert list(unsafe_calls(PACKAGE / "core/losses.py", ast.parse(code)))
    assert not list(unsafe_calls(PACKAGE / "core/losses.py", ast.parse("net.eval(); np.load(f, allow_pickle=False)")))
