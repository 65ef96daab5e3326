"""The machine: many runs as one program, data parallelism over CPU devices, memory, threads, the compilation cache.

This folder changes the speed of a run, and its results by no more than rounding.
"""
