"""The flags of every command, generated from the dataclasses, and their parsing. Nothing slow is imported here."""

import argparse
import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from purejaxppo.config import EnvParams, Hyperparams, TrainConfig, suggestion
from purejaxppo.errors import ConfigError
from purejaxppo.settings import (
    FIELDS,
    for_algorithm,
    read_settings,
    refuse_foreign,
    refuse_foreign_in_file,
    resolve,
    without_foreign,
)

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
class Compare:
    """Train several algorithms on one environment, each with the same seeds and budget; draws and tabulates them.

    Example: purejaxppo compare --env CartPole-v1 --algorithms ppo_clip trpo --seeds 10

    Each algorithm starts from its own preset for the environment; a setting given here goes to every algorithm that
    has it. The defaults below are those of ppo_clip. Results are written as each algorithm finishes.
    """

    settings: Annotated[TrainConfig, Flat]
    hp: Annotated[Hyperparams, Flat]
    common: Annotated[Common, Flat] = Common()
    algorithms: tuple[str, ...] = ("ppo_clip", "ppo_kl", "trpo", "policy_gradient")
    """What to compare, in this order."""
    seeds: int = 8
    """Runs of each algorithm."""
    seed: int = 0
    """The first of the seeds."""
    config: Path | None = None
    """JSON or TOML file of settings, such as a run's config.json; its seed is not taken."""
    out: Path | None = None
    """Directory for results, by default runs/<env>__compare__<UTC time>."""
    eval_episodes: int = 128
    """Greedy episodes after training, per run."""
    target: float | None = None
    """Return for the column of steps to the target; by default the environment's published one, if there is one."""
    resolved: tyro.conf.Suppress[tuple[tuple[TrainConfig, Hyperparams], ...]] = ()


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


Command = Train | Compare | Evaluate | Plot | Envs
_COMMANDS: dict[str, Any] = {"train": Train, "compare": Compare, "evaluate": Evaluate, "plot": Plot, "envs": Envs}


def parse(argv: list[str]) -> Command:
    """The command that the arguments spell out. Raises ConfigError; leaves the process only for --help."""
    if not argv or argv[0] in ("-h", "--help"):
        everything: Any = Train | Compare | Evaluate | Plot | Envs
        return _tyro(everything, ["--help"], prog="purejaxppo", description=_USAGE)
    name = argv[0]
    if name not in _COMMANDS:
        raise ConfigError(
            f"unknown command {name!r}.{suggestion(name, _COMMANDS)} It is one of {', '.join(_COMMANDS)}."
        )
    args = argv[1:]
    default = {Train: _train_default, Compare: _compare_default}.get(_COMMANDS[name])
    options = {"default": default(args)} if default else {}
    command = _tyro(_COMMANDS[name], args, prog=f"purejaxppo {name}", **options)
    if isinstance(command, Train):
        refuse_foreign(_given(args), [command.settings.algorithm])
    return _resolve_all(command, args) if isinstance(command, Compare) else command


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


def _train_default(args: list[str]) -> Train:
    """What `train` is without its flags: defaults, preset and file for the given --env, --algorithm and --config."""
    env, algorithm, settings = _base(args)
    seed = settings.pop("seed", 0)
    algorithm = algorithm or settings.get("algorithm", TrainConfig.algorithm)
    refuse_foreign_in_file(settings, [algorithm])
    config, hp = resolve(env, for_algorithm(env, settings, algorithm))
    return Train(config, hp, seed=seed)


def _compare_default(args: list[str]) -> Compare:
    env, _, settings = _base(args)
    settings.pop("seed", None)
    return Compare(*resolve(env, settings))


def _resolve_all(command: Compare, args: list[str]) -> Compare:
    """The command with each algorithm's settings: its own preset, the file, and what was given as flags."""
    given = _given(args)
    if not command.algorithms:
        raise ConfigError("--algorithms takes at least one name.")
    if "algorithm" in given:
        raise ConfigError("compare takes --algorithms, with all of their names, instead of --algorithm.")
    refuse_foreign(given, command.algorithms)
    flags = {name: getattr(command.settings if hasattr(command.settings, name) else command.hp, name) for name in given}
    _, _, settings = _base(args)
    settings.pop("seed", None)
    refuse_foreign_in_file(settings, command.algorithms)
    env = command.settings.env
    pairs = tuple(
        resolve(env, {**for_algorithm(env, settings, name), **without_foreign(name, flags)})
        for name in command.algorithms
    )
    return dataclasses.replace(command, resolved=pairs)


def _base(args: list[str]) -> tuple[str | None, str | None, dict[str, Any]]:
    """What the defaults depend on: --env, --algorithm, and the settings in --config."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--env")
    scan.add_argument("--algorithm")
    scan.add_argument("--config", type=Path)
    try:
        given, _ = scan.parse_known_args(args)
    except argparse.ArgumentError:  # a flag without its value: tyro will say so
        given = argparse.Namespace(env=None, algorithm=None, config=None)
    return given.env, given.algorithm, read_settings(given.config) if given.config else {}


def _given(args: list[str]) -> list[str]:
    """The settings that stand as flags among the arguments, --no-x counting as x."""
    words = [arg[2:].split("=")[0].replace("-", "_") for arg in args if arg.startswith("--")]
    return [name for name in (word if word in FIELDS else word.removeprefix("no_") for word in words) if name in FIELDS]


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
