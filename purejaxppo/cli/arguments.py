"""The arguments of each command: dataclasses whose fields become flags, and whose docstrings become the help.

The first line of a command's docstring is its line in `purejaxppo --help`, which fits one screen.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.sweeps.spec import SweepSettings

Flat = tyro.conf.arg(name="")


@dataclasses.dataclass(frozen=True)
class Common:
    """Options of every command."""

    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to run; auto takes an accelerator if JAX sees one."""
    devices: str = "auto"
    """Which of the devices to train on: all, a count, or their numbers as in 0,2. By default a sweep uses all, and one
    run as many as have enough to do; evaluating takes one."""
    plugin: tuple[str, ...] = ()
    """Python modules to import first, by name or as a path/to/file.py, which make parts of one's own known by
    purejaxppo.register_env, register_policy, register_algorithm, register_optimizer, register_schedule or
    gymnax.register."""
    allow_download: bool = False
    """Let an environment fetch its data set from the network."""
    json: bool = False
    """Print the result as JSON on standard output; progress stays on standard error."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Together:
    """Options of a run or sweep that several processes train, on one machine or on several."""

    distributed: bool = False
    """Train together with the other processes that were started with this command, which JAX finds under Slurm, Open
    MPI, Kubernetes and on Cloud TPU."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where JAX does not find the others by itself; the same for all of them."""
    num_processes: int | None = None
    """With --coordinator: how many processes there are."""
    process_id: int | None = None
    """With --coordinator: which of them this is, from 0. Process 0 prints and writes; all need its run directory."""

    @property
    def several(self) -> bool:
        """Whether there are others to join."""
        given = (self.coordinator, self.num_processes, self.process_id)
        return self.distributed or any(option is not None for option in given)


_OPTIONS = RunOptions()


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one agent on an environment.

    It leaves a run directory with metrics, a checkpoint, an evaluation and a learning curve.

    Example: purejaxppo train --env Breakout-MinAtar --seed 3 --total-timesteps 1e7

    A flag beats the --config file, which beats the environment's preset. The defaults below are those for the --env
    and the --config that are given along with --help.
    """

    settings: Annotated[TrainConfig, Flat]
    hp: Annotated[Hyperparams, Flat]
    options: Annotated[RunOptions, Flat] = _OPTIONS
    common: Annotated[Common, Flat] = Common()
    together: Annotated[Together, Flat] = Together()
    seed: int = 0
    """Seed of everything random, in [0, 2**32)."""
    config: Path | None = None
    """JSON or TOML file of settings, named like their flags; a run's config.json is one."""
    out: Path | None = None
    """Run directory; by default runs/<env>__<algorithm>__s<seed>__<UTC time>."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, or is to be longer.

    The result is that of an uninterrupted run, also if the run was killed.

    Example: purejaxppo resume runs/my-run --total-timesteps 2e6

    The defaults below are the settings of the run that is given along with --help. Of them, total-timesteps,
    on-nonfinite and what concerns evaluation and checkpoints may be changed; others are refused, because the result
    would be that of neither the old nor the new setting.
    """

    run_dir: tyro.conf.Positional[Path]
    """A directory that `purejaxppo train` made, or `purejaxppo sweep`."""
    settings: Annotated[TrainConfig, Flat]
    hp: Annotated[Hyperparams, Flat]
    options: Annotated[RunOptions, Flat] = _OPTIONS
    common: Annotated[Common, Flat] = Common()
    together: Annotated[Together, Flat] = Together()
    strict: bool = False
    """Refuse to fall back to an older checkpoint if the newest is damaged."""
    seed: tyro.conf.Suppress[int] = 0


@dataclasses.dataclass(frozen=True)
class ResumeSweep:
    """Go on with a sweep that was stopped or killed; the results are those of an uninterrupted sweep.

    Example: purejaxppo resume runs/my-sweep

    All settings stay; for one run with a larger budget see `purejaxppo extract`.
    """

    run_dir: tyro.conf.Positional[Path]
    """A directory that `purejaxppo sweep` made."""
    options: Annotated[RunOptions, Flat] = _OPTIONS
    common: Annotated[Common, Flat] = Common()
    together: Annotated[Together, Flat] = Together()
    strict: bool = False
    """Refuse to fall back to an older checkpoint if the newest is damaged."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train several algorithms on one environment; compare them.

    Each has the same seeds and budget; their results are drawn and tabulated.

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
class Sweep:
    """Train many settings on one environment; rank them.

    Each setting is trained with several seeds.

    A setting with several values after its flag is swept, and every combination is trained:

      purejaxppo sweep --env CartPole-v1 --learning-rate 3e-4 1e-3 3e-3 --ent-coef 0 0.01 --seeds 4

    With --samples N, N combinations are drawn at random, and a hyperparameter (a FLOAT under optimisation or
    algorithm) may be a span, low..high or log:low..high for even coverage of the orders of magnitude:

      purejaxppo sweep --env CartPole-v1 --learning-rate log:1e-4..1e-2 --gamma 0.9..0.999 --samples 64

    With --halving N the budget goes to what promises most: all settings train for a part of it, one in N goes on:

      purejaxppo sweep --env CartPole-v1 --learning-rate log:1e-4..1e-2 --samples 64 --halving 4

    Booleans are --shared-torso true false; networks --hidden-sizes 64,64 128,128 (without commas it is one network);
    target-kl and vf-clip-eps take none among their values. Several algorithms each start from their own preset, and
    skip the settings that they do not have. Only env, env-params and on-nonfinite keep one value.

    Look first with --plan. A flag beats the --config file, which beats the environment's preset. The defaults below are
    those for the --env, the --algorithm and the --config that are given along with --help.

    Example: purejaxppo sweep --env CartPole-v1 --learning-rate 3e-4 1e-3 3e-3 --plan
    """

    settings: Annotated[TrainConfig, Flat]
    hp: Annotated[Hyperparams, Flat]
    options: Annotated[RunOptions, Flat] = _OPTIONS
    common: Annotated[Common, Flat] = Common()
    together: Annotated[Together, Flat] = Together()
    seeds: Annotated[tuple[str, ...], tyro.conf.arg(metavar="INT [INT ...]")] = ("8",)
    """Runs of each setting: one number is a count, several are the seeds themselves."""
    seed: int = 0
    """The first seed of a count."""
    samples: int | None = None
    """Train this many random combinations, all different, instead of every one."""
    sample_seed: int = 0
    """Seed of what --samples draws; more samples of one seed begin with the fewer ones."""
    halving: int | None = None
    """After each rung of the budget one setting in N goes on, the others stop; N is 2 to the number of settings."""
    exact: bool = False
    """Train the runs one after the other on one device, each with the very bits that it has alone; costs speed."""
    plan: bool = False
    """Print what would be trained, and how it is laid out, and stop there."""
    target: float | None = None
    """Return for the column of steps to the target; by default the environment's published one, if there is one."""
    config: Path | None = None
    """JSON or TOML file of settings, such as a run's config.json; its seed is not taken."""
    out: Path | None = None
    """Directory for results, by default runs/<env>__sweep__<UTC time>."""
    resolved: tyro.conf.Suppress[SweepSettings | None] = None


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Play episodes with a trained policy; print their returns.

    Its normalisers are frozen.

    Example: purejaxppo evaluate runs/my-run --episodes 1000
    Example: purejaxppo evaluate runs/my-sweep --member best
    """

    run_dir: tyro.conf.Positional[Path]
    """A directory that `purejaxppo train` made, or `purejaxppo sweep`."""
    common: Annotated[Common, Flat] = Common()
    member: str | None = None
    """Of a sweep's directory: best, or the number of a run as results.csv has it."""
    episodes: int = 128
    """One per environment, all side by side."""
    sampled: bool = False
    """Sample actions, as in training, instead of taking the most probable one."""
    seed: int = 0
    """Seed of the environments and of sampling."""
    step: int | None = None
    """The checkpoint of this many env steps (`purejaxppo verify` lists them); by default the newest valid one."""
    strict: bool = False
    """Refuse to fall back to an older checkpoint if the newest is damaged."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the learning curves of one run or of several.

    One run is drawn with its evaluation, several runs of one kind as their mean and range.

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
    """List the environments.

    Each has its id, observation, actions and step limit, and whether there is a preset.

    Example: purejaxppo envs
    """

    common: Annotated[Common, Flat] = Common()


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check the checkpoints of a run or a sweep.

    Every file of every checkpoint is checked against its hash, and a table is printed.

    Example: purejaxppo verify runs/my-run
    """

    run_dir: tyro.conf.Positional[Path]
    """A directory that `purejaxppo train` made, or `purejaxppo sweep`."""
    common: Annotated[Common, Flat] = Common()


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a trained policy for use elsewhere.

    It is written as StableHLO and safetensors, with a reader that needs NumPy alone.

    Example: purejaxppo export runs/my-run --out my-policy

    policy.stablehlo, by jax.export.deserialize, takes observations and returns a dictionary: action, what the
    environment is to get; and logits, or mean and log_std, the distribution that it is the mode of. policy.json has the
    shapes, and numpy_policy.py returns the action alone.
    """

    run_dir: tyro.conf.Positional[Path]
    """A directory that `purejaxppo train` made, or `purejaxppo sweep`."""
    out: Path
    """New directory to write into."""
    common: Annotated[Common, Flat] = Common()
    member: str | None = None
    """Of a sweep's directory: best, or the number of a run as results.csv has it."""
    step: int | None = None
    """The checkpoint of this many env steps (`purejaxppo verify` lists them); by default the newest valid one."""
    strict: bool = False
    """Refuse to fall back to an older checkpoint if the newest is damaged."""


@dataclasses.dataclass(frozen=True)
class Extract:
    """Make one run of a sweep a run of its own.

    `purejaxppo resume` goes on with it, as far as one likes.

    Example: purejaxppo extract runs/my-sweep --member best --out runs/my-run
    """

    run_dir: tyro.conf.Positional[Path]
    """A directory that `purejaxppo sweep` made."""
    member: str
    """best, or the number of a run as results.csv has it."""
    common: Annotated[Common, Flat] = Common()
    out: Path | None = None
    """New run directory; by default runs/<env>__<algorithm>__s<seed>__<UTC time>."""
    step: int | None = None
    """The checkpoint of this many env steps; by default the newest valid one."""
    strict: bool = False
    """Refuse to fall back to an older checkpoint if the newest is damaged."""


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Look at this machine, and give advice.

    It shows versions and devices, whether a directory is writable, and the result of a self-check of ten seconds.

    Example: purejaxppo doctor
    """

    directory: Path = Path(".")
    """Where runs are to be written."""
    common: Annotated[Common, Flat] = Common()


Command = Train | Resume | Compare | Sweep | Evaluate | Export | Extract | Plot | Verify | Envs | Doctor
COMMANDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in get_args(Command)}
