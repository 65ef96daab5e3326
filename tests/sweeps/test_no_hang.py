"""Many seeds on a machine of few cores, again and again, each time in a new process: none may hang.

The command as a user has it: the variables that this suite sets for JAX are taken away.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = "sweep --env CartPole-v1 --num-envs 4 --num-steps 128 --total-timesteps 20480 --eval-episodes 8 --json"
PROGRAM = Path(sys.executable).with_name("purejaxppo")
OURS = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_NUMPY_RANK_PROMOTION", "XLA_FLAGS", "NPROC")


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [64, 256])
def test_20_sweeps_in_a_row_end(tmp_path, seeds):
    env = {name: value for name, value in os.environ.items() if name not in OURS}
    took = []
    for i in range(20):
        start = time.monotonic()
        command = [PROGRAM, *COMMAND.split(), "--seeds", str(seeds), "--out", tmp_path / str(i)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["runs"], summary["env_steps"]) == (seeds, seeds * 20480)
        took.append(time.monotonic() - start)
    print(f"\n{seeds} seeds: 20 sweeps, {min(took):.0f} to {max(took):.0f} s each")
