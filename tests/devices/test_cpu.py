"""The CPU's cores, as devices."""

CORES = """
import purejaxppo
import jax
{first}
try:
    purejaxppo.use_all_cores()
    print(jax.device_count())
except ValueError as error:
    print(error)
"""


def test_all_cores_are_asked_for_before_jax_starts(server, tmp_path):
    """Afterwards there is nothing to be had; asking twice is fine."""

    def say(first):
        fake = "import purejaxppo.devices.cpu as t; t.cpu_cores = lambda: 3; "
        code, out, errors = server.script(tmp_path / "log", CORES.format(first=fake + first), JAX_NUM_CPU_DEVICES=None)
        assert code == 0, errors
        return out.strip()

    assert say("purejaxppo.use_all_cores()") == "3"
    message = say("jax.devices()")
    assert "use_all_cores() comes too late: JAX has started with 1 CPU device(s) for 3 cores" in message
    assert "\n" not in message
