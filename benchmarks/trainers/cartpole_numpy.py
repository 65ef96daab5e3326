"""CartPole-v1 in NumPy, so that the policies of all trainers are evaluated by the same code.

The cart-pole of Barto, Sutton and Anderson (1983), a force of 10 N to the left or to the right, explicit Euler steps
of 20 ms; an episode ends beyond 2.4 m or 12 degrees, or after 500 steps.
"""

from typing import Any

import numpy as np

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
STEP_LIMIT = 500


def act(actor: list[tuple[Any, Any]], obs: np.ndarray) -> np.ndarray:
    """Returns greedy actions [E] for obs [E, 4], of a tower with tanh between its layers."""
    *hidden, (weight, bias) = [(np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in actor]
    for w, b in hidden:
        obs = np.tanh(obs @ w + b)
    return np.argmax(obs @ weight + bias, axis=-1)


def step(state: Any, action: Any, xp: Any = np) -> Any:
    """Returns position, velocity, angle and angular velocity [E, 4] 20 ms later; `xp` is NumPy or jax.numpy."""
    _, x_dot, theta, theta_dot = state.T
    mass = CART + POLE
    push = (xp.where(action == 1, FORCE, -FORCE) + POLE * HALF_LENGTH * theta_dot**2 * xp.sin(theta)) / mass
    inertia = HALF_LENGTH * (4 / 3 - POLE * xp.cos(theta) ** 2 / mass)
    theta_acc = (GRAVITY * xp.sin(theta) - xp.cos(theta) * push) / inertia
    x_acc = push - POLE * HALF_LENGTH * theta_acc * xp.cos(theta) / mass
    return state + SECONDS * xp.stack([x_dot, x_acc, theta_dot, theta_acc], axis=1)


def fell(state: Any, xp: Any = np) -> Any:
    """Returns whether each episode has terminated [E]."""
    return (xp.abs(state[:, 0]) > 2.4) | (xp.abs(state[:, 2]) > xp.radians(12))


def play(actor: list[tuple[Any, Any]], episodes: int, seed: int) -> np.ndarray:
    """Returns the returns [episodes] of one whole episode each."""
    state = np.random.default_rng(seed).uniform(-0.05, 0.05, (episodes, 4))
    returns, running = np.zeros(episodes), np.ones(episodes, bool)
    for _ in range(STEP_LIMIT):
        returns += running
        state = step(state, act(actor, state.astype(np.float32)))
        running &= ~fell(state)
        if not running.any():
            break
    return returns
