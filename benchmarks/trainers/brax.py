# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "brax==0.14.2",
#   "jax<0.10",
# ]
# ///
"""brax's PPO behind the protocol. It has continuous actions only: the sign of its one action is the push to the cart.

It calls a function that jax 0.10 no longer has.
"""

import threading
from typing import Any

import numpy as np

from benchmarks.trainers.protocol import Settings, Trainer, in_thread, serve

LEFT_RIGHT = np.array([0, 1])  # scores of the actions: none, and the mean of the Gaussian


class Brax(Trainer):
    """brax's PPO, which waits in a thread of its own wherever it hands out its parameters."""

    packages = ("brax", "jax", "flax", "optax")
    differences = (
        "one continuous action of a tanh-Gaussian, with a standard deviation from the policy's tower",
        "minibatches are whole rollouts of an environment, and advantages are made anew in each of them",
        "an environment always begins again where it began",
        "the learning rate is constant",
        "Adam's eps is 1e-8, the initial weights are lecun_uniform",
        "compiles in its first two blocks, not before",
    )

    def __init__(self, settings: Settings) -> None:
        self.trained, self.wanted = threading.Event(), threading.Event()
        in_thread(lambda: train_for_ever(settings, self.hand_over))
        self.trained.wait()
        import jax

        self.device = jax.devices()[0].device_kind

    def hand_over(self, _step: int, _policy: Any, params: Any) -> None:
        """Takes the parameters in brax's thread and keeps it waiting for the next block."""
        self.params = params
        self.trained.set()
        self.wanted.wait()
        self.wanted.clear()

    def train(self, blocks: int) -> None:
        """Trains `blocks` blocks."""
        for _ in range(blocks):
            self.trained.clear()
            self.wanted.set()
            self.trained.wait()

    def actor(self) -> list[tuple[Any, Any]]:
        """Returns the policy's tower with two scores for the sign of its action's mean."""
        layers = self.params[1]["params"]
        *hidden, (weight, bias) = [(layers[f"hidden_{i}"]["kernel"], layers[f"hidden_{i}"]["bias"]) for i in range(3)]
        return [*hidden, (weight[:, :1] * LEFT_RIGHT, bias[:1] * LEFT_RIGHT)]


def train_for_ever(settings: Settings, hand_over: Any) -> None:
    """Calls brax's `train`, in which a whole run is one call."""
    from brax.training.agents.ppo import networks, train
    from flax import linen

    from benchmarks.trainers.cartpole_brax import CartPole

    blocks = 10_000  # more than anyone asks for
    towers = {f"{tower}_hidden_layer_sizes": (64, 64) for tower in ("policy", "value")}
    train.train(
        CartPole(), num_timesteps=blocks * settings.block_steps, num_evals=blocks + 1, run_evals=False,
        policy_params_fn=hand_over, episode_length=500, num_envs=settings.num_envs,
        unroll_length=settings.num_steps, batch_size=settings.num_envs // settings.num_minibatches,
        num_minibatches=settings.num_minibatches, num_updates_per_batch=settings.num_epochs,
        learning_rate=settings.learning_rate, discounting=settings.gamma, gae_lambda=settings.gae_lambda,
        clipping_epsilon=settings.clip_eps, vf_loss_coefficient=settings.vf_coef, entropy_cost=settings.ent_coef,
        max_grad_norm=settings.max_grad_norm, seed=settings.seed,
        network_factory=lambda *a, **k: networks.make_ppo_networks(*a, **k, **towers, activation=linen.tanh),
    )  # fmt: skip


if __name__ == "__main__":
    serve(Brax)
