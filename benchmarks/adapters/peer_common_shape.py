"""The repository's own baseline (`common_shape.py`) behind the protocol, run by the interpreter that has purejaxppo."""

import sys
from pathlib import Path
from typing import Any

from protocol import Settings, serve


class CommonShapePeer:
    packages = ("jax", "flax", "optax", "gymnax")
    differences = ("the value is clipped by clip_eps", "a time limit counts as death")

    def __init__(self, settings: Settings) -> None:
        sys.path.append(str(Path(__file__).parent.parent))
        import common_shape
        import jax

        names = {field for field in common_shape.Settings.__dataclass_fields__ if hasattr(settings, field)}
        train = common_shape.make_train(
            common_shape.Settings(
                num_updates=settings.total_updates or 1_000_000, **{name: getattr(settings, name) for name in names}
            )
        )
        self.state = jax.jit(train.init)(jax.random.key(settings.seed))
        block = jax.jit(lambda state: common_shape.advance(train, state, settings.updates_per_block), donate_argnums=0)
        self.compiled = block.lower(self.state).compile()
        self.device = jax.devices()[0].device_kind

    def block(self) -> None:
        import jax

        self.state, _ = jax.block_until_ready(self.compiled(self.state))

    def actor(self) -> list[tuple[Any, Any]]:
        layers = [self.state.train.params["params"][f"Dense_{i}"] for i in range(3)]
        return [(layer["kernel"], layer["bias"]) for layer in layers]


if __name__ == "__main__":
    serve(CommonShapePeer)
