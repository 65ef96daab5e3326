"""purejaxppo behind the protocol, laid out over the devices as its own command line does it."""

from typing import Any

import purejaxppo
from benchmarks.trainers.compiled import CompiledBlock, CompiledTrainer, Training
from benchmarks.trainers.protocol import Settings, serve
from purejaxppo.devices.cpu import cpu_cores, one_thread_is_enough

HYPERPARAMS = ("learning_rate", "gamma", "gae_lambda", "clip_eps", "vf_coef", "ent_coef", "max_grad_norm")


def train_config(settings: Settings) -> purejaxppo.TrainConfig:
    """Returns the part of the settings that is compiled in."""
    fields = {
        "env": settings.env,
        "num_envs": settings.num_envs,
        "num_steps": settings.num_steps,
        "num_epochs": settings.num_epochs,
        "num_minibatches": settings.num_minibatches,
        "total_timesteps": settings.total_updates * settings.num_envs * settings.num_steps,
    }
    return purejaxppo.TrainConfig(**{**fields, **settings.config})


def make_training(settings: Settings) -> Training:
    """Returns a training of one run or of many; the first one of a process chooses its devices and threads."""
    config = train_config(settings)
    if settings.num_runs > 1 or one_thread_is_enough(config, cpu_cores()):
        purejaxppo.use_all_cores()  # before the environment is built, as gymnax computes when it is imported
    hp = purejaxppo.Hyperparams(**{name: getattr(settings, name) for name in HYPERPARAMS})
    return one_run(config, hp, settings.seed) if settings.num_runs == 1 else many_runs(config, hp, settings)


def one_run(config: purejaxppo.TrainConfig, hp: purejaxppo.Hyperparams, seed: int) -> Training:
    """Returns a single run. Its hyperparameters are arguments, as in the package's own loop, not constants."""
    import jax
    import jax.numpy as jnp

    trainer = purejaxppo.spread_trainer(config)
    hp = jax.tree.map(jnp.float32, hp)

    def step(state: Any, updates: int) -> tuple[Any, Any]:
        runner, metrics = purejaxppo.advance(trainer, state[0], state[1], updates)
        return (state[0], runner), metrics

    return Training((hp, jax.jit(trainer.init)(jax.random.key(seed), hp)), step)


def many_runs(config: purejaxppo.TrainConfig, hp: purejaxppo.Hyperparams, settings: Settings) -> Training:
    """Returns `num_runs` runs, of consecutive seeds, as one program."""
    trainer = purejaxppo.trainer_from_config(config)
    hps, seeds = purejaxppo.grid(hp, range(settings.seed, settings.seed + settings.num_runs))

    def step(state: Any, updates: int) -> tuple[Any, Any]:
        runs, metrics = purejaxppo.advance_runs(trainer, state[0], state[1], updates)
        return (state[0], runs), metrics

    return Training((hps, purejaxppo.make_runs(trainer, hps, seeds)), step)


def warm_block(settings: Settings) -> CompiledBlock:
    """Compiles a block of purejaxppo in this process and calls it once, since the first call is slower."""
    block = CompiledBlock(make_training(settings), settings.updates_per_block)
    block.time()
    return block


class Ours(CompiledTrainer):
    """purejaxppo."""

    packages = ("purejaxppo", "jax", "flax", "optax", "gymnax")
    differences = ()

    def __init__(self, settings: Settings) -> None:
        super().__init__(make_training(settings), settings)

    def actor(self) -> list[tuple[Any, Any]]:
        """Returns the policy's tower of a single run."""
        _, runner = self.compiled.state
        params = runner.learner.params["params"]
        torso, head = params["MLPTorso_0"], params["CategoricalHead_0"]
        layers = [torso["Dense_0"], torso["Dense_1"], head["Dense_0"]]
        return [(layer["kernel"], layer["bias"]) for layer in layers]


if __name__ == "__main__":
    serve(Ours)
