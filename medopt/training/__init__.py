"""The training loop and its parts: losses, optimizers, schedules, early stopping, checkpoints."""
