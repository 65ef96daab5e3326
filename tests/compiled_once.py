"""Programs compiled quickly, or once for all tests of a module: that is most of what tiny runs and sweeps cost."""

import functools
from contextlib import contextmanager

import jax
import pytest

from purejaxppo.config import TrainConfig
from purejaxppo.devices.data_parallel import spread_trainer
from purejaxppo.envs import registry
from purejaxppo.experiment import chunked_loop, load_run
from purejaxppo.experiment import run as experiment_run
from purejaxppo.sweeps import compiled_group
from purejaxppo.train import trainer_from_config


def _quickly():
    """Compiler options without XLA's newer emitters of fused loops, which take twice as long as the older ones.

    Not where bits are compared: the older ones may round in another way in another program. None if this version of XLA
    has no such choice.
    """
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


QUICKLY = _quickly()


def _once(make):
    """Keeps what a function has made, but for arguments that have no hash, as environments with dict observations."""
    kept = functools.cache(make)

    def made(*args):
        try:
            hash(args)
        except TypeError:
            return make(*args)
        return kept(*args)

    return made


@contextmanager
def compiled_once():
    """Keeps environments, trainers and programs within the context, for every run and sweep of the same settings.

    The programs of a sweep with successive halving are not those of one without.
    """
    env_once, programs, groups = functools.cache(registry.make_env), {}, {}
    compile_advance, init = chunked_loop._compile_advance, compiled_group.CompiledGroup.__init__

    def make_env(config, num_envs=None, *, allow_download=False):
        if config.env in registry.ENVS or config.env not in registry.known_envs():  # what is registered changes
            return registry.make_env(config, num_envs, allow_download=allow_download)
        kind = TrainConfig(env=config.env, env_params=config.env_params)
        return env_once(kind, config.num_envs if num_envs is None else num_envs)

    def compile_once(trainer, hp, runner, num_updates):
        key = trainer, jax.tree.structure(hp), num_updates
        if key not in programs:
            programs[key] = compile_advance(trainer, hp, runner, num_updates)
        return programs[key]

    def init_once(group, sweep, settings, allow_download):
        init(group, sweep, settings, allow_download)
        hp = jax.tree.structure(sweep.settings[settings[0]][1])
        key = group.config, hp, sweep.exact, sweep.halving, sweep.options.eval_episodes
        group._programs, group._evaluators = groups.setdefault(key, ({}, {}))

    with pytest.MonkeyPatch.context() as patch:
        for module in (experiment_run, load_run, compiled_group):
            patch.setattr(module, "make_env", make_env)
        patch.setattr(experiment_run, "spread_trainer", _once(spread_trainer))
        patch.setattr(compiled_group, "trainer_from_config", _once(trainer_from_config))
        patch.setattr(chunked_loop, "_compile_advance", compile_once)
        patch.setattr(compiled_group.CompiledGroup, "__init__", init_once)
        yield
