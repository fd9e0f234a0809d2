"""Model registry, one file per architecture family, and the builder."""
