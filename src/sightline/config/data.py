"""Settings of the table ``[data]``: where the images come from and how they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from sightline.config.parse import setting
from sightline.errors import ConfigError


def check_encoding(name: str, key: str) -> None:
    """Raise `ConfigError` if `name` is not a text encoding supported by Python; an empty name is allowed."""
    try:
        "".encode(name or "utf-8")
    except (LookupError, ValueError) as error:  # also raised for binary codecs such as base64
        raise ConfigError(
            f"{key} cannot be {name!r}: expected a text encoding, such as big5, shift_jis or latin-1."
        ) from error


def check_label_pattern(pattern: str, key: str) -> None:
    """Raise `ConfigError` for an invalid regular expression or one without a group ``label``; empty is allowed."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ConfigError(f"{key} is not a regular expression: {error}, in {pattern!r}.") from error
    if pattern and "label" not in groups:
        raise ConfigError(
            f"{key} {pattern!r} has no group named label: write (?P<label>...) around the class, as in "
            r"(?P<label>[a-z]+)\.\d+"
        )


@dataclass(frozen=True, slots=True)
class ColumnsConfig:
    """The columns of a manifest; those left empty are recognized by their names."""

    path: str = setting("", "column of the image paths: a name, or a number counted from 1 if there is no header")
    label: str = setting("", "column of the class labels")
    split: str = setting("", "column of the splits: train, validation or test")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Limits on sources, so that a malicious file cannot exhaust memory, disk or time."""

    file_mb: float = setting(256.0, "maximum size of an encoded image, in MiB", 0.001)
    table_rows: int = setting(2_000_000, "maximum number of rows in a manifest or a table of labels", 1)
    archive_members: int = setting(2_000_000, "maximum number of files and folders in an archive", 1)
    archive_gb: float = setting(500.0, "maximum unpacked size of an archive, in GiB", 0.001)
    archive_ratio: float = setting(100.0, "maximum compression ratio of an archive, beyond the first 256 MiB", 1)


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the images come from and how they are read."""

    sources: tuple[str, ...] = setting((), "folders, archives, manifests, IDX files or data sets by name, in order")
    cache: bool = setting(True, "cache decoded pixels on disk for later runs")
    patch: str = setting(
        "", "patch file of label corrections, as written by `sightline doctor --write-fixes`; empty: none"
    )
    class_level: int | Literal["leaf"] | None = setting(
        None,
        "folder level that names the classes: 1 for the top level below the splits, 2 for the next one, leaf for the "
        "folder that contains the image; unset: 1, with a finding about nested folders",
        1,
    )
    class_tree: str = setting(
        "",
        "class tree for model.task=hierarchical; folders: from nested folders, as in animal/cat/1.jpg; column: from "
        "the column parent of a manifest; or the path of a table (.csv, .tsv, .json) with the columns name and parent; "
        "empty: none",
    )
    label_pattern: str = setting(
        "",
        "regular expression with a group `(?P<label>...)` that extracts the class from the file name, or from the path "
        "relative to the source if the pattern contains a /; empty: folders are classes",
        check=check_label_pattern,
    )
    labels: str = setting("", "table (.csv, .tsv, .txt, .json) with the labels of a folder of images; empty: none")
    root: str = setting("", "folder that the paths of a manifest are relative to; empty: the folder of the manifest")
    encoding: str = setting(
        "",
        "text encoding of a manifest, such as big5 or shift_jis; empty: detect UTF-8, UTF-16 or GBK",
        check=check_encoding,
    )
    class_order: tuple[str, ...] = setting(
        (),
        "all classes, in the order of probabilities and tables; for model.task=ordinal, from the lowest grade to the "
        "highest; empty: sorted by name, integers of arrays by number, ordinal grades by the number in their name",
    )
    merge_copies: bool = setting(
        False, "merge identical images, e.g. from several class folders, into one image with all of their classes"
    )
    allow_findings: tuple[str, ...] = setting(
        (), "kinds of data errors, as named by `doctor`, that do not stop training"
    )
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def __post_init__(self) -> None:
        others = {"class_level": self.class_level, "label_pattern": self.label_pattern, "labels": self.labels}
        if self.class_tree == "folders" and (other := next((name for name, value in others.items() if value), None)):
            raise ConfigError(f"data.class_tree=folders takes the classes from folders: leave out data.{other}.")

    @property
    def reads_tree_file(self) -> bool:
        """Whether `class_tree` is the path of a table."""
        return self.class_tree not in ("", "folders", "column")

    @property
    def folder_level(self) -> int | Literal["leaf", "path"] | None:
        """The folders that name a class: `class_level`, or ``path`` for a tree of folders."""
        return "path" if self.class_tree == "folders" else self.class_level
