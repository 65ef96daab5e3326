"""Sweeps on the host: what to train, how it is laid out, its directory, its results. What the device does is in `devices/vectorize.py`."""
