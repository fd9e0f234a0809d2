"""Patch files: corrections to a data source in a separate file, so that no image is moved, renamed or deleted.

Each line is a JSON object with the keys

    action  drop, relabel, move or keep
    path    the path of the image in the index
    sha256  the hash of its content: an image that has changed since then is not corrected
    label   its current class, or its classes as in a manifest, "car;tree"
    to      relabel: the correct class or classes, "" for none; move: train, validation or test; otherwise absent
    reason  an explanation for people

Delete a line to undo its correction. Empty lines are ignored.

The action keep changes nothing: a person has looked at the image and confirmed its label, so no check questions it
again. It no longer applies once the image or its label has changed. For an unlabeled image, it means none of the
classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

from sightline import _io, _locks, jsonio
from sightline.data import cache
from sightline.data.targets import LABEL_SETS, SEPARATOR, join_classes
from sightline.data.types import NO_LABEL, SPLITS, ImageRecord, Index, Split, UnreadableImage
from sightline.errors import DataError

Action = Literal["drop", "relabel", "move", "keep"]
EXCLUDED: dict[Action, tuple[Action, ...]] = {
    "drop": get_args(Action), "relabel": ("drop", "relabel", "keep"), "move": ("drop", "move"),
    "keep": ("drop", "relabel"),
}  # fmt: skip
"""The actions that another line on the same image must not have."""

KEYS = ("action", "path", "sha256", "label", "reason")
PATCH_LIMIT = 256 << 20  # bytes; about a million corrections


@dataclass(frozen=True)  # no slots, so that `line` can be cached
class PatchEntry:
    """One line of a patch: what to do with the image of this path, content and class."""

    action: Action
    path: str
    sha256: str
    label: str
    to: str | None
    reason: str

    @cached_property
    def line(self) -> str:
        """The JSON line, without a newline; cached, because the studio writes all lines at every click."""
        return jsonio.dumps({k: v for k, v in asdict(self).items() if v is not None})


def make_entry(action: Action, image: ImageRecord, reason: str, new_value: str | None = None) -> PatchEntry:
    """Return a correction of `image` with its current path, content and class."""
    return PatchEntry(action, image.path, image.sha256, image.label, new_value, reason)


def write_patch(
    path: Path, entries: Iterable[PatchEntry], advice: str = "Choose another file with --write-fixes."
) -> Path:
    """Write a patch file; raises `OutputError`, which ends with `advice`, if it cannot be written."""
    text = "".join(c.line + "\n" for c in entries)
    return _io.write_atomic(path, text.encode(errors="backslashreplace"), advice)


@contextmanager
def hold_patch(path: Path) -> Iterator[Path]:
    """Lock a patch file against edits by other processes, such as a studio; yields its resolved path.

    Raises `OutputError` if another process is editing it, or if it would be written through a link in a run directory.
    """
    path = _io.output_path(path)
    _io.refuse_links_in_run(path if path.is_symlink() else path.parent)
    path = path.resolve()  # through any other link, the target file is written
    name = hashlib.sha256(str(path).encode(errors="surrogatepass")).hexdigest()[:32]
    folder = cache.cache_folder() / "studio"
    with cache.explain_cache_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locks.hold_lock(folder / f"{name}.lock", f"The patch {path}"):
        yield path


def add_entries(entries: Sequence[PatchEntry], new: Iterable[PatchEntry]) -> list[PatchEntry]:
    """Return the entries of a patch, then those of `new` for images that the patch neither corrects nor keeps."""
    corrected = {(entry.path, entry.sha256) for entry in entries if entry.action != "keep"}
    keep_keys = {(entry.path, entry.sha256, entry.label) for entry in entries if entry.action == "keep"}
    return [
        *entries,
        *(e for e in new if (e.path, e.sha256) not in corrected and (e.path, e.sha256, e.label) not in keep_keys),
    ]


def choose_patch_path(name: str) -> Path:
    """Return the file in the current folder where the studio keeps the corrections of the data set `name`."""
    return Path(f"{_io.safe_stem(name)}-fixes.jsonl")


def find_unused_patch(index: Index) -> tuple[Path, int] | None:
    """Return the file with the studio's corrections of `index` and their number; None if there are none that apply."""
    path = choose_patch_path(index.name)
    try:
        entries = read_patch(path)
        apply_patch(index, entries, str(path), keep_unlabeled=True)
    except DataError:
        return None
    count = sum(entry.action != "keep" for _, entry in entries)
    return (path, count) if count else None


def read_entries(path: Path | None) -> list[PatchEntry]:
    """Return the entries of a patch; empty if the file does not exist or `path` is None."""
    return [] if path is None or not path.exists() else [entry for _, entry in read_patch(path)]


def read_patch(path: Path) -> list[tuple[int, PatchEntry]]:
    """Return the line numbers and corrections of a patch file; raises `DataError` naming the first malformed line."""
    path = _io.expand_home(path)
    try:
        text = _io.read_regular(path, PATCH_LIMIT).decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError as error:
        raise DataError(f"There is no patch {path}: check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The patch {path} is not UTF-8 text: expected what `sightline doctor` writes.") from error
    except OSError as error:
        raise DataError(f"The patch {path} cannot be read: {error.strerror or error}.") from error
    lines = enumerate(text.split("\n"), 1)
    return [(number, _parse_line(line, f"The patch {path}, line {number}")) for number, line in lines if line.strip()]


def _parse_line(line: str, where: str) -> PatchEntry:
    try:
        row: Any = jsonio.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({getattr(error, 'msg', error)}); fix the line or delete it.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with the keys action, path, sha256, label, to and reason.")
    invalid_keys = [k for k in KEYS if not isinstance(row.get(k), str)] + sorted(set(row) - {*KEYS, "to"})
    if invalid_keys:
        raise DataError(
            f"{where}: {invalid_keys[0]!r} is missing, unknown or not a string; the keys are action, "
            "path, sha256, label, to "
            "and reason."
        )
    action, to = row["action"], row.get("to")
    if action not in get_args(Action):
        raise DataError(f"{where}: action is {action!r}; expected drop, relabel, move or keep.")
    if action in ("drop", "keep") and to is not None:
        raise DataError(f"{where}: the action {action} takes no 'to': remove it, or use relabel or move.")
    if action == "move" and to not in SPLITS:
        raise DataError(f"{where}: 'to' is {to!r}; expected train, validation or test for the action move.")
    if action == "relabel" and not isinstance(to, str):
        raise DataError(f"{where}: 'to' is {to!r}; expected the correct class for the action relabel.")
    return PatchEntry(cast("Action", action), row["path"], row["sha256"], row["label"], to, row["reason"])


def apply_patch(
    index: Index, entries: Sequence[tuple[int, PatchEntry]], where: str, *, keep_unlabeled: bool = False
) -> Index:
    """Apply corrections, with their line numbers, to `index`; `where` names the patch in messages.

    Images that still have no label are moved to the unreadable ones, unless `keep_unlabeled` is true. Where images may
    have several labels, which a line of the patch can establish, only images still to be labeled are moved.

    Raises `DataError` for a line that matches no image, for conflicting lines on one image, for a move if the source
    states no splits, and if no image remains.
    """
    positions = {(p.path, p.sha256): i for i, p in enumerate(index.images)}
    hashes = {p.path: p.sha256 for p in index.images}
    several_labels = index.several_labels or _find_several_labels(index, entries, where)
    changed: dict[int, ImageRecord | None] = dict(enumerate(index.images))
    first_lines: dict[tuple[int, str], int] = {}
    for number, entry in entries:
        i = positions.get((entry.path, entry.sha256))
        if i is None or index.images[i].label != entry.label:
            if entry.action == "keep":
                continue
            raise DataError(
                f"{where}, line {number} matches no image: "
                f"{_describe_mismatch(entry, hashes, index, i)}; delete the line."
            )
        for action in EXCLUDED[entry.action]:
            if (i, action) in first_lines:
                raise DataError(
                    f"{where}, line {number} corrects {entry.path}, which line "
                    f"{first_lines[i, action]} already corrects: "
                    "delete one of the two."
                )
        first_lines[i, entry.action] = number
        changed[i] = _apply_entry(changed[i], entry, f"{where}, line {number}", several=bool(several_labels))
    unlabeled = set() if keep_unlabeled else {
        i
        for i, image in changed.items()
        if image is not None and not image.label and (image.to_label or not several_labels)
    }  # fmt: skip
    remaining = {i: image for i, image in changed.items() if image is not None and i not in unlabeled}
    if not remaining:
        raise DataError(
            f"{where} labels none of the images of {index.name}: label some with `sightline studio`."
            if unlabeled
            else f"{where} drops every image of {index.name}: delete some of its lines."
        )
    return replace(
        index.select(list(remaining)),
        images=tuple(remaining.values()),
        unreadable=(*index.unreadable, *(UnreadableImage(index.images[i].path, NO_LABEL) for i in sorted(unlabeled))),
        several_labels=several_labels,
    )


def _find_several_labels(index: Index, entries: Sequence[tuple[int, PatchEntry]], where: str) -> str:
    """Return which line gives an image several labels or none, in an index with one class each; "" if none does."""
    classes = {image.label for image in index.images} - {""}
    unlabeled = {(image.path, image.sha256) for image in index.images if not image.label}
    for number, entry in entries:
        is_none = entry.action == "keep" and not entry.label and (entry.path, entry.sha256) in unlabeled
        is_set = entry.action == "relabel" and entry.to not in classes and (not entry.to or SEPARATOR in entry.to)
        if is_none or is_set:
            return f"{where}, line {number} gives {entry.path} the labels {entry.to or ''!r}"
    return ""


def load_and_apply_patch(index: Index, path: Path | None) -> Index:
    """Return `index` with the patch file at `path` applied; unchanged if `path` is None."""
    return index if path is None else apply_patch(index, read_patch(path), f"The patch {path}")


def _describe_mismatch(entry: PatchEntry, hashes: dict[str, str], index: Index, position: int | None) -> str:
    if position is not None:
        return f"{entry.path} has class {index.images[position].label!r}, not {entry.label!r}"
    if entry.path in hashes:
        return f"{entry.path} has changed since the line was written"
    return f"there is no image {entry.path} in {index.name}"


def _apply_entry(image: ImageRecord | None, entry: PatchEntry, where: str, *, several: bool) -> ImageRecord | None:
    if image is None or entry.action == "drop":
        return None
    if entry.action == "keep":
        return replace(image, is_kept=True, to_label=False)
    if entry.action == "relabel":
        label = str(entry.to)
        return replace(image, label=join_classes(LABEL_SETS.list_classes(label)) if several else label, to_label=False)
    if image.split is None:
        raise DataError(f"{where} moves {entry.path} to {entry.to}, but this source gives no splits: delete the line.")
    return replace(image, split=cast("Split", entry.to))
