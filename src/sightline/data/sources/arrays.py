"""Images in memory with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.sources.listing import SourceItem
from sightline.data.storage import ArrayStore
from sightline.data.types import Split
from sightline.errors import DataError, plural


def list_array_items(
    pixels: NDArray[np.uint8],
    labels: NDArray[Any] | Sequence[Any],
    name: str,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
) -> list[SourceItem]:
    """Return an entry for each image of an array; `labels` are class names, or integer indices into `classes`."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,), (4,)):
        raise DataError(
            f"{name}: pixels must be uint8 [N, H, W] or [N, H, W, 1, 3 or 4], got {pixels.dtype} {list(pixels.shape)}."
        )
    store = ArrayStore(pixels, name)
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != len(pixels):
        raise DataError(f"{name}: {plural(len(pixels), 'image')} but {plural(len(labels), 'label')}.")
    if labels.dtype.kind in "iu":
        names = classes or _number_names(int(labels.max(initial=0)) + 1)
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(names):
            raise DataError(
                f"{name}: labels run from {labels.min()} to {labels.max()}, but there are {len(names)} classes."
            )
        label_names = [names[i] for i in labels.tolist()]
    else:
        label_names = [str(x) for x in labels.tolist()]
    return [SourceItem(store, str(i), f"{name}[{i}]", label_name, split) for i, label_name in enumerate(label_names)]


def _number_names(count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{i:0{width}}" for i in range(count)]
