"""Name classes that are numbers or WordNet ids from a file next to the images, such as ``classes.txt``."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from sightline import jsonio
from sightline.data.sources.encoding import decode_text
from sightline.data.sources.filenames import is_image_name
from sightline.data.sources.folder_layout import select_top_files
from sightline.data.sources.listing import ClassNames, SourceListing, replace_labels
from sightline.data.sources.split_names import parse_split
from sightline.data.sources.table import normalize_name
from sightline.data.storage import FileStore, read_untrusted_file
from sightline.data.targets import LABEL_SETS, SEPARATOR, join_classes, strip_zeros
from sightline.data.types import NoteKind, SourceNote
from sightline.errors import ImageError

FILES = (
    "classes.txt", "class_names.txt", "labels.txt", "synset_words.txt", "LOC_synset_mapping.txt", "words.txt",
    "classes.csv", "label_num_to_disease_map.json", "cat_to_name.json", "label_map.json", "class_names.json",
    "data.yaml",
)  # fmt: skip
_NAME_COLUMNS = frozenset({
    "name", "class", "classname", "classlabel", "label", "labelname", "category", "categoryname", "species",
    "speciesname", "breed", "disease", "diagnosis", "description",
    "名称", "名字", "类名", "类别", "类别名", "类别名称", "标签", "标签名称", "分类", "种类", "品种",
})  # fmt: skip
_WORDNET_ID = r"n\d{8}"
_NUMBER = re.compile(rf"\d+|{_WORDNET_ID}")
_NO_NAME = re.compile(r"[-+\d.,\s]*")
_WORDS = re.compile(r"[^\W\d_][^/]*")  # not a color, a date, a fraction or a path
_YAML_NAMES = re.compile(r"^names[ \t]*:(.*(?:\n(?:[ \t-].*)?)*)", re.MULTILINE)  # and the lines after it
_YAML_NAME = re.compile(
    r"""(?:-\s+|(?P<number>\d+)\s*:\s+)?(?:'(?P<one>[^'\n]+)'|"(?P<two>[^"\\\n]+)"|(?P<bare>\w[^'"#:,\[\]{}\n]*))"""
)


def find_class_names(listing: SourceListing, store: FileStore | None, folder: Path | None) -> ClassNames | None:
    """Return the names of the classes of a listing, if all classes are numbers that one of `FILES` names.

    The file is in `store`, at most one folder deep, else in `folder`. Lines without a number name the classes from 0 or
    1 on, if there are as many lines as classes. Names that are numbers themselves, or not distinct, are ambiguous and
    ignored, as are lists of images and of splits. If there are no names, but a table of these classes may have them in
    a column, its columns are returned.
    """
    unread: ClassNames | None = None
    labels = {name for label in {item.label for item in listing.items} for name in LABEL_SETS.list_classes(label)}
    if len(labels) < 2 or not are_numbers(labels):
        return None
    keys: dict[str, str] = {}
    images = (item.key for item in listing.items if item.store is store)
    for key in () if store is None else select_top_files(store.keys(), images):
        keys.setdefault(key.rpartition("/")[2].casefold(), key)
    for file in FILES:
        member = keys.get(file.casefold())
        with suppress(ImageError, ValueError, csv.Error):
            if store is not None and member is not None:
                path, content = member, bytes(store.read(member))
            elif folder is not None:
                path, content = str(folder / file), read_untrusted_file(folder / file)
            else:
                continue
            text = decode_text(content)
            if names := _name(labels, text, PurePosixPath(file).suffix):
                return ClassNames(path, names)
            if file.endswith(".csv") and (columns := _list_columns(labels, text)):
                unread = ClassNames(path, {}, columns)
    return unread


def are_numbers(labels: Collection[str]) -> bool:
    """Return whether all labels are numbers or WordNet identifiers."""
    return all(map(_NUMBER.fullmatch, labels))


def is_wordnet_id(text: str) -> bool:
    """Return whether a text is a WordNet identifier, as used for the classes of ImageNet: ``n01440764``."""
    return re.fullmatch(_WORDNET_ID, text) is not None


def apply_class_names(listings: Sequence[SourceListing]) -> list[SourceListing]:
    """Return the listings with their classes named, unless one of them has classes that no file names."""
    names = [listing.class_names for listing in listings]
    are_named = all(each and each.names for each, listing in zip(names, listings, strict=True) if listing.items)
    return [
        _apply(listing, each) if each and (are_named or not each.names) else listing
        for each, listing in zip(names, listings, strict=True)
    ]


def _apply(listing: SourceListing, class_names: ClassNames) -> SourceListing:
    def rename(label: str, _: str) -> str:
        labels = LABEL_SETS.list_classes(label) if listing.several_labels else (label,)
        return join_classes(class_names.names.get(name, name) for name in labels)

    kind: NoteKind = "class-names" if class_names.names else "unread-class-names"
    note = SourceNote(kind, class_names.path, class_names.columns)
    return replace(replace_labels(listing, rename), notes=[*listing.notes, note], class_names=None)


def _name(labels: Collection[str], text: str, suffix: str) -> dict[str, str]:
    """Return the name of each label according to the text of a file with this suffix; empty if ambiguous."""
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    words = (word.strip('"') for line in lines for word in re.split(r"[\s,;]+", line))
    if suffix != ".json" and any(map(is_image_name, words)):
        return {}
    named = {strip_zeros(key): name for key, name in _read_names(text, lines, suffix).items()}
    if 2 * len(set(named.values())) < len(named):  # a list of numbered images with their classes
        return {}
    if suffix == ".txt" and not {strip_zeros(label) for label in labels} <= set(named):
        has_other_numbers = bool(named) and all(map(str.isdecimal, named))
        named = {} if has_other_numbers else _number_lines(lines, labels)
    names = {label: named[strip_zeros(label)] for label in labels if named.get(strip_zeros(label))}
    texts = set(names.values())
    are_clear = len(texts) == len(labels) and not any(_NO_NAME.fullmatch(t) or SEPARATOR in t for t in texts)
    return names if are_clear and None in map(parse_split, texts) else {}


def _read_names(text: str, lines: Sequence[str], suffix: str) -> dict[str, str]:
    """Map numbers or WordNet identifiers to names, as the text of a file states them; `lines` are without comments."""
    if suffix == ".json":
        return _read_mapping(jsonio.loads(text))
    if suffix == ".yaml":
        return _read_yaml(text)
    if suffix == ".csv":
        return _read_csv(lines)
    cells = (re.split(r"[\s:,]+", line, maxsplit=1) for line in lines)
    return {row[0]: row[1] for row in cells if len(row) > 1}


def _number_lines(lines: Sequence[str], labels: Collection[str]) -> dict[str, str]:
    """Return the lines by number, from the least of `labels` on, 0 or 1; empty if there are fewer or more lines."""
    if not all(map(str.isdecimal, labels)):
        return {}
    names = [re.sub(r"^n\d{8}\s+", "", line) for line in lines]
    first, last = min(map(int, labels)), max(map(int, labels))
    is_whole = first < 2 and last - first + 1 == len(set(names)) == len(names)
    return {str(i): name for i, name in enumerate(names, first)} if is_whole else {}


def _read_csv(lines: Sequence[str]) -> dict[str, str]:
    """Map the first cell of each row to the cell in the name column; without a header, the second column is used."""
    rows = [row for row in csv.reader(lines, skipinitialspace=True) if len(row) > 1]
    titles = list(map(normalize_name, rows[0])) if rows and not _NUMBER.fullmatch(rows[0][0].strip()) else ["", "name"]
    column = next((i for i, title in enumerate(titles) if i and title in _NAME_COLUMNS), None)
    return {} if column is None else {row[0].strip(): row[column].strip() for row in rows if len(row) > column}


def _list_columns(labels: Collection[str], text: str) -> str:
    """Describe the columns of a table with a row for each of `labels`, if a column may contain their names; else ""."""
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) > 1]
    numbers, *others = zip(*rows[1:], strict=False) if rows[1:] else [()]
    is_keyed = {strip_zeros(label) for label in labels} <= {strip_zeros(cell.strip()) for cell in numbers}
    may_be_names = any(len(set(each)) == len(each) and all(map(_WORDS.fullmatch, each)) for each in others)
    return f"its columns are {', '.join(rows[0])}" if is_keyed and may_be_names else ""


def _read_mapping(value: object) -> dict[str, str]:
    """Return the names by number, from JSON that maps numbers to names or names to numbers."""
    if not isinstance(value, Mapping):
        return {}
    pairs = [(name, key) if isinstance(name, int) else (key, name) for key, name in value.items()]
    return {str(key): name for key, name in pairs if isinstance(name, str)}


def _read_yaml(text: str) -> dict[str, str]:
    """Return the ``names`` in an Ultralytics YAML file by number: a list or a mapping, on one line or several.

    Other notations are ignored, so that training needs no YAML package.
    """
    block = _YAML_NAMES.search(re.sub(r"(?m)(^|[ \t])#.*", "", text))  # comments removed
    content = block.group(1).strip() if block else ""
    is_inline = content[:1] + content[-1:] in {"[]", "{}"}
    entries = content[1:-1].split(",") if is_inline else content.split("\n")
    names = [_YAML_NAME.fullmatch(entry.strip()) for entry in entries if entry.strip()]
    if None in names:
        return {}
    matches = filter(None, names)
    return {each["number"] or str(i): each["one"] or each["two"] or each["bare"] for i, each in enumerate(matches)}
