"""Sweeps on the host: what to train, how it is laid out, its directory, its results. The device's part is `runs.py`."""
