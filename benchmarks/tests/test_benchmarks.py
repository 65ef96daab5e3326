"""The benchmark at tiny sizes: that it measures and reports, not how fast anything is."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from scipy import stats

from benchmarks import compare_results, run
from benchmarks.lib import plots, report
from benchmarks.lib.flop_model import limit, per_step
from benchmarks.lib.hlo_kernels import count_kernels
from benchmarks.lib.intervals import median_interval, ratio_interval
from benchmarks.lib.worker_process import HOME, WorkerError, call
from benchmarks.sections import scaling, throughput, update_breakdown
from benchmarks.trainers.protocol import Settings
from benchmarks.workers.machine_info import machine_info

LIMIT_S = 240.0
MACHINE = {"matmul_flop_per_s": 1e12, "tanh_per_s": 1e10, "bytes_per_s": 1e11, "kernel_s": 1e-6}


def test_interval_of_a_median_agrees_with_order_statistics():
    assert median_interval([2.0] * 5) == (2.0, 2.0, 2.0)
    # Of three draws from three numbers, at least two are the smallest one with 7/27: far more than 2.5 %.
    assert median_interval([1.0, 2.0, 3.0]) == (2.0, 1.0, 3.0)
    samples = np.arange(1.0, 102.0)
    value, low, high = median_interval(samples)
    assert value == 51.0
    expected = stats.binom.ppf([0.025, 0.975], 101, 0.5)
    np.testing.assert_allclose([low, high], expected + 0.5, atol=2.0)


def test_interval_of_a_ratio():
    assert ratio_interval([4.0] * 3, [2.0] * 4) == (2.0, 2.0, 2.0)
    value, low, high = ratio_interval([9.0, 10.0, 11.0], [5.0, 5.0, 5.0])
    assert (value, low, high) == (2.0, 1.8, 2.2)


@pytest.mark.parametrize("noisy", [0, 1])
def test_interval_of_a_ratio_of_samples_of_different_sizes(noisy):
    generator = np.random.default_rng(1)
    spread = [0.02, 0.02]
    spread[noisy] = 1.0  # so that this sample's size decides how wide the interval is
    above, below = 10 + spread[0] * generator.uniform(-1, 1, 12), 5 + spread[1] * generator.uniform(-1, 1, 7)
    medians = [np.median(generator.choice(x, (20_000, len(x))), axis=1) for x in (above, below)]
    expected = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    value, low, high = ratio_interval(above, below)
    assert value == pytest.approx(np.median(above) / np.median(below))
    np.testing.assert_allclose([low, high], expected, atol=0.1 * (expected[1] - expected[0]))


def test_model_of_the_work():
    step = per_step(4, 2)
    # 8,896 weights: 17,792 FLOP forward, three times that per epoch less 2 x 512 for the observations' gradient.
    assert step.flop == 17_792 + 4 * (3 * 17_792 - 2 * 512) == 227_200
    assert (step.tanh, step.bytes_unfused) == (1280, 45_056)
    bound = limit(step, MACHINE, kernels_per_step=0.5)
    assert bound.compute == pytest.approx(227.2e-9 + 128e-9)
    assert bound.env_steps_per_s == pytest.approx(1 / 0.5e-6)  # the kernels take longest
    assert limit(step, MACHINE).env_steps_per_s == pytest.approx(1 / bound.compute)


def test_kernels_are_counted_as_often_as_their_loop_runs():
    text = """HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %a = f32[4]{0} fusion(%p), kind=kLoop, calls=%inside
  %b = f32[4]{0} custom-call(%a), custom_call_target="gemm"
  ROOT %t = (s32[], f32[4]{0}) tuple(%p, %b)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %w = (s32[], f32[4]{0}) while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %r = f32[4]{0} reduce(%w), to_apply=%add
}
"""
    assert count_kernels(text) == 2 * 10 + 1
    import jax
    import jax.numpy as jnp

    def loops(rounds):
        f = jax.jit(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=rounds)[0])
        return count_kernels(f.lower(jnp.ones((16, 16))).compile().as_text())

    assert loops(200) - loops(100) >= 100


def test_both_arms_take_turns():
    work = Settings("CartPole-v1", 2, 8, num_runs=2)
    arms = throughput.arms_for(work)
    assert arms == ["purejaxppo", "common shape"]
    row = throughput.measure(work, {}, repetitions=3, seconds=0.0)
    assert [list(times) for times in row["seconds"]] == [arms, arms[::-1], arms]
    assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
    assert [len(figure["samples"]) for figure in row["figures"]] == [3, 1, 3]
    assert len(throughput.cells(row)) == len(throughput.HEAD)


def test_an_arm_that_was_started_is_not_started_again():
    work = Settings("Pendulum-v1", 2, 8)
    (arm,) = throughput.arms_for(work)
    with throughput.start_arm(arm, work) as worker:
        row = throughput.measure(work, {arm: worker}, repetitions=1, seconds=0.0)
        assert worker.process.poll() is not None  # ended as soon as it has been measured
    assert len(row["seconds"]) == 1


def test_every_platform_has_its_work():
    for where in ("cpu", "gpu"):
        names = [work.name for work in throughput.works(where, quick=False)]
        assert len(set(names)) == len(names)
        assert {work.name for work in throughput.works(where, quick=True)} <= set(names)
        assert all(2 <= throughput.updates_per_call(w, where) <= 64 for w in throughput.works(where, quick=False))
    assert throughput.arms_for(Settings("Pendulum-v1", 32, 64)) == ["purejaxppo"]


def test_a_worker_that_fails_says_who_it_is_and_why():
    with pytest.raises(WorkerError, match=r"scaling_worker: .*nothing"):
        call("scaling_worker", json.dumps({"nothing": 1}), limit=LIMIT_S)


def test_parts_of_an_update_add_up():
    from benchmarks.workers import breakdown_worker

    measured = breakdown_worker.measure(2, 8, repetitions=2)
    rows = update_breakdown.part_rows("2x8", measured)
    for i in range(2):
        seconds = {row["part"]: row["seconds"][i] for row in rows}
        assert sum(seconds[part] for part in update_breakdown.PARTS) == pytest.approx(seconds["whole update"])
    bound = update_breakdown.limit_row("2x8", measured, MACHINE, "gpu")
    assert bound["chain_ns"] > 0
    assert bound["achieved"] > 0
    assert update_breakdown.limit_row("2x8", measured, MACHINE, "cpu")["chain_ns"] == 0


def test_limits_are_positive(monkeypatch):
    from benchmarks.workers import hardware_limits

    monkeypatch.setattr(hardware_limits, "SECONDS", 0.0)
    found = hardware_limits.measure(hardware_limits.Sizes((16,), 16, 64, 256, 1e4))
    assert all(found[name] > 0 for name in MACHINE)
    assert len(found["matmul_rates"]) == 3


@pytest.mark.parametrize(("sweep", "value"), [("num_envs", 2), ("total_timesteps", 2 * 64 * 8)])
def test_a_point_of_scaling(sweep, value):
    from benchmarks.workers import scaling_worker

    row = scaling_worker.measure(sweep, value, repetitions=2, num_steps=8)
    assert all(math.isfinite(speed) and speed > 0 for speed in row["env_steps_per_s"])
    assert row["program_bytes"] > 0
    assert row["process_peak_bytes"] > 1e6
    cells = scaling.cells({**row, "sweep": sweep, "value": value, "median_env_steps_per_s": 1.0})
    assert len(cells) == len(scaling.HEAD)


SECTIONS = {
    "fine": "open(sys.argv[-1], 'w').write(json.dumps({'rows': [{'quick': '--quick' in sys.argv}]}))",
    "empty": "open(sys.argv[-1], 'w').write(json.dumps({'rows': []}))",
    "failing": "open(sys.argv[-1], 'w').write('{\"rows\": [{}]}'); sys.exit(3)",
    "hanging": "time.sleep(600)",
}


@pytest.mark.parametrize(
    ("name", "status", "rows"),
    [
        ("fine", "done", 1),
        ("empty", "failed", 0),
        ("failing", "failed", 1),
        ("hanging", "timed out", 0),
    ],
)
def test_a_section_that_breaks_is_reported(monkeypatch, tmp_path, name, status, rows):
    for section, code in SECTIONS.items():
        (tmp_path / f"{section}.py").write_text(f"import json, sys, time\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    content = run.run_section(name, True, limit=0.5 if name == "hanging" else LIMIT_S, env=dict(os.environ))
    assert (content["status"], len(content["rows"])) == (status, rows)
    assert run.report({name: content}) == (status == "done")


@pytest.mark.parametrize("out", ["", "directory", "file/result.json", "file/new/result.json"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(monkeypatch, tmp_path, capsys, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "call", lambda _: pytest.fail("something was begun"))
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    assert run.main(["--out", out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmark: --out")
    assert error.count("\n") == 1


def test_the_check_of_a_file_leaves_nothing_and_changes_nothing(tmp_path):
    run.check_out(tmp_path / "new" / "result.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "result.json").write_text("kept")
    run.check_out(tmp_path / "result.json")
    assert (tmp_path / "result.json").read_text() == "kept"


def test_a_second_benchmark_at_the_same_time_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(run, "call", lambda _: pytest.fail("something was begun"))
    with run.alone():
        assert run.main(["--out", str(tmp_path / "result.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmark: another benchmark is running")
    assert error.count("\n") == 1
    with run.alone():  # free again
        pass


INTERRUPTED = """
import sys
from benchmarks import run
for name in ("startup", "clock"):
    run.SECTIONS[name] = run.SECTIONS[name]._replace(module=name)
run.call = lambda _: {"device": "X", "cpu_cores": 1, "versions": {"jax": "1"}, "commit": "x", "platform": "cpu"}
sys.exit(run.main(["--out", sys.argv[1] + "/result.json", "--sections", *sys.argv[2:]]))
"""
SAYS_ITS_PID = "open(sys.argv[0] + '.pid', 'w').write(str(os.getpid()) + '.'); time.sleep(600)"


@pytest.mark.parametrize(
    ("sections", "says"),
    [(["clock"], "nothing was measured yet"), (["startup", "clock"], "startup in ")],
)
def test_an_interrupted_benchmark_says_what_there_is_and_leaves_no_process(tmp_path, sections, says):
    for name, code in (("startup", SECTIONS["fine"]), ("clock", SAYS_ITS_PID)):
        (tmp_path / f"{name}.py").write_text(f"import json, os, sys, time\n{code}\n")
    path = os.pathsep.join([str(tmp_path), str(HOME)])
    env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), *sections]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "clock.py.pid"
    while not (pid.exists() and pid.read_text().endswith(".")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert errors.startswith("benchmark: interrupted")
    assert says in errors
    assert errors.count("\n") == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()[:-1]), 0)


def test_facts_are_complete_and_json():
    found = json.loads(json.dumps(machine_info()))
    assert found["platform"] == "cpu"
    assert found["precision"]["matmul"] == "default"
    assert {"versions", "nvidia", "environment", "commit", "cpu", "cpu_cores", "device"} <= found.keys()


def test_default_file_is_named_after_the_device():
    assert run.default_out("Intel(R) Xeon(R) CPU @ 2.60GHz").name == "benchmark-intel-xeon.json"
    assert run.default_out("NVIDIA H100 80GB HBM3").name == "benchmark-nvidia-h100-80gb-hbm3.json"


def point(sweep, value):
    sizes = {"program_bytes": 1e6 * value, "device_peak_bytes": None, "process_peak_bytes": 1e9}
    return {"sweep": sweep, "value": value, "median_env_steps_per_s": 1e5 * value, **sizes}


def example(samples, better="higher", unit="env steps/s"):
    """Returns a file of the benchmark with one figure."""
    figure = report.figure("speed", unit, samples, better)
    machine = {"device": "X", "cpu": "X", "cpu_cores": 2, "versions": {"jax": "1"}}
    speeds = {"name": "work", "env_steps_per_s": {"purejaxppo": 2e5, "common shape": 1e5}, "ratio": {"value": 2.0}}
    sections = {"throughput": {"rows": [{**speeds, "figures": [figure]}, {"name": "other", "error": "it broke"}]}}
    return {"machine": machine, "sections": sections}


def test_pictures_are_drawn(tmp_path):
    result = example([1.0])
    timed = "environment", "rollout", "advantage", "one epoch", "epochs", "whole update"
    parts = {"seconds": [dict.fromkeys(timed, 1e-3)], "kernels_per_update": 10.0, "env_steps_per_update": 16}
    rows = [*update_breakdown.part_rows("2x8", parts), update_breakdown.limit_row("2x8", parts, MACHINE, "cpu")]
    result["sections"]["breakdown"] = {"rows": rows}
    result["sections"]["scaling"] = {"rows": [point("num_envs", 2), point("num_envs", 2000), point("runs", 4)]}
    drawn = plots.draw(result, tmp_path / "result.json")
    assert [path.name for path in drawn] == [f"result-{name}.png" for name in ("throughput", "breakdown", "scaling")]
    assert all(path.stat().st_size > 10_000 for path in drawn)


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (example([100, 101, 102]), example([99, 100, 101]), 0),
        (example([100, 101, 102]), example([80, 81, 82]), 1),
        (example([80, 81, 82]), example([100, 101, 102]), 0),
        (example([1.0, 1.01, 1.02], "lower"), example([1.2, 1.21, 1.22], "lower"), 1),
        (example([100, 101, 102]), example([80, 90, 110]), 0),  # the interval reaches above
        (example([100]), example([80]), 0),  # one repetition says nothing
        (example([100] * 3), example([80] * 3, unit="s"), 2),
        (example([100] * 3), example([]), 2),
        (example([100] * 3), {"sections": {}}, 2),
        (example([100] * 3), {"sections": {"peers": {"rows": [{"name": "no figures"}]}}}, 2),
        (example([100] * 3), [1, 2], 2),
    ],
)
def test_regression(tmp_path, before, after, code):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, content in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(content))
    assert compare_results.main([*map(str, paths)]) == code


def test_regression_of_unreadable_files_and_other_machines(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(example([100] * 3)))
    (tmp_path / "b.json").write_text("{")
    assert compare_results.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert compare_results.main([str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2
    other = example([94] * 3)
    other["machine"] |= {"device": "Y", "versions": {"jax": "2"}}
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert compare_results.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert compare_results.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--tolerance", "10"]) == 0
    errors = capsys.readouterr().err
    assert "differ in device: X and Y" in errors
    assert "differ in versions" in errors


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-1", "100"])
def test_regression_refuses_a_tolerance_that_hides_everything(tmp_path, capsys, tolerance):
    (tmp_path / "a.json").write_text(json.dumps(example([100] * 3)))
    assert compare_results.main([*[str(tmp_path / "a.json")] * 2, "--tolerance", tolerance]) == 2
    errors = capsys.readouterr().err
    assert "--tolerance" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("shape", ["64", "64x", "0x128", "64x128x2"])
def test_what_is_no_shape_is_refused(capsys, shape):
    options = report.section_parser(None)
    report.add_shapes(options)
    with pytest.raises(SystemExit, match="2"):
        options.parse_args(["--shapes", shape])
    assert f"'{shape}' is no shape" in capsys.readouterr().err


BROKEN = {"name": "work", "error": "it broke", "figures": [report.figure("speed", "env steps/s", [100] * 3)]}
OTHER = {"name": "other", "figures": [report.figure("other", "s", [1.0] * 3)]}


@pytest.mark.parametrize(
    ("sections", "quick", "code"),
    [
        ({"throughput": {"rows": [OTHER]}}, False, 1),
        ({"throughput": {"rows": [OTHER, BROKEN]}}, False, 1),
        ({"throughput": {"status": "timed out", "rows": []}}, False, 1),
        ({"throughput": {"rows": [OTHER]}}, True, 0),  # fewer cases
        ({"peers": {"rows": [OTHER]}}, False, 0),  # the section was not asked for
    ],
)
def test_what_vanished_is_no_pass(tmp_path, capsys, sections, quick, code):
    before = example([100] * 3)
    before["sections"]["throughput"]["rows"].append(OTHER)
    before["sections"]["peers"] = {"rows": [OTHER]}
    for name, content in (("a", before), ("b", {**before, "sections": sections, "quick": quick})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert compare_results.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == code
    out, errors = capsys.readouterr()
    assert ("vanished: " in out) == (code == 1)
    assert ("throughput: speed" in out) == (code == 1)
    assert "only the first file has" in errors  # the section that was left out
