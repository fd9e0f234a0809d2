"""Data sets that are generated here."""
