"""The mathematics: pure functions of arrays that know neither an environment suite nor the host."""
