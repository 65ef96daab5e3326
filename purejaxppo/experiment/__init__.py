"""One run on the host: its directory, checkpoints, metrics, progress, pictures and exports."""
