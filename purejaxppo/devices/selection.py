"""The devices that this process uses: all that JAX has, unless some were chosen."""

import jax

from purejaxppo.errors import ConfigError

_chosen: list[jax.Device] | None = None


def use_devices(which: str) -> None:
    """Chooses the devices of this process. It starts JAX.

    Args:
      which: `all`; a count, such as `4`, of which the first ones are taken; or their numbers in JAX's order, such as
        `0,2`, or `2,` for one alone. `auto` leaves the choice to what there is to train.

    Raises:
      ConfigError: it is none of these, or there are no such devices.
    """
    global _chosen
    if which == "auto":
        if _chosen is not None:
            _chosen = None
            jax.config.update("jax_default_device", None)
        return
    every = jax.devices()
    _chosen = every if which == "all" else [every[number] for number in _numbers(which, every)]
    jax.config.update("jax_default_device", first())  # what runs on one device runs on one of them


def devices() -> list[jax.Device]:
    """Returns the devices that were chosen, by default all."""
    return jax.devices() if _chosen is None else _chosen


def first() -> jax.Device:
    """Returns the first of them that is this process's own."""
    return next(device for device in devices() if device.process_index == jax.process_index())


def were_chosen() -> bool:
    """Returns whether the devices were chosen, so that all of them are to be used."""
    return _chosen is not None


def _numbers(which: str, every: list[jax.Device]) -> list[int]:
    """Returns the devices that a text names, by their places in JAX's order."""
    listed = [part.strip() for part in which.removesuffix(",").split(",")]
    if not all(part.isascii() and part.isdigit() for part in listed):
        raise ConfigError(f"devices = {which!r} is neither all nor a count nor numbers as in 0,2; give one of these.")
    numbers = [int(part) for part in listed] if "," in which else list(range(int(which)))
    if not numbers:
        raise ConfigError("devices = 0, but something has to train; give 1 or more.")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"devices = {which} names one of them twice; give each once.")
    if max(numbers) >= len(every):
        more = " JAX_NUM_CPU_DEVICES makes more of a CPU." if every[0].platform == "cpu" else ""
        there = "0 is the only one" if len(every) == 1 else f"there are only {len(every)}, 0 to {len(every) - 1}"
        raise ConfigError(f"devices = {which}, but {there}.{more}")
    return numbers
