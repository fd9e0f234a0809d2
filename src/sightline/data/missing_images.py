"""Messages for sources without a usable image."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sightline.data.containers import ARCHIVE_SUFFIXES
from sightline.data.sources.filenames import holds_unread_images, is_placeholder
from sightline.data.sources.folder import NOT_IN_CLASS_FOLDER
from sightline.data.sources.unread_labels import UNREAD_LABELS, advise_on_unread_labels
from sightline.data.types import SourceNote, UnreadableImage
from sightline.errors import plural

NO_ITEMS = "the arrays"  # the name of a source in memory that lists nothing
_CIFAR = re.compile(r"(^|/)(data_batch_\d|test_batch|cifar-100-(python|binary)/(train|test))(\.bin)?$")


def explain_no_images(
    source_names: str,
    unreadable: Sequence[UnreadableImage],
    others: Sequence[str],
    notes: Sequence[SourceNote],
    *,
    unlabeled: bool,
) -> str:
    """Return the message on sources with no usable image; `others` are the files that are not images.

    With `unlabeled`, images need no class.
    """
    if source_names == NO_ITEMS:
        return "There are no images: the arrays are empty."
    if not unreadable:
        archives = [path for path in others if path.lower().endswith(ARCHIVE_SUFFIXES)]
        hint = f" {archives[0]} is an archive inside an archive: unpack the outer one." if archives else ""
        if foreign := [path for path in others if holds_unread_images(path)]:
            hint = f" {foreign[0]} may hold images in a format that is not read: export them as PNG or JPEG."
        placeholders = [path for path in others if is_placeholder(path)]
        if placeholders:
            hint = f" {placeholders[0]} stands for a file that is only in iCloud: download the folder first."
        batches = [path for path in others if _CIFAR.search(path)]
        if batches:
            hint = (
                f" {batches[0]} is a batch of CIFAR in a form that is not read, because a pickle can run code: use the "
                "name cifar10 or cifar100 instead of the folder."
            )
        expected = "one folder per class with images inside, as in cat/1.jpg, dog/2.jpg"
        if unlabeled:
            expected = "images without a class, as in 1.jpg, or one folder per class, as in cat/1.jpg, dog/2.jpg"
        return f"No images in {source_names}: expected {expected}.{hint}"
    first = unreadable[0]
    advice = ""
    if all(reject.reason == NOT_IN_CLASS_FOLDER for reject in unreadable):
        advice = (
            " Sort the images into one folder per class, and name the folder that holds these, or say where the labels "
            "are: in the file names with --set data.label_pattern=..., or in a table with --set data.labels=FILE."
        )
        if unread := {note.path: note.reason for note in notes if note.kind == UNREAD_LABELS}:
            path = min(unread, key=lambda path: (not unread[path].startswith("a table"), path))
            advice = f" {path} may hold labels ({unread[path]}). {advise_on_unread_labels([unread[path]])}"
    return (
        f"None of the {plural(len(unreadable), 'image')} in {source_names} can be used; the first, "
        f"{first.path}: {first.reason}."
        f"{advice}"
    )
