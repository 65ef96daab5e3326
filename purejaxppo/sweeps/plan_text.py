"""A plan in words."""

from typing import Any

from purejaxppo.devices.memory import readable
from purejaxppo.sweeps.spec import value_text


def describe_plan(record: dict[str, Any]) -> list[list[str]]:
    """A `plan_record` as rows of name and text."""
    programs = record["programs"]
    rows = [
        ["runs", f"{record['runs']:,} = {record['settings']:,} settings x {record['seeds']:,} seeds"],
        ["env steps", f"{'' if record['env_steps_are_exact'] else 'at most '}{record['env_steps']:,} in all"],
        ["devices", record["devices"]],
        ["programs to compile", f"{len(programs)}{', each anew for fewer runs' if len(record['rungs']) > 1 else ''}"],
    ]
    for number, program in enumerate(programs, start=1):
        rows.append([f"program {number}", _runs(program)])
        budget = f"{program['env_steps_per_run']:,} env steps = {program['updates_per_run']:,} updates"
        rows.append(["  each run", f"{budget} of {program['num_envs']:,} envs x {program['num_steps']:,} steps"])
        rows.append(["  laid out", _layout(program)])
        memory = readable(program["predicted_bytes"])
        limit = "" if program["available_bytes"] is None else f" of {readable(program['available_bytes'])}"
        rows.append(["  memory", f"{memory}{limit} that may be used, per device"])
    for number, rung in enumerate(record["rungs"][:-1], start=2):
        here, after = record["rungs"][number - 2], record["rungs"][number - 1]
        rows.append(
            [
                f"rung {number}",
                f"the best {after['settings']:,} of {rung['settings']:,} settings go on after "
                f"1/{here['divisor']} of the budget",
            ]
        )
    return rows


def _runs(program: dict[str, Any]) -> str:
    values = "".join(f"{axis} {value_text(value)}, " for axis, value in program["values"].items())
    batches, size = program["batches"], program["runs_per_batch"]
    return f"{values}{program['runs']:,} runs in {f'{batches:,} batches of {size:,}' if batches > 1 else 'one batch'}"


def _layout(program: dict[str, Any]) -> str:
    how = "side by side" if program["side_by_side"] else "one after the other"
    return f"{how} on {'one device' if program['devices'] == 1 else 'each of ' + str(program['devices']) + ' devices'}"
