"""Checkpoints: the bytes of a state, verified directories, and saving in a thread while training goes on."""
