"""Policies: what maps observations, and what is remembered of earlier ones, to a distribution and a value."""
