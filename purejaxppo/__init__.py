"""PPO for JAX: rollout, advantage and update in one jitted function over vmapped environments."""
