"""A pandas DataFrame with one row per image; pandas itself is not imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from PIL import Image

from sightline.config import DataConfig
from sightline.data.sources.listing import SourceListing
from sightline.data.sources.manifest import read_rows
from sightline.errors import DataError, UsageError


def list_frame_items(frame: Any, options: DataConfig) -> SourceListing:
    """Return the listing of a DataFrame, read like a table; raises `UsageError` for other objects."""
    if not hasattr(frame, "columns") or not hasattr(frame, "isna"):
        module = type(frame).__module__.partition(".")[0]
        hint = ": use frame.to_pandas()" if hasattr(frame, "to_pandas") else ""  # polars, PyArrow
        if module == "datasets":  # in a DataFrame, its images would be dicts
            hint = ": use frame.save_to_disk('folder/') and Dataset.from_folder('folder/')"
        raise UsageError(f"frame is of the type {module}.{type(frame).__qualname__}, not a pandas DataFrame{hint}.")
    if frame.empty:
        raise DataError("The DataFrame has no rows.")
    names = Counter(str(name).strip() for name in frame.columns)
    if repeated := next((name for name, count in names.items() if count > 1), None):
        raise DataError(
            f"The DataFrame has {names[repeated]} columns called {repeated!r}, and only one could be read: rename "
            "or drop the others."
        )
    missing = frame.isna()
    columns = {
        str(name): [None if absent else value for value, absent in zip(frame[name], missing[name], strict=True)]
        for name in frame.columns
    }
    rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    try:
        return read_rows(rows, "The DataFrame", options)
    except DataError as error:
        for name, (value, *_) in columns.items():
            is_pixels = isinstance(value, Image.Image) or getattr(value, "ndim", 0) > 1
            if is_pixels or isinstance(value, bytes | Mapping):
                can_stack = is_pixels and "mask" not in name.casefold()
                stack = f", or use Dataset.from_arrays(np.stack(frame[{name!r}]), y) if they have one size" * can_stack
                raise DataError(
                    f"The column {name!r} of the DataFrame holds images, not paths: save them as files{stack}."
                ) from error
        raise
