"""The group of each image, by which images stay on one side of the split: a patient, a scene, a video, a specimen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from sightline.config.groups import GroupRule
from sightline.errors import ConfigError
from sightline.records import Picture

SHOWN = 8  # columns that an error names


def groups(pictures: Sequence[Picture], rule: GroupRule, near: Mapping[str, str] | None = None) -> list[str] | None:
    """Return the name of each image's group, "" for images in none; None without a rule.

    `near` names the group of near duplicates of each content (`survey.Survey.near`), for the rule of that name. Raises
    `ConfigError` for a column that no image has, and for a pattern that does not fit all paths.
    """
    if rule.kind == "near":
        return [(near or {}).get(p.sha256, "") for p in pictures]
    if rule.kind == "folder":
        return _by_folder(pictures)
    if rule.kind == "column":
        return _by_column(pictures, rule.argument)
    if rule.kind == "pattern":
        return _by_pattern(pictures, rule.argument)
    return None


def folder_below_class(picture: Picture) -> str:
    """Return the folders between an image's class folder and the image; without a class folder, all of its folders.

    >>> folder_below_class(Picture("train/cat/scene 1/7.jpg", "", "cat", "train", 1, 1))
    'scene 1'
    """
    folders = path_parts(unicodedata.normalize("NFC", picture.path))[:-1]
    label = path_parts(picture.label)
    for at in range(len(folders) - len(label) + 1):
        if folders[at : at + len(label)] == label:
            return "/".join(folders[at + len(label) :])
    return "/".join(folders)


def path_parts(path: str) -> list[str]:
    """Return the parts of a path; `PurePosixPath` takes five times as long, which counts for a million images."""
    return [part for part in path.split("/") if part not in {"", "."}]


def _by_folder(pictures: Sequence[Picture]) -> list[str]:
    names = [folder_below_class(p) for p in pictures]
    if pictures and not any(names):
        raise ConfigError(
            f"split.group is folder, but no image lies in a folder below its class, as {pictures[0].path} shows: "
            "expected class/group/image."
        )
    return names


def _by_column(pictures: Sequence[Picture], column: str) -> list[str]:
    columns = {name: None for p in pictures for name in p.extra}
    if column not in columns:
        alike = [name for name in columns if name.strip().casefold() == column.casefold()]
        if len(alike) != 1:
            known = ", ".join(list(columns)[:SHOWN])
            raise ConfigError(
                f"split.group names the column {column!r}, which this source does not have: "
                + (f"its further columns are {known}." if known else "only the further columns of a manifest count.")
            )
        column = alike[0]
    return [p.extra.get(column, "").strip() for p in pictures]


def _by_pattern(pictures: Sequence[Picture], pattern: str) -> list[str]:
    regex = re.compile(pattern)
    key: int | str = "group" if "group" in regex.groupindex else 1
    names, unmatched = [], []
    for p in pictures:
        match = regex.search(p.path)
        name = match[key] if match else None
        names.append(name or "")
        if not name:
            unmatched.append(p.path)
    if unmatched:
        raise ConfigError(
            f"split.group holds the pattern {pattern!r}, which finds no group in {len(unmatched):,} of "
            f"{len(pictures):,} paths, such as {unmatched[0]}: change the pattern so that it fits every image."
        )
    return names
