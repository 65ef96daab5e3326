"""Sweeps and comparisons on the host: settings, batches of runs, the directory of a sweep, tables and plots."""
