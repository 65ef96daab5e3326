# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "sbx-rl==0.28.0",
#   "torch==2.13.0",
#   "gymnasium",
# ]
# ///
"""sbx's PPO behind the protocol: stable-baselines3 with gradient steps in JAX, on the Gymnasium twin of CartPole-v1."""

from typing import Any

from benchmarks.trainers import sb3_family
from benchmarks.trainers.protocol import Settings, Trainer, serve


class Sbx(Trainer):
    """sbx's PPO."""

    packages = ("sbx-rl", "stable-baselines3", "torch", "jax", "flax", "optax", "gymnasium", "numpy")
    differences = (
        *sb3_family.DIFFERENCES,
        "gradients of policy and value are clipped apart",
        "the initial weights are lecun_normal",
        "compiles in its first block, not before",
    )

    def __init__(self, settings: Settings) -> None:
        import jax
        from sbx import PPO

        self.settings = settings
        policy = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}  # its activation is tanh, its Adam's eps 1e-5
        self.model = sb3_family.make_model(PPO, settings, policy_kwargs=policy)
        self.device = jax.devices()[0].device_kind

    def train(self, blocks: int) -> None:
        """Trains `blocks` blocks."""
        import jax

        sb3_family.train_blocks(self.model, self.settings, blocks)
        jax.block_until_ready((self.model.policy.actor_state, self.model.policy.vf_state))

    def actor(self) -> list[tuple[Any, Any]]:
        """Returns the policy's tower."""
        params = self.model.policy.actor_state.params["params"]
        return [(params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"]["bias"]) for i in range(3)]


if __name__ == "__main__":
    serve(Sbx)
