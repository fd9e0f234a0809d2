"""Recipes are data: the TOML files in this folder. `sightline.config.recipes` reads them."""
