"""XLA's flags for GPUs: set where there is a driver, and never over those that are given."""

import os

import pytest

from purejaxppo.devices import gpu

CONCURRENT = "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT"
APART = "--xla_gpu_dot_merger_threshold_mb=0"


@pytest.mark.parametrize("jaxlib", ["0.10.2", "0.11.0"])
def test_ours_are_added_to_those_that_are_given(jaxlib):
    assert gpu.missing_flags({}, jaxlib) == f"{CONCURRENT} {APART}"
    assert gpu.missing_flags({"XLA_FLAGS": "--xla_dump_to=x"}, jaxlib) == f"--xla_dump_to=x {CONCURRENT} {APART}"


def test_a_flag_that_is_given_stays():
    given = "--xla_gpu_command_buffer_scheduling_mode=SERIALIZE"
    assert gpu.missing_flags({"XLA_FLAGS": given}, "0.10.2") == f"{given} {APART}"
    both = f"{given} --xla_gpu_dot_merger_threshold_mb=32"
    assert gpu.missing_flags({"XLA_FLAGS": both}, "0.10.2") == both


@pytest.mark.parametrize("jaxlib", ["0.9.1", "0.12.0", "1.0", "nightly"])
def test_a_version_that_was_not_tried_gets_none(jaxlib):
    """jaxlib would end the process at a flag that it no longer knows."""
    assert gpu.missing_flags({"XLA_FLAGS": "--a=b"}, jaxlib) == "--a=b"


@pytest.mark.parametrize("there", [True, False])
def test_they_are_set_where_there_is_a_driver(there, tmp_path, monkeypatch):
    driver = tmp_path / "nvidiactl"
    if there:
        driver.touch()
    monkeypatch.setattr(gpu, "_DRIVERS", (str(driver),))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    gpu.set_flags()
    assert os.environ.get("XLA_FLAGS") == (f"{CONCURRENT} {APART}" if there else None)


def test_jaxlib_knows_them(server, tmp_path):
    """Otherwise this process would end."""
    code, out, errors = server.script(
        tmp_path / "log", "import jax; print(jax.device_count())", XLA_FLAGS=f"{CONCURRENT} {APART}"
    )
    assert code == 0, errors
    assert int(out) >= 1
