"""Experiment tracking: the settings, metrics and files of a run, written to TensorBoard, MLflow or Weights & Biases."""
