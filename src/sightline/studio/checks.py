"""`BackgroundCheck`: the checks of `sightline doctor` in a background thread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.callbacks import Progress
from sightline.config import InputConfig
from sightline.data.checks.audit import audit_images
from sightline.data.types import Index
from sightline.errors import DataError, ImageError
from sightline.runs.resolve import inspection_preprocess
from sightline.studio.background import BackgroundTask
from sightline.studio.library import Library

GONE = "changed or deleted since the studio started"  # `static/reasons.js` recognizes this text


class BackgroundCheck(BackgroundTask):
    """Looks for problems in the images once, and adds the findings to the library.

    An image that has changed or disappeared is a finding, unless all have: then their folder may come back later.
    """

    def __init__(self, index: Index, library: Library, input_config: InputConfig) -> None:
        super().__init__("check", self._check)
        self._index, self._library, self._input_config = index, library, input_config
        self.hashes: NDArray[np.uint64] | None = None  # perceptual hashes of all images, once checked

    def _check(self, progress: Progress) -> None:
        preprocess, sample_range = inspection_preprocess(self._input_config, self._index)
        read = self._index.read

        def read_or_find(i: int) -> bytes | NDArray[Any]:
            try:
                return read(i)
            except ImageError:
                raise
            except DataError as error:
                raise ImageError(GONE) from error

        index = replace(self._index, read=read_or_find)
        audit, _, stats = audit_images(index, progress, sample_range, preprocess)
        if all(image.error == GONE for image in stats.images.values()):
            read(0)  # raises the reason
        self._library.set_findings(audit.findings)
        self.hashes = np.array([stats.hashes[image.sha256] for image in self._index.images], np.uint64)
        del audit, stats
        process.trim_memory()  # frees the memory of the decoded images
