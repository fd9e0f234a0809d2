"""`Dataset`: labeled images from a folder, a table, an archive, arrays, a DataFrame or a data set by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io
from sightline.api.argument_types import check_method_types
from sightline.api.options import Settings, data_assignments, parse_split, to_assignments
from sightline.api.record_list import format_html_table
from sightline.callbacks import Callback, Progress, no_progress
from sightline.config import RunConfig, resolve_config
from sightline.data.indexing import Source, Sources, build_index, describe_sources, list_of_sources, list_sources
from sightline.data.sources import named
from sightline.data.sources.arrays import explain_no_array, list_array_items, to_numpy
from sightline.data.sources.dataframe import list_frame_items
from sightline.data.sources.listing import SourceListing
from sightline.data.sources.manifest import is_table
from sightline.data.types import SPLITS, Index, Split
from sightline.errors import DataError, UsageError, plural
from sightline.progress import show_progress
from sightline.tasks.protocol import find_task

if TYPE_CHECKING:  # these import matplotlib's fonts and the networks
    from sightline.api.doctor import DoctorReport
    from sightline.api.preview import PreviewResult

DATA_TABLES = ("data.", "input.", "model.task=")  # settings that control how images are read


@check_method_types
class Dataset:
    """Labeled images, and how to read them.

    Nothing is read before it is needed: `len`, `classes`, `counts` and `index` read every file once, for its hash and
    its header. `+` joins two data sets.

    Example:
        ```python
        data = sl.Dataset.from_folder("photos/")
        print(len(data), data.classes, data.counts)
        ```
    """

    def __init__(self, sources: Sources, *, column: Settings | None = None, set: Settings = ()) -> None:
        """Create a data set from paths and names; the class methods use one kind of source and check it at once.

        Args:
            sources: One or more paths (folders, archives, tables, IDX files) or names of data sets.
            column: The columns of a table, as for `from_csv`.
            set: Settings of the tables ``[data]`` and ``[input]`` of the [reference](reference.md), as in
                ``{"data.class_level": 2}``, and ``model.task``.

        Raises:
            UsageError: If a source or a setting is not one of these.
        """
        self.sources: list[Source | SourceListing] = list_of_sources(sources)
        self.settings: list[str] = [*data_assignments(column), *to_assignments(set)]
        for text in self.settings:
            if not text.startswith(DATA_TABLES):
                raise UsageError(
                    f"--set accepts only settings that begin with {' or '.join(DATA_TABLES)} here, e.g. "
                    f"data.class_level=2, not {text!r}: give others to train."
                )
        self._config = resolve_config(assignments=self.settings)  # fails on an unknown setting
        self._index: Index | None = None

    @classmethod
    def from_folder(cls, *folders: str | Path, set: Settings = ()) -> Dataset:
        """Read folders with a subfolder for each class, optionally inside train, validation and test.

        Args:
            *folders: Paths of folders, or of ``.zip`` or ``.tar`` archives of such folders.
            set: Settings of how images are read, as in ``{"data.class_level": 2}``.

        Raises:
            DataError: If a path does not exist, or is a table.
        """
        if not folders or not all(isinstance(folder, str | Path) for folder in folders):
            raise UsageError("from_folder takes one or more paths, as in Dataset.from_folder('photos/', 'more/').")
        for folder in folders:
            path = _io.expand_home(folder)
            if not path.exists():
                hint = f" For the data set of that name, use Dataset.from_source({str(folder)!r})."
                raise DataError(
                    f"There is no folder {str(folder)!r}: check the path." + hint * named.is_named(str(folder))
                )
            if path.is_file() and is_table(path):
                raise DataError(f"{folder} is a table, not a folder: use Dataset.from_csv or Dataset.from_manifest.")
        return cls(folders, set=set)

    @classmethod
    def from_csv(cls, path: str | Path, *, column: Settings | None = None, set: Settings = ()) -> Dataset:
        """Read a CSV or TSV table with a column of image files, one of labels, and optionally one of splits.

        Args:
            path: The table. Paths in it are relative to its folder, or to the setting ``data.root``.
            column: The columns with the path, the label and the split, as in ``{"label": "breed"}``. By default
                they are recognized by their names: path, label, split and the usual synonyms.
            set: Settings of how images are read.

        Raises:
            DataError: If the file does not exist, or is not a CSV or TSV file.
        """
        if Path(path).suffix.lower() not in {".csv", ".tsv"}:
            raise DataError(f"{path} is not a CSV file: for JSON, JSON lines and COCO use Dataset.from_manifest.")
        return cls.from_manifest(path, column=column, set=set)

    @classmethod
    def from_manifest(cls, path: str | Path, *, column: Settings | None = None, set: Settings = ()) -> Dataset:
        """Read a table in any format: CSV, TSV, JSON, JSON lines or COCO.

        Args:
            path: The table, as for `from_csv`.
            column: The columns of the table, as for `from_csv`.
            set: Settings of how images are read.

        Raises:
            DataError: If the file does not exist, or is not a table.
        """
        if not _io.expand_home(path).is_file():
            raise DataError(f"There is no file {str(path)!r}: check the path.")
        if not is_table(Path(path)):
            raise DataError(f"{path} is not a table: expected .csv, .tsv, .txt, .json, .jsonl or .ndjson.")
        return cls(path, column=column, set=set)

    @classmethod
    def from_arrays(
        cls,
        x: NDArray[np.uint8],
        y: NDArray[Any] | Sequence[Any],
        *,
        classes: Sequence[str] | None = None,
        split: Split | None = None,
        name: str = "arrays",
    ) -> Dataset:
        """Use images in memory.

        A run does not store arrays: give the same data again to evaluate, resume or compress it in another process.

        Args:
            x: The images, uint8 [N, H, W] or [N, H, W, C] from 0 to 255, with 1 (grayscale), 3 (RGB) or 4 (RGBA)
                channels.
            y: N labels: names of classes, or integers from 0, which index `classes`.
            classes: The class names. Without them, integers are their own names, in the order of the numbers.
            split: The split that all of these images are in: train, validation or test; by default they are split by
                content. Join several, as in ``from_arrays(x, y, split="train") + from_arrays(x_test, y_test,
                split="test")``.
            name: The name of the images in messages and reports.

        Raises:
            DataError: If the arrays do not fit, e.g. because the pixels are fractions or the channels come first.

        Example:
            >>> x = np.zeros((4, 32, 32, 3), np.uint8)
            >>> x[2:] = 255
            >>> Dataset.from_arrays(x, ["night", "night", "day", "day"]).counts
            {'day': 2, 'night': 2}
        """
        split = parse_split(split)
        try:
            pixels = to_numpy(x, "x")
        except ValueError as error:  # a list of arrays, or a PyTorch data set
            raise DataError(explain_no_array(x)) from error
        if pixels.dtype.kind in "OSU":
            raise DataError(explain_no_array(x))
        return cls(SourceListing(list_array_items(pixels, y, f"{name}/{split}" if split else name, split, classes)))

    @classmethod
    def from_dataframe(
        cls, frame: Any, *, column: Settings | None = None, root: str | Path = "", set: Settings = ()
    ) -> Dataset:  # fmt: skip
        """Use a pandas DataFrame with a row for each image.

        A run does not store the table: give it again to evaluate, resume or compress the run in another process.
        Columns other than those of `column` can group images that belong together, with the setting ``split.group``.

        Args:
            frame: The DataFrame.
            column: The columns with the path, the label and the split, as in ``{"label": "breed"}``. By default
                they are recognized by their names, as for `from_csv`.
            root: The folder that the paths are relative to; by default the current directory.
            set: Settings of how images are read.

        Raises:
            UsageError: If `frame` is not a DataFrame.
            DataError: If it has no column of paths or of labels.
        """
        location = to_assignments({"data.root": str(root)}) if root else []
        assignments = [*data_assignments(column), *to_assignments(set), *location]
        return cls(list_frame_items(frame, resolve_config(assignments=assignments).data), column=column, set=set)

    @classmethod
    def from_source(cls, name: str, *, set: Settings = ()) -> Dataset:
        """Use a data set by name.

        Args:
            name: cifar10, cifar100, mnist, fashion_mnist or digits; beans, which are synthetic (``beans:600@64`` are
                600 images of 64x64 pixels); or a source that was registered with
                [`register_source`][sightline.register_source].
            set: Settings of how images are read.

        Raises:
            DataError: If there is no data set of this name; the message lists the names.

        Example:
            >>> len(Dataset.from_source("beans:12@32"))
            12
        """
        if not named.is_named(name):
            hint = f" For the folder of that name, use Dataset.from_folder({name!r})." * Path(name).is_dir()
            raise DataError(f"There is no data set {name!r}: expected one of {', '.join(named.NAMES)}.{hint}")
        return cls(name, set=set)

    @classmethod
    def wrap(cls, data: Dataset | Sources, *, column: Settings | None = None, set: Settings = ()) -> Dataset:
        """Return `data` as a `Dataset`, with additional settings for how it is read."""
        if not isinstance(data, Dataset):
            return cls(data, column=column, set=set)
        settings = [*data.settings, *data_assignments(column), *to_assignments(set)]
        return data if settings == data.settings else cls(data.sources, set=settings)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_index": None}  # the index has functions that read images, which cannot be pickled

    def __add__(self, other: Dataset) -> Dataset:
        """Return the images of both, read with the settings of both."""
        if not isinstance(other, Dataset):
            return NotImplemented
        return Dataset([*self.sources, *other.sources], set=[*self.settings, *other.settings])

    @property
    def name(self) -> str:
        """The sources, as named in messages."""
        return describe_sources(self.sources)

    @property
    def is_in_memory(self) -> bool:
        """Whether images or labels are in memory (arrays, a DataFrame), where a run cannot find them again."""
        return any(isinstance(source, SourceListing) for source in self.sources)

    @property
    def config(self) -> RunConfig:
        """All settings: this data set's for how images are read, and the defaults for the rest."""
        return self._config

    @property
    def listed_sources(self) -> Sources:
        """The sources, listed with the settings if there are any, for functions that take no settings."""
        return list_sources(self.sources, self._config.data) if self.settings else list(self.sources)

    @property
    def index(self) -> Index:
        """The readable images with their labels and hashes, and the unreadable files with reasons; read once."""
        with show_progress(self._index is None) as display:
            return self.read_index(display.on_progress)

    def read_index(self, progress: Progress = no_progress) -> Index:
        """Return `index`, and report the progress of reading it.

        Args:
            progress: Called with the name of the task, the number of files read so far, and the total.
        """
        if self._index is None:
            options, targets = self._config.data, find_task(self._config.model.task).targets
            self._index = build_index(self.sources, progress, options=options, lenient=True, targets=targets)
        return self._index

    def __len__(self) -> int:
        """Return the number of readable images."""
        return len(self.index.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """The sorted names of the classes."""
        return tuple(self.counts)

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of images of each class; an image with several labels counts for each of them."""
        counts = Counter(name for names in self.index.image_classes for name in names)
        return {name: counts[name] for name in self.index.sort_classes(counts)}

    def check(
        self,
        *,
        html: str | Path | None = None,
        write_fixes: str | Path | None = None,
        patch: str | Path | None = None,
        write_folders: str | Path | None = None,
        column: Settings | None = None,
        allow: Sequence[str] = (),
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> DoctorReport:
        """Look for problems, as `sightline doctor` does: duplicates, leakage, unreadable files, suspicious classes.

        Args:
            html: A page to write, with thumbnails.
            write_fixes: A file to write proposed fixes to, which [`train`][sightline.train] accepts as `patch`.
            patch: A file of fixes to apply first; its lines are kept if `write_fixes` is the same file.
            write_folders: A folder to write, with links to the images in one folder per class and split, after the
                fixes.
            column: The columns of a table, as for `from_csv`.
            allow: Kinds of errors to accept, such as ``"split-leakage"``.
            set: Settings of how images are read.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            The report. Its `findings` list errors first; in a notebook it is shown as a table. No image is changed.

        Raises:
            DataError: If there are no images.
            OutputError: If a file cannot be written.
        """
        from sightline.api.doctor import doctor

        data = Dataset.wrap(self, column=column, set=[*to_assignments(set), *data_assignments(None, allow)])
        with show_progress(progress, callback) as display:
            return doctor(
                data.sources, html=html, fix=write_fixes, patch=patch, folders=write_folders, config=data.config,
                callback=display,
            )  # fmt: skip

    def preview(
        self,
        out: str | Path | None = None,
        *,
        augment: bool = False,
        recipe: str | None = None,
        count: int | None = None,
        seed: int = 0,
        column: Settings | None = None,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> PreviewResult:
        """Draw a labeled grid of some images, spread over the classes.

        Args:
            out: The PNG file to write; by default ``<name>-samples.png`` or ``<name>-augmented.png`` in the current
                directory.
            augment: Whether to show augmented versions of each image beside it, as in training.
            recipe: The recipe whose augmentation to show.
            count: The number of images; by default 10, or 4 with `augment`.
            seed: Chooses the images and their augmentations.
            column: The columns of a table, as for `from_csv`.
            set: Settings of how images are read; with `augment` also those of the augmentation.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            The path of the figure, the classes, and the number of images shown; in a notebook the figure itself.

        Raises:
            OutputError: If `out` exists and is not such a figure.
        """
        from sightline.api.preview import preview_images

        with show_progress(progress, callback) as display:
            return preview_images(
                self.sources, out=out, count=count, seed=seed, augmented=augment, recipe=recipe,
                set=[*self.settings, *data_assignments(column), *to_assignments(set)], callback=display,
            )  # fmt: skip

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {self._describe()})"

    def _describe(self) -> str:
        if self._index is None:
            counts = [len(source.items) for source in self.sources if isinstance(source, SourceListing)]
            return plural(sum(counts), "image") if 0 < len(counts) == len(self.sources) else "not read yet"
        rest = f", {plural(len(files), 'unreadable file')}" if (files := self.index.unreadable) else ""
        return f"{plural(len(self), 'image')} in {plural(len(self.counts), 'class', 'classes')}{rest}"

    def _repr_html_(self) -> str:
        images = [] if (i := self._index) is None else [*zip(i.images, i.image_classes, strict=True)]
        by_split, splits = Counter((k, p.split) for p, names in images for k in names), {p.split for p, _ in images}
        rows = [
            {"class": label, "images": count, **{split: by_split[label, split] for split in SPLITS if split in splits}}
            for label, count in (self.counts.items() if images else ())
        ]
        return format_html_table(rows, title=f"{self.name}: {self._describe()}")
