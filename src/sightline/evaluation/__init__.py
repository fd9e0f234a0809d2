"""Evaluation of a classifier on labeled images: metrics, calibration, selective prediction, errors."""
