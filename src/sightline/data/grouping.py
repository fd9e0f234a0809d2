"""Groups of images that stay in one split: images of one patient, scene, video or specimen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sightline.config.split_groups import GroupRule
from sightline.data.sources.file_labels import normalize_label
from sightline.data.sources.filenames import split_path
from sightline.data.types import ImageRecord
from sightline.errors import ConfigError, list_some


def assign_groups(
    images: Sequence[ImageRecord], rule: GroupRule, near: Mapping[str, str] | None = None
) -> list[str] | None:
    """Return the group name of each image, "" for images without a group; None without a rule.

    `near` maps each sha256 to its group of near duplicates, for the rule ``near_duplicates``. Raises `ConfigError` for
    a column that no image has, and for a pattern that does not match every path.
    """
    if rule.kind == "near_duplicates":
        return [(near or {}).get(p.sha256, "") for p in images]
    if rule.kind == "folder":
        return _group_by_folder(images)
    if rule.kind == "column":
        return _group_by_column(images, rule.argument)
    if rule.kind == "pattern":
        return _group_by_pattern(images, rule.argument)
    return None


def folder_below_class(image: ImageRecord) -> str:
    """Return the folders between an image and its class folder, or all of its folders if it has no class folder.

    >>> folder_below_class(ImageRecord("train/cat/scene 1/7.jpg", "", "cat", "train", 1, 1))
    'scene 1'
    """
    folders = [normalize_label(name) or name for name in split_path(image.path)[:-1]]  # normalized as class folders are
    label = list(split_path(image.label))
    for start in range(len(folders) - len(label) + 1):
        if folders[start : start + len(label)] == label:
            return "/".join(folders[start + len(label) :])
    return "/".join(folders)


def _group_by_folder(images: Sequence[ImageRecord]) -> list[str]:
    names = [folder_below_class(p) for p in images]
    if images and not any(names):
        raise ConfigError(
            f"split.group is folder, but no image is in a subfolder of its class folder, such as {images[0].path}: "
            "expected class/group/image."
        )
    return names


def _group_by_column(images: Sequence[ImageRecord], column: str) -> list[str]:
    columns = {name: None for p in images for name in p.extra}
    if column not in columns:
        matches = [name for name in columns if name.strip().casefold() == column.casefold()]
        if len(matches) != 1:
            known = list_some(list(columns), 8)
            raise ConfigError(
                f"split.group names the column {column!r}, which this source does not have: "
                + (f"its extra columns are {known}." if known else "only extra columns of a manifest can be used.")
            )
        column = matches[0]
    return [p.extra.get(column, "").strip() for p in images]


def _group_by_pattern(images: Sequence[ImageRecord], pattern: str) -> list[str]:
    regex = re.compile(pattern)
    key: int | str = "group" if "group" in regex.groupindex else 1
    names, unmatched = [], []
    for p in images:
        match = regex.search(p.path)
        name = match[key] if match else None
        names.append(name or "")
        if not name:
            unmatched.append(p.path)
    if unmatched:
        raise ConfigError(
            f"split.group has the pattern {pattern!r}, which finds no group in {len(unmatched):,} of "
            f"{len(images):,} paths, such as {unmatched[0]}: change the pattern so that it matches every image."
        )
    return names
