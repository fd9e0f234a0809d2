"""A trained model behind HTTP: the answers of `sightline predict`, one request at a time or many together."""
