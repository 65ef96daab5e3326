"""Environments: the adapter of gymnax, and the wrappers that training and evaluation put around an environment."""
