"""Programs compiled quickly, or once for all tests of a module: that is most of what tiny runs and sweeps cost."""

import functools
from contextlib import contextmanager

import jax
import pytest

from purejaxppo.devices.data_parallel import spread_trainer
from purejaxppo.envs import registry
from purejaxppo.experiment import chunked_loop
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


@contextmanager
def compiled_once():
    """Keeps environments, trainers and programs within the context, for every run and sweep of the same settings.

    The programs of a sweep with successive halving are not those of one without.
    """
    env_once, trainers, programs, groups = functools.cache(registry.from_gymnax), {}, {}, {}
    compile_advance, init = chunked_loop._compile_advance, compiled_group.CompiledGroup.__init__

    def from_gymnax(env, num_envs, *, allow_download=False, **params):
        return env_once(env, num_envs, **params)

    def once(make):
        def trainer(config, env=None, *devices):
            key = make, config, id(env), str(devices)  # not itself, as spaces of several arrays have no hash
            if key not in trainers:
                trainers[key] = env, make(config, env, *devices)
            return trainers[key][1]

        return trainer

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
        patch.setattr(registry, "from_gymnax", from_gymnax)
        patch.setattr(experiment_run, "spread_trainer", once(spread_trainer))
        patch.setattr(compiled_group, "trainer_from_config", once(trainer_from_config))
        patch.setattr(chunked_loop, "_compile_advance", compile_once)
        patch.setattr(compiled_group.CompiledGroup, "__init__", init_once)
        yield
