"""`Corrections`: the corrections made in the studio, stored in a patch file that each click rewrites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal, get_args

from sightline import jsonio
from sightline.data.label_patch import PatchEntry, apply_patch, hold_patch, make_entry, read_patch, write_patch
from sightline.data.targets import SEPARATOR, join_classes
from sightline.data.types import SPLITS, Index, Split
from sightline.errors import OutputError, UsageError

Edit = Literal["relabel", "add", "remove", "set", "drop", "keep", "move", "restore"]
Entries = dict[str, PatchEntry]
"""The corrections of one image, by action."""

MAX_IMAGES = 10_000  # per click
MAX_NAME = 255  # characters in a class name
REASON, KEPT = "corrected by hand", "the label is right"


@dataclass(frozen=True, slots=True)
class Click:
    """One change: its number, and the corrections of each image before and after it, by position."""

    number: int
    before: Mapping[int, Entries]
    after: Mapping[int, Entries]


def _leave_out(entries: Entries, action: str) -> Entries:
    return {key: value for key, value in entries.items() if key != action}


def check_class_name(name: str | None) -> None:
    """Raise `UsageError` for a name that a new class cannot have."""
    is_valid = name and name == name.strip() and len(name) <= MAX_NAME and not {"/", SEPARATOR} & set(name)
    if not is_valid or not jsonio.is_encodable(name or ""):
        raise UsageError(
            f"A class name has 1 to {MAX_NAME} characters, no slash, no semicolon, and no leading or trailing spaces."
        )


class Corrections:
    """The corrections of the images of an index, as the lines of one patch file.

    A click changes some images at once and adds a line for each. The file is written before the click is confirmed, so
    that nothing that a page shows as done can be lost. Lines that a person adds to the file meanwhile are kept. Methods
    may be called from any thread.
    """

    def __init__(
        self,
        path: Path,
        index: Index,
        initial: Path | None = None,
        splits: Mapping[tuple[str, str], Split] | None = None,
    ) -> None:
        """Read the patch file at `path`, or else at `initial`; raise `DataError` if it does not fit `index`.

        `splits` are the splits of a run before any moves, by path and content, in place of the source's splits.
        """
        self.path, self._initial = path, initial
        self._index, self._splits = index, splits or {}
        self._positions = {(image.path, image.sha256): i for i, image in enumerate(index.images)}
        self._lock = RLock()
        self._entries: dict[int, Entries] = {}
        self._stamp: tuple[int, int] | None = (0, 0)  # no file yet
        self._clicks: dict[int, Click] = {}
        self._answers: dict[str, Click] = {}  # by request id
        self.revision = 0
        self._revisions: dict[int, int] = {}
        self._before_drop: dict[int, Entries] = {}
        self._targets = index.targets
        self._classes = {name for image in index.images for name in self._targets.list_classes(image.label)} - {""}
        self._earlier: list[tuple[int, PatchEntry]] = []  # lines already in the file when it was opened, for undo
        self._void: list[PatchEntry] = []  # "keep" lines of images that are gone or have another label
        with self._lock:
            self._read()
            if path.exists():
                self._earlier = [(i, entry) for i, of_image in self._entries.items() for entry in of_image.values()]

    def __len__(self) -> int:
        """Return the number of lines in the file."""
        return sum(map(len, self._entries.values()))

    def read_changes(self, since: int = 0) -> tuple[int, list[int]]:
        """Return the revision, and the positions of the images whose corrections changed after revision `since`."""
        with self._lock:
            self._read()
            return self.revision, sorted(i for i, revision in self._revisions.items() if revision > since)

    def list_entries(self) -> list[PatchEntry]:
        """Return the lines that correct or keep an image, in the order of the index."""
        with self._lock:
            self._read()
            return [entry for _, of_image in sorted(self._entries.items()) for entry in of_image.values()]

    def get(self, position: int) -> Entries:
        """Return the corrections of an image by action."""
        return self._entries.get(position, {})

    def apply(self, positions: Sequence[int], edit: str, to: str | None = None, request: str = "") -> Click:
        """Correct images, and return what changed.

        Args:
            positions: The images, as positions in the index.
            edit: ``relabel`` and ``move`` set the class or the split to `to`; ``add`` and ``remove`` change the classes
                of images that may have several, and ``set`` replaces all of them. ``keep`` confirms the label, unless
                it was corrected. ``drop`` leaves the images out, and ``restore`` undoes that, or else all their
                corrections.
            to: The class or the split; for ``set`` the classes, joined by ``;``, "" for none of them.
            request: The id that a page sent with this change. A change that was already made is returned, not repeated.

        Raises:
            UsageError: If the images, the edit or its value are invalid.
            OutputError: If the file cannot be written; nothing has changed then.
        """
        self._check(positions, edit, to)
        with self._lock:
            if request in self._answers:
                return self._answers[request]
            self._read()
            after = {position: self._edit(position, edit, to) for position in positions}
            return self._commit(after, request)

    @property
    def has_earlier(self) -> bool:
        """Whether a line that was in the file when it was opened can be undone."""
        with self._lock:
            return any(self.get(i).get(entry.action) == entry for i, entry in reversed(self._earlier))

    def _find_earlier(self) -> dict[int, Entries]:
        """Return the corrections left after undoing the last earlier line, for all copies of the image that have it."""
        self._earlier = [(i, entry) for i, entry in self._earlier if self.get(i).get(entry.action) == entry]
        after: dict[int, Entries] = {}
        for position, entry in reversed(self._earlier):
            last = self._earlier[-1][1]
            if (entry.sha256, entry.action, entry.to) != (last.sha256, last.action, last.to):
                break
            after[position] = _leave_out(self.get(position), entry.action)
        return after

    def undo(self, number: int | None, request: str = "") -> Click:
        """Undo the click with this number on images that no later click has changed; `request` is as in `apply`.

        None undoes the last of the lines that were in the file when it was opened and still are.

        Raises:
            UsageError: If there is no such click, or all of its images were changed again.
            OutputError: If the file cannot be written; nothing has changed then.
        """
        with self._lock:
            if request in self._answers:
                return self._answers[request]
            self._read()
            click = None if number is None else self._clicks.get(number)
            after = self._find_earlier() if number is None else {}
            if click is None and not after:
                raise UsageError("There is nothing to undo.")
            if click is not None:
                after = {i: click.before[i] for i, entries in click.after.items() if self.get(i) == entries}
                if not after:
                    raise UsageError("This cannot be undone, because its images have been corrected again since.")
            undone = self._commit(after, request)
            del self._clicks[undone.number]
            if click is not None:
                del self._clicks[click.number]
            return undone

    def _check(self, positions: Sequence[int], edit: str, to: str | None) -> None:
        if not 0 < len(positions) <= MAX_IMAGES:
            raise UsageError(f"A correction takes 1 to {MAX_IMAGES:,} images, not {len(positions):,}.")
        if not all(0 <= position < len(self._index.images) for position in positions):
            raise UsageError("There is no such image: reload the page.")
        if edit not in get_args(Edit):
            raise UsageError(f"There is no correction {edit!r}: expected {', '.join(get_args(Edit))}.")
        if edit in ("relabel", "add", "remove", "set"):
            self._check_classes(edit, to)
        if edit == "move" and to not in SPLITS:
            raise UsageError(f"There is no split {to!r}: expected {', '.join(SPLITS)}.")
        if edit == "move" and any(self._index.images[position].split is None for position in positions):
            raise UsageError("This source has no splits: `train` assigns them.")

    def _check_classes(self, edit: str, to: str | None) -> None:
        if self._index.labels_are_masks:
            raise UsageError("The class of each pixel is in a mask: correct the mask file.")
        if edit != "relabel" and not self._targets.allows_several:
            raise UsageError("The images have one class each: relabel them.")
        if edit == "relabel" and self._targets.allows_several:
            raise UsageError("The images may have several classes: add one, or remove one.")
        names = [to] if edit != "set" else [] if to == "" else (to or "").split(SEPARATOR)
        for name in names:
            if name not in self._classes:
                check_class_name(name)

    def _edit(self, position: int, edit: str, to: str | None) -> Entries:
        """Return the corrections of an image after an edit."""
        image, entries = self._index.images[position], dict(self.get(position))
        if edit == "restore":
            return self._before_drop.get(position, {}) if "drop" in entries else {}
        if edit == "drop":
            if "drop" not in entries:
                self._before_drop[position] = entries
            return {"drop": entries.get("drop") or make_entry("drop", image, REASON)}
        entries.pop("drop", None)
        label = entries["relabel"].to if "relabel" in entries else image.label
        if edit in ("add", "remove", "set"):
            to = self._change_classes(edit, str(label), str(to))
            if edit == "set" and to == image.label:  # confirms the label
                return {"keep": make_entry("keep", image, KEPT)} | _leave_out(entries, "relabel")
            edit = "relabel"
        if edit == "keep":
            if not (label or self._targets.allows_several):
                raise UsageError("An image without a class cannot be kept: give it one.")
            is_stated = bool({"relabel", "keep"} & set(entries))
            return entries if is_stated else entries | {"keep": make_entry("keep", image, KEPT)}
        return self._replace(entries, position, edit, to)

    def _replace(self, entries: Entries, position: int, edit: str, to: str | None) -> Entries:
        """Return the corrections of an image with a new class or split; without one, if that is what it has anyway."""
        image = self._index.images[position]
        if edit == "relabel" and to != image.label:
            entries.pop("keep", None)
        original = image.label if edit == "relabel" else self._splits.get((image.path, image.sha256), image.split)
        if to == original:
            entries.pop(edit, None)
        elif edit == "move" and to == image.split:
            raise UsageError(
                f"{image.path} cannot be moved to {to}: its source has it there already, and training chose another "
                "split for it. Download the CSV, change the split there, and train on that file."
            )
        elif edit not in entries or entries[edit].to != to:
            entries[edit] = make_entry("relabel" if edit == "relabel" else "move", image, REASON, to)
        return entries

    def _change_classes(self, edit: str, label: str, to: str) -> str:
        """Return the label of an image after a class is added or removed, or all classes are set."""
        names = set(self._targets.list_classes(to if edit == "set" else label))
        return join_classes(names | {to} if edit == "add" else names - {to} if edit == "remove" else names)

    def _commit(self, after: Mapping[int, Entries], request: str) -> Click:
        """Write these corrections to the file, then apply them, and remember the request."""
        click = Click(self.revision + 1, {position: self.get(position) for position in after}, after)
        others = {position: of_image for position, of_image in self._entries.items() if position not in after}
        entries = others | dict(after)  # the last correction is the last line
        if sum("drop" in of_image for of_image in entries.values()) == len(self._index.images):
            raise UsageError("This would drop every image: keep at least one.")
        lines = (entry for of_image in entries.values() for entry in of_image.values())
        write_patch(self.path, (*lines, *self._void), "Choose another file with --patch.")
        self._stamp = self._read_stamp()
        self._take_over({position: of_image for position, of_image in entries.items() if of_image}, after)
        self._clicks[click.number] = click
        if request:
            self._answers[request] = click
        return click

    def _take_over(self, entries: dict[int, Entries], changed: Mapping[int, object]) -> None:
        self._entries = entries
        self.revision += 1
        self._revisions |= dict.fromkeys(changed, self.revision)

    def _read(self) -> None:
        """Read the file if it is not the one last written."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        entries: dict[int, Entries] = {}
        void: list[PatchEntry] = []
        source = self.path if stamp else self._initial if not self.revision else None
        if source is not None:
            lines = read_patch(source)
            apply_patch(self._index, lines, f"The patch {source}", keep_unlabeled=True)  # raises if it does not fit
            for _, entry in lines:
                position = self._positions.get((entry.path, entry.sha256))
                if position is None or self._index.images[position].label != entry.label:
                    void.append(entry)
                else:
                    entries.setdefault(position, {})[entry.action] = entry
        self._stamp, self._void = stamp, void
        changed = {i for i in {*entries, *self._entries} if entries.get(i) != self._entries.get(i)}
        if changed:
            self._take_over(entries, dict.fromkeys(changed))

    def _read_stamp(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"The patch {self.path} cannot be read: {error.strerror}.") from error
        return status.st_mtime_ns, status.st_size


@contextmanager
def open_corrections(
    path: Path,
    index: Index,
    initial: Path | None = None,
    splits: Mapping[tuple[str, str], Split] | None = None,
) -> Iterator[Corrections]:
    """Open a patch file for exclusive use in the block; a new file begins with the lines of `initial`.

    Other arguments are those of `Corrections`.
    Raises `DataError` if the file does not fit the index, `OutputError` if another process edits the same file.
    """
    with hold_patch(path) as file:
        yield Corrections(file, index, initial, splits)
