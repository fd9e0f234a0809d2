"""Training: augmentation, schedules, stages, the training loop and checkpoints."""
