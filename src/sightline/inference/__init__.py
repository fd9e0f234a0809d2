"""Inference: from images to predictions, for every stored form of a model."""
