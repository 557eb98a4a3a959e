"""A training run: configuration, recipes, trainer, checkpoints, metrics, processes."""
