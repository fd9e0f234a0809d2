"""Refuse settings on how labels are read if no source uses them; they would be silently ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from sightline.config import ColumnsConfig, DataConfig
from sightline.data.sources.listing import LabelOrigin, SourceListing
from sightline.errors import ConfigError

_FOLDER_SETTINGS = {"class_level": "chooses class folders", "label_pattern": "reads classes from the names of files"}


def check_settings(listings: Sequence[SourceListing], options: DataConfig, names: str) -> None:
    """Raise `ConfigError` for a label setting in `options` that none of the sources `names` uses.

    A setting that some sources use is allowed, as is any setting for sources without images.
    """
    if not any(listing.items for listing in listings):
        return
    origins = frozenset[LabelOrigin]().union(*(listing.origins for listing in listings))
    if options.labels and "data.labels" not in origins:
        raise ConfigError(
            f"data.labels is a table for a folder or an archive of images, and {names} is neither: leave it out, or "
            "name the folder of the images as the source."
        )
    column = next((f.name for f in fields(ColumnsConfig) if getattr(options.columns, f.name)), None)
    if column is not None and "table" not in origins:
        raise ConfigError(
            f"data.columns.{column} names a column of a table, but the labels of {names} are not read from one: leave "
            "it out, or name the table with --set data.labels=FILE."
        )
    for name, text in _FOLDER_SETTINGS.items():
        if getattr(options, name) and "folders" not in origins:
            raise ConfigError(
                f"data.{name} {text}, but the labels of {names} are read from elsewhere, such as a table: leave it out."
            )
