"""One run on the host: its directory, checkpoints, metrics, progress, plots and exports."""
