"""The protocol between a trainer's process and the program that measures it.

The process is started with the settings as one JSON argument, and sends a description of the trainer when that is ready
to train. Then it answers these requests, and ends with its standard input:

- `{"do": "train", "blocks": 3}`: seconds and env_steps of three more blocks of updates;
- `{"do": "evaluate", "episodes": 64, "seed": 0}`: mean return of the policy as it is now;
- `{"do": "describe"}`: compilation time and memory of the program, for the trainers of this repository.

Every trainer has other packages at other versions, so this needs the standard library, and NumPy in an evaluation.
"""

import abc
import dataclasses
import importlib.metadata
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.lib.worker_process import answer_channel

START = time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of PPO, for every trainer. Losses are policy + vf_coef * 0.5 * squared error - ent_coef * entropy.

    Ours and the common shape train every environment and several runs; the others train one run of CartPole-v1.
    """

    env: str = "CartPole-v1"
    num_envs: int = 64
    num_steps: int = 128
    num_runs: int = 1
    num_epochs: int = 4
    num_minibatches: int = 4
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    vf_coef: float = 0.5
    ent_coef: float = 0.01
    max_grad_norm: float = 0.5
    seed: int = 0
    updates_per_block: int = 1
    total_updates: int = 1_000_000  # over which the learning rate falls to 0; so many that it stays where it starts
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # more fields of purejaxppo's TrainConfig

    @property
    def env_steps(self) -> int:
        """Environment steps of all runs in one update."""
        return self.num_runs * self.num_envs * self.num_steps

    @property
    def block_steps(self) -> int:
        """Environment steps of all runs in one block."""
        return self.env_steps * self.updates_per_block

    @property
    def name(self) -> str:
        """The work in words, e.g. CartPole-v1 16 runs of 4x128."""
        runs = f"{self.num_runs} runs of " if self.num_runs > 1 else ""
        policy = f" {self.config['policy']}" if "policy" in self.config else ""
        return f"{self.env}{policy} {runs}{self.num_envs}x{self.num_steps}"

    def learning_rate_after(self, update: Any) -> Any:
        """Returns the learning rate after `update` updates, which may be a traced number."""
        return self.learning_rate * (1.0 - update / self.total_updates)


class Trainer(abc.ABC):
    """A trainer that answers the requests of the protocol."""

    packages: tuple[str, ...]  # whose versions are reported
    differences: tuple[str, ...]  # from the settings and from the other trainers
    device: str

    @abc.abstractmethod
    def train(self, blocks: int) -> None:
        """Trains `blocks` times `updates_per_block` updates and returns when they are done."""

    @abc.abstractmethod
    def actor(self) -> list[tuple[Any, Any]]:
        """Returns the weights [in, out] and biases [out] of each layer of the policy's tower."""

    def describe(self) -> dict[str, Any]:
        """Returns compilation time and memory of the compiled program, if they are known."""
        return {}


def serve(make: Callable[[Settings], Trainer]) -> None:
    """Builds the trainer and answers until standard input ends."""
    say = answer_channel()
    settings = Settings(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
    trainer = make(settings)
    say(
        {
            "setup_s": time.perf_counter() - START,
            "settings": dataclasses.asdict(settings),
            "versions": {name: importlib.metadata.version(name) for name in trainer.packages},
            "differences": trainer.differences,
            "device": trainer.device,
        }
    )
    for line in sys.stdin:
        say(_answer(trainer, settings, json.loads(line)))


def _answer(trainer: Trainer, settings: Settings, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "train":
        blocks, start = request["blocks"], time.perf_counter()
        trainer.train(blocks)
        return {"seconds": time.perf_counter() - start, "env_steps": blocks * settings.block_steps}
    if request["do"] == "describe":
        return trainer.describe()
    from benchmarks.trainers import cartpole_numpy  # needs NumPy

    returns = cartpole_numpy.play(trainer.actor(), request["episodes"], request["seed"])
    return {"return_mean": float(returns.mean()), "episodes": len(returns)}


def in_thread(work: Callable[[], None]) -> None:
    """Starts `work` in a thread, and ends the process if it fails: who waits for the thread would wait for ever."""

    def guarded() -> None:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=guarded, daemon=True).start()
