"""Memory: figures that are right, advice that can be followed, and no program started that cannot fit."""

import dataclasses
import io
import json
import re
import resource

import jax
import jax.numpy as jnp
import pytest
from probe_envs import walk
from rich.console import Console

from purejaxppo.cli import main as cli
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.validate import validate_config
from purejaxppo.devices import memory
from purejaxppo.devices.memory import device_bytes, explain, program_bytes, rollout_bytes, traced_bytes
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.errors import OutOfMemoryError, is_out_of_memory
from purejaxppo.experiment import training
from purejaxppo.experiment.run import run_experiment
from purejaxppo.train import trainer_from_config

HP = Hyperparams()
SMALL = TrainConfig(num_envs=4, num_steps=8, num_epochs=1, num_minibatches=2, hidden_sizes=(4,), total_timesteps=320)


# --- figures ----------------------------------------------------------------------------------------------------------

# Per step: log_prob, value, next_value and reward of 4 bytes, two flags of 1; and two observations, action, policy.
COMMON = 4 * 4 + 2
PER_STEP = {
    "CartPole-v1": COMMON + 2 * 4 * 4 + 4 + 2 * 4,  # 4 numbers; one integer; two logits
    "Pendulum-v1": COMMON + 2 * 3 * 4 + 4 + (4 + 4),  # 3 numbers; one action; its mean and log standard deviation
}


@pytest.mark.parametrize("env", PER_STEP)
@pytest.mark.parametrize(("num_envs", "num_steps"), [(4, 8), (6, 10)])
def test_rollout_bytes(env, num_envs, num_steps):
    config = TrainConfig(env=env, num_envs=num_envs, num_steps=num_steps, hidden_sizes=(4,))
    assert rollout_bytes(config, from_gymnax(env, num_envs)) == num_envs * num_steps * PER_STEP[env]


def test_rollout_bytes_of_an_absurd_one_take_no_memory():
    """Shapes alone: 2^30 rows."""
    config = dataclasses.replace(SMALL, num_envs=2**20, num_steps=2**10, total_timesteps=2**40)
    env = walk(2**20)
    assert rollout_bytes(config, env) == 2**30 * (COMMON + 2 * 2 * 4 + 4 + 2 * 4)


def test_program_bytes_of_one_that_is_known():
    """Argument and result, and nothing for a result that takes its argument's place."""
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert program_bytes(jax.jit(lambda x: x + 1).lower(x).compile()) == 8000
    assert program_bytes(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()) == 4000
    assert program_bytes(jax.jit(lambda x: jnp.sort(x)[:1]).lower(x).compile()) >= 4000 + 4 + 4000


def test_program_bytes_grow_with_the_environments():
    """By their observations of 8 bytes at the least."""

    def size(num_envs):
        config = dataclasses.replace(SMALL, num_envs=num_envs, total_timesteps=2**20)
        trainer = trainer_from_config(config, walk(num_envs))
        return program_bytes(jax.jit(trainer.init).lower(jax.random.key(0), HP).compile())

    small = size(4)
    assert small > 4 * 8
    assert size(400) - small >= 396 * 8


class Silent:
    """A backend that tells nothing."""

    platform = "tpu"

    def memory_analysis(self):
        return None

    def memory_stats(self):
        return None


def test_where_nobody_knows():
    assert program_bytes(Silent()) == 0
    assert device_bytes(Silent()) is None
    assert device_bytes(jax.devices()[0]) > 2**28  # of the machine


# --- advice -----------------------------------------------------------------------------------------------------------


def reductions(message):
    """(field, value) of each flag that a message advises."""
    flags = re.findall(r"--([a-z-]+) ([\d ]+)", message.split("; try ")[1])
    fields = {name.replace("-", "_"): [int(number) for number in text.split()] for name, text in flags}
    return {name: tuple(value) if name == "hidden_sizes" else value[0] for name, value in fields.items()}


def explained(program=None, **changes):
    config = dataclasses.replace(SMALL, **changes)
    return config, str(explain(config, walk(config.num_envs), program))


CONFIGS = {
    "default": {"num_envs": 64, "num_steps": 128, "num_minibatches": 4, "total_timesteps": 10**6},
    "small": {},
    "odd": {"num_envs": 6, "num_steps": 10, "num_minibatches": 4},
    "one environment": {"num_envs": 1, "num_steps": 64},
    "one step": {"num_envs": 64, "num_steps": 1},
    "wide": {"num_envs": 1, "num_steps": 2, "num_minibatches": 1, "hidden_sizes": (512, 300)},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_advice_can_be_followed(name):
    """One line, with figures; up to three reductions, each of which is valid and less."""
    config, message = explained(**CONFIGS[name])
    assert "\n" not in message
    assert "rollout buffer takes" in message
    assert "the device has" in message
    assert "the compiled program" not in message  # it is not known
    advised = reductions(message)
    for field, value in advised.items():
        validate_config(dataclasses.replace(config, **{field: value}))
        if field == "num_minibatches":
            assert value >= 2 * config.num_minibatches
        elif field == "hidden_sizes":
            assert value == tuple(width // 2 for width in config.hidden_sizes)
        else:
            assert value <= getattr(config, field) / 2
    if config.num_envs == 1:
        assert "num_envs" not in advised
    if config.num_steps == 1:
        assert "num_steps" not in advised
    assert len(advised) == {"wide": 1}.get(name, 3)


def test_advice_goes_below_the_half_where_that_is_not_valid():
    """6 x 10 rows in 4 minibatches: 3 x 10 are not divisible by 4, 2 x 10 are; nor 6 x 5, 6 x 4; 10 divides 60."""
    _, message = explained(**CONFIGS["odd"])
    assert reductions(message) == {"num_envs": 2, "num_steps": 4, "num_minibatches": 10}


def test_advice_of_nothing_that_changes_nothing():
    """Without hidden layers there are none to make smaller; where nothing is left, it says so."""
    _, message = explained(num_envs=1, num_steps=8, hidden_sizes=())
    assert reductions(message) == {"num_steps": 4, "num_minibatches": 4}
    _, message = explained(num_envs=1, num_steps=2, num_minibatches=1, hidden_sizes=())
    assert message.endswith("; try a device with more memory.")


def test_figures(monkeypatch):
    monkeypatch.setattr(memory, "device_bytes", lambda device: 24_000_000_000)
    _, message = explained(program=3_210_000)
    assert f"its rollout buffer takes {32 * (COMMON + 28) / 1000:.3g} kB, " in message
    assert "the compiled program 3.21 MB, the device has 24 GB; try --num-envs 2, or --num-steps 4, or " in message
    monkeypatch.setattr(memory, "device_bytes", lambda device: None)
    assert "device" not in explained()[1]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (2.5e6, "2.5 MB"), (1.26e9, "1.26 GB"), (5e15, "5e+03 TB")],
)
def test_sizes(size, text):
    assert memory.readable(size) == text


# --- how it shows -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_more_memory():
    """A limit of 1 TB on addresses: refuses what is absurd, whatever the machine's policy of overcommitting is."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def test_xlas_own_words(no_more_memory):
    """An array of 2^46 bytes, and a program that would need one."""
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros(2**44).block_until_ready()
    assert is_out_of_memory(caught.value)
    absurd = jax.jit(lambda x: jnp.sort(x + jnp.arange(2**44, dtype=jnp.float32)).sum())
    program = absurd.lower(1.0).compile()
    assert program_bytes(program) > 2**46
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        program(1.0).block_until_ready()
    assert is_out_of_memory(caught.value)


def test_other_words():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OutOfMemoryError("no"))
    assert is_out_of_memory(RuntimeError("Out of memory while trying to allocate 123 bytes"))
    for error in (ValueError("memory"), RuntimeError("INTERNAL: x"), KeyError("RESOURCE"), KeyboardInterrupt()):
        assert not is_out_of_memory(error)


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_device(monkeypatch):
    """tiny_device(size): a device with this many bytes."""

    def use(size):
        for module in (memory, training):
            monkeypatch.setattr(module, "device_bytes", lambda device: size)

    return use


def fails(out, config=SMALL, **options):
    """The message of the error with which run_experiment must end."""
    with pytest.raises(OutOfMemoryError) as caught:
        run_experiment(config, HP, 0, out=out, console=Console(file=io.StringIO()), **options)
    assert caught.value.exit_code == 7
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("out of memory") == 1
    assert len(reductions(message)) == 3
    return message


def test_a_run_that_does_not_fit_is_not_begun(tmp_path, tiny_device):
    """The first state fits into 2 kB, the program does not: no update is made, and nothing is saved."""
    tiny_device(2_000)
    message = fails(tmp_path / "out")
    assert re.search(r"the compiled program [\d.]+ kB, the device has 2 kB", message)
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == b""
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_first_state_that_does_not_fit_is_not_computed(tmp_path, tiny_device, monkeypatch):
    tiny_device(500)
    monkeypatch.setattr(training, "compile_chunks", lambda *_: pytest.fail("it has gone on"))
    assert "the device has 500 bytes" in fails(tmp_path / "out")


def test_what_the_compiler_did_not_foresee(tmp_path, monkeypatch):
    """XLA's error in the middle of a run is explained, with the program's figure."""

    def fail(hp, state):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.\nlong story")

    monkeypatch.setattr(training, "compile_chunks", lambda trainer, hp, state, lengths: dict.fromkeys(lengths, fail))
    monkeypatch.setattr(training, "program_bytes", lambda _: 12_345)
    assert "the compiled program 12.3 kB" in fails(tmp_path / "out")


def test_other_errors_are_not_explained_away(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(training, "compile_chunks", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run_experiment(SMALL, HP, 0, out=tmp_path / "out", console=Console(file=io.StringIO()))


@pytest.mark.parametrize(("num_envs", "num_steps"), [(2**14, 2**16), (2**30, 1)])
def test_an_absurd_run_on_the_command_line(tmp_path, no_more_memory, capsys, num_envs, num_steps):
    """2^30 rows, and 2^30 environments whose first state alone is too much: exit code 7, one line, by real figures."""
    if device_bytes(jax.devices()[0]) > 40e9:
        pytest.skip("this machine has the memory")
    before = peak()
    flags = f"--num-envs {num_envs} --num-steps {num_steps} --total-timesteps {2**40} --hidden-sizes 4".split()
    assert cli.run(["train", *flags, "--out", str(tmp_path / "out")]) == 7
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("purejaxppo: error: out of memory: its rollout buffer takes 66.6 GB")
    assert len(reductions(error)) == 3
    assert peak() - before < 2e9
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_envs"] == num_envs


def peak():
    """Bytes of memory that this process has ever used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_traced_bytes_are_those_of_every_array_once():
    """Within loops, branches and functions too, however often they turn."""
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert traced_bytes(lambda x: (x + 1) * 2, x) == 2 * 12

    def loop(x):
        last, all_of_them = jax.lax.scan(lambda c, _: (c + 1, c.astype(jnp.int8)), x, length=10)
        return last, all_of_them

    assert traced_bytes(loop, x) == (12 + 3) + (12 + 30)  # of a turn, and of the whole
    assert traced_bytes(jax.jit(lambda x: x + 1), x) == 2 * 12
