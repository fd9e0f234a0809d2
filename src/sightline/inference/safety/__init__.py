"""Checks of model files before they are loaded."""
