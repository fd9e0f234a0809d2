"""The networks: a registry that is data, one file per family, and one builder."""
