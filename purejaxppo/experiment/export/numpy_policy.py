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
    """A function from one observation [*shape], or a batch [b, *shape], to the greedy action or actions.

    An observation of several arrays is a dict. A policy with memory takes the memory after the observation, None at the
    beginning of episodes, and returns the action and the memory after it; a row of a batch forgets if its memory is set
    to 0.
    """

    def __init__(self, spec: dict, weights: dict) -> None:
        self.spec, self.weights = spec, weights  # the content of policy.json; name -> tensor
        space = spec["observation_space"]
        self.arrays = space.get("arrays", {"": space})

    def __call__(self, obs: object, memory: object = None) -> np.ndarray | tuple:
        by_key = obs if isinstance(obs, dict) else {"": obs}
        if by_key.keys() != self.arrays.keys():
            raise ValueError(f"observations have the arrays {sorted(by_key)}; this policy takes {sorted(self.arrays)}")
        arrays = {key: np.asarray(x, self.arrays[key]["dtype"]) for key, x in by_key.items()}
        one = all(x.shape == tuple(self.arrays[key]["shape"]) for key, x in arrays.items())
        rows = {key: x[None] if one else x for key, x in arrays.items()}
        for key, x in rows.items():
            if x.shape[1:] != tuple(self.arrays[key]["shape"]):
                takes = f"this policy takes {tuple(self.arrays[key]['shape'])}, alone or in a batch"
                raise ValueError(f"{key or 'observations'} have shape {arrays[key].shape}; {takes}")
        before = None if memory is None else np.asarray(memory, np.float32)
        action, after = self._act(rows, before[None] if one and before is not None else before)
        if one:
            action, after = action[0], None if after is None else after[0]
        return action if after is None else (action, after)

    def _act(self, rows: dict, memory: object) -> tuple:
        space, network = self.spec["action_space"], self.spec["network"]
        features = self._features(rows)
        if network["gru"] is not None:
            features = memory = self._remember(features, memory)
        head = self._dense(network["head"], features)
        if "action_mask" in rows:
            head = np.where(rows["action_mask"], head, -math.inf)
        if space["kind"] == "discrete":
            return head.argmax(axis=-1).astype(np.int32), memory
        if space["kind"] == "multi_discrete":
            factors = np.split(head, np.cumsum(space["sizes"])[:-1], axis=-1)
            return np.stack([logits.argmax(axis=-1) for logits in factors], axis=-1).astype(np.int32), memory
        low = np.array([-math.inf if x is None else x for x in space["low"]], np.float32)
        high = np.array([math.inf if x is None else x for x in space["high"]], np.float32)
        centre, unit = (np.array(space[name], np.float32) for name in ("centre", "unit"))
        x = np.tanh(head) if self.spec["policy"] == "tanh_gaussian" else head
        return np.clip(centre + unit * x, low, high).reshape(len(x), *space["shape"]), memory

    def _features(self, rows: dict) -> np.ndarray:
        network = self.spec["network"]
        activation, layers = ACTIVATIONS[network["activation"]], list(network["actor"])
        parts = [self._seen(key, rows[key]) for key in network["sees"] or [""]]
        x = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(len(part), -1) for part in parts], axis=-1)
        if network["torso"] == "conv":  # the first layer is applied to the 3 x 3 patches
            patches = [x[:, i : x.shape[1] - 2 + i, j : x.shape[2] - 2 + j] for i in range(3) for j in range(3)]
            x = activation(self._dense(layers.pop(0), np.concatenate(patches, axis=-1)))
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        for layer in layers:
            x = activation(self._dense(layer, x))
        return x

    def _seen(self, key: str, x: np.ndarray) -> np.ndarray:
        """Returns an array of an observation as the network takes it: normalised, or its pixels scaled."""
        normalizer, statistics = self.spec["normalizer"], f"normalizer/{key}".rstrip("/")
        if normalizer is not None and statistics in normalizer["statistics"]:
            mean, var = self.weights[f"{statistics}/mean"], self.weights[f"{statistics}/var"]
            std = np.maximum(np.sqrt(var + normalizer["epsilon"]), normalizer["relative_floor"] * np.abs(mean))
            return np.clip((x - mean) / std, -normalizer["clip"], normalizer["clip"])
        return x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 and self._scales() else 1)

    def _scales(self) -> bool:
        return bool(self.spec["network"]["scale_pixels"])

    def _remember(self, x: np.ndarray, memory: object) -> np.ndarray:
        """Returns the state of the recurrent unit after features x [b, F]."""
        gru = self.spec["network"]["gru"]
        kernel, bias = self.weights[f"{gru['unit']}/kernel"], self.weights[f"{gru['unit']}/bias"]
        h = np.zeros((len(x), len(kernel)), np.float32) if memory is None else np.asarray(memory)
        if h.shape != (len(x), len(kernel)):
            raise ValueError(f"the memory has shape {h.shape}, but that of the observations is {(len(x), len(kernel))}")
        x_r, x_z, x_n = np.split(self._dense(gru["gates"], x), 3, axis=-1)
        h_r, h_z, h_n = np.split(h @ kernel, 3, axis=-1)
        z = _sigmoid(x_z + h_z)
        n = np.tanh(x_n + _sigmoid(x_r + h_r) * (h_n + bias))
        return (1 - z) * n + z * h

    def _dense(self, layer: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{layer}/kernel"] + self.weights[f"{layer}/bias"]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # which does not overflow


def load(directory: object) -> Policy:
    """Loads an exported policy. Raises ValueError if its files are damaged, OSError if they are missing."""
    data = Path(str(directory), "weights.safetensors").read_bytes()
    try:
        spec = json.loads(Path(str(directory), "policy.json").read_bytes())
        if spec["format_version"] != 3:
            raise ValueError(f"format version {spec['format_version']}; this reader knows 3")
        if hashlib.sha256(data).hexdigest() != spec["weights_sha256"]:
            raise ValueError("weights.safetensors is not the file that policy.json describes")
        policy = Policy(spec, parse_safetensors(data))
        nothing = {key: np.zeros(x["shape"], x["dtype"]) for key, x in policy.arrays.items()}
        policy(nothing.get("", nothing))  # raises if a layer is missing or does not fit the one before
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
    taken = load(Path(__file__).parent)(json.loads(input()))
    print((taken[0] if isinstance(taken, tuple) else taken).tolist())
