"""`FolderExport`: the corrected images as class folders of links, written next to the patch file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline.callbacks import Progress
from sightline.data.class_folders import ClassFolders, write_class_folders
from sightline.data.label_patch import apply_patch
from sightline.data.types import Index, Split
from sightline.runs.paths import next_path
from sightline.studio.background import BackgroundTask
from sightline.studio.corrections import Corrections


class FolderExport(BackgroundTask):
    """Writes a new folder each time it is started; its name is chosen here, so no page can name another.

    Nothing is left of an export that is stopped.
    """

    def __init__(
        self,
        index: Index,
        corrections: Corrections,
        splits: Mapping[tuple[str, str], Split] | None = None,
        sources: Sequence[str | Path] = (),
    ) -> None:
        """`splits` are as in `Corrections`; the folder is never written inside one of the `sources`."""
        super().__init__("folders", self._write, repeats=True)
        self._index, self._corrections, self._splits, self._sources = index, corrections, splits or {}, sources
        self._written: ClassFolders | None = None

    @property
    def state(self) -> dict[str, Any]:
        """The state of the task, and `written`: what a complete export wrote."""
        state = super().state
        written = self._written if state["status"] == "complete" else None
        return state | {"written": written and written.to_dict()}

    def _write(self, progress: Progress) -> None:
        index, splits = self._index, self._splits
        if splits:
            known = (replace(p, split=splits.get((p.path, p.sha256), p.split)) for p in index.images)
            index = replace(index, images=tuple(known))
        path = self._corrections.path
        index = apply_patch(index, list(enumerate(self._corrections.list_entries(), 1)), f"The patch {path}")
        folder = next_path(path.parent, f"{path.stem}-images")
        self._written = write_class_folders(index, folder, self._sources, progress)
