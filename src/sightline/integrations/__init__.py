"""Sightline behind the engines of others; nothing here is imported unless it is used."""
