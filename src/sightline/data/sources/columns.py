"""Choose the columns of a table that contain the image, the label and the split."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import PurePosixPath

from sightline.config import ColumnsConfig
from sightline.data.sources.filenames import is_image_name
from sightline.data.sources.split_names import parse_split
from sightline.data.sources.table import IsFile, NestedName, Row, Table, normalize_name
from sightline.data.types import Split
from sightline.errors import DataError, list_some

_SPLIT_FLAGS: Mapping[str, tuple[Split, Split]] = {  # the splits where such a column is true, and where it is false
    "istrain": ("train", "test"), "istraining": ("train", "test"),
    "istrainingimg": ("train", "test"), "istrainingimage": ("train", "test"),
    "istest": ("test", "train"), "isvalid": ("validation", "train"), "isval": ("validation", "train"),
}  # fmt: skip
_NUMBERED_SPLITS: Mapping[str, Split] = {"0": "train", "1": "validation", "2": "test"}  # as in CelebA and WILDS
_COLUMN_NAMES: Mapping[str, tuple[str, ...]] = {  # normalized by `normalize_name`, most specific first
    "path": (
        "path", "filepath", "filename", "file", "imagepath", "imgpath", "imagefile", "imagename", "imgname", "image",
        "img", "images", "imageid", "imgid", "name", "id",
        "路径", "文件路径", "图片路径", "文件名", "文件", "图片名", "图片", "图像",
    ),
    "label": (
        "label", "labels", "class", "classname", "classlabel", "target", "category", "categoryname", "breed", "species",
        "y", "labelname", "classes", "categories", "tag", "tags", "diagnosis", "dx", "findinglabels",
        "labelid", "classid", "categoryid", "choice", "choicechoices", "diagnostic",
        "classificationannotationdisplayname", "classificationannotationsdisplayname",
        "标签", "类别", "分类", "类别名称", "标签名称", "类名", "种类", "品种",
    ),
    "split": (
        "split", "set", "subset", "partition", "usage", "phase", "fold", "dataset",
        "dataitemresourcelabelsaiplatformgoogleapiscommluse",
        "划分", "数据集", *_SPLIT_FLAGS,
    ),
    "mask": ("mask", "maskpath", "maskfile", "maskname", "masks"),
}  # fmt: skip
KNOWN_COLUMNS = frozenset(name for names in _COLUMN_NAMES.values() for name in names)
UNASSIGNED = "unassigned"
"""The value that Vertex AI writes for an image without a split."""
_SAYS_CLASS = re.compile("label|class|target|标签|类[别名]")  # not so species or 种类, which may be a property
_SAMPLE_ROWS = 50  # rows read to decide which column holds file names


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns in use. Each of the `one_hot` columns is a class; there is then no label column.

    Each cell of the `labels` columns is a label, as in rows of different lengths; there is then no label column either.
    `splits` maps the cells of the column `split` to splits. `mask` is the column of mask files in a table without
    labels. Where `confidence` is 0, as in Open Images, people have confirmed that the image does not have the label.
    """

    path: str
    label: str = ""
    split: str = ""
    one_hot: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    mask: str = ""
    confidence: str = ""
    splits: Mapping[str, Split] = field(default_factory=dict)

    def read_label(self, row: Row) -> str | tuple[str, ...]:
        """Return the label of a row, or a tuple if the row has a list of labels."""
        if self.confidence and _parse_bool(row.get_text(self.confidence)) is False:
            return ""
        if self.one_hot:
            return tuple(name for name in self.one_hot if _parse_bool(row.get_text(name)) is True)
        if self.labels:
            return tuple(text for name in self.labels if (text := row.get_text(name)))
        return row.cells.get(self.label, "")


def join_split_flags(table: Table) -> Table:
    """Return a table with a column ``split`` that joins several such as ``is_train`` and ``is_test``, if they agree.

    As with a single column, some images must be in the training split and others not.
    """
    names = {c: normalize_name(c) for c in table.columns}
    flags = {c: _SPLIT_FLAGS[name][0] for c, name in names.items() if name in _SPLIT_FLAGS}
    if len(flags) < 2 or "split" in names.values():
        return table
    splits_by_row = [[s for c, s in flags.items() if _parse_bool(row.get_text(c))] for row in table.rows]
    if any(len(splits) != 1 for splits in splits_by_row) or not {("train",)} < set(map(tuple, splits_by_row)):
        return table
    rows = (Row(r.line, {**r.cells, "split": splits[0]}) for r, splits in zip(table.rows, splits_by_row, strict=True))
    return replace(table, columns=(*table.columns, "split"), rows=tuple(rows))


def choose_columns(table: Table, options: ColumnsConfig, is_file: IsFile) -> Columns:
    """Choose the column for each role: from `options`, else by column name, else by content.

    Raises `DataError`, listing the columns, if the image or the label has no column, or if two columns share a name.
    """
    columns = _choose_columns(table, options, is_file)
    for name in (columns.path, columns.label, columns.split, columns.mask, *columns.one_hot):
        if name and table.columns.count(name) > 1:
            raise DataError(
                f"{table.name} has {table.columns.count(name)} columns named {name!r}: rename or remove one."
            )
    splits = read_splits(table, columns.split, table.list_texts(columns.split)) if columns.split else {}
    return replace(columns, splits=splits)


def _choose_columns(table: Table, options: ColumnsConfig, is_file: IsFile) -> Columns:
    requested = {f.name: _resolve_requested(table, f.name, getattr(options, f.name)) for f in fields(ColumnsConfig)}
    path = requested["path"] or _find_path_column(table, is_file, set(requested.values()))
    if not path:
        raise DataError(_missing_column_message(table, "path"))
    split = requested["split"] or _find_split_column(table, {path, requested["label"]})
    label = requested["label"] or _find_label_column(table, {path, split})
    if label and not (requested["label"] or table.has_header) and all(map(is_image_name, table.list_texts(label))):
        return Columns(path, "", split, mask=label)  # CamVid: `train/1.png trainannot/1.png`
    if label:
        return Columns(path, label, split, confidence=_find_confidence_column(table, label))
    if labels := _find_ragged_labels(table, path, split):
        return Columns(path, "", split, labels=labels)
    masks = (c for c in find_by_name(table, "mask", {path, split}) if not _is_one_hot(table, c))  # else a class
    if mask := next(masks, ""):
        return Columns(path, "", split, mask=mask)
    others = [c for c in table.columns if c not in {path, split} and not isinstance(c, NestedName)]  # not metadata
    others = [c for c in others if normalize_name(c) not in _SPLIT_FLAGS]
    one_hot = tuple(c for c in others if _is_one_hot(table, c))
    if uncertain := next((c for c in others if c not in one_hot and _is_uncertain(table, c)), ""):
        raise DataError(
            f"{table.name} has no recognized column for the labels, and column {uncertain!r} has -1, which means that "
            "it is uncertain whether an image has the class: write 1, 0 or nothing instead, or name the column of the "
            "labels with --column label=NAME."
        )
    if len(one_hot) < 2 or not any(_parse_bool(row.get_text(column)) for row in table.rows for column in one_hot):
        raise DataError(_missing_column_message(table, "label"))
    return Columns(path, "", split, one_hot)


def _find_path_column(table: Table, is_file: IsFile, used_columns: Collection[str]) -> str:
    by_name = find_by_name(table, "path", used_columns)
    rows = table.rows[:_SAMPLE_ROWS]
    by_content = [
        c for c in table.columns if c not in used_columns and 2 * sum(is_file(r.get_text(c)) for r in rows) > len(rows)
    ]
    matching = (c for c in [*by_name, *by_content] if any(is_file(r.get_text(c)) for r in rows))
    return next(chain(matching, by_name), "")


def _find_split_column(table: Table, used_columns: Collection[str]) -> str:
    unused_columns = [c for c in table.columns if c not in used_columns]
    candidates = find_by_name(table, "split", used_columns) if table.has_header else unused_columns
    return next((c for c in candidates if _is_split_column(table, c)), "")


def _find_label_column(table: Table, used_columns: Collection[str]) -> str:
    unused_columns = [c for c in table.columns if c not in used_columns]
    is_named = table.has_header or len(unused_columns) > 1
    return next(iter(find_by_name(table, "label", used_columns) if is_named else unused_columns), "")


def _find_ragged_labels(table: Table, path: str, split: str) -> tuple[str, ...]:
    """Return the columns after the image column in headerless rows of different lengths, as in Vertex AI.

    Rows with numbers, such as the coordinates of boxes, do not count as labels.
    """
    at = table.columns.index(path) + 1
    first, others = table.columns[at : at + 1], table.columns[at + 1 :]
    cells = [[row.get_text(c) for c in (*first, *others)] for row in table.rows]
    if table.has_header or not others or {*table.columns[: at - 1]} - {split} or split in {*first, *others}:
        return ()
    texts = {text for row in cells for text in row}
    is_ragged = all(row[0] for row in cells) and "" in {row[-1] for row in cells}
    has_gaps = any("" in row and any(row[row.index("") :]) for row in cells)
    has_numbers = any(re.fullmatch(r"-?\d*\.?\d+", text) for text in texts)
    return (*first, *others) if is_ragged and not has_gaps and not has_numbers else ()


def _find_confidence_column(table: Table, label: str) -> str:
    """Return the column next to ``LabelName`` in which 1 or 0 states whether the image has the label of the row."""
    columns = (c for c in table.columns if normalize_name(c) == "confidence" and _is_one_hot(table, c))
    return next(columns, "") if normalize_name(label) == "labelname" else ""


def find_other_classes(table: Table, columns: Columns) -> list[str]:
    """Return the columns that may be the classes instead of the label column, which disagrees with them.

    Exactly one of them is true in each row, and not always the same one for each label. A label column that is called
    so, as in ``label,day,night``, is not in doubt.
    """
    if _SAYS_CLASS.search(normalize_name(columns.label)):
        return []
    sample = replace(table, rows=table.rows[:_SAMPLE_ROWS])  # most columns and tables are no candidates
    others = [c for c in table.columns if c not in {columns.path, columns.label, columns.split}]
    others = [c for c in others if normalize_name(c) not in _SPLIT_FLAGS and _is_one_hot(sample, c)]
    if len(others) < 2:
        return []
    pairs: set[tuple[str, ...]] = set()
    for checked in (sample, table):
        pairs = {
            (row.get_text(columns.label), *(c for c in others if _parse_bool(row.get_text(c)))) for row in checked.rows
        }
        if any(len(pair) != 2 for pair in pairs) or not all(_is_one_hot(checked, c) for c in others):
            return []
    return others if len(pairs) > len({label for label, *_ in pairs}) else []


def _resolve_requested(table: Table, role: str, name: str) -> str:
    if not name or name in table.columns:
        return name
    for column in table.columns:
        if normalize_name(column) == normalize_name(name):
            return column
    raise DataError(f"{table.name} has no column {name!r} for data.columns.{role}: {_describe_columns(table)}.")


def find_by_name(table: Table, role: str, used_columns: Collection[str]) -> list[str]:
    """Return the columns of a table with a usual name for a role, most specific first."""
    normalized = {normalize_name(column): column for column in reversed(table.columns)}
    named = [normalized[name] for name in _COLUMN_NAMES[role] if name in normalized]
    return [c for c in named if c not in used_columns and not _is_coordinate(table, c, used_columns)]


def _is_coordinate(table: Table, column: str, used_columns: Collection[str]) -> bool:
    """Return whether ``y`` is a coordinate: next to ``x`` with numbers, or NIH ChestX-ray's ``PixelSpacing[x,y]``."""
    if normalize_name(column) != "y":
        return False
    x = [c for c in table.columns if c.strip().casefold() == "x" and c not in used_columns]
    cells = [row.get_text(c) for row in table.rows for c in (*x, column)]
    return column.strip().casefold() != "y" or bool(x and all(re.fullmatch(r"-?[\d.]*", cell) for cell in cells))


def _is_split_column(table: Table, column: str) -> bool:
    """Return whether a column contains splits; one named `split` always does, so that a wrong value is an error."""
    cells = table.list_texts(column)
    texts = {*cells} - {""}
    splits = {*read_splits(table, column, cells), *(text for text in texts if text.casefold() == UNASSIGNED)}
    return bool(texts) and (normalize_name(column) == "split" or texts <= splits)


def read_splits(table: Table, column: str, cells: Sequence[str]) -> dict[str, Split]:
    """Map the cells of a column to the splits that they state, leaving out cells that state none.

    A column such as ``is_train`` states splits by 1 and 0, if it has both and is the only such column. Unless it is
    ``is_train``, most images must be in the training split, because ``is_valid`` may also mean that a row is correct.
    The numbers 0, 1 and 2, if all occur, are splits in a column (or in a table without a header) named split or
    partition, if most images are in the training split; otherwise they may be three folds of equal size.
    """
    name, texts = normalize_name(column), set(cells) - {""}
    title = name if table.has_header else normalize_name(PurePosixPath(table.name).stem)
    if name in _SPLIT_FLAGS:
        flags = {text: _parse_bool(text) for text in texts}
        is_alone = sum(normalize_name(c) in _SPLIT_FLAGS for c in table.columns) == 1
        is_rare = 2 * sum(flags.get(cell) is True for cell in cells) < len(cells)
        if set(flags.values()) != {True, False} or not is_alone or not (is_rare or _SPLIT_FLAGS[name][0] == "train"):
            return {}
        return {text: _SPLIT_FLAGS[name][not flag] for text, flag in flags.items()}
    is_numbered = texts == set(_NUMBERED_SPLITS) and 2 * sum(cell == "0" for cell in cells) > len(cells)
    if is_numbered and (title == "split" or title.endswith("partition")):
        return dict(_NUMBERED_SPLITS)
    return {text: split for text in texts if (split := parse_split(text)) is not None}


def _parse_bool(text: str) -> bool | None:
    lower = text.strip().lower()
    if lower in {"1", "1.0", "true", "yes", "x"}:
        return True
    return False if lower in {"0", "0.0", "-1", "-1.0", "false", "no", ""} else None


def _is_one_hot(table: Table, column: str) -> bool:
    """Return whether a column states whether each image has a class, by 1 and 0, or by 1 and -1 as in CelebA.

    Together with zeros or empty cells, -1 may mean uncertain, as in CheXpert.
    """
    texts = {*table.list_texts(column)}
    if texts & {"-1", "-1.0"} and (not texts <= {"1", "1.0", "-1", "-1.0"} or len(texts) < 2):
        return False
    return None not in map(_parse_bool, texts) and any(texts)


def _is_uncertain(table: Table, column: str) -> bool:
    """Return whether -1 in a column means that it is uncertain whether an image has a class, as in CheXpert."""
    texts = {text.removesuffix(".0") for text in table.list_texts(column)}
    return texts <= {"", "0", "1", "-1"} and "-1" in texts and bool(texts & {"0", "1"})


def _missing_column_message(table: Table, role: str) -> str:
    if any(re.fullmatch(r"pixels|pixel\d+", normalize_name(column)) for column in table.columns):
        return (
            f"{table.name} has the pixels of images in its cells, which are not read: save each image as a PNG file, "
            "or give arrays to Dataset.from_arrays."
        )
    description = "the image files" if role == "path" else "the labels"
    return (
        f"{table.name} has no recognized column for {description}: {_describe_columns(table)}. Name "
        f"it with --column {role}=NAME "
        f"(data.columns.{role})."
    )


def _describe_columns(table: Table) -> str:
    column_list = list_some(table.columns)
    if table.has_header:
        return f"its columns are {column_list}"
    first_row = ", ".join(str(table.rows[0].get_text(c)) for c in table.columns[:12])
    return f"it has no header, so its columns are numbered {column_list} (the first row: {first_row})"
