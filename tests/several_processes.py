"""Several processes of one command on this machine, whose signs of life are missed sooner than users need."""

import os
import socket
import subprocess
import sys
import time

from purejaxppo.experiment.checkpoints.directory import list_steps

SCRIPT = """
import sys
from purejaxppo.devices import processes
from purejaxppo.cli.main import main
processes.BEAT_S, processes.LOST_S, processes.FAILED_S, processes.START_S = 0.5, 8.0, 3.0, {start_s}
processes._PIECE_BYTES = 512  # so that states are copied to the host in pieces
sys.argv = ["purejaxppo", *{argv}]
main()
"""
LIMIT_S = 240


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def start(argv, devices, log, start_s=4):
    """Starts a command in a process with so many CPU devices."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "1", "JAX_PLATFORMS": "cpu"}
    script = SCRIPT.format(argv=list(map(str, argv)), start_s=start_s)
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, "-c", script], stderr=file, stdout=file, env=env)


def start_several(commands, directory, devices=2, start_s=60):
    """Starts a process for each of the commands, which are to train together; they print to log0, log1, ..."""
    port = free_port()
    joined = ["--coordinator", f"localhost:{port}", "--num-processes", len(commands)]
    return [
        start([*argv, *joined, "--process-id", i], devices, directory / f"log{i}", start_s)
        for i, argv in enumerate(commands)
    ]


def ended(process, log):
    """Waits for the end of a process, and returns its exit code and what it has printed."""
    try:
        return process.wait(LIMIT_S), log.read_text()
    finally:
        process.kill()


def finish(argv, directory, devices=4):
    """Runs a command in one process to its end, which has to be a good one."""
    log = directory / "log_alone"
    code, printed = ended(start(argv, devices, log), log)
    assert code == 0, printed


def finish_several(argv, directory, number=2, devices=2):
    """Runs a command in several processes to its end, which has to be a good one."""
    for i, process in enumerate(start_several([argv] * number, directory, devices)):
        code, printed = ended(process, directory / f"log{i}")
        assert code == 0, printed


def wait_for_checkpoint(run_dir, process):
    """Waits until there is a checkpoint below a directory of a run, or of a batch of a sweep."""
    end = time.monotonic() + LIMIT_S
    while not list_steps(run_dir) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    assert list_steps(run_dir)
