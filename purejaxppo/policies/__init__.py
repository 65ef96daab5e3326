"""Networks: what maps observations to a distribution over actions and a value."""
