"""Tasks define what a network learns from an image's label: the protocol, and one module per task."""
