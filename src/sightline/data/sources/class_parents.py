"""Turn the labels of a source into paths of a tree, from a column or a table that names the parent of each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline import _io
from sightline.config import DataConfig
from sightline.data.class_tree import PATH_SEPARATOR, resolve_paths
from sightline.data.sources.listing import SourceListing, replace_labels
from sightline.data.sources.table import Table, normalize_name, read_table
from sightline.data.storage import read_untrusted_file
from sightline.errors import DataError, ImageError

NAME, PARENT = "name", "parent"


def apply_class_tree(listings: Sequence[SourceListing], options: DataConfig) -> list[SourceListing]:
    """Return the listings with labels replaced by their paths in the table ``data.class_tree``, if that is a file.

    A label that already is a path of the tree is kept. Raises `DataError` for a table that is not a tree, and for a
    label that the table does not name.
    """
    if not options.reads_tree_file:
        return list(listings)
    name = options.class_tree
    paths = read_parents(_io.expand_home(name), options)
    known = set(paths.values())

    def find_path(label: str, path: str) -> str:
        if not label or label in known:
            return label
        if label not in paths:
            raise DataError(f"{path} has the class {label!r}, which {name} does not name: add a row for it.")
        return paths[label]

    return [replace_labels(listing, find_path) for listing in listings]


def read_parents(path: Path, options: DataConfig) -> dict[str, str]:
    """Map the name of each class to its path, from a table with the columns ``name`` and ``parent``."""
    try:
        content = read_untrusted_file(path, options.limits)
    except ImageError as error:
        raise DataError(f"The table of classes {path} cannot be read: {error}.") from error
    limit = options.limits.table_rows
    table = read_table(content, str(path), {NAME, PARENT}, lambda _: False, options.encoding, limit)
    name_column, parent_column = _find_column(table, NAME), _find_column(table, PARENT)
    if not (name_column and parent_column):
        raise DataError(
            f"{path} has the columns {', '.join(table.columns)}: expected name and parent, with a row such as "
            "cat,animal for each class, and one such as animal, with an empty parent."
        )
    parents: dict[str, str] = {}
    for row in table.rows:
        name, parent = row.get_text(name_column).strip(), row.get_text(parent_column).strip()
        place = f"{path}, {table.describe_row(row.line)}"
        if not name or PATH_SEPARATOR in name:
            raise DataError(f"{place}: the name is {name!r}, expected that of a class, without {PATH_SEPARATOR!r}.")
        _add_parent(parents, name, parent, place)
    for name, parent in parents.items():
        if parent and parent not in parents:
            raise DataError(
                f"{path}: {name!r} has the parent {parent!r}, which has no row: add one, with an empty parent if "
                "nothing is above it."
            )
    return resolve_paths(parents, str(path))


def label_by_parents(listing: SourceListing, table: Table) -> SourceListing:
    """Return the listing of a manifest with paths as labels, built from the parents in its column ``parent``.

    A parent may itself be a path, such as ``living/animal``. Raises `DataError` if there is no such column, for a class
    with two parents, and for parents in a cycle.
    """
    column = _find_column(table, PARENT)
    if not column:
        raise DataError(
            f"data.class_tree is column, and {table.name} has no column parent: its columns are "
            f"{', '.join(table.columns)}. Name the parent of each class in a column parent."
        )
    parents: dict[str, str] = {}
    for item in listing.items:
        _add_parent(parents, item.label, item.extra.get(column, "").strip(), f"{table.name}, the row of {item.path}")
    paths = resolve_paths(parents, table.name)
    return replace_labels(listing, lambda label, _: paths.get(label, label))


def _find_column(table: Table, name: str) -> str:
    return next((column for column in table.columns if normalize_name(column) == name), "")


def _add_parent(parents: dict[str, str], name: str, parent: str, place: str) -> None:
    if (other := parents.setdefault(name, parent)) != parent:
        raise DataError(
            f"{place}: {name!r} has the parent {parent!r} here, but {other!r} above: a class has one parent; rename "
            "one of two classes that share a name."
        )
