"""The tests of the benchmarks have the settings of the package's tests: two CPU devices, and fast compilation.

Environment variables rather than `jax.config`, so that the processes that a test starts inherit them.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
if "--xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    # Most of the time is compilation; half of what LLVM does for speed would be lost on programs this small.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
if (os.cpu_count() or 1) < 4:
    # jaxlib's CPU client can deadlock under vmap with two threads; NPROC is where it reads their number.
    os.environ.setdefault("NPROC", "4")
