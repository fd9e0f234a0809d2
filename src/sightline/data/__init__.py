"""From files on disk to labelled uint8 pixels: index, cache, split, batches."""
