"""`Listing`: what a source states before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sightline.data.stores import Store
from sightline.records import Part, Reject, Remark


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or array that should be a picture, not looked into yet; `named`: the source itself says that it is."""

    store: Store
    key: str
    path: str
    label: str
    part: Part | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    named: bool = False


@dataclass(frozen=True, slots=True)
class ClassFolder:
    """A folder that names a class, whether it holds pictures or not."""

    path: str
    label: str
    part: Part | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source lists: entries to look into, files that cannot be used, and those passed over.

    `classes` are its class folders, one for each split that has it; `unlabeled` the images without a label, as those of
    a test folder without class folders, which are left out; `remarks` what is to be said of the source.
    """

    entries: list[Entry]
    stray: list[Reject] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    classes: list[ClassFolder] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """How many files were passed over."""
        return len(self.passed_over)
