"""The command line. Flags are generated from the dataclasses; nothing slow is imported before it is needed."""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from purejaxppo.config import (
    EnvParams,
    Hyperparams,
    TrainConfig,
    suggestion,
    validate_config,
    validate_hyperparams,
    validate_seed,
)
from purejaxppo.errors import ConfigError, EnvError, OutOfMemoryError, PureJaxPPOError
from purejaxppo.settings import read_settings, resolve

_STOPPED = 75
_INTERRUPTED = 130

Flat = tyro.conf.arg(name="")


@dataclasses.dataclass(frozen=True)
class Common:
    """Options of every command."""

    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to run; auto takes an accelerator if JAX sees one."""
    plugin: tuple[str, ...] = ()
    """Python modules to import first, which register environments with gymnax.register."""
    allow_download: bool = False
    """Let an environment fetch its data set from the network."""
    json: bool = False
    """Print the result as JSON on standard output; progress stays on standard error."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one agent; leaves a run directory with metrics, a checkpoint, an evaluation and a learning curve.

    Example: purejaxppo train --env Breakout-MinAtar --seed 3 --total-timesteps 1e7

    A flag beats the --config file, which beats the environment's preset. The defaults below are those for the --env
    and the --config that are given along with --help.
    """

    settings: Annotated[TrainConfig, Flat]
    hp: Annotated[Hyperparams, Flat]
    common: Annotated[Common, Flat] = Common()
    seed: int = 0
    """Seed of everything random, in [0, 2**32)."""
    config: Path | None = None
    """JSON or TOML file of settings, named like their flags; a run's config.json is one."""
    out: Path | None = None
    """Run directory; by default runs/<env>__<algorithm>__s<seed>__<UTC time>."""
    eval_episodes: int = 128
    """Greedy episodes after training."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Play episodes with a trained policy and its frozen normalisers, and print their returns.

    Example: purejaxppo evaluate runs/my-run --episodes 1000
    """

    run_dir: tyro.conf.Positional[Path]
    """A directory that `purejaxppo train` made."""
    common: Annotated[Common, Flat] = Common()
    episodes: int = 128
    """One per environment, all side by side."""
    sampled: bool = False
    """Sample actions, as in training, instead of taking the most probable one."""
    seed: int = 0
    """Seed of the environments and of sampling."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw learning curves: one run with its evaluation, or mean and range over several runs of one kind.

    Example: purejaxppo plot runs/CartPole-v1__* --out cartpole.png
    """

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories that `purejaxppo train` made."""
    common: Annotated[Common, Flat] = Common()
    out: Path | None = None
    """Picture to write (.png, .pdf or .svg); by default the run's plots/learning_curve.png, or learning_curves.png
    for several runs."""


@dataclasses.dataclass(frozen=True)
class Envs:
    """List the environments: id, observation, actions, step limit, and whether there is a preset.

    Example: purejaxppo envs
    """

    common: Annotated[Common, Flat] = Common()


Command = Train | Evaluate | Plot | Envs
_COMMANDS: dict[str, Any] = {"train": Train, "evaluate": Evaluate, "plot": Plot, "envs": Envs}


def main() -> None:
    """Entry point; exits with the code of the error, or 0."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code. An error becomes one line on standard error."""
    debug = "--debug" in argv
    try:
        return _execute(parse(list(argv)))
    except PureJaxPPOError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; what was not saved is lost.", _INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            message = "out of memory on the device; lower num_envs or num_steps, or use --device cpu."
            return _fail(message, OutOfMemoryError.exit_code, debug)
        return _fail(f"internal error, {type(error).__name__}: {error}; --debug shows where.", 1, debug)


def parse(argv: list[str]) -> Command:
    """The command that the arguments spell out. Raises ConfigError; leaves the process only for --help."""
    if not argv or argv[0] in ("-h", "--help"):
        everything: Any = Train | Evaluate | Plot | Envs
        return _tyro(everything, ["--help"], prog="purejaxppo", description=_USAGE)
    name = argv[0]
    if name not in _COMMANDS:
        raise ConfigError(
            f"unknown command {name!r}.{suggestion(name, _COMMANDS)} It is one of {', '.join(_COMMANDS)}."
        )
    options = {"default": _train_default(argv[1:])} if name == "train" else {}
    return _tyro(_COMMANDS[name], argv[1:], prog=f"purejaxppo {name}", **options)


_USAGE = "PPO in JAX. Begin with: purejaxppo train --env CartPole-v1"


def _tyro(kind: Any, args: list[str], **options: Any) -> Any:
    """tyro's result, with its boxed error messages flattened to one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=args, registry=_registry(), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = re.sub(r"\x1b\[[0-9;]*m", "", errors.getvalue()).splitlines()
        text = " ".join(line.strip("│─╰╯ ") for line in lines if not line.startswith("╭"))
        text = re.sub(r"Argument helptext:.*For full helptext", "For full helptext", text)
        raise ConfigError(" ".join(text.split())) from stop


def _train_default(argv: list[str]) -> Train:
    """What `train` is without its flags: defaults, preset and configuration file for the given --env and --config."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--env")
    scan.add_argument("--config", type=Path)
    try:
        given, _ = scan.parse_known_args(argv)
    except argparse.ArgumentError:  # a flag without its value: tyro will say so
        given = argparse.Namespace(env=None, config=None)
    settings = read_settings(given.config) if given.config else {}
    seed = settings.pop("seed", 0)
    config, hp = resolve(given.env, settings)
    return Train(config, hp, seed=seed)


def _registry() -> ConstructorRegistry:
    """Whole numbers may be written 1e6, and environment parameters name=value."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda args: _whole(args[0]),
            is_instance=lambda x: isinstance(x, int) and not isinstance(x, bool),
            str_from_instance=lambda x: [str(x)],
        )

    @registry.primitive_rule
    def pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type != EnvParams:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME=VALUE ...]",
            instance_from_str=lambda args: tuple(_pair(arg) for arg in args),
            is_instance=lambda x: isinstance(x, tuple),
            str_from_instance=lambda x: [f"{name}={value}" for name, value in x],
        )

    return registry


def _whole(text: str) -> int:
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if float(text).is_integer():
            return int(float(text))
    raise ValueError(f"{text!r} is not a whole number")


def _pair(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"{text!r} is not of the form name=value")
    words = {"true": True, "false": False}
    if value.lower() in words:
        return name, words[value.lower()]
    with contextlib.suppress(ValueError):
        return name, int(value)
    return name, float(value)


def _execute(command: Command) -> int:
    if isinstance(command, Train):
        # Before JAX is loaded, so that a typing error costs no seconds.
        validate_config(command.settings)
        validate_hyperparams(command.hp)
        validate_seed(command.seed)
    if not isinstance(command, Plot):
        _prepare(command.common)
    return _RUN[type(command)](command)


def _prepare(common: Common) -> None:
    """Chooses the device and imports the plugins."""
    import jax

    if common.device != "auto":
        jax.config.update("jax_platforms", common.device)
    try:
        jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {common.device} is not available here ({reason}); use --device auto.") from error
    sys.path.insert(0, "")  # plugins may lie in the working directory
    for module in common.plugin:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise EnvError(f"plugin {module!r} cannot be imported: {type(error).__name__}: {error}") from error


def _train(command: Train) -> int:
    from purejaxppo.experiment import run_experiment

    summary = run_experiment(
        command.settings,
        command.hp,
        command.seed,
        out=command.out,
        eval_episodes=command.eval_episodes,
        allow_download=command.common.allow_download,
    )
    if command.common.json:
        _print_json(summary)
    else:
        print(_describe(summary))
    return 0 if summary["exit_reason"] == "finished" else _STOPPED


def _evaluate(command: Evaluate) -> int:
    from purejaxppo.experiment import evaluate_run

    result = evaluate_run(
        command.run_dir,
        episodes=command.episodes,
        greedy=not command.sampled,
        seed=command.seed,
        allow_download=command.common.allow_download,
    )
    if command.common.json:
        _print_json(result)
    else:
        print(_describe_evaluation(result))
    return 0


def _plot(command: Plot) -> int:
    from purejaxppo.plot import plot_runs

    if not command.run_dirs:
        raise ConfigError("plot needs at least one run directory, such as runs/CartPole-v1__*.")
    single = command.run_dirs[0] / "plots" / "learning_curve.png"
    out = command.out or (single if len(command.run_dirs) == 1 else Path("learning_curves.png"))
    plot_runs(command.run_dirs, out)
    if command.common.json:
        _print_json({"picture": str(out)})
    else:
        print(out)
    return 0


def _envs(command: Envs) -> int:
    from purejaxppo.envs import env_table
    from purejaxppo.presets import PRESETS

    rows = [{**row, "preset": row["env"] in PRESETS} for row in env_table(command.common.allow_download)]
    if command.common.json:
        _print_json(rows)
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("environment", "observation", "actions", "step limit", "preset", box=box.SIMPLE_HEAD)
    for row in rows:
        if "error" in row:
            table.add_row(row["env"], row["error"])
        else:
            shape = " x ".join(map(str, row["observation"]))
            table.add_row(
                row["env"], shape, row["actions"], str(row["step_limit"] or "-"), "yes" if row["preset"] else ""
            )
    Console().print(table)
    return 0


_RUN: dict[type, Callable[[Any], int]] = {Train: _train, Evaluate: _evaluate, Plot: _plot, Envs: _envs}


def _describe(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['exit_reason']}: {summary['env_steps']:,} env steps in {summary['train_seconds']:.1f} s "
        f"(+ {summary['compile_seconds']:.1f} s compilation), {summary['env_steps_per_second']:,.0f} env steps/s",
    ]
    if summary["evaluation"]:
        lines.append(_describe_evaluation(summary["evaluation"]))
    lines.append(f"run directory {summary['run_dir']}")
    return "\n".join(lines)


def _describe_evaluation(result: dict[str, Any]) -> str:
    unfinished = f", {result['unfinished']} broken off unfinished" if "unfinished" in result else ""
    return (
        f"evaluation over {result['episodes']} episodes{unfinished}: return {result['return_mean']:.4g} "
        f"+- {result['return_std']:.3g} (interquartile mean {result['return_iqm']:.4g}), "
        f"length {result['length_mean']:.4g}"
    )


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"purejaxppo: error: {' '.join(message.split())}", file=sys.stderr)
    return code
