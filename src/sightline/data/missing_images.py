"""Messages for sources without a usable image."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from sightline.data.containers import is_archive
from sightline.data.sources.filenames import holds_unread_images, is_placeholder
from sightline.data.sources.folder import NOT_IN_CLASS_FOLDER
from sightline.data.sources.unread_labels import advise_on_unread_labels
from sightline.data.types import SourceNote, UnreadableImage
from sightline.errors import plural

NO_ITEMS = "the arrays"  # name of an empty source in memory
_CIFAR = re.compile(r"(^|/)(data_batch_\d|test_batch|cifar-100-(python|binary)/(train|test))(\.bin)?$")
_KINDS: Mapping[Callable[[str], object], str] = {
    _CIFAR.search: (
        "is a batch of CIFAR in a form that is not read, because a pickle can run code: use the name cifar10 or "
        "cifar100 instead of the folder."
    ),
    is_placeholder: "stands for a file that is only in iCloud: download the folder first.",
    holds_unread_images: "may hold images in a format that is not read: export them as PNG or JPEG.",
    is_archive: "is an archive inside an archive: unpack the outer one.",
    re.compile(r"(?i)\.mat$").search: "is a MATLAB file, which is not read: export its images as PNG or JPEG.",
    re.compile(r"(?i)\.(csv|tsv)$").search: "is a table: name it instead of the folder.",
}
"""Messages on files that may contain images, most certain first."""


def explain_no_images(
    source_names: str,
    unreadable: Sequence[UnreadableImage],
    others: Sequence[str],
    notes: Sequence[SourceNote],
    *,
    unlabeled: bool,
) -> str:
    """Return the message for sources without a usable image; `others` are the files that are not images.

    With `unlabeled`, images need no class.
    """
    if source_names == NO_ITEMS:
        return "There are no images: the arrays are empty."
    if not unreadable:
        expected = "one folder per class with images inside, as in cat/1.jpg, dog/2.jpg"
        if unlabeled:
            expected = "images without a class, as in 1.jpg, or one folder per class, as in cat/1.jpg, dog/2.jpg"
        return f"No images in {source_names}: expected {expected}.{_explain_others(others)}"
    first = unreadable[0]
    count = plural(len(unreadable), "image")
    advice = _advise_on_labels(notes) if all(each.reason == NOT_IN_CLASS_FOLDER for each in unreadable) else ""
    return f"None of the {count} in {source_names} can be used; the first, {first.path}: {first.reason}.{advice}"


def _explain_others(paths: Sequence[str]) -> str:
    """Return a sentence on the file that most certainly contains images, or ""."""
    for is_one, sentence in _KINDS.items():
        if path := next(filter(is_one, paths), None):
            return f" {path} {sentence}"
    return ""


def _advise_on_labels(notes: Sequence[SourceNote]) -> str:
    """Return advice on images that are in no class folder."""
    return name_unread_labels(notes) or (
        " Sort the images into one folder per class, and name the folder that holds these, or say where the labels "
        "are: in the file names with --set data.label_pattern=..., or in a table with --set data.labels=FILE."
    )


def name_unread_labels(notes: Sequence[SourceNote]) -> str:
    """Return a sentence on the file that most likely has the labels but is not read; "" without one."""
    unread = {note.path: note.reason for note in notes if note.kind == "unread-labels"}
    if not unread:
        return ""
    path = min(unread, key=lambda path: (not unread[path].startswith("a table"), path))
    return f" {path} may hold labels ({unread[path]}).{advise_on_unread_labels(unread[path])}"
