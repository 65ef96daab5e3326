"""Two processes train a run, and one of them is killed, again and again: nothing hangs, and the result stays the same.

`pytest -m slow tests/devices/test_process_kills.py -n 0 -s` prints the figures that docs/scaling.md has.
"""

import json
import random
import shutil
import time

import pytest
from several_processes import finish_several, start_several

from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps

KILLS = 50
MINUTE_S = 60
SETTINGS = [
    *["--env", "CartPole-v1", "--num-envs", "16", "--num-steps", "16", "--num-shards", "4", "--num-minibatches", "2"],
    *["--num-epochs", "2", "--eval-episodes", "4", "--total-timesteps", "65536", "--checkpoint-seconds", "0"],
]


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_random_kills_of_random_processes(tmp_path):
    """A run that reaches its end ends in the state of the undisturbed one, bit for bit, and another one begins."""
    rng = random.Random(0)
    finish_several(["train", *SETTINGS, "--out", tmp_path / "whole"], tmp_path)
    expected = json.loads((tmp_path / "whole" / "summary.json").read_text())["state_sha256"]
    kills, finished, waits, codes, out = [0, 0], 0, [], {}, tmp_path / "run"
    while sum(kills) < KILLS:
        begun = (out / "config.json").exists()
        if not begun:
            shutil.rmtree(out, ignore_errors=True)  # killed before it had begun
        steps = list_steps(out)
        before = steps[0].env_steps if steps else 0
        pair = start_several([["resume", out] if begun else ["train", *SETTINGS, "--out", out]] * 2, tmp_path, 2, 30)
        killed = rng.randrange(2)
        if rng.random() < 0.5:  # in what has been trained by this pair, or from its start on
            while list_steps(out) == steps and pair[killed].poll() is None:
                time.sleep(0.05)
        end = time.monotonic() + rng.uniform(0, 20)
        while time.monotonic() < end and pair[killed].poll() is None:
            time.sleep(0.05)
        if pair[killed].poll() is None:
            pair[killed].kill()
            kills[killed] += 1
        began = time.monotonic()
        code = pair[1 - killed].wait(MINUTE_S)  # or subprocess.TimeoutExpired: it hangs
        printed = (tmp_path / f"log{1 - killed}").read_text()
        if pair[killed].wait() < 0:
            waits.append(time.monotonic() - began)
            codes[code] = codes.get(code, 0) + 1
            assert code in (0, 2, 75), printed  # 0: it was at its end; 2: the killed one had not come yet
            assert code == 0 or "purejaxppo: error: " in printed
        steps = list_steps(out)
        assert all(invalid_reason(step.path) is None for step in steps)
        assert not steps or steps[0].env_steps >= before
        summary = out / "summary.json"
        if summary.exists() and json.loads(summary.read_text())["exit_reason"] == "finished":
            assert json.loads(summary.read_text())["state_sha256"] == expected
            finished += 1
            shutil.rmtree(out)
        slowest, mean = max(waits, default=0), sum(waits) / max(len(waits), 1)
        print(
            f"{sum(kills)} kills ({kills[0]} of process 0), {finished} runs finished with the undisturbed state; the "
            f"other process ended after {slowest:.1f} s at most, {mean:.1f} s on average; exit codes {codes}",
            flush=True,
        )
    assert finished
    assert min(kills) > 0
