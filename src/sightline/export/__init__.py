"""Export Keras models to formats for other runtimes."""
