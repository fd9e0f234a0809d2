"""Recipes are data: the TOML files beside this one. `sightline.config.recipes` reads them."""
