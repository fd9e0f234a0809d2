"""Augmentation: parameters drawn per image on the host, applied on the device."""
