"""What every test runs under: two CPU devices, no silent rank promotion, reproducible hypothesis examples.

Environment variables rather than `jax.config`, so that programs which a test starts inherit them.
"""

import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Most of the suite's time is compilation; half of what LLVM does for speed would be lost on programs this small.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
if (os.cpu_count() or 1) < 4:
    # jaxlib's CPU client can deadlock under vmap with two threads; NPROC is where it reads their number.
    os.environ.setdefault("NPROC", "4")

import hypothesis
import jax
import pytest
from fault_driver import Server
from fault_runs import Undisturbed
from jax._src.lru_cache import LRUCache

# A plugin may have imported jax before this file set its environment; then the variables came too late.
jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
jax.config.update("jax_numpy_rank_promotion", os.environ["JAX_NUMPY_RANK_PROMOTION"])

_MOST_MAPPINGS = 15_000

# Most of the suite's time is compilation, so compiled programs are kept on the disk: for the other worker, for the
# commands that tests start, and for the next run; the small ones too, since there are thousands, one for each operation
# outside jax.jit. With a limit on its size, JAX locks the cache for each access.
CACHE = Path(__file__).parent.parent / ".cache" / "tests"
jax.config.update("jax_compilation_cache_dir", str(CACHE / "programs"))
jax.config.update("jax_compilation_cache_max_size", 4 * 10**9)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
os.environ["XDG_CACHE_HOME"] = str(CACHE / "home")

_make_room, _made = LRUCache._evict_if_needed, set()


def _make_room_once(cache, **size):
    """JAX looks at every file of the cache before it adds one; the first time in each process is enough."""
    if cache.path not in _made:
        _made.add(cache.path)
        _make_room(cache, **size)


LRUCache._evict_if_needed = _make_room_once

hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("reproducible")


def pytest_collection_modifyitems(items):
    """Tests that take minutes by intent have no time limit."""
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("learning"):
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """A process may have 65,530 mappings on Linux, and each compiled program takes some: past that XLA crashes."""
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > _MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _no_listener_stays():
    """A test that leaves its listener for signals behind lets a signal of a later test end this process."""
    yield
    left = signal.set_wakeup_fd(-1)
    assert left == -1, "this test has started to listen for signals, and not stopped"


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A directory of this session, the same for every worker of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def server():
    """Starts commands as processes of their own, fast."""
    with Server(CACHE / "forks") as server:
        yield server


@pytest.fixture(scope="session")
def undisturbed(server, shared):
    """undisturbed("ppo_kl") is the directory of a whole run, not to be changed."""
    return Undisturbed(server, shared)
