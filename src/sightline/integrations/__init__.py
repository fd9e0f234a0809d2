"""Sightline in other engines; nothing here is imported unless it is used."""
