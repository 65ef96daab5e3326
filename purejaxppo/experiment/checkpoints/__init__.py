"""Checkpoints: the bytes of a state, a verified directory of them, and saving beside the training."""
