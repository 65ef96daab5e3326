"""The update as it is compiled for an H100: what it must not have, and how much it may launch.

    bash scripts/setup_compiler.sh cuda && bash scripts/test.sh -m aot benchmarks/tests

Each test compiles a program, which takes about half a minute on two cores. They are skipped where the environment with
the compiler is missing; PUREJAXPPO_COMPILER_PYTHON names another one's Python.
"""

import json
import os
from pathlib import Path

import pytest

from benchmarks import run_compiled
from benchmarks.lib import device_target
from benchmarks.lib.worker_process import HOME, WorkerError, WorkerProcess, environment, module_command

PYTHON = Path(os.environ.get("PUREJAXPPO_COMPILER_PYTHON") or HOME / ".venv-cuda" / "bin" / "python")
COMMITTED = HOME / "benchmarks" / "results" / "aot-h100.json"
LIMIT_S = 600.0

pytestmark = [
    pytest.mark.aot,
    pytest.mark.timeout(LIMIT_S + 60),
    pytest.mark.skipif(
        not PYTHON.exists(), reason=f"{PYTHON} is missing; bash scripts/setup_compiler.sh cuda makes it"
    ),
]


def compiled(name, around="", devices=1):
    """Compiles a program for an H100, with all of XLA's optimisations, which the other tests do without."""
    target, program = device_target.load("h100"), run_compiled.programs()[name]
    asked = {**run_compiled.request(target, program, devices), "around": around}
    command = module_command("benchmarks.workers.compile_worker", json.dumps(asked), python=str(PYTHON))
    given = {k: v for k, v in environment().items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    with WorkerProcess("compile_worker", command, given) as process:
        return process.receive(LIMIT_S)


def committed(name):
    """Returns the committed launches per update of a program."""
    rows = json.loads(COMMITTED.read_text())["sections"]["compiled"]["rows"]
    return next(row["per_update"]["launches"] for row in rows if row["name"] == name)


@pytest.mark.parametrize("name", ["2048x128", "runs-16"])
def test_an_update_waits_for_no_host_and_launches_no_more_than_before(name):
    answer = compiled(name)
    assert {what: found for what, found in answer["findings"].items() if found} == {}
    assert answer["per_update"]["launches"] <= committed(name)


def test_eight_devices_exchange_a_gradient_for_each_step_and_little_else():
    answer = compiled("2048x128", devices=8)
    steps = 16  # 4 epochs of 4 minibatches
    assert {exchange["kind"] for exchange in answer["collectives"]} == {"all-reduce"}
    assert sum(exchange["per_update"] for exchange in answer["collectives"]) <= steps + 3
    (of_gradient,) = [exchange for exchange in answer["collectives"] if exchange["per_update"] == steps]
    # Two towers of 4-64-64 with a head of two and one outputs: 9,155 parameters, and six means beside them.
    assert of_gradient["bytes"] == 4 * (9155 + 6)
    assert answer["per_update"]["launches"] <= 1.02 * 2048


def test_many_runs_on_eight_devices_exchange_nothing():
    assert compiled("runs-256", devices=8)["collectives"] == []


@pytest.mark.parametrize(("fault", "found"), [("sort", "sorts"), ("while_loop", "unknown_trips")])
def test_what_should_not_be_there_is_found(fault, found):
    answer = compiled("64x128", f"benchmarks.tests.faulty_updates:{fault}")
    assert answer["findings"][found]


@pytest.mark.parametrize(("fault", "primitive"), [("callback", "debug_callback"), ("printed", "debug_print")])
def test_a_callback_is_refused(fault, primitive):
    with pytest.raises(WorkerError, match=rf"has a callback of Python \({primitive}\)"):
        compiled("64x128", f"benchmarks.tests.faulty_updates:{fault}")
