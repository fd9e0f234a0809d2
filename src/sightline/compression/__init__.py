"""Smaller models that are no worse: right-sizing, slimming, distillation, integers, and the search among them."""
