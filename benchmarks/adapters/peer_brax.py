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

import os
import threading
import traceback
from typing import Any

from protocol import Settings, serve


class Brax:
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
        import jax

        self.params: Any = None
        self.trained, self.wanted = threading.Event(), threading.Event()
        # `train` is one call for a whole run: it waits, in a thread of its own, wherever it hands out its parameters.
        threading.Thread(target=train, args=(settings, self.hand_over), daemon=True).start()
        self.trained.wait()
        self.device = jax.devices()[0].device_kind

    def hand_over(self, _step: int, _make_policy: Any, params: Any) -> None:
        self.params = params
        self.trained.set()
        self.wanted.wait()
        self.wanted.clear()

    def block(self) -> None:
        self.trained.clear()
        self.wanted.set()
        self.trained.wait()

    def actor(self) -> list[tuple[Any, Any]]:
        import numpy as np

        layers = [self.params[1]["params"][f"hidden_{i}"] for i in range(3)]
        *hidden, (weight, bias) = [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers]
        return [*hidden, (weight[:, :1] * [0, 1], bias[:1] * [0, 1])]  # left is 0, right the mean of the Gaussian


def train(settings: Settings, hand_over: Any) -> None:
    import functools

    from brax.training.agents.ppo import networks, train
    from brax_cartpole import CartPole
    from flax import linen

    blocks, towers = 10_000, {"policy_hidden_layer_sizes": (64, 64), "value_hidden_layer_sizes": (64, 64)}
    try:
        train.train(
            CartPole(), num_timesteps=blocks * settings.block_steps, num_evals=blocks + 1, run_evals=False,
            policy_params_fn=hand_over, episode_length=500, num_envs=settings.num_envs,
            unroll_length=settings.num_steps, batch_size=settings.num_envs // settings.num_minibatches,
            num_minibatches=settings.num_minibatches, num_updates_per_batch=settings.num_epochs,
            learning_rate=settings.learning_rate, discounting=settings.gamma, gae_lambda=settings.gae_lambda,
            clipping_epsilon=settings.clip_eps, vf_loss_coefficient=settings.vf_coef, entropy_cost=settings.ent_coef,
            max_grad_norm=settings.max_grad_norm, seed=settings.seed,
            network_factory=functools.partial(networks.make_ppo_networks, activation=linen.tanh, **towers),
        )  # fmt: skip
    except BaseException:  # the thread that waits for this one would wait for ever
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    serve(Brax)
