"""The benchmarks of purejaxppo; README.md says how they are run and read.

Trainers of other projects import this package in environments of their own, so this file needs the standard library
alone.
"""

import os

# Importing purejaxppo sets NPROC, in which XLA's CPU client reads its number of threads. This is what the user gave.
GIVEN_THREADS = os.environ.get("NPROC")
