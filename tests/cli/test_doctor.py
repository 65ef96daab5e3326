"""The doctor: a healthy machine passes every check, and each check fails for the fault that it is about."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purejaxppo.core.advantage
import purejaxppo.experiment.checkpoints.store
from purejaxppo.cli import doctor, self_check
from purejaxppo.devices import machine

NO_NVIDIA = {"driver": None, "gpus": [], "problem": None}
H200 = {"driver": "580.95.05", "gpus": ["NVIDIA H200"], "problem": None}
FACTS = {
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "requirements": ["python>=3.11", "jax<0.12,>=0.10.2"],
    "devices": [{"platform": "cpu", "kind": "cpu", "memory_bytes": None}],
    "nvidia": NO_NVIDIA,
    "cpu_cores": 2,
    "ram_bytes": 8_000_000_000,
    "environment": {},
}
CPU = SimpleNamespace(platform="cpu", device_kind="cpu", memory_stats=lambda: None)
GPU = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", memory_stats=lambda: {"bytes_limit": 10**11})


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Returns directory and report of this machine, as if it had no nvidia-smi."""
    directory = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
        return directory, doctor.examine(directory)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Returns a function that puts a shell script in nvidia-smi's place."""

    def put(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return put


def see(monkeypatch, *devices, asked=None):
    """Makes JAX see these devices, and makes it look as if these platforms had been asked for."""
    monkeypatch.setattr(jax, "devices", lambda: list(devices))
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=asked))


def check(name, **facts):
    """Runs one check alone."""
    if name in self_check.SELF_CHECKS:
        return doctor._run(name, self_check.SELF_CHECKS[name])
    return doctor._run(name, partial(doctor._MACHINE_CHECKS[name], {**FACTS, **facts}))


# --- the report -------------------------------------------------------------------------------------------------------


def test_a_healthy_machine(healthy):
    """Every check is ok, and nothing is left in the directory."""
    directory, report = healthy
    assert report["ok"]
    assert {c["name"]: c["status"] for c in report["checks"]} == dict.fromkeys(
        ["versions", "devices", "directory", "imports", "probability ratio", "advantages", "checkpoint"], "ok"
    )
    assert list(directory.iterdir()) == []


def test_the_report_is_json(healthy):
    """It is the same after writing and reading it."""
    report = healthy[1]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_is_found(healthy):
    """These are the installed versions, JAX's devices, cores and memory."""
    report = healthy[1]
    assert report["versions"]["jax"] == importlib.metadata.version("jax")
    assert set(report["versions"]) == {"python", *machine._PACKAGES}
    assert all(report["versions"].values())
    assert len(report["devices"]) == len(jax.devices())
    assert report["cpu_cores"] >= 1
    assert report["ram_bytes"] > 10**8
    assert report["environment"]["JAX_PLATFORMS"] == os.environ["JAX_PLATFORMS"]


def test_the_ratio_is_exactly_one(healthy):
    """On this CPU there is no rounding."""
    details = {c["name"]: c["detail"] for c in healthy[1]["checks"]}
    assert "exactly 1" in details["probability ratio"]


def test_tables(healthy):
    """Rows are strings of one length, with a row per check and per kind of device."""
    report = healthy[1]
    for rows in (doctor.describe_checks(report), machine.describe_machine(report)):
        assert {len(row) for row in rows} == {len(rows[0])}
        assert all(isinstance(cell, str) and cell for row in rows for cell in row)
    assert len(doctor.describe_checks(report)) == 1 + len(report["checks"])
    assert ["devices", f"{len(jax.devices())} x cpu (cpu)"] in machine.describe_machine(report)
    assert ["devices", "1 x gpu (H200), 141.0 GB each"] in machine.describe_machine(
        {**FACTS, "devices": [{"platform": "gpu", "kind": "H200", "memory_bytes": 141 * 10**9}]}
    )


def test_one_that_raises_does_not_stop_the_others(monkeypatch, tmp_path, healthy):
    """Its reason is one line; the report is not ok."""

    def explode(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(doctor._MACHINE_CHECKS, "versions", explode)
    monkeypatch.setitem(self_check.SELF_CHECKS, "imports", explode)
    report = doctor.examine(tmp_path)
    assert not report["ok"]
    broken = {c["name"]: c["detail"] for c in report["checks"] if c["status"] == "failed"}
    assert broken == dict.fromkeys(["versions", "imports"], "RuntimeError: first line")
    assert len(report["checks"]) == len(healthy[1]["checks"])


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.10.2", "0.11", "0.11.4rc1", "0.10.10"])
def test_supported_versions(version):
    """The lower bound is included, and versions are compared as numbers."""
    assert check("versions", versions={"python": "3.11.0", "jax": version}).status == "ok"


@pytest.mark.parametrize("version", ["0.10.1", "0.9.2", "0.12", "0.12.0.dev20260101", "1.0", None])
def test_unsupported_versions(version):
    """The upper bound is excluded; a missing package is unsupported, too."""
    result = check("versions", versions={"python": "3.11.0", "jax": version})
    assert result.status == "failed"
    assert "jax<0.12,>=0.10.2" in result.detail


def test_every_bound_of_the_project_is_understood():
    """`out_of_range` reads only < and >=."""
    assert machine._requirements()
    for line in machine._requirements():
        assert not set("=~!<>") & set(line.replace(">=", "").replace("<", "")), line


def test_a_bare_source_tree(monkeypatch):
    """Supported ranges are unknown in it, which is no failure."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert machine._requirements() == []
    assert machine._version("jax") is None
    assert check("versions", requirements=[]).status == "warning"


# --- devices ----------------------------------------------------------------------------------------------------------


def test_no_nvidia_smi(monkeypatch, tmp_path):
    """A machine without it has no problem."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._nvidia() == NO_NVIDIA


def test_nvidia_smi_answers(nvidia_smi):
    """It prints a line per GPU."""
    nvidia_smi("echo '580.95.05, NVIDIA H200'; echo '580.95.05, NVIDIA H200'")
    assert machine._nvidia() == {**H200, "gpus": ["NVIDIA H200"] * 2}


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found"])
def test_nvidia_smi_fails(nvidia_smi, script, monkeypatch):
    """There is a warning if the driver is not loaded or finds no device."""
    nvidia_smi(script)
    found = machine._nvidia()
    assert found["gpus"] == []
    see(monkeypatch, CPU)
    result = check("devices", nvidia=found)
    assert result.status == "warning"
    assert "no usable driver" in result.detail


def test_nvidia_smi_is_no_program(nvidia_smi, tmp_path):
    """The file has permission to be executed, but is not executable."""
    nvidia_smi("")
    (tmp_path / "nvidia-smi").write_bytes(b"\x00\x01")
    assert "cannot be run" in machine._nvidia()["problem"]


def test_nvidia_smi_hangs(nvidia_smi, monkeypatch):
    """It is given up, even if it ignores being killed."""
    nvidia_smi("exec /bin/sleep 60")
    monkeypatch.setattr(machine, "_NVIDIA_SECONDS", 0.1)
    assert "does not answer" in machine._nvidia()["problem"]

    immortal = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda process: immortal.append(process))
        assert "does not answer" in machine._nvidia()["problem"]
    immortal[0].kill()
    immortal[0].wait()


def test_a_gpu_in_use(monkeypatch):
    """The memory that JAX may take is in the report."""
    see(monkeypatch, GPU)
    assert machine._devices() == [{"platform": "gpu", "kind": "NVIDIA H200", "memory_bytes": 10**11}]
    assert check("devices", nvidia=H200).status == "ok"


@pytest.mark.parametrize(
    ("driver", "remedy"),
    [
        ("580.95.05", "-m pip install '.[cuda13]'"),
        ("550.54", "-m pip install '.[cuda12]'"),
        ("470.1", "too old"),
        ("[N/A]", "too old"),
    ],
)
def test_a_gpu_that_jax_does_not_see(monkeypatch, driver, remedy):
    """The advice is the build that fits the driver."""
    see(monkeypatch, CPU)
    result = check("devices", nvidia={**H200, "driver": driver})
    assert result.status == "warning"
    assert remedy in result.detail
    assert "pip" not in remedy or f"{sys.executable} {remedy}" in result.detail


def test_a_gpu_that_is_hidden_on_purpose(monkeypatch):
    """Another build would not help."""
    assert jax.config.jax_platforms == os.environ["JAX_PLATFORMS"]  # what `see` stands in for
    see(monkeypatch, CPU, asked="cpu")
    assert "JAX_PLATFORMS" in check("devices", nvidia=H200).detail
    see(monkeypatch, CPU, asked="cuda,cpu")
    assert "cuda13" in check("devices", nvidia=H200).detail
    hidden = check("devices", nvidia=H200, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert "CUDA_VISIBLE_DEVICES hides it" in hidden.detail


def test_jax_cannot_start(monkeypatch):
    """No device is found, and the check gives the reason."""

    def broken():
        raise RuntimeError("Unable to initialize backend")

    monkeypatch.setattr(jax, "devices", broken)
    assert machine._devices() == []
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms="cuda"))
    result = check("devices")
    assert result.status == "failed"
    assert "cannot start on cuda" in result.detail
    assert "Unable to initialize backend" in result.detail
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=""))
    result = check("devices", environment={"JAX_PLATFORM_NAME": "gpu"})
    assert "cannot start on gpu, as JAX_PLATFORMS, JAX_PLATFORM_NAME or --device asks" in result.detail
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=None))
    assert check("devices")[1:3] == ("failed", "RuntimeError: Unable to initialize backend")


def test_an_exception_without_text():
    """JAX raises one for JAX_PLATFORMS=cuda without its plugin."""
    assert doctor._reason(AssertionError()) == "AssertionError"


# --- directory --------------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_there_yet(tmp_path):
    """Its nearest existing parent is tried, and the directory is not made."""
    result = check("directory", directory=str(tmp_path / "a" / "b"))
    assert (result.status, list(tmp_path.iterdir())) == ("ok", [])
    assert str(tmp_path) in result.detail


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_file_in_the_directorys_place(tmp_path, below):
    """The same holds for a file in the place of a parent."""
    file = tmp_path / "file"
    file.write_text("mine")
    assert check("directory", directory=str(file / below)).status == "failed"
    assert file.read_text() == "mine"


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    """Root may write everywhere, so a full disk stands for it, which fsync reports."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = check("directory", directory=str(tmp_path))
    assert result.status == "failed"
    assert "No space left" in result.detail
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch):
    """Less than 1 GB is free."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 999_000_000))
    result = check("directory", directory=str(tmp_path))
    assert result.status == "warning"
    assert "999 MB" in result.detail


# --- what training stands on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["orbax.checkpoint", "purejaxppo.train"])
def test_a_package_that_is_missing(monkeypatch, module):
    """The check names it."""
    monkeypatch.setitem(sys.modules, module, None)
    result = check("imports")
    assert result.status == "failed"
    assert module in result.detail


@pytest.mark.parametrize("deviation", [2e-6, 0.1, np.nan])
def test_a_ratio_that_is_not_one(monkeypatch, deviation):
    """It is wrong in the second of two updates."""
    metrics = {"ratio/first_minibatch_deviation": jnp.array([0.0, deviation])}
    monkeypatch.setattr(self_check, "_small_run", lambda: (None, metrics))
    assert check("probability ratio").status == "failed"


GAE = purejaxppo.core.advantage.gae


@pytest.mark.parametrize(
    "wrong",
    [
        lambda r, v, n, term, trunc, g, lam: GAE(r, v, n, term, jnp.zeros_like(trunc), g, lam),
        lambda r, v, n, term, trunc, g, lam: GAE(r, v, n, term | trunc, trunc, g, lam),
        lambda r, v, n, term, trunc, g, lam: GAE(r, v, n, term & ~trunc, trunc, g, lam),
        lambda r, v, n, term, trunc, g, lam: GAE(r, v, n, term, trunc, g, 0.951),
        lambda r, v, *rest: (GAE(r, v, *rest)[0], GAE(r, v, *rest)[0]),
        lambda r, v, *rest: (jnp.full(r.shape, jnp.nan), v),
    ],
    ids=["truncation ignored", "truncation a death", "truncation first", "lambda", "target", "NaN"],
)
def test_advantages_that_are_wrong(monkeypatch, wrong):
    """Each case misreads a flag in another way."""
    monkeypatch.setattr(purejaxppo.core.advantage, "gae", wrong)
    assert check("advantages").status == "failed"


def test_a_state_that_comes_back_changed(monkeypatch):
    """One bit of it is changed."""
    load = purejaxppo.experiment.checkpoints.store.load_newest

    def other(*args, **options):
        runner, meta = load(*args, **options)
        return runner._replace(updates=runner.updates ^ 1), meta

    monkeypatch.setattr(purejaxppo.experiment.checkpoints.store, "load_newest", other)
    result = check("checkpoint")
    assert result.status == "failed"
    assert "not the same" in result.detail


def test_a_state_that_cannot_be_saved(monkeypatch, tmp_path):
    """The checkpoint's own error is the detail."""
    monkeypatch.setattr(self_check.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError("disk on fire")))
    result = check("checkpoint")
    assert result.status == "failed"
    assert "cannot save the checkpoint" in result.detail


# --- recommendations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("cores", [1, 2, 64])
def test_recommendations_are_sentences(platform, cores):
    """None is empty, and each ends with a full stop."""
    facts = {**FACTS, "cpu_cores": cores, "devices": [{"platform": platform, "kind": "", "memory_bytes": None}]}
    advice = doctor.recommend(facts)
    assert advice
    assert all(len(sentence) > 20 and sentence.endswith(".") for sentence in advice)


def test_recommendations_fit_the_machine():
    """They are small batches and few threads for a small CPU, and large batches for a GPU."""
    small = " ".join(doctor.recommend(FACTS))
    large = " ".join(doctor.recommend({**FACTS, "cpu_cores": 64}))
    gpu = " ".join(doctor.recommend({**FACTS, "devices": [{"platform": "gpu", "kind": "", "memory_bytes": None}]}))
    assert "lax.map" in small
    assert "8 to 64" in small
    assert "NPROC=4" in small
    assert "NPROC" not in large
    assert "2048 or more" in gpu
    assert "NPROC" not in gpu
    assert "jax<0.12,>=0.10.2" in small


@pytest.mark.parametrize(("threads", "warned"), [("1", False), ("2", True), ("3", True), ("4", False)])
def test_threads_that_may_hang(threads, warned):
    """Two or three threads may."""
    advice = doctor.recommend({**FACTS, "cpu_cores": 64, "environment": {"NPROC": threads}})
    assert any("may hang" in sentence for sentence in advice) == warned
