"""From a model and pictures to the places in them that speak for a class."""
