"""The benchmarks of purejaxppo; README.md says how they are run and read.

Trainers of other projects import this package in environments of their own, so this file needs the standard library
alone.
"""

import os

# XLA's CPU client reads its number of threads from NPROC. Importing purejaxppo sets it; this is the value before that.
GIVEN_THREADS = os.environ.get("NPROC")
