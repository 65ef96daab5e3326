"""The devices of `targets/`, which programs can be compiled for without having them."""

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "targets"
# The newest driver that the CUDA of jax 0.11.2 asks for. XLA keeps dynamic slices, conditions and library calls out of
# CUDA graphs if the driver is older than CUDA 12.9, or if it is not told which it is.
_CUDA, _DNN, _CUB = "13.0.0", "9.10.0", "3.1.2"
# xla_data.proto, PrimitiveType
_TYPES = {"s8": 2, "s32": 4, "u32": 8, "f16": 10, "f32": 11, "f64": 12, "bf16": 16, "f8e5m2": 19, "f8e4m3fn": 20}


class Target(NamedTuple):
    """A device. `facts` is the rest of its file."""

    id: str  # the file's name: h100
    compiler: str  # cuda or tpu
    name: str
    bytes_per_s: float
    memory_bytes: int
    facts: dict[str, Any]

    @property
    def platform(self) -> str:
        """What JAX calls its kind of device."""
        return "gpu" if self.compiler == "cuda" else "tpu"

    @property
    def fast_memory(self) -> int | None:
        """The number of the memory space that no bandwidth of the model limits: a TPU's vector memory."""
        return 1 if self.compiler == "tpu" else None


def names() -> list[str]:
    """Returns the devices that there is a file of."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Target:
    """Reads the file of a device. Raises ValueError if there is none, or if it lacks something."""
    if name not in names():
        raise ValueError(f"there is no device {name!r} in benchmarks/targets; give one of {', '.join(names())}.")
    facts = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    try:
        own = {key: facts.pop(key) for key in ("compiler", "name", "bytes_per_s", "memory_bytes")}
    except KeyError as error:
        raise ValueError(f"benchmarks/targets/{name}.toml has no {error.args[0]}; add it with its source.") from error
    return Target(id=name, facts=facts, **own)


_SLICES = {"2x2": 4, "2x4": 8}  # of TPU chips, on one host


def several(text: str) -> tuple[str, int]:
    """Returns a device and how many of it: ("h100", 8) of h100x8, ("v5e", 8) of the slice v5e-2x4, ("h100", 1) of h100.

    Raises ValueError for a device that there is no file of, or for a number that one host does not have.
    """
    name, number = text, 1
    if text not in names():
        if gpus := re.fullmatch(r"(\w+?)x(\d+)", text):
            name, number = gpus[1], int(gpus[2])
        elif tpus := re.fullmatch(r"(\w+)-(\d+x\d+)", text):
            name, number = tpus[1], _SLICES.get(tpus[2], 0)
    written = {"cuda": f"{name}x{number}", "tpu": f"{name}-{'2x2' if number == 4 else '2x4'}"}[load(name).compiler]
    if number not in range(1, 9) or text not in (name, written):
        raise ValueError(f"{text} is not on one host; give h100x2 to h100x8, v5e-2x2 or v5e-2x4, or the like.")
    return name, number


def topology(target: Target, devices: int) -> tuple[str, str]:
    """Returns the name of JAX's platform and of the smallest topology with that many devices, in one process."""
    if target.compiler == "cuda":
        return "cuda", f"1x1x{devices}"
    return "tpu", f"{target.facts['topology']}:{'2x2' if devices <= 4 else '2x4'}"


def target_config(target: Target, sorts: bool) -> str:
    """Returns a GPU in the text format of XLA's GpuTargetConfigProto (xla/stream_executor/device_description.proto).

    With `sorts`, for a program that has one: XLA asks CUB, which asks the device, unless CUB's version is unknown.
    """
    facts = target.facts
    major, minor = facts["compute_capability"]
    matrix = dict(facts["matrix_ops_per_clock"])
    clock, units = matrix.pop("clock_ghz"), matrix.pop("units_per_core")
    scalar = {name: (facts["clock_ghz"], *rate) for name, rate in facts["scalar_ops_per_clock"].items()}
    info = {
        # What every CUDA device of compute capability 7 to 9 has: CUDA C Programming Guide, technical specifications.
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "device_address_bits": 64,
        # The device's own.
        "shared_memory_per_core": facts["shared_bytes_per_core"],
        "shared_memory_per_block_optin": facts["shared_bytes_per_block"],
        "core_count": facts["cores"],
        "fpus_per_core": facts["lanes_per_core"],
        "memory_bandwidth": round(target.bytes_per_s),
        "l2_cache_size": facts["l2_bytes"],
        "clock_rate_ghz": facts["clock_ghz"],
        "device_memory_size": target.memory_bytes,
        "cuda_compute_capability": {"major": major, "minor": minor, "feature_extension": _Word(facts["features"])},
        "scalar_unit_description": _rates(scalar),
        "matrix_unit_description": _rates({name: (clock, units, rate) for name, rate in matrix.items()}),
        "device_interconnect_info": {"active_links": facts["links"]},
        "ecc_enabled": True,
        "device_vendor": "NVIDIA Corporation",
        "name": target.name,
        # The software.
        "driver_version": _CUDA,
        "runtime_version": _CUDA,
        "compile_time_toolkit_version": _CUDA,
        "dnn_version": _DNN,
        **({} if sorts else {"cub_version": _CUB}),
    }
    dnn = dict(zip(("major", "minor", "patch"), map(int, _DNN.split(".")), strict=True))
    whole = {
        "gpu_device_info": info,
        "platform_name": "CUDA",
        "dnn_version_info": dnn,
        "device_description_str": target.name,
    }
    return "\n".join(_proto(whole))


class _Word(str):
    """A word that is printed without quotes."""


def _rates(table: dict[str, tuple[float, int, int]]) -> list[dict[str, Any]]:
    return [
        {"key": _TYPES[name], "value": {"clock_rate_ghz": clock, "units_per_core": units, "ops_per_clock": rate}}
        for name, (clock, units, rate) in table.items()
    ]


def _proto(fields: dict[str, Any]) -> list[str]:
    """Returns the lines of a message in protobuf's text format; lists are the entries of `rate_infos`."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, list):
            entries = [line for entry in value for line in ("rate_infos {", *_proto(entry), "}")]
            lines += [f"{name} {{", *entries, "}"]
        elif isinstance(value, dict):
            lines += [f"{name} {{", *_proto(value), "}"]
        elif isinstance(value, bool):
            lines.append(f"{name}: {str(value).lower()}")
        elif isinstance(value, str) and not isinstance(value, _Word):
            assert not re.search(r'["\\\n]', value)
            lines.append(f'{name}: "{value}"')
        else:
            lines.append(f"{name}: {value}")
    return lines
