"""A gated recurrent unit over sequences."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxppo.core.scan import scan_over_time
from purejaxppo.core.target import platform


def unroll(kernel: jax.Array, bias: jax.Array, h: jax.Array, x: jax.Array, start: jax.Array) -> jax.Array:
    """Returns all states [L, B, H] of a gated recurrent unit, in sequences in which episodes may begin.

        r = sigmoid(x_r + h U_r)    z = sigmoid(x_z + h U_z)    n = tanh(x_n + r (h U_n + b))    h' = (1 - z) n + z h

    Where an episode begins, h is 0.

    Args:
      kernel: U_r, U_z and U_n side by side  [H, 3 H].
      bias: b  [H].
      h: state before the first step  [B, H].
      x: x_r, x_z and x_n side by side, what the inputs contribute  [L, B, 3 H].
      start: whether an episode begins with a step  [L, B].

    Source: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", arXiv:1406.1078, with the
    reset gate behind the product, as in cuDNN and PyTorch.
    """
    # JAX's own derivative has 1.7 times the launches of ours on a GPU; on a CPU it is 0.9 to 1.3 times as fast
    # (benchmarks/log.md).
    states = _states if platform() == "cpu" else states_by_hand
    return states(kernel, bias, h, x, start)


def _states(kernel: jax.Array, bias: jax.Array, h: jax.Array, x: jax.Array, start: jax.Array) -> jax.Array:
    def step(h: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, start = now
        h = jnp.where(start[:, None], 0.0, h)
        _, z, n, _ = _gates(bias, x, h @ kernel)
        h = (1 - z) * n + z * h
        return h, h

    return scan_over_time(step, h, (x, start), unroll=16)[1]


def _gates(bias: jax.Array, x: jax.Array, product: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns r, z, n and h U_n + b  [..., H], given h U  [..., 3 H]."""
    x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(product, 3, axis=-1)
    r, inner = nn.sigmoid(x_r + h_r), h_n + jnp.broadcast_to(bias, h_n.shape)
    return r, nn.sigmoid(x_z + h_z), nn.tanh(x_n + r * inner), inner


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]  # the arguments, and all states

# The same states, with their derivative written out.
states_by_hand = jax.custom_vjp(_states)


def _forward(
    kernel: jax.Array, bias: jax.Array, h: jax.Array, x: jax.Array, start: jax.Array
) -> tuple[jax.Array, _Residuals]:
    states = _states(kernel, bias, h, x, start)
    return states, (kernel, bias, h, x, start, states)


def _backward(residuals: _Residuals, d_states: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, None]:
    """Returns the derivatives by kernel, bias, h and x, given those by the states [L, B, H].

    JAX's own would compute the gradient of the weights inside the loop, step by step. All that does not depend on later
    steps is done here for all steps at once, before the loop and after it; in it remains one product.
    """
    kernel, bias, h, x, start, states = residuals
    before = jnp.where(start[..., None], 0.0, jnp.concatenate([h[None], states[:-1]]))
    r, z, n, inner = _gates(bias, x, before @ kernel)
    # Of the arguments of the three nonlinearities, each over the derivative of h'.
    d_n = (1 - z) * (1 - n**2)
    d_z = (before - n) * z * (1 - z)
    d_r = d_n * inner * r * (1 - r)
    of_product = jnp.stack([d_r, d_z, d_n * r], axis=-2)  # [L, B, 3, H]

    def step(d_h: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        d_state, z, of_product, start = now
        d_h += d_state
        d_before = d_h * z + (d_h[:, None] * of_product).reshape(x.shape[1:]) @ kernel.T
        return jnp.where(start[:, None], 0.0, d_before), d_h

    d_first, d_h = scan_over_time(step, jnp.zeros_like(h), (d_states, z, of_product, start), unroll=16, reverse=True)
    d_x = (d_h[:, :, None] * jnp.stack([d_r, d_z, d_n], axis=-2)).reshape(x.shape)
    d_product = d_h[:, :, None] * of_product
    d_kernel = before.reshape(-1, h.shape[1]).T @ d_product.reshape(-1, x.shape[2])
    d_bias = jnp.sum(d_product[:, :, 2], axis=(0, 1))
    return d_kernel, d_bias, d_first, d_x, None


states_by_hand.defvjp(_forward, _backward)
