# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "rejax==0.1.3",
#   "gymnax<1",
# ]
# ///
"""rejax's PPO behind the protocol. Its newest release imports names that gymnax 1 no longer has."""

from typing import Any

from benchmarks.trainers.protocol import Settings, Trainer, serve


class Rejax(Trainer):
    """rejax's PPO."""

    packages = ("rejax", "jax", "flax", "optax", "gymnax")
    differences = (
        "gradients are clipped element by element, not by their norm",
        "the value is clipped by clip_eps",
        "a time limit counts as death",
        "Adam's eps is 1e-8, the initial weights are lecun_normal",
    )

    def __init__(self, settings: Settings) -> None:
        import jax
        from rejax import PPO

        per_update = settings.num_epochs * settings.num_minibatches
        per_run = ("num_envs", "num_steps", "num_epochs", "num_minibatches")
        per_loss = ("gamma", "gae_lambda", "clip_eps", "vf_coef", "ent_coef", "max_grad_norm")
        algorithm = PPO.create(
            env="CartPole-v1",
            total_timesteps=settings.block_steps,
            eval_freq=settings.block_steps,
            skip_initial_evaluation=True,
            learning_rate=lambda count: settings.learning_rate_after(count // per_update),
            agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
            **{name: getattr(settings, name) for name in per_run + per_loss},
        ).replace(eval_callback=lambda *_: ())
        self.state = jax.jit(algorithm.init_state)(jax.random.key(settings.seed))
        block = jax.jit(lambda state: algorithm.train(train_state=state)[0], donate_argnums=0)
        self.compiled = block.lower(self.state).compile()
        self.device = jax.devices()[0].device_kind

    def train(self, blocks: int) -> None:
        """Trains `blocks` blocks."""
        import jax

        for _ in range(blocks):
            self.state = jax.block_until_ready(self.compiled(self.state))

    def actor(self) -> list[tuple[Any, Any]]:
        """Returns the policy's tower."""
        params = self.state.actor_ts.params["params"]
        layers = [params["features"]["Dense_0"], params["features"]["Dense_1"], params["action_logits"]]
        return [(layer["kernel"], layer["bias"]) for layer in layers]


if __name__ == "__main__":
    serve(Rejax)
