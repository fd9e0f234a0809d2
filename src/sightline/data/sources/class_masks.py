"""Detect masks among the images of class folders; they are not examples of a class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from sightline.data.sources.folder_layout import PathParts
from sightline.data.sources.split_names import parse_split_name

IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "rgb"}
MASK_FOLDER_NAMES = {
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentationclass", "gt",
    "gtfine", "groundtruth",
}  # fmt: skip
OBJECT_FOLDER = "segmentationobject"  # Pascal VOC: masks whose values are objects, not classes
_LOSSLESS = {"png", "bmp", "gif", "tif", "tiff"}  # formats of masks; a photograph of a face mask is usually a JPEG
_MASK_NAME = re.compile(r"(.+)_(?:mask|segmentation|gt)(?:_\d+)?", re.IGNORECASE)


def find_class_masks(paths: Mapping[str, PathParts]) -> frozenset[str]:
    """Return the keys of the masks among the images of class folders; `paths` maps each key to its path components.

    A mask may be next to its image, such as ``benign/1_mask.png`` next to ``benign/1.png`` in the breast ultrasound
    data set BUSI, if at least half of the images in the folder have a mask and the folder name does not contain "mask",
    unlike ``with_mask``. In two or more classes, masks may also be in a folder next to that of the images:
    ``COVID/masks/1.png`` for ``COVID/images/1.png``.
    """
    candidates = {key: parts for key, parts in paths.items() if _may_be_mask(parts)}
    if not candidates:
        return frozenset()
    stems = {(parts[:-1], parts[-1].rpartition(".")[0]) for parts in paths.values()}
    images = {(folder[:-1], stem) for folder, stem in stems if folder and folder[-1].casefold() in IMAGE_FOLDERS}
    beside: dict[PathParts, dict[str, str]] = defaultdict(dict)  # folder -> mask key -> image name
    by_class: dict[PathParts, list[str]] = defaultdict(list)
    for key, (*parts, name) in candidates.items():
        folder, stem = tuple(parts), name.rpartition(".")[0]
        match = _MASK_NAME.fullmatch(stem)
        stem = match[1] if match else stem
        if match and (folder, stem) in stems and not (folder and "mask" in folder[-1].casefold()):
            beside[folder][key] = stem
        elif len(folder) > 1 and folder[-1].casefold() in MASK_FOLDER_NAMES and (folder[:-1], stem) in images:
            by_class[folder[:-1]].append(key)
    counts = Counter(folder for folder, _ in stems)
    masks = [
        key for folder, image_names in beside.items() for key in image_names
        if 2 * len(set(image_names.values())) >= counts[folder] - len(image_names)
    ]  # fmt: skip
    names = [parse_split_name(folder[-1]) for folder in by_class]
    if len(by_class) > 1 and not any(name and name.certain for name in names):
        masks += [key for keys in by_class.values() for key in keys]
    return frozenset(masks)


def _may_be_mask(parts: PathParts) -> bool:
    stem, _, suffix = parts[-1].rpartition(".")
    is_in_folder = len(parts) > 1 and parts[-2].casefold() in MASK_FOLDER_NAMES
    return suffix.lower() in _LOSSLESS and (is_in_folder or ("_" in stem and _MASK_NAME.fullmatch(stem) is not None))
