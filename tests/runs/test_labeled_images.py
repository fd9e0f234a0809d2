"""Labeled images for a model: their classes are those that it knows."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.callbacks import no_progress
from sightline.data.indexing import build_index
from sightline.data.sources.arrays import list_array_items
from sightline.data.sources.listing import SourceListing
from sightline.data.targets import CLASS_TARGETS
from sightline.errors import DataError
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.labeled_images import decode_labeled

PADDED = tuple(f"{number:02}" for number in range(12))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (tuple(map(str, range(12))), [9, 0, 10]),
        (PADDED, [9, 0, 10]),
        (("0", "9", "10", "007"), [1, 0, 2]),
        (("0", "9", "010", "10"), [1, 0, 3]),
        (("00", "9", "010", "10"), "has the class '0', which the model does not know"),
        (PADDED[:10], "has the class '10', which the model does not know"),
    ],
)
def test_a_number_is_the_class_of_this_number(classes: tuple[str, ...], expected: list[int] | str) -> None:
    items = list_array_items(np.zeros((3, 8, 8), np.uint8), [9, 0, 10], "x")
    index, spec = build_index(SourceListing(items)), PreprocessingSpec(8, 8, 1)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            decode_labeled(index, classes, spec, CLASS_TARGETS, cache=False, progress=no_progress)
        return
    labeled = decode_labeled(index, classes, spec, CLASS_TARGETS, cache=False, progress=no_progress)
    assert labeled.subset.labels.tolist() == expected
    assert [image.label for image in labeled.images] == [classes[k] for k in expected]
