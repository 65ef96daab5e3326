"""The package is a building: modules import from lower floors only, and the lower floors never call the host."""

import ast
from pathlib import Path

import pytest

import purejaxppo

PACKAGE = Path(purejaxppo.__file__).parent
NAME = PACKAGE.name

# The table of docs/architecture.md; within a floor, .1 is built on .0. Modules need not exist yet, but must be listed.
FLOORS = {
    0.0: {"errors", "sums"},
    0.1: {"config", "late", "distributions", "advantage", "losses", "ahead", "stats"},
    0.2: {"validation", "tuning", "minibatch"},
    1.0: {"types"},
    1.1: {"networks", "optimizer", "diagnostics", "guard"},
    2.0: {"envs", "wrappers", "rollout", "algorithms"},
    3.0: {"train", "evaluate"},
    4.0: {"sharding", "spread"},
    4.1: {"runs"},
    5.0: {"files", "checkpoint", "presets", "lock", "programs", "threads"},
    5.1: {"logger", "store"},
    5.2: {"saver"},
    6.0: {"comparison", "settings", "signals", "watch", "machine", "self_check"},
    6.1: {"run_dir", "memory"},
    6.2: {"host_loop", "plot", "restore"},
    6.3: {"plot_comparison", "stretch"},
    6.4: {"session"},
    7.0: {"experiment", "numpy_policy", "export", "doctor", "sweeps"},
    7.1: {"commands", "compare"},
    7.2: {"sweep_flags"},
    7.3: {"flags"},
    8.0: {"printing"},
    8.1: {"actions"},
    8.2: {"cli"},
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}
# Within sweeps/, from the ground up; none imports from its own floor or what is above it.
SWEEPS = {
    0: {"settings"},
    1: {"directory", "space", "results", "plan_text", "group"},
    2: {"metrics", "pictures", "plan"},
    3: {"schedule"},
    4: {"parts"},
    5: {"run", "members"},
}
HIGHEST_PURE = 4
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


def module_of(file):
    """The first part of a file's module name below the package: a file, or a folder such as algorithms."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def ids(file):
    return str(file.relative_to(PACKAGE))


def imports(tree, file=None):
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


def names(tree, file=None):
    """Every name that a file mentions: imported, plain, as an attribute, and as a dotted path."""
    for name in imports(tree, file):
        yield name
        yield name.rsplit(".", 1)[-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield dotted(node)
        if isinstance(node, ast.Attribute):
            yield node.attr


def own_modules(tree, file):
    """The modules of the package that a file imports from; '' stands for the package itself."""
    for name in imports(tree, file):
        parts = name.split(".")
        if parts[0] == NAME:
            target = parts[1] if len(parts) > 1 else ""
            yield target if (PACKAGE / f"{target}.py").exists() or (PACKAGE / target / "__init__.py").exists() else ""


def packages(tree, file):
    """The top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(tree, file)}


def parse(file):
    return ast.parse(file.read_text(), str(file))


def upward_imports(file, tree):
    """What a module imports from its own floor or a higher one."""
    module = module_of(file)
    for target in own_modules(tree, file):
        same_folder = target == module and (PACKAGE / module).is_dir()
        if not same_folder and not FLOOR.get(target, float("inf")) < FLOOR[module]:
            yield target


def host_traces(file, tree):
    """What a module of the pure floors imports or names of the host's."""
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


def test_there_are_modules():
    """The tests below would pass for an empty list."""
    assert {"config", "train", "algorithms"} <= {module_of(file) for file in MODULES}


@pytest.mark.parametrize("file", MODULES, ids=ids)
def test_every_module_has_a_floor(file):
    """A new module is put into the table above first."""
    assert module_of(file) in FLOOR


@pytest.mark.parametrize("file", [file for file in MODULES if module_of(file) in FLOOR], ids=ids)
def test_modules_import_from_lower_floors_only(file):
    """Late imports and imports for type checking count."""
    assert list(upward_imports(file, parse(file))) == []


@pytest.mark.parametrize("file", sorted((PACKAGE / "sweeps").glob("[a-z]*.py")), ids=ids)
def test_modules_of_sweeps_import_from_lower_ones_only(file):
    floors = {module: floor for floor, modules in SWEEPS.items() for module in modules}
    there = [name.split(".")[2] for name in imports(parse(file), file) if name.startswith(f"{NAME}.sweeps.")]
    assert [module for module in there if not floors[module] < floors[file.stem]] == []


PURE = [file for file in MODULES if FLOOR.get(module_of(file), 99) < HIGHEST_PURE + 1]


@pytest.mark.parametrize("file", PURE, ids=ids)
def test_lower_floors_never_touch_the_host(file):
    """No clock, disk, log or display, and no call out of a compiled function, on floors 0 to 4."""
    assert host_traces(file, parse(file)) == []


def test_only_envs_imports_gymnax():
    """Another suite of environments is another file."""
    assert [ids(file) for file in FILES if "gymnax" in packages(parse(file), file)] == ["envs.py"]


@pytest.mark.parametrize("module", ["config", "errors"])
def test_settings_need_no_jax(module):
    """The command line reads them before it has decided to start JAX."""
    file = PACKAGE / f"{module}.py"
    assert not packages(parse(file), file) & {"jax", "jaxlib", "flax", "optax", "chex", "numpy", "gymnax", "orbax"}


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_no_code_is_made_from_data(file):
    """No pickle, eval, exec or unsafe YAML anywhere: a checkpoint or a settings file cannot run anything."""
    assert list(unsafe_calls(file, parse(file))) == []


def test_modules_by_name_are_imported_where_the_user_asks_for_it():
    """By --plugin, as the public names of the package, and late; no file that is read can name one."""
    found = {
        ids(file) for file in FILES if {"import_module", "importlib.import_module"} & set(names(parse(file), file))
    }
    assert found == {"__init__.py", "cli.py", "late.py"}


# --- the inspector itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("losses.py", "from purejaxppo.types import Batch"),
        ("losses.py", "import purejaxppo.train"),
        ("losses.py", "from purejaxppo import train"),
        ("losses.py", "from . import train"),
        ("losses.py", "def f():\n    from .train import train"),
        ("losses.py", "from purejaxppo import TrainConfig"),
        ("losses.py", "from purejaxppo.advantage import gae"),
        ("algorithms/ppo_clip.py", "from ..train import train"),
        ("algorithms/ppo_clip.py", "from purejaxppo.rollout import rollout"),
    ],
)
def test_the_inspector_sees_upward_imports(file, code):
    """In every spelling of an import."""
    assert list(upward_imports(PACKAGE / file, ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "import os.path",
        "from pathlib import Path",
        "def f():\n    import time",
        "import orbax.checkpoint as ocp",
        "jax.debug.print('x')",
        "from jax import debug",
        "from jax.experimental import io_callback",
        "x.block_until_ready()",
        "jax.block_until_ready(x)",
        "get = jax.device_get",
    ],
)
def test_the_inspector_sees_the_host(code):
    """Imports, calls and aliases."""
    assert host_traces(PACKAGE / "losses.py", ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "exec(x)",
        "yaml.load(f)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_the_inspector_sees_unsafe_calls(code):
    """One of each kind; `net.eval()` and allow_pickle=False are harmless."""
    assert list(unsafe_calls(PACKAGE / "losses.py", ast.parse(code)))
    assert not list(unsafe_calls(PACKAGE / "losses.py", ast.parse("net.eval(); np.load(f, allow_pickle=False)")))
