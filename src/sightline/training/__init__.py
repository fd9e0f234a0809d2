"""Training: augmentation, schedules, stages, the loop and its checkpoints."""
