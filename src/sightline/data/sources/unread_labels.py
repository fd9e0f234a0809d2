"""Recognize files that may contain labels but are not read: spreadsheets, boxes, exports of annotation tools."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from sightline.data.image_tables import is_image_table
from sightline.data.sources.filenames import is_hidden, is_image_name

TABLE_ADVICE = "Use a table with --set data.labels=FILE --column label=NAME."
BOXES_ADVICE = (
    "The boxes of YOLO and Pascal VOC and the files of LabelMe, CVAT and MATLAB are not read: write a table with the "
    "columns path and label, a row for each image, or sort the images into class folders. Label Studio exports such a "
    "table as CSV."
)
_SPREADSHEETS = {".xlsx", ".xls", ".xlsm", ".ods", ".numbers"}
_BOXES = {".txt": "YOLO", ".xml": "Pascal VOC", ".json": "LabelMe"}
_TOOLS = {".mat": "MATLAB", "annotations.xml": "CVAT", ".json": "JSON"}
_ADVICE = {
    "spreadsheet": "Save the spreadsheet as CSV.",
    "Parquet": "Write the Parquet or Arrow file as CSV.",
    "a table": TABLE_ADVICE,
    **dict.fromkeys([*_BOXES.values(), *_TOOLS.values()], BOXES_ADVICE),
}
"""Advice on a file, by the first words on what it is."""


def is_spreadsheet(path: str) -> bool:
    """Return whether a file has the extension of a spreadsheet."""
    return PurePosixPath(path).suffix.lower() in _SPREADSHEETS


def find_unread_labels(paths: Iterable[str]) -> dict[str, str]:
    """Return the files that may contain labels but are not read, each with its apparent kind.

    Boxes are in a file that is named as an image is: ``labels/1.txt`` or ``Annotations/1.xml`` for ``images/1.jpg``.
    """
    visible = [path for path in paths if not is_hidden(path)]
    image_names = {PurePosixPath(path).stem for path in visible if is_image_name(path)}
    result = {}
    for path in visible:
        name = PurePosixPath(path)
        if is_spreadsheet(path):
            result[path] = "spreadsheet"
        elif is_image_table(path):
            result[path] = "Parquet or Arrow"
        elif name.suffix.lower() in _BOXES and name.stem in image_names:
            result[path] = _BOXES[name.suffix.lower()]
        elif kind := _TOOLS.get(name.name.lower()) or _TOOLS.get(name.suffix.lower()):
            result[path] = kind
    return result


def advise_on_unread_labels(reason: str) -> str:
    """Return advice on a label file that is not read for this reason; "" if the reason says what to do."""
    return next((f" {advice}" for start, advice in _ADVICE.items() if reason.startswith(start)), "")
