"""Patch files: corrections to a data source in a separate file, so that no image is moved, renamed or deleted.

Each line is a JSON object with the keys

    action  drop, relabel or move
    path    the path of the image in the index
    sha256  the hash of its content: an image that has changed since is not corrected
    label   its current class
    to      relabel: the correct class; move: train, validation or test; drop: absent
    reason  an explanation for people

Delete a line to undo its correction. Empty lines are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from sightline import files, jsonio
from sightline.errors import DataError
from sightline.records import PARTS, Index, Part, Picture

Action = Literal["drop", "relabel", "move"]
KEYS = ("action", "path", "sha256", "label", "reason")
PATCH_LIMIT = 256 << 20  # bytes of a patch: about a million corrections


@dataclass(frozen=True, slots=True)
class Correction:
    """One line of a patch: what to do with the image of this path, content and class."""

    action: Action
    path: str
    sha256: str
    label: str
    to: str | None
    reason: str

    @property
    def line(self) -> str:
        """The JSON line, without a newline."""
        return jsonio.dumps({k: v for k, v in asdict(self).items() if v is not None})


def correction(action: Action, picture: Picture, reason: str, to: str | None = None) -> Correction:
    """Return a correction of `picture` with its current path, content and class."""
    return Correction(action, picture.path, picture.sha256, picture.label, to, reason)


def write(path: Path, corrections: Iterable[Correction]) -> Path:
    """Write a patch file; raises `OutputError` if it cannot be written."""
    text = "".join(c.line + "\n" for c in corrections)
    return files.write(path, text.encode(errors="backslashreplace"), "Choose another file with --fix.")


def read(path: Path) -> list[tuple[int, Correction]]:
    """Return the line numbers and corrections of a patch file; raises `DataError` naming the first malformed line."""
    try:
        text = files.read_regular(path, PATCH_LIMIT).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The patch {path} cannot be read as UTF-8 text: {error}.") from error
    lines = enumerate(text.split("\n"), 1)
    return [(number, _parsed(line, f"The patch {path}, line {number}")) for number, line in lines if line.strip()]


def _parsed(line: str, where: str) -> Correction:
    try:
        row: Any = jsonio.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({getattr(error, 'msg', error)}); fix the line or delete it.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with the keys action, path, sha256, label, to and reason.")
    wrong = [k for k in KEYS if not isinstance(row.get(k), str)] + sorted(set(row) - {*KEYS, "to"})
    if wrong:
        raise DataError(
            f"{where}: {wrong[0]!r} is missing, unknown or not a string; the keys are action, path, sha256, label, to "
            "and reason."
        )
    action, to = row["action"], row.get("to")
    if action not in get_args(Action):
        raise DataError(f"{where}: action is {action!r}; expected drop, relabel or move.")
    if action == "drop" and to is not None:
        raise DataError(f"{where}: the action drop takes no 'to': remove it, or use relabel or move.")
    if action == "move" and to not in PARTS:
        raise DataError(f"{where}: 'to' is {to!r}; expected train, validation or test for the action move.")
    if action == "relabel" and (not isinstance(to, str) or not to):
        raise DataError(f"{where}: 'to' is {to!r}; expected the correct class for the action relabel.")
    return Correction(cast("Action", action), row["path"], row["sha256"], row["label"], to, row["reason"])


def apply(index: Index, corrections: Sequence[tuple[int, Correction]], where: str) -> Index:
    """Apply corrections, with their line numbers, to `index`; `where` names the patch in messages.

    Raises `DataError` for a line that matches no image, for conflicting lines on one image, for a move if the source
    gives no splits, and if no image remains.
    """
    place = {(p.path, p.sha256): i for i, p in enumerate(index.pictures)}
    shas = {p.path: p.sha256 for p in index.pictures}
    changed: dict[int, Picture | None] = dict(enumerate(index.pictures))
    done: dict[tuple[int, str], int] = {}
    for number, fix in corrections:
        i = place.get((fix.path, fix.sha256))
        if i is None or index.pictures[i].label != fix.label:
            raise DataError(
                f"{where}, line {number} matches no image: {_mismatch(fix, shas, index, i)}; delete the line."
            )
        for action in ("drop", fix.action) if fix.action != "drop" else get_args(Action):
            if (i, action) in done:
                raise DataError(
                    f"{where}, line {number} corrects {fix.path}, which line {done[i, action]} already corrects: "
                    "delete one of the two."
                )
        done[i, fix.action] = number
        changed[i] = _corrected(changed[i], fix, f"{where}, line {number}")
    keep = [i for i, picture in changed.items() if picture is not None]
    if not keep:
        raise DataError(f"{where} drops every image of {index.name}: delete some of its lines.")
    return replace(index.at(keep), pictures=tuple(cast("Picture", changed[i]) for i in keep))


def corrected(index: Index, path: Path | None) -> Index:
    """Return `index` with the patch file at `path` applied; unchanged if `path` is None."""
    return index if path is None else apply(index, read(path), f"The patch {path}")


def _mismatch(fix: Correction, shas: dict[str, str], index: Index, found: int | None) -> str:
    if found is not None:
        return f"{fix.path} has class {index.pictures[found].label!r}, not {fix.label!r}"
    if fix.path in shas:
        return f"{fix.path} has changed since the line was written"
    return f"there is no image {fix.path} in {index.name}"


def _corrected(picture: Picture | None, fix: Correction, where: str) -> Picture | None:
    if picture is None or fix.action == "drop":
        return None
    if fix.action == "relabel":
        return replace(picture, label=str(fix.to))
    if picture.part is None:
        raise DataError(f"{where} moves {fix.path} to {fix.to}, but this source gives no splits: delete the line.")
    return replace(picture, part=cast("Part", fix.to))
