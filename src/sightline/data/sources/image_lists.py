"""Text files and tables beside images that name them, one in each row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sightline.data.sources.columns import KNOWN_COLUMNS, find_by_name, join_split_flags
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.folder_layout import select_top_files
from sightline.data.sources.table import Table, read_table
from sightline.data.storage import FileStore, read_file
from sightline.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageList:
    """A list of images: its table, and the cells of its rows.

    A row with a single cell has five: the whole line, its text before and after the first space, and before and after
    the last. `images` maps rows to the images that they name in `column`, the column that names the most images.
    """

    table: Table
    rows: Sequence[tuple[str, ...]]
    column: int
    images: Mapping[int, str]

    def find_label_columns(self) -> list[int]:
        """Return the columns with a usual name for labels, most specific first."""
        return [self.table.columns.index(name) for name in find_by_name(self.table, "label", ())]

    def names_most(self, images: Collection[str]) -> bool:
        """Return whether the list names most of `images`, all those that it can name."""
        return 2 * len(set(self.images.values())) > len(images)


class ImageLists:
    """The files `keys` of a store, which may be lists of images; each is read once.

    `labels` maps the key of each image to its label without lists.
    """

    def __init__(self, store: FileStore, keys: Sequence[str], labels: Mapping[str, str]) -> None:
        self.store, self.keys, self.labels = store, keys, labels
        self._finder = FileFinder(store, images=labels)
        self._lists: dict[str, ImageList] = {}

    def read(self, key: str) -> ImageList:
        """Return a list; raises `DataError` if it is not a table."""
        if key not in self._lists:
            table = join_split_flags(read_table(read_file(self.store, key), key, KNOWN_COLUMNS, self._names_image))
            rows = list(zip(*map(table.list_texts, table.columns), strict=True))
            rows = rows if len(table.columns) > 1 else [_part_line(line) for (line,) in rows]
            self._lists[key] = ImageList(table, rows, *self._find_images(rows))
        return self._lists[key]

    def read_all(self, keys: Sequence[str]) -> Iterator[tuple[str, ImageList]]:
        """Yield the lists among `keys` that can be read."""
        for key in keys:
            with suppress(DataError):
                yield key, self.read(key)

    def select_top(self) -> list[str]:
        """Return the files that are not in folders of the images."""
        return select_top_files(self.keys, self.labels)

    def _names_image(self, text: str) -> bool:
        return any(self._finder.find(cell) is not None for cell in _part_line(text))

    def _find_images(self, rows: Sequence[tuple[str, ...]]) -> tuple[int, dict[int, str]]:
        """Return the column that names the most images, and the image named there in each row."""
        best: tuple[int, dict[int, str]] = 0, {}
        for column in range(len(rows[0]) if rows else 0):
            cells = ((i, self._finder.find(row[column])) for i, row in enumerate(rows))
            images = {i: image for i, image in cells if image is not None}
            best = (column, images) if len(set(images.values())) > len(set(best[1].values())) else best
        return best


def _part_line(line: str) -> tuple[str, ...]:
    return (line, *line.partition(" ")[::2], *line.rpartition(" ")[::2])
