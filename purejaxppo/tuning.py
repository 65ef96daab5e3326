"""Settings that depend on the machine and not on the algorithm, each with the measurement that chose it.

They change speed, and what an update computes by no more than rounding, which later updates make grow.
benchmarks/log.md has every trial, those that lost included.
"""

from purejaxppo.config import TrainConfig

# Rows from which on the networks work on columns, [features, N], rather than on rows, [N, features]. The gradient of a
# layer's weights is a product over N: XLA's CPU multiplied 64 x N by N x 64 at 90-104 GFLOP/s if N was the last axis of
# both factors, and at 45 if it was the first (one AVX-512 core, N = 512 to 2,048). Acting, with few rows, is the other
# way round: 128 steps of 4 environments took 1.26 ms by rows and 1.74 by columns.
COLUMNS_FROM = 128

# Rows of a minibatch that a CPU device has to have for a run to be spread over several. On two cores, devices of one
# thread: 64 x 128 (1,024 rows each) trained 1.25 times as fast on two as on one, 16 x 128 (256 rows each) 0.83 times.
ROWS_PER_DEVICE = 512

# Rows that a CPU device of a spread run differentiates at a time. 2048 x 32 (8,192 rows per device and minibatch)
# trained 1.18 times as fast in blocks of 512 as in one piece (1.13 in blocks of 1,024, 1.08 of 2,048); 64 x 128, with
# 1,024 rows, 1.03 times.
ROWS_PER_BLOCK = 512

# Of a minibatch: rows x the square of the widest layer, up to which one thread is faster than several. On two cores
# 16 x 128 of CartPole (2**21) trained 1.41 times as fast with one; the MinAtar presets (2**22) 0.61 times.
ONE_THREAD_WORK = 2**21


def shares(config: TrainConfig, devices: int) -> int:
    """Over how many of so many CPU devices of one thread a single run is spread.

    Normalisers need the mean over all environments at every step, for which the devices would wait too often, and
    TRPO's step of the policy is not shared out.
    """
    if config.normalize_observation or config.normalize_reward or config.algorithm == "trpo":
        return 1
    rows = config.batch_size // config.num_minibatches
    for number in range(devices, 1, -1):
        if config.num_envs % number == rows % number == 0 and rows // number >= ROWS_PER_DEVICE:
            return number
    return 1


def blocks(rows: int) -> int:
    """The number of equal blocks, of half of ROWS_PER_BLOCK to all of it, in so many rows; 1 if none divides them."""
    numbers = range(-(-rows // ROWS_PER_BLOCK), 2 * rows // ROWS_PER_BLOCK + 1)
    return next((number for number in numbers if rows % number == 0), 1)


def one_thread_is_enough(config: TrainConfig, cores: int) -> bool:
    """Whether a single run trains faster on CPU devices of one thread than on one device of several."""
    work = config.batch_size // config.num_minibatches * max(config.hidden_sizes, default=1) ** 2
    return shares(config, cores) > 1 or work <= ONE_THREAD_WORK
