"""From files on disk to labeled uint8 pixels: indexing, decoding, cache, split and batches."""
