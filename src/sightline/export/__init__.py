"""A Keras model as a file that other runtimes read."""
