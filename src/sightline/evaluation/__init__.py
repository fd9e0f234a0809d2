"""Judging a classifier on labelled pictures."""
