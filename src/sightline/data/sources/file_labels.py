"""Labels from file names: ``cat.0.jpg``, ``cat_001.jpg``, or by a regular expression."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from sightline.config.data import check_label_pattern
from sightline.data.sources.split_names import parse_split_name

_NUMBERED_NAME = re.compile(r"(?P<label>[^\W\d_].*?)(?:[._\-\s]+\d+|\s*\(\d+\))")  # cat.0, great_pyrenees_12, cat (3)
_GENERIC_WORDS = {
    "img", "image", "images", "dsc", "dscn", "dscf", "photo", "pic", "picture", "frame", "scan", "screenshot", "file",
    "foto", "mvi", "pxl", "p", "capture", "snap", "export", "page", "untitled", "sample",
    "图片", "图像", "照片", "截图", "屏幕截图", "微信图片", "未命名",
}  # fmt: skip
MIN_IMAGES_PER_CLASS = 2  # least images per class for file names to be used as labels without a pattern


def compile_pattern(text: str) -> Callable[[str], str | None]:
    r"""Return a function that extracts the label from a path with the regular expression ``data.label_pattern``.

    A pattern without a ``/`` is matched against the file name alone. Raises `ConfigError` for an invalid regular
    expression or one without a group ``label``.

    >>> compile_pattern(r"(?P<label>\w+)\.\d+")("train/cat.0.jpg")
    'cat'
    """
    check_label_pattern(text, "data.label_pattern")
    pattern = re.compile(text)

    def extract_label(path: str) -> str | None:
        match = pattern.search(path if "/" in text else PurePosixPath(path).name)
        return normalize_label(match["label"]) or None if match and match["label"] else None

    return extract_label


def normalize_label(label: str) -> str:
    """Return a label without surrounding whitespace, in Unicode form NFC."""
    return unicodedata.normalize("NFC", label).strip()


def parse_label(path: str) -> str | None:
    """Return the text before the trailing number of a file name, or None.

    >>> parse_label("cat.0.jpg"), parse_label("great_pyrenees_12.jpg"), parse_label("0001.jpg")
    ('cat', 'great_pyrenees', None)
    """
    match = _NUMBERED_NAME.fullmatch(PurePosixPath(path).stem)
    return normalize_label(match["label"]) if match else None


def are_class_names(paths: Sequence[str]) -> bool:
    """Return whether every file name is unambiguously a class followed by a number.

    False for fewer than two classes or fewer than two images of a class, for names that cameras and programs write
    (``IMG_0001``), for split names, and for classes that differ only in a number (``patient1_3``, ``patient2_7``).
    """
    labels = [parse_label(path) for path in paths]
    counts = Counter(label for label in labels if label is not None)
    if counts.total() < len(paths) or len(counts) < 2 or min(counts.values()) < MIN_IMAGES_PER_CLASS:
        return False
    words = {label: {w for w in re.split(r"[\W\d_]+", label.casefold()) if w} for label in counts}
    if any(label_words & _GENERIC_WORDS for label_words in words.values()) or any(
        parse_split_name(label) is not None for label in counts
    ):
        return False
    return len({re.sub(r"\d+", "", label) for label in counts}) == len(counts)
