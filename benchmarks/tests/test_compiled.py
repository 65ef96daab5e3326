"""Reading compiled programs: HLO written by hand, in the words of XLA, so that every number can be checked by eye."""

import json
import re

import pytest

from benchmarks import compare_results, run_compiled
from benchmarks.lib import device_target, plots
from benchmarks.lib.hlo_text import Module
from benchmarks.lib.launches import (
    Launch,
    Loop,
    by_source,
    collectives,
    findings,
    largest,
    loops_of_text,
    loops_of_thunks,
    modelled,
    per_update,
    totals,
)
from benchmarks.lib.thunks import read_thunks
from benchmarks.workers.compile_worker import described

# Four updates; in each a rollout of 8 rounds with a kernel and a copy, and then a kernel.
TEXT = """HloModule jit_block, is_scheduled=true

FileNames
1 "train.py"

FunctionNames
1 "advance"
2 "rollout.<locals>.step"
3 "scan_over_time"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=2 end_line=2 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=3 end_line=3 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%fused_update (p0: f32[8,100], p1: s32[], p2: f32[100]) -> f32[8,100] {
  %p0 = f32[8,100]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[100]{0} parameter(2)
  %row = f32[1,100]{1,0} bitcast(%p2)
  ROOT %dus = f32[8,100]{1,0} dynamic-update-slice(%p0, %row, %p1, %p1)
}

%fused_add (q0: f32[8,100], q1: f32[100]) -> (f32[100], pred[100]) {
  %q0 = f32[8,100]{1,0} parameter(0)
  %q1 = f32[100]{0} parameter(1)
  %zero = s32[] constant(0)
  %flat = f32[800]{0} bitcast(%q0)
  %part = f32[100]{0} dynamic-slice(%flat, %zero), dynamic_slice_sizes={100}
  %sum = f32[100]{0} add(%part, %q1)
  %test = pred[100]{0} compare(%sum, %q1), direction=LT
  ROOT %both = (f32[100]{0}, pred[100]{0}) tuple(%sum, %test)
}

%step (s: (s32[], f32[8,100], f32[100])) -> (s32[], f32[8,100], f32[100]) {
  %s = (s32[], f32[8,100]{1,0}, /*index=2*/f32[100]{0}) parameter(0)
  %s.0 = s32[] get-tuple-element(%s), index=0
  %s.1 = f32[8,100]{1,0} get-tuple-element(%s), index=1
  %s.2 = f32[100]{0} get-tuple-element(%s), index=2
  %update_fusion = f32[8,100]{1,0} fusion(%s.1, %s.0, %s.2), kind=kLoop, calls=%fused_update, metadata={op_name="jit(block)/while" stack_frame_id=2}
  %copy.1 = f32[100]{0} copy(%s.2), metadata={stack_frame_id=1}
  ROOT %s.t = (s32[], f32[8,100]{1,0}, f32[100]{0}) tuple(%s.0, %update_fusion, %copy.1)
}

%more (m: (s32[], f32[8,100], f32[100])) -> pred[] {
  %m = (s32[], f32[8,100]{1,0}, f32[100]{0}) parameter(0)
  %m.0 = s32[] get-tuple-element(%m), index=0
  %eight = s32[] constant(8)
  ROOT %less = pred[] compare(%m.0, %eight), direction=LT
}

%update (u: (s32[], f32[8,100], f32[100])) -> (s32[], f32[8,100], f32[100]) {
  %u = (s32[], f32[8,100]{1,0}, f32[100]{0}) parameter(0)
  %rollout = (s32[], f32[8,100]{1,0}, f32[100]{0}) while(%u), condition=%more, body=%step, metadata={stack_frame_id=3}, backend_config={"known_trip_count":{"n":"8"}}
  %u.0 = s32[] get-tuple-element(%rollout), index=0
  %u.1 = f32[8,100]{1,0} get-tuple-element(%rollout), index=1
  %u.2 = f32[100]{0} get-tuple-element(%rollout), index=2
  %add_fusion = (f32[100]{0}, pred[100]{0}) fusion(%u.1, %u.2), kind=kLoop, calls=%fused_add, metadata={stack_frame_id=1}
  %u.3 = f32[100]{0} get-tuple-element(%add_fusion), index=0
  ROOT %u.t = (s32[], f32[8,100]{1,0}, f32[100]{0}) tuple(%u.0, %u.1, %u.3)
}

ENTRY %main (x: f32[8,100], y: f32[100]) -> f32[100] {
  %x = f32[8,100]{1,0} parameter(0)
  %y = f32[100]{0} parameter(1)
  %first = s32[] constant(0)
  %copy.2 = s32[] copy(%first)
  %start = (s32[], f32[8,100]{1,0}, f32[100]{0}) tuple(%copy.2, %x, %y)
  %updates = (s32[], f32[8,100]{1,0}, f32[100]{0}) while(%start), condition=%more, body=%update, metadata={stack_frame_id=1}, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %out = f32[100]{0} get-tuple-element(%updates), index=2
}
"""  # noqa: E501

# The same as the runtime of a GPU does it; the loop over updates has a graph, and a loop in it.
THUNKS = """000: kCopy [source | sink] kCopy
001: kWhile [prev=000]
condition:
    002: kCustomKernel [source] less grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
  body:
    003: kWhile [source]
condition:
        004: kCustomKernel [source] less grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
      body:
        000: kCommandBuffer [source]
            005: kAsyncStart [source] stream=computation_stream[1], async_id=5
                006: kDynamicSliceFusion [source] params=1, results=1
                    007: kCopy [source] kCopy
            008: kCustomKernel [source] update grid: [4, 2, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
            009: kAsyncDone [source] async_id=5
    010: kCustomKernel [source] add grid: [1, 1, 1] threads: [100, 1, 1]  shared_memory: 0 bytes
"""
NAMES = {
    0: "copy.2",
    1: "updates",
    2: "less",
    3: "rollout",
    4: "less",
    5: "copy.1",
    8: "update_fusion",
    10: "add_fusion",
}
METADATA = "".join(
    f'thunk_metadata {{\n  thunk_info {{\n    profile_annotation: "{name}"\n    thunk_id: {number}\n  }}\n}}\n'
    for number, name in NAMES.items()
)


def one_line(line, fast=None, before="  %x = f32[100]{0} parameter(0)\n"):
    return Module(f"ENTRY %main (x: f32[100]) -> f32[100] {{\n{before}  ROOT {line}\n}}\n", fast)


def test_instructions_and_loops_of_a_text():
    module = Module(TEXT)
    assert module.entry.name == "main"
    loops = loops_of_text(module)
    assert [(loop.name, loop.trips, loop.rounds, loop.depth) for loop in loops] == [
        ("entry", 1, 1, 0),
        ("updates", 4, 4, 1),
        ("rollout", 8, 32, 2),
    ]
    assert [[x.name for x in loop.launches] for loop in loops] == [
        ["copy.2"],
        ["add_fusion"],
        ["update_fusion", "copy.1"],
    ]


def test_launches_per_update_leave_out_what_is_done_once_per_call():
    update = per_update(loops_of_text(Module(TEXT)), 4)
    # The update reads 400 + 4 bytes and writes 400 in place; the copy moves 800; the sum reads 800 and writes 500.
    assert totals(update) == {
        "launches": 17, "kernels": 9, "copies": 8, "graphs": 0, "bytes": 8 * (804 + 800) + 800 + 500,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no loop over its 5 updates"):
        per_update(loops_of_text(Module(TEXT)), 5)


def test_bytes_of_slices_and_of_updates_in_place():
    module = Module(TEXT)
    assert module.moved(module.find("update_fusion")) == (4 + 400, 400)
    assert module.moved(module.find("add_fusion")) == (400 + 400, 400 + 100)
    assert module.moved(module.find("copy.1")) == (400, 400)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%y = f32[100]{0} copy(%x)", (400, 400)),
        ("%y = bf16[100]{0} convert(%x)", (400, 200)),
        ("%y = f32[10]{0} dynamic-slice(%x, %i), dynamic_slice_sizes={10}", (40 + 4, 40)),
        ("%y = (f32[100]{0}, f32[100]{0}, u32[]) copy-start(%x)", (400, 400)),
        ("%y = f32[100]{0} multiply(%x, %x)", (400, 400)),
        ("%y = f32[100]{0} dynamic-update-slice(%x, %i, %i)", (4, 4)),
    ],
)
def test_bytes_of_instructions_that_are_in_no_fusion(line, expected):
    before = "  %x = f32[100]{0} parameter(0)\n  %i = s32[] parameter(1)\n"
    module = one_line(line, before=before)
    assert module.moved(module.find("y")) == expected


def test_a_tpu_pads_to_tiles_and_its_vector_memory_is_not_counted():
    module = one_line("%y = f32[100]{0:T(128)S(1)} copy(%x)", fast=1)
    assert module.size("f32[20,3]{1,0:T(8,128)}") == 24 * 128 * 4
    assert module.size("f32[20,3]{0,1:T(4,128)}") == 4 * 128 * 4
    assert module.size("(f32[100]{0:T(128)S(1)}, s32[])") == 4
    assert module.moved(module.find("y")) == (400, 0)


def test_functions_that_instructions_come_from():
    module = Module(TEXT)
    assert module.source(module.find("update_fusion")) == "rollout.step"
    assert module.source(module.find("rollout")) == "rollout.step"  # not the helper around it
    assert module.source(module.find("copy.2")) == ""
    assert [row["source"] for row in by_source(per_update(loops_of_text(module), 4), 1e12)] == [
        "advance",
        "rollout.step",
    ]


def test_rounds_of_a_loop_follow_from_its_condition_where_xla_does_not_print_them():
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"4"}}', "")
    text = text.replace(
        "%u.0 = s32[] get-tuple-element(%rollout), index=0",
        "%one = s32[] constant(1)\n  %old = s32[] get-tuple-element(%u), index=0\n  %u.0 = s32[] add(%old, %one)",
    )
    module = Module(text)
    assert module.trips(module.find("updates")) == 8
    # A bound that is no constant, a step that is not seen, a first value that is no constant.
    for old, new in (
        ("%eight = s32[] constant(8)", "%eight = s32[] get-tuple-element(%m), index=0"),
        ("add(%old, %one)", "multiply(%old, %one)"),
        ("%copy.2 = s32[] copy(%first)", "%copy.2 = s32[] negate(%first)"),
    ):
        module = Module(text.replace(old, new))
        assert module.trips(module.find("updates")) is None
        assert findings(module)["unknown_trips"] == ["updates"]


def test_thunks_say_what_is_in_a_graph():
    module = Module(TEXT)
    loops = loops_of_thunks(module, read_thunks(THUNKS, METADATA))
    assert [(loop.name, loop.rounds, loop.graphs) for loop in loops] == [
        ("entry", 1, 0),
        ("updates", 4, 0),
        ("rollout", 32, 1),
    ]
    assert [[(x.kind, x.name, x.grid) for x in loop.launches] for loop in loops[1:]] == [
        [("kernel", "add_fusion", "1x100")],
        [("copy", "copy.1", ""), ("kernel", "update_fusion", "8x128")],
    ]
    of_text = totals(per_update(loops_of_text(module), 4))
    assert totals(per_update(loops, 4)) == {**of_text, "graphs": 8}
    with pytest.raises(ValueError, match="no thunks"):
        read_thunks("", METADATA)


def test_the_stages_of_a_sort_are_one_launch():
    module = one_line("%sort.1 = f32[100]{0} sort(%x), to_apply=%less")
    stages = "".join(f"00{i}: kCustomKernel [source] stage grid: [1, 1, 1] threads: [1, 1, 1]\n" for i in range(3))
    metadata = "".join(f'thunk_metadata {{ profile_annotation: "sort.1" thunk_id: {i} }}' for i in range(3))
    (entry,) = loops_of_thunks(module, read_thunks(stages, metadata))
    assert [x.name for x in entry.launches] == ["sort.1"]
    assert findings(module)["sorts"] == ["sort.1"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('%c = () custom-call(%x), custom_call_target="xla_ffi_python_gpu_callback"', "callbacks"),
        ('%c = f32[100]{0} custom-call(%x), custom_call_target="__cub$DeviceRadixSort"', "sorts"),
        ('%c = f32[100]{0} custom-call(%x), custom_call_target="MoveToHost"', "host_transfers"),
        ("%c = (f32[100]{0}, token[]) infeed(%x)", "host_transfers"),
        ("%c = f32[100]{0:S(5)} copy(%x)", "host_transfers"),
        ("%c = f32[100]{0:S(5)} copy-start(%x)", "host_transfers"),
    ],
)
def test_what_an_update_should_not_have_is_found(line, what):
    assert {name for name, found in findings(one_line(line)).items() if found} == {what}
    assert not any(findings(Module(TEXT)).values())
    row = {"findings": findings(one_line(line))}
    assert run_compiled.found(row) == f"1 {what.replace('_', ' ')}"


def test_exchanges_between_devices():
    module = one_line("%all-reduce.1 = f32[100]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add")
    (row,) = collectives(module, loops_of_text(module))
    assert (row["kind"], row["bytes"], row["per_update"]) == ("all-reduce", 400, 1)
    fast = "%all-reduce.1 = f32[100]{0:S(1)} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add"
    module = one_line(fast, fast=1, before="  %x = f32[100]{0:S(1)} parameter(0)\n")
    assert [row["bytes"] for row in collectives(module, loops_of_text(module))] == [400]  # which travel all the same
    inside = """%fused (p: f32[50]) -> f32[50] {
  %p = f32[50]{0} parameter(0)
  ROOT %r = f32[50]{0} all-reduce(%p), to_apply=%add
}

"""
    text = "ENTRY %main (x: f32[50]) -> f32[50] {\n  %x = f32[50]{0} parameter(0)\n"
    fused = "  ROOT %f = f32[50]{0} fusion(%x), kind=kCustom, calls=%fused\n}\n"
    module = Module(inside + text + fused)
    (row,) = collectives(module, loops_of_text(module))
    assert (row["kind"], row["name"], row["bytes"]) == ("all-reduce", "f", 200)


def test_the_model_takes_the_launch_or_the_bytes():
    loop = Loop("l", "", 10, 10, 1, [Launch("kernel", "small", "f", 1e3, 0), Launch("copy", "large", "f", 3e6, 3e6)])
    assert modelled([loop], 1e12) == pytest.approx(10 * (1.5e-6 + 6e-6))
    assert modelled([loop], 1e15) == pytest.approx(10 * (1.5e-6 + 1.5e-6))
    rows = largest([loop], 1e12, 1)
    assert [(row["name"], row["ms_per_update"]) for row in rows] == [("large", pytest.approx(0.06))]


def test_launches_that_differ_in_their_number_alone_are_one_row():
    loop = Loop("l", "", 2, 2, 1, [Launch("kernel", f"add.{i}", "f", 1.0, 1.0) for i in range(3)])
    assert [(row["name"], row["per_update"]) for row in largest([loop], 1e12, 9)] == [("add", 6)]


@pytest.mark.parametrize("name", device_target.names())
def test_every_device_has_what_the_model_and_xla_need(name):
    target = device_target.load(name)
    assert 1e11 < target.bytes_per_s < 1e13
    assert 1e10 < target.memory_bytes < 1e12
    assert target.compiler in ("cuda", "tpu")
    # Each number is followed by where it is from; a table has one source for all of it.
    numbers = (device_target.FOLDER / f"{name}.toml").read_text().split("\n[")[0].splitlines()
    assert all("# " in line for line in numbers if re.search(r"= \d", line))
    if target.compiler == "cuda":
        text = device_target.target_config(target, sorts=False)
        assert f'name: "{target.name}"' in text
        assert text.count("{") == text.count("}")
        assert "cub_version" in text
        assert "cub_version" not in device_target.target_config(target, sorts=True)
        assert device_target.topology(target, 8) == ("cuda", "1x1x8")
    else:
        assert device_target.topology(target, 1) == ("tpu", f"{name}:2x2")
        assert device_target.topology(target, 8) == ("tpu", f"{name}:2x4")


def test_an_unknown_device_is_refused_in_one_line(capsys):
    with pytest.raises(ValueError, match="one of a100, h100, h200, v5e, v6e"):
        device_target.load("h10")
    with pytest.raises(SystemExit) as error:
        run_compiled.main(["h10"])
    assert error.value.code == 2
    assert "there is no device 'h10' in benchmarks/targets; give one of a100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [("h100", ("h100", 1)), ("h100x8", ("h100", 8)), ("a100x2", ("a100", 2)), ("v5e-2x2", ("v5e", 4)),
     ("v6e-2x4", ("v6e", 8))],
)  # fmt: skip
def test_several_of_a_device(text, found):
    assert device_target.several(text) == found


@pytest.mark.parametrize("text", ["h100x9", "h100x0", "h100-2x4", "v5ex4", "v5e-4x4", "h100x"])
def test_more_than_a_host_has_is_refused(text):
    with pytest.raises(ValueError, match=r"is not on one host; give h100x2|there is no device"):
        device_target.several(text)


def result(tmp_path, name, **changes):
    """Writes a file with the program of TEXT, and returns its path and its row."""
    target = device_target.load("h100")
    loops = loops_of_thunks(Module(TEXT), read_thunks(THUNKS, METADATA))
    answer = described(target, Module(TEXT), loops)
    memory = {"temporary_bytes": 1000, "argument_bytes": 10}
    answer |= {"env_steps_per_update": 800, "compile_s": 1.0, "trace_s": 0.1, "memory": memory, **changes}
    program = run_compiled.programs()["64x128"]
    row = run_compiled.row_of("64x128", program, target, answer)
    machine = {"device": target.name, "cpu_cores": 2, "versions": {"jax": "0.11.2"}}
    section = {"rows": [row], "compiler": "cuda"}
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "sections": {"compiled": section}}))
    return path, row


def test_a_row_and_its_tables_and_picture(tmp_path):
    path, row = result(tmp_path, "r")
    # 17 launches, of which none moves enough for the bytes to count.
    assert row["ms_per_update"] == pytest.approx(17 * 1.5e-3)
    assert row["env_steps_per_s"] == pytest.approx(800 / 25.5e-6)
    for compiler in ("cuda", "tpu"):
        assert len(run_compiled.cells(row, compiler)) == len(run_compiled.HEAD[compiler])
        assert len(run_compiled.cells({"name": "x", "error": "e"}, compiler)) == len(run_compiled.HEAD[compiler])
    assert "  rollout" in run_compiled.loop_table(row)
    assert "update_fusion" in run_compiled.launch_table(row)
    (picture,) = plots.draw(json.loads(path.read_text()), path)
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.019, 0), (1.021, 1), (0.5, 0)])
def test_a_count_that_grows_by_more_than_two_percent_is_a_regression(tmp_path, capsys, factor, code):
    before, _ = result(tmp_path, "before", memory={"temporary_bytes": 1000, "argument_bytes": 10})
    after, _ = result(tmp_path, "after", memory={"temporary_bytes": 1000 * factor, "argument_bytes": 10})
    assert compare_results.main([str(before), str(after)]) == code
    assert ("REGRESSED" in capsys.readouterr().out) == bool(code)


def test_seconds_of_one_compilation_are_not_judged(tmp_path, capsys):
    before, _ = result(tmp_path, "before")
    after, _ = result(tmp_path, "after", compile_s=9.0)
    assert compare_results.main([str(before), str(after)]) == 0
    assert "too few repetitions" in capsys.readouterr().out


def test_several_devices_get_shards_of_their_own():
    target, programs = device_target.load("h100"), run_compiled.programs()
    assert run_compiled.request(target, programs["2048x128"], 8)["settings"]["config"] == {"num_shards": 8}
    assert run_compiled.request(target, programs["runs-256"], 8)["settings"]["config"] == {}
    assert run_compiled.request(target, programs["gru"], 1)["settings"]["config"] == {"policy": "gru"}
