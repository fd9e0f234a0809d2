"""What a network learns from the label of an image: the protocol, and one module for each task."""
