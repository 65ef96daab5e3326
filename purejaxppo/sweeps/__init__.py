"""Many runs on the host: what to train, in which batches, their directory, their results."""
