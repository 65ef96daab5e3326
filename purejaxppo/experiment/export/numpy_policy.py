"""A trained policy in NumPy alone: `load(directory)(observation)` returns its greedy action.

It also runs as a program, with JSON in and out: echo '[0.1, 0.0, -0.2, 0.0]' | python exported/numpy_policy.py
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

ACTIVATIONS: dict = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),
}


class Policy:
    """A function from one observation [*shape], or a batch [b, *shape], to the greedy action or actions."""

    def __init__(self, spec: dict, weights: dict) -> None:
        self.spec, self.weights = spec, weights  # the content of policy.json; name -> tensor
        self.shape = tuple(spec["observation_space"]["shape"])

    def __call__(self, obs: object) -> np.ndarray:
        x = np.asarray(obs, np.float32)
        if x.shape == self.shape:
            return self._act(x[None])[0]
        if x.ndim != len(self.shape) + 1 or x.shape[1:] != self.shape:
            raise ValueError(f"observations have shape {x.shape}; this policy takes {self.shape}, alone or in a batch")
        return self._act(x)

    def _act(self, obs: np.ndarray) -> np.ndarray:
        space, head = self.spec["action_space"], self._dense(self.spec["network"]["head"], self._features(obs))
        if space["kind"] == "discrete":
            return head.argmax(axis=-1).astype(np.int32)
        if space["kind"] == "multi_discrete":
            factors = np.split(head, np.cumsum(space["sizes"])[:-1], axis=-1)
            return np.stack([logits.argmax(axis=-1) for logits in factors], axis=-1).astype(np.int32)
        low = np.array([-math.inf if x is None else x for x in space["low"]], np.float32)
        high = np.array([math.inf if x is None else x for x in space["high"]], np.float32)
        centre, unit = (np.array(space[name], np.float32) for name in ("centre", "unit"))
        x = np.tanh(head) if self.spec["policy"] == "tanh_gaussian" else head
        return np.clip(centre + unit * x, low, high).reshape(len(obs), *space["shape"])

    def _features(self, x: np.ndarray) -> np.ndarray:
        network, normalizer = self.spec["network"], self.spec["normalizer"]
        activation, layers = ACTIVATIONS[network["activation"]], list(network["actor"])
        if normalizer is not None:
            mean, var = self.weights[normalizer["mean"]], self.weights[normalizer["var"]]
            std = np.maximum(np.sqrt(var + normalizer["epsilon"]), normalizer["relative_floor"] * np.abs(mean))
            x = np.clip((x - mean) / std, -normalizer["clip"], normalizer["clip"])
        if network["torso"] == "conv":  # the first layer is applied to the 3 x 3 patches
            patches = [x[:, i : x.shape[1] - 2 + i, j : x.shape[2] - 2 + j] for i in range(3) for j in range(3)]
            x = activation(self._dense(layers.pop(0), np.concatenate(patches, axis=-1)))
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        for layer in layers:
            x = activation(self._dense(layer, x))
        return x

    def _dense(self, layer: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{layer}/kernel"] + self.weights[f"{layer}/bias"]


def load(directory: object) -> Policy:
    """Loads an exported policy. Raises ValueError if its files are damaged, OSError if they are missing."""
    data = Path(str(directory), "weights.safetensors").read_bytes()
    try:
        spec = json.loads(Path(str(directory), "policy.json").read_bytes())
        if spec["format_version"] != 2:
            raise ValueError(f"format version {spec['format_version']}; this reader knows 2")
        if hashlib.sha256(data).hexdigest() != spec["weights_sha256"]:
            raise ValueError("weights.safetensors is not the file that policy.json describes")
        policy = Policy(spec, parse_safetensors(data))
        policy(np.zeros(policy.shape))  # raises if a layer is missing or does not fit the one before
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{directory} holds no policy that can be used: {error!r}") from error
    return policy


def parse_safetensors(data: bytes) -> dict:
    """Returns the float32 tensors of a safetensors file: 8 bytes of header length, JSON header, contiguous numbers."""
    body = 8 + int.from_bytes(data[:8], "little")
    if body > len(data):
        raise ValueError("the weights end within their header")
    tensors, end = {}, body
    for name, entry in sorted(json.loads(data[8:body]).items(), key=lambda item: item[1]["data_offsets"]):
        (start, stop), shape = (body + offset for offset in entry["data_offsets"]), entry["shape"]
        if entry["dtype"] != "F32" or start != end or stop > len(data) or stop - start != 4 * math.prod(shape):
            raise ValueError(f"{name} in the weights is not where or what their header says")
        tensors[name] = np.frombuffer(data[start:stop], "<f4").astype(np.float32).reshape(shape)
        end = stop
    if end != len(data):
        raise ValueError("the weights go on after the last one")
    return tensors


if __name__ == "__main__":
    print(load(Path(__file__).parent)(json.loads(input())).tolist())
