"""What to say of sources that have no image which can be used."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.data.containers import ARCHIVE_SUFFIXES
from sightline.data.sources.folder import NOT_IN_CLASS_FOLDER
from sightline.data.sources.unread_labels import advise_on_unread_labels, find_unread_labels
from sightline.data.types import UnreadableImage
from sightline.errors import plural


def explain_no_images(source_names: str, unreadable: Sequence[UnreadableImage], others: Sequence[str]) -> str:
    """Return the message on sources with no usable image; `others` are the files that are not images."""
    if not unreadable:
        archives = [path for path in others if path.lower().endswith(ARCHIVE_SUFFIXES)]
        hint = f" It has archives, such as {archives[0]}: pass those instead." if archives else ""
        return (
            f"No images in {source_names}: expected one folder per class with images inside, as in "
            f"cat/1.jpg, dog/2.jpg.{hint}"
        )
    first = unreadable[0]
    advice = ""
    if all(reject.reason == NOT_IN_CLASS_FOLDER for reject in unreadable):
        advice = (
            " Sort the images into one folder per class, or say where their labels are: in the file names with "
            "--set data.label_pattern=..., or in a table with --set data.labels=FILE."
        )
        if unread := find_unread_labels([*(reject.path for reject in unreadable), *others]):
            path = min(unread)
            advice = f" {path} may hold labels ({unread[path]}). {advise_on_unread_labels(unread)}"
    return (
        f"None of the {plural(len(unreadable), 'image')} in {source_names} can be used; the first, "
        f"{first.path}: {first.reason}."
        f"{advice}"
    )
