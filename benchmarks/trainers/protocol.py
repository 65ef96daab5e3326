"""What a trainer that is compared says to the program that compares it: JSON, one object a line.

Its process is started with the settings as one JSON argument, and says `{"setup_s": ...}` when it is ready to train.
Then it answers `{"do": "block"}` with seconds and env_steps, `{"do": "evaluate", "episodes": 64, "seed": 0}` with
the mean return of the policy that it has by now, and ends with its standard input. NumPy alone is needed here, and
not before an evaluation: every peer has other packages, at other versions.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

START = time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Settings:
    """The same PPO for everyone. Losses are policy + vf_coef * 0.5 * squared error - ent_coef * entropy."""

    num_envs: int = 64
    num_steps: int = 128
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
    total_updates: int | None = None  # over which the learning rate falls to 0; None: it stays

    @property
    def block_steps(self) -> int:
        """Environment steps of a block."""
        return self.num_envs * self.num_steps * self.updates_per_block

    def learning_rate_after(self, update: Any) -> Any:
        """The learning rate of the update after so many; a traced number is welcome."""
        return self.learning_rate * (1.0 - update / self.total_updates) if self.total_updates else self.learning_rate


class Peer(Protocol):
    """A trainer behind the protocol."""

    packages: tuple[str, ...]  # whose versions are reported
    differences: tuple[str, ...]  # from the settings and from each other
    device: str

    def block(self) -> None:
        """Trains `updates_per_block` updates and returns when they are done."""

    def actor(self) -> list[tuple[Any, Any]]:
        """Weights [in, out] and biases [out] of each layer of the policy's tower."""


def serve(make: Callable[[Settings], Peer]) -> None:
    """Builds the peer and answers until standard input ends; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = Settings(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
    peer = make(settings)
    answer = {
        "setup_s": time.perf_counter() - START,
        "settings": dataclasses.asdict(settings),
        "versions": {name: importlib.metadata.version(name) for name in peer.packages},
        "differences": peer.differences,
        "device": peer.device,
    }
    print(json.dumps(answer), file=out)
    for line in sys.stdin:
        print(json.dumps(_answer(peer, settings, json.loads(line))), file=out)


def in_thread(work: Callable[[], None]) -> None:
    """Starts it in a thread whose failure ends the process: whoever waits for it would wait for ever."""

    def guarded() -> None:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=guarded, daemon=True).start()


def _answer(peer: Peer, settings: Settings, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "block":
        start = time.perf_counter()
        peer.block()
        return {"seconds": time.perf_counter() - start, "env_steps": settings.block_steps}
    from benchmarks.trainers import cartpole_numpy as cartpole

    returns = cartpole.play(peer.actor(), request["episodes"], request["seed"])
    return {"return_mean": float(returns.mean()), "episodes": len(returns)}
