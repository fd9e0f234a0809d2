"""Groups of images that stay in one split: images of one patient, scene, video or specimen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from sightline.config.groups import GroupRule
from sightline.errors import ConfigError
from sightline.records import Picture

SHOWN = 8  # columns listed in an error message


def groups(pictures: Sequence[Picture], rule: GroupRule, near: Mapping[str, str] | None = None) -> list[str] | None:
    """Return the group name of each image, "" for images without a group; None without a rule.

    `near` maps each sha256 to its group of near duplicates (`survey.Survey.near`), for the rule "near". Raises
    `ConfigError` for a column that no image has and for a pattern that does not match every path.
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
    """Return the folders between an image and its class folder, or all of its folders if it is in no class folder.

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
    """Return the components of a path; `PurePosixPath` takes five times as long, which matters for a million images."""
    return [part for part in path.split("/") if part not in {"", "."}]


def _by_folder(pictures: Sequence[Picture]) -> list[str]:
    names = [folder_below_class(p) for p in pictures]
    if pictures and not any(names):
        raise ConfigError(
            f"split.group is folder, but no image is in a subfolder of its class folder, such as {pictures[0].path}: "
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
                + (f"its extra columns are {known}." if known else "only extra columns of a manifest can be used.")
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
            f"split.group has the pattern {pattern!r}, which finds no group in {len(unmatched):,} of "
            f"{len(pictures):,} paths, such as {unmatched[0]}: change the pattern so that it matches every image."
        )
    return names
