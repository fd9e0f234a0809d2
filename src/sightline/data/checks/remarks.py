"""Findings on how a source was read: which folders, names and tables were used, and what was ignored."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.data.checks.finding import Finding, Severity, image_finding
from sightline.data.sources.filenames import holds_unread_images, is_placeholder
from sightline.data.sources.unread_labels import BOXES_ADVICE, TABLE_ADVICE
from sightline.data.types import Index, NoteKind

NOT_DOWNLOADED = "not-downloaded"
"""Finding: files that are placeholders for files in a cloud."""

UNREAD_FORMATS = "unread-formats"
"""Finding: videos and files from cameras, scanners and the like, which may contain images but are not read."""


@dataclass(frozen=True, slots=True)
class RemarkFinding:
    """The finding made from a kind of `SourceNote`: its severity, singular and plural text, and advice."""

    severity: Severity
    singular: str
    plural: str
    advice: str


REMARK_FINDINGS: dict[NoteKind, RemarkFinding] = {
    "repeated-members": RemarkFinding(
        "warning",
        "name occurs more than once in an archive",
        "names occur more than once in an archive",
        "All members are used, the second as `name (2)`. If one is an update of the other, recreate the archive.",
    ),
    "split-folders": RemarkFinding(
        "error",
        "folder is read as a class but looks like a split",
        "folders are read as classes but look like splits",
        "For splits (train, validation, test), put class folders into each of them, or take the labels from file names "
        "(--set data.label_pattern) or from a table (--set data.labels). If these folders are not splits, choose the "
        "level of the class folders with --set data.class_level (1: the topmost).",
    ),
    "unexpected-folder": RemarkFinding(
        "error",
        "folder next to the splits is not a split",
        "folders next to the splits are not splits",
        "Rename them to train, validation or test, or move them elsewhere.",
    ),
    "split-named-class": RemarkFinding(
        "warning",
        "class folder is named like a split",
        "class folders are named like splits",
        "If it is a split, sort its images into class folders, or move it out of the folder of classes.",
    ),
    "mask-folders": RemarkFinding(
        "error",
        "folder contains images or their masks, not a class",
        "folders contain images or their masks, not classes",
        "To use the masks, name each like its image, such as masks/1.png for images/1.jpg, and write a table "
        "classes.csv beside these folders, with the columns value and name and a row such as 0,sky for each value. To "
        "classify whole images instead, pass the folder of images itself if its file names state the classes; "
        "otherwise sort them into class folders, or provide a table of labels.",
    ),
    "copied-folders": RemarkFinding(
        "error",
        "folder is read as a class but has copies of the images beside it",
        "folders are read as classes but have copies of the images beside them",
        "Remove the copy, or move it elsewhere.",
    ),
    "numbered-folders": RemarkFinding(
        "error",
        "folder is read as a class, but its name only numbers a part of the images",
        "folders are read as classes, but their names only number parts of the images",
        "If a table has the labels, use --set data.labels=FILE --column label=NAME. If these folders are the "
        "classes, use --set data.class_level=1.",
    ),
    "class-masks": RemarkFinding(
        "warning",
        "file is the mask of an image in a class folder and is ignored",
        "files are masks of images in class folders and are ignored",
        "The images alone are examples of their classes. If these are images too, give them other names.",
    ),
    "missing-masks": RemarkFinding(
        "warning",
        "image has no mask and is ignored",
        "images have no mask and are ignored",
        "Add a mask of the same name, such as masks/1.png for images/1.jpg, or remove them.",
    ),
    "invalid-masks": RemarkFinding(
        "warning",
        "image is ignored, since its mask cannot be used",
        "images are ignored, since their masks cannot be used",
        "Save each mask as a PNG of the size of its image, with values or colors that classes.csv names.",
    ),
    "ambiguous-masks": RemarkFinding(
        "warning",
        "image is ignored, since it is unclear which mask it has",
        "images are ignored, since it is unclear which masks they have",
        "Give each image one mask and a name of its own, such as images/1.jpg and masks/1.png.",
    ),
    "unused-masks": RemarkFinding(
        "note",
        "mask belongs to no image",
        "masks belong to no image",
        "Nothing to do, unless an image is missing or has another name.",
    ),
    "unlabeled-folders": RemarkFinding(
        "warning",
        "folder contains unlabeled images, which are ignored",
        "folders contain unlabeled images, which are ignored",
        "To use them, sort them into class folders or provide a table of labels; `predict` needs no labels.",
    ),
    "unread-labels": RemarkFinding(
        "warning",
        "file may hold labels but is not read",
        "files may hold labels but are not read",
        f"Save a spreadsheet or a Parquet file as CSV. {TABLE_ADVICE} {BOXES_ADVICE}",
    ),
    "unread-columns": RemarkFinding(
        "warning",
        "table has columns that may be the classes, besides its column of labels",
        "tables have columns that may be the classes, besides their columns of labels",
        "If these columns are the classes, remove or rename the column of labels; otherwise confirm it with --column "
        "label=NAME.",
    ),
    "nested-classes": RemarkFinding(
        "warning",
        "class folder contains images only in subfolders",
        "class folders contain images only in subfolders",
        "The upper folder is used as the class. If the subfolders are the classes, use --set data.class_level=2, or "
        "leaf for the folder that directly contains the image. If both are classes, they form a tree: use --set "
        "model.task=hierarchical --set data.class_tree=folders.",
    ),
    "labels-from-names": RemarkFinding(
        "note",
        "class is read from file or folder names",
        "classes are read from file or folder names",
        "If that is wrong, sort the images into class folders, or set --set data.label_pattern.",
    ),
    "guessed-encoding": RemarkFinding(
        "warning",
        "table is read as GBK, because it is not UTF-8",
        "tables are read as GBK, because they are not UTF-8",
        "If the class names look wrong, save the table as UTF-8, or set its encoding, e.g. --set data.encoding=big5.",
    ),
    "labels-from-table": RemarkFinding(
        "note",
        "table gives the labels",
        "tables give the labels",
        "If that is wrong, choose another one with --set data.labels=FILE, or move it out of the folder.",
    ),
    "class-names": RemarkFinding(
        "note",
        "file gives the names of classes that are numbers",
        "files give the names of classes that are numbers",
        "If that is wrong, move it elsewhere.",
    ),
    "unread-class-names": RemarkFinding(
        "warning",
        "table of the classes has no column of names, so the numbers are kept",
        "tables of the classes have no column of names, so the numbers are kept",
        "Call the column of names `name`, and put the numbers in the first column, as in id,name.",
    ),
    "splits-from-lists": RemarkFinding(
        "note",
        "list gives the splits",
        "lists give the splits",
        "If that is wrong, move it out of the folder.",
    ),
    "unread-splits": RemarkFinding(
        "warning",
        "list that may give the splits is not used",
        "lists that may give the splits are not used",
        "The images are split as if there were none. To use lists, keep those in the folder that together name each "
        "image once, such as one train.txt and one test.txt.",
    ),
    "missing-files": RemarkFinding(
        "warning",
        "row refers to a missing file and is ignored",
        "rows refer to missing files and are ignored",
        "Restore the files or remove the rows; if they are in another folder, use --set data.root=FOLDER.",
    ),
    "conflicting-rows": RemarkFinding(
        "warning",
        "row gives a file a different label than an earlier row and is ignored",
        "rows give files different labels than earlier rows and are ignored",
        "Keep the row with the right label.",
    ),
    "empty-labels": RemarkFinding(
        "warning",
        "row has no label and is ignored",
        "rows have no label and are ignored",
        "Fill the labels in or remove the rows. With --set model.task=multi_label, they are images of none of the "
        "classes.",
    ),
}
"""The wording for each kind of `SourceNote`."""

SHOWN_IN_TRAINING = frozenset({"class-names", "labels-from-names", "labels-from-table", "splits-from-lists"})
"""Notes that `train` shows too, so that a misread source is noticed before training."""


def remark_findings(index: Index) -> list[Finding]:
    """Return a finding for each kind of remark on a source, and findings on files whose images are unavailable."""
    result = image_finding(
        NOT_DOWNLOADED, "warning",
        ("file is only in iCloud and is ignored", "files are only in iCloud and are ignored"),
        "Download the folder, with Download Now in the Finder, and run again.",
        [path for path in index.other_files if is_placeholder(path)],
    ) + image_finding(
        UNREAD_FORMATS, "warning",
        ("file may hold images in a format that is not read", "files may hold images in formats that are not read"),
        "Export their images as PNG or JPEG, unless they are in the folder in that form too.",
        [path for path in index.other_files if holds_unread_images(path)],
    )  # fmt: skip
    for kind, wording in REMARK_FINDINGS.items():
        rows = [(note.path, note.reason) for note in index.notes if note.kind == kind]
        if kind == "labels-from-names":  # a class is one, however many sources have it
            rows = list({path: (path, reason) for path, reason in reversed(rows)}.values())[::-1]
        result += image_finding(kind, wording.severity, (wording.singular, wording.plural), wording.advice, rows)
    return result
