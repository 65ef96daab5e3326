"""purejaxppo behind the protocol, run by the interpreter that has it."""

from typing import Any

from benchmarks.trainers.protocol import Settings, serve


def make_run(settings: Settings) -> tuple[Any, Any]:
    """The state of a run, and the compiled block of updates that carries it on: how ours is run, all of it."""
    import jax

    from purejaxppo import Hyperparams, TrainConfig, advance, spread_trainer

    updates = settings.total_updates or 1_000_000
    config = TrainConfig(
        env="CartPole-v1",
        total_timesteps=updates * settings.num_envs * settings.num_steps,
        num_envs=settings.num_envs,
        num_steps=settings.num_steps,
        num_epochs=settings.num_epochs,
        num_minibatches=settings.num_minibatches,
        learning_rate_schedule="linear" if settings.total_updates else "constant",
    )
    names = ("learning_rate", "gamma", "gae_lambda", "clip_eps", "vf_coef", "ent_coef", "max_grad_norm")
    hp = Hyperparams(**{name: getattr(settings, name) for name in names})
    trainer = spread_trainer(config)
    state = jax.jit(lambda key: trainer.init(key, hp))(jax.random.key(settings.seed))
    block = jax.jit(lambda state: advance(trainer, hp, state, settings.updates_per_block), donate_argnums=0)
    return state, block.lower(state).compile()


class Ours:
    packages = ("purejaxppo", "jax", "flax", "optax", "gymnax")
    differences = ()

    def __init__(self, settings: Settings) -> None:
        import purejaxppo

        purejaxppo.use_all_cores()  # as the command line does, before JAX is used
        self.state, self.compiled = make_run(settings)
        import jax

        self.device = jax.devices()[0].device_kind

    def block(self) -> None:
        import jax

        self.state, _ = jax.block_until_ready(self.compiled(self.state))

    def actor(self) -> list[tuple[Any, Any]]:
        params = self.state.learner.params["params"]
        torso, head = params["MLPTorso_0"], params["CategoricalHead_0"]
        layers = [torso["Dense_0"], torso["Dense_1"], head["Dense_0"]]
        return [(layer["kernel"], layer["bias"]) for layer in layers]


if __name__ == "__main__":
    serve(Ours)
