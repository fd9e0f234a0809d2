"""Identical images with different sets of labels, or different masks: what `doctor` says, and what its fixes do."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

import sightline
from drawn_scenes import draw_scene, draw_scenes
from drawn_scenes import encode as encode_pixels
from sightline.api.doctor import DoctorReport
from sightline.config import DataConfig
from sightline.data.checks.finding import Finding
from sightline.data.indexing import build_index
from sightline.data.label_patch import load_and_apply_patch
from sightline.data.targets import LABEL_SETS
from sightline.data.types import Index
from synthetic_images import encode_png, write_files

ROWS = {
    "1.png": "car;tree", "copy of 1.png": "car", "2.png": "tree", "second 2.png": "tree", "third 2.png": "car;tree",
    "3.png": "", "copy of 3.png": "", "4.png": "car", "copy of 4.png": "",
}  # fmt: skip


def write_rows(folder: Path) -> Path:
    """Write images whose digit is their content, and the table of their labels."""
    write_files(folder, {name: encode_png(int(next(filter(str.isdigit, name)))) for name in ROWS})
    file = io.StringIO()
    csv.writer(file).writerows([("path", "labels"), *ROWS.items()])
    (folder / "list.csv").write_text(file.getvalue(), encoding="utf-8")
    return folder / "list.csv"


def check(path: Path, **options: Any) -> tuple[DoctorReport, dict[str, Finding]]:
    report = sightline.Dataset(path).check(progress=False, **options)
    return report, {finding.kind: finding for finding in report.findings}


def list_labels(index: Index) -> dict[str, str]:
    return {image.path: image.label for image in index.images}


def test_identical_images_with_different_labels_are_an_error_that_names_them(tmp_path: Path) -> None:
    _, findings = check(write_rows(tmp_path))
    conflicts = findings["conflicting-duplicates"]
    assert (conflicts.severity, conflicts.count) == ("error", 3)
    assert conflicts.description == "groups of identical files have different labels"
    assert dict(zip(conflicts.groups, conflicts.labels, strict=True)) == {
        ("1.png", "copy of 1.png"): ("car;tree", "car"),
        ("2.png", "second 2.png", "third 2.png"): ("tree", "tree", "car;tree"),
        ("4.png", "copy of 4.png"): ("car", ""),
    }
    assert '`set=["data.merge_copies=true"]`, which joins them' in conflicts.advice
    assert "model.task" not in conflicts.advice, "the table says that there may be several"
    same = findings["duplicates"]
    assert (same.groups, same.description) == (
        (("3.png", "copy of 3.png"),),
        "group of identical files with the same labels",
    )


def test_what_is_advised_leaves_no_conflict(tmp_path: Path) -> None:
    path = write_rows(tmp_path)
    merged = build_index(path, options=DataConfig(merge_copies=True))
    assert list_labels(merged) == {"1.png": "car;tree", "2.png": "car;tree", "3.png": "", "4.png": "car"}
    check(path, write_fixes=tmp_path / "fixes.jsonl")
    fixed = load_and_apply_patch(build_index(path), tmp_path / "fixes.jsonl")
    assert list_labels(fixed) == {"2.png": "tree", "3.png": ""}, "one of 2 to 1, and no majority of 1 and 4"
    reasons = (tmp_path / "fixes.jsonl").read_text(encoding="utf-8")
    assert "identical files have the classes (none), car" in reasons
    _, findings = check(path, patch=tmp_path / "fixes.jsonl")
    assert not {"conflicting-duplicates", "duplicates"} & set(findings)


def test_the_labels_of_the_majority_are_given_to_the_copy_in_the_last_split(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i}.png": encode_png(1) for i in range(3)} | {"other.png": encode_png(2)})
    rows = "path,labels,split\n0.png,car;tree,train\n1.png,car;tree,train\n2.png,car,test\nother.png,tree,train\n"
    (tmp_path / "list.csv").write_text(rows, encoding="utf-8")
    check(tmp_path / "list.csv", write_fixes=tmp_path / "fixes.jsonl")
    fixed = load_and_apply_patch(build_index(tmp_path / "list.csv", targets=LABEL_SETS), tmp_path / "fixes.jsonl")
    assert list_labels(fixed) == {"2.png": "car;tree", "other.png": "tree"}
    assert "most of its 3 identical files have these labels" in (tmp_path / "fixes.jsonl").read_text(encoding="utf-8")


def test_identical_images_with_different_masks_are_dropped(tmp_path: Path) -> None:
    root = draw_scenes(tmp_path / "scenes", 6, 2)
    image, mask = draw_scene(0)
    (root / "train" / "images" / "copy.png").write_bytes(encode_pixels(image))
    (root / "train" / "masks" / "copy.png").write_bytes(encode_pixels(np.where(mask == 1, 0, mask).astype(np.uint8)))
    _, findings = check(root, write_fixes=tmp_path / "fixes.jsonl")
    conflicts = findings["conflicting-duplicates"]
    assert sorted(map(Path, conflicts.groups[0])) == [Path("train/images/0.png"), Path("train/images/copy.png")]
    assert "at most one mask is right" in conflicts.advice
    assert "merge_copies" not in conflicts.advice
    fixed = load_and_apply_patch(build_index(root), tmp_path / "fixes.jsonl")
    assert len(fixed.images) == 7
    assert not {"train/images/0.png", "train/images/copy.png"} & set(list_labels(fixed))
