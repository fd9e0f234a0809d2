"""Findings on how a source was read: what was taken for what, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.data.finding import Finding, Severity, listed
from sightline.records import Index


@dataclass(frozen=True, slots=True)
class Wording:
    """How a kind of `Remark` is told: of `one` or of `many`, and the advice."""

    severity: Severity
    one: str
    many: str
    advice: str


WORDINGS = {
    "repeated-members": Wording(
        "warning",
        "name stands in an archive more than once",
        "names stand in an archive more than once",
        "All of them are used, the second as `name (2)`. If one is an update of the other, pack the archive anew.",
    ),
    "split-folders": Wording(
        "error",
        "folder is read as a class but looks like a split",
        "folders are read as classes but look like splits",
        "For splits (train, validation, test), put class folders into each of them, or give the labels by file names "
        "(--set data.label_pattern) or by a table (--set data.labels). For classes inside folders that are no splits, "
        "say with --set data.class_level which level of folders names the classes (1: the uppermost).",
    ),
    "unexpected-folder": Wording(
        "error",
        "folder beside the splits is none of them",
        "folders beside the splits are none of them",
        "Rename them to train, validation or test, or move them away.",
    ),
    "split-named-class": Wording(
        "warning",
        "class folder is named as a split",
        "class folders are named as splits",
        "If it is a split, sort its images into class folders, or move it out of the folder of classes.",
    ),
    "mask-folders": Wording(
        "error",
        "folder holds images or their masks, not a class",
        "folders hold images or their masks, not classes",
        "Semantic segmentation is not supported. To classify the images, sort them into class folders, or give a table "
        "of labels for the folder of images.",
    ),
    "unlabeled": Wording(
        "warning",
        "folder holds images without labels, which are left out",
        "folders hold images without labels, which are left out",
        "Sort them into class folders or give a table of labels to use them; `predict` takes them as they are.",
    ),
    "nested-classes": Wording(
        "warning",
        "class folder holds images only in folders inside it",
        "class folders hold images only in folders inside them",
        "The upper folder is taken for the class. If those inside are the classes: --set data.class_level=2, or leaf "
        "for the folder that holds the image.",
    ),
    "labels-from-names": Wording(
        "note",
        "class is read from file names",
        "classes are read from file names",
        "If that is wrong, sort the images into class folders, or say how with --set data.label_pattern.",
    ),
    "guessed-encoding": Wording(
        "warning",
        "table is taken to be in GBK, as it is not in UTF-8",
        "tables are taken to be in GBK, as they are not in UTF-8",
        "If the class names look wrong, save the table as UTF-8, or name its encoding, as in --set data.encoding=big5.",
    ),
    "labels-from-table": Wording(
        "note",
        "table gives the labels",
        "tables give the labels",
        "If that is wrong, name another one with --set data.labels=FILE, or move it out of the folder.",
    ),
    "missing-files": Wording(
        "warning",
        "row names a file that is missing, and is left out",
        "rows name files that are missing, and are left out",
        "Restore the files or remove the rows; if they lie in another folder, --set data.root=FOLDER.",
    ),
    "conflicting-rows": Wording(
        "warning",
        "row gives a file another label than a row before it, and is left out",
        "rows give files another label than rows before them, and are left out",
        "Keep the row with the right label.",
    ),
    "empty-labels": Wording(
        "warning",
        "row states no label, and is left out",
        "rows state no label, and are left out",
        "Fill the labels in or remove the rows.",
    ),
}
"""By kind of `Remark`."""

ALWAYS_SHOWN = frozenset({"labels-from-names", "labels-from-table"})
"""Notes that `train` shows too: how the source was read is to be known before time is spent."""


def findings(index: Index) -> list[Finding]:
    """Return a finding for each kind of remark on a source."""
    result = []
    for kind, wording in WORDINGS.items():
        remarks = [r for r in index.remarks if r.kind == kind]
        paths, reasons = [r.path for r in remarks], [r.reason for r in remarks]
        result += listed(kind, wording.severity, (wording.one, wording.many), wording.advice, paths, reasons)
    return result
