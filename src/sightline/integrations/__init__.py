"""Sightline in other engines; nothing here is imported until used."""
