"""The run directory, and the steps from a request to a finished run."""
