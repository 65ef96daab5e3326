"""The machine: many runs as one program, one run over several CPU devices, memory, threads, compiled programs.

It changes speed, and never a result by more than rounding.
"""
