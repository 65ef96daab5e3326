"""The mathematics: pure functions of arrays, independent of environment suites and of the host."""
