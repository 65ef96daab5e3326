# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "stable-baselines3==2.9.2",
#   "torch==2.13.0",
#   "gymnasium",
# ]
# ///
"""stable-baselines3's PPO behind the protocol, on the Gymnasium twin of CartPole-v1."""

from typing import Any

from benchmarks.trainers import sb3_family
from benchmarks.trainers.protocol import Settings, Trainer, serve


class StableBaselines3(Trainer):
    """stable-baselines3's PPO."""

    packages = ("stable-baselines3", "torch", "gymnasium", "numpy")
    differences = sb3_family.DIFFERENCES
    device = "cpu"  # where its authors advise to run PPO without a CNN

    def __init__(self, settings: Settings) -> None:
        from stable_baselines3 import PPO

        self.settings = settings
        policy = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}  # its activation is tanh, its Adam's eps 1e-5
        self.model = sb3_family.make_model(PPO, settings, device=self.device, policy_kwargs=policy)

    def train(self, blocks: int) -> None:
        """Trains `blocks` blocks."""
        sb3_family.train_blocks(self.model, self.settings, blocks)

    def actor(self) -> list[tuple[Any, Any]]:
        """Returns the policy's tower."""
        policy = self.model.policy
        layers = [policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2], policy.action_net]
        return [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in layers]


if __name__ == "__main__":
    serve(StableBaselines3)
