"""Settings that depend on the machine and not on the algorithm, each with the measurement that chose it.

They change speed, and results by no more than rounding. benchmarks/log.md has every trial, those that lost included.
"""

# Rows from which on the networks work on columns, [features, N], rather than on rows, [N, features]. The gradient of a
# layer's weights is a product over N: XLA's CPU multiplied 64 x N by N x 64 at 90-104 GFLOP/s if N was the last axis of
# both factors, and at 45 if it was the first (one AVX-512 core, N = 512 to 2,048). Acting, with few rows, is the other
# way round: 128 steps of 4 environments took 1.26 ms by rows and 1.74 by columns.
COLUMNS_FROM = 128

# Rows of a minibatch that a CPU device has to have for a run to be spread over several.
ROWS_PER_DEVICE = 512
