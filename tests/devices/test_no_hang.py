"""Many seeds, and runs that are spread, on few cores, again and again, each time in a new process: none may hang.

The command as a user has it: the variables that this suite sets for JAX are taken away.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = "sweep --env CartPole-v1 --num-envs 4 --num-steps 128 --total-timesteps 20480 --eval-episodes 8 --json"
TRAIN = "train --env CartPole-v1 --num-steps 128 --num-minibatches 4 --num-epochs 4 --eval-episodes 8 --json"
PROGRAM = Path(sys.executable).with_name("purejaxppo")
OURS = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_NUMPY_RANK_PROMOTION", "XLA_FLAGS", "NPROC")


def run(command, out):
    """What the command says, in a new process."""
    env = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [PROGRAM, *command.split(), "--out", out]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [64, 256])
def test_20_sweeps_in_a_row_end(tmp_path, seeds):
    took = []
    for i in range(20):
        start = time.monotonic()
        summary = run(f"{SWEEP} --seeds {seeds}", tmp_path / str(i))
        assert (summary["runs"], summary["env_steps"]) == (seeds, seeds * 20480)
        took.append(time.monotonic() - start)
    print(f"\n{seeds} seeds: 20 sweeps, {min(took):.0f} to {max(took):.0f} s each")


@pytest.mark.slow
@pytest.mark.parametrize(("num_envs", "env_steps"), [(64, 1_024_000), (1024, 2_621_440)])
def test_20_spread_runs_in_a_row_end_in_the_same_state(tmp_path, num_envs, env_steps):
    """Their devices wait for each other at every gradient step."""
    took, states = [], set()
    for i in range(20):
        start = time.monotonic()
        summary = run(f"{TRAIN} --num-envs {num_envs} --total-timesteps {env_steps}", tmp_path / str(i))
        assert summary["env_steps"] == env_steps
        states.add(summary["state_sha256"])
        took.append(time.monotonic() - start)
    assert len(states) == 1
    print(f"\n{num_envs} environments: 20 runs, {min(took):.0f} to {max(took):.0f} s each")
