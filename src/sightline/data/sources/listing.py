"""`Listing`: the contents of a source before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sightline.data.stores import Store
from sightline.records import Part, Reject, Remark


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or array that may be an image, not opened yet; `named`: the source states that it is one."""

    store: Store
    key: str
    path: str
    label: str
    part: Part | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    named: bool = False


@dataclass(frozen=True, slots=True)
class ClassFolder:
    """A folder that names a class, with or without images in it."""

    path: str
    label: str
    part: Part | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The contents of a source: entries to open, files that cannot be used, and files passed over.

    `classes` are its class folders, one for each split that has it. `unlabeled` are images left out for lack of a
    label, such as those of a test folder without class folders. `remarks` become findings about the source.
    """

    entries: list[Entry]
    stray: list[Reject] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    classes: list[ClassFolder] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """The number of files passed over."""
        return len(self.passed_over)
