"""Patches: corrections in a separate file, applied to an index and undone by deleting lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sightline.data import label_patch
from sightline.data.checks import fixes
from sightline.data.checks.audit import audit_images
from sightline.data.indexing import build_index
from sightline.data.types import Index
from sightline.errors import DataError
from synthetic_images import draw_scene, encode, encode_png, encode_scene_jpeg, write_files

FILES = {f"{label}/{i}.png": encode_png(i, color) for color, label in enumerate(("cat", "dog")) for i in range(3)}
FILES_IN_SPLITS = {
    f"{split}/{name}": encode_png(10 * k + i, k)
    for k, split in enumerate(("train", "test"))
    for i, name in enumerate(FILES)
}


def patch_line(source_index: Index, path: str, action: str, to: str | None = None, /, **changed: Any) -> str:
    image = next(p for p in source_index.images if p.path == path)
    row = {"action": action, "path": path, "sha256": image.sha256, "label": image.label, "reason": "seen"}
    row |= {"to": to} if to else {}
    return json.dumps({k: v for k, v in (row | changed).items() if v is not ...})


def apply_lines(source_index: Index, tmp_path: Path, *lines: str) -> Index:
    file = tmp_path / "fixes.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return label_patch.load_and_apply_patch(source_index, file)


def test_images_are_dropped_relabeled_and_moved_in_the_index_alone(tmp_path: Path) -> None:
    root = write_files(tmp_path / "images", FILES_IN_SPLITS)
    before = {p: p.read_bytes() for p in root.rglob("*.png")}
    source_index = build_index(root)
    fixes = [
        patch_line(source_index, "train/cat/0.png", "drop"), "",
        patch_line(source_index, "train/cat/1.png", "relabel", "dog"),
        patch_line(source_index, "test/dog/2.png", "move", "validation"),
        patch_line(source_index, "test/dog/1.png", "relabel", "cat"),
        patch_line(source_index, "test/dog/1.png", "move", "train"),
    ]  # fmt: skip
    now = apply_lines(source_index, tmp_path, *fixes)
    labels_and_splits = {p.path: (p.label, p.split) for p in now.images}
    assert set(FILES_IN_SPLITS) - set(labels_and_splits) == {"train/cat/0.png"}
    assert labels_and_splits["train/cat/1.png"] == ("dog", "train")
    assert labels_and_splits["test/dog/2.png"] == ("dog", "validation")
    assert labels_and_splits["test/dog/1.png"] == ("cat", "train")
    for i, image in enumerate(now.images):
        assert now.read(i) == FILES_IN_SPLITS[image.path]
    assert {p: p.read_bytes() for p in root.rglob("*.png")} == before
    assert (
        apply_lines(source_index, tmp_path, *fixes[1:]).images
        == now.images[:6] + build_index(root).images[6:7] + now.images[6:]
    )  # taken back
    assert apply_lines(source_index, tmp_path, "") == source_index


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "cat/9.png"}, "line 2 matches no image: there is no image cat/9.png"),
        ({"sha256": "0" * 64}, "line 2 matches no image: cat/1.png has changed since the line was written"),
        ({"label": "dog"}, "line 2 matches no image: cat/1.png has class 'cat', not 'dog'"),
        ({"action": "delete"}, "line 2: action is 'delete'; expected drop, relabel, move or keep"),
        ({"to": "dog"}, "line 2: the action drop takes no 'to'"),
        ({"action": "relabel"}, "line 2: 'to' is None; expected the correct class"),
        ({"action": "move", "to": "tests"}, "line 2: 'to' is 'tests'; expected train, validation or test"),
        ({"action": "move", "to": "test"}, "line 2 moves cat/1.png to test, but this source gives no splits"),
        ({"sha256": ...}, "line 2: 'sha256' is missing, unknown or not a string"),
        ({"why": "so"}, "line 2: 'why' is missing, unknown or not a string"),
        ({"reason": 3}, "line 2: 'reason' is missing, unknown or not a string"),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, change: Mapping[str, Any], message: str) -> None:
    source_index = build_index(write_files(tmp_path / "images", FILES))
    with pytest.raises(DataError) as caught:
        apply_lines(
            source_index,
            tmp_path,
            patch_line(source_index, "cat/0.png", "drop"),
            patch_line(source_index, "cat/1.png", "drop", **change),
        )
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"The patch {tmp_path / 'fixes.jsonl'}, ")


@pytest.mark.parametrize(("text", "message"), [("{", "line 1: not JSON"), ("[1]", "line 1: expected an object")])
def test_a_line_that_is_not_an_object_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    source_index = build_index(write_files(tmp_path / "images", FILES))
    with pytest.raises(DataError, match=message):
        apply_lines(source_index, tmp_path, text)


def test_a_missing_patch_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no patch"):
        label_patch.read_patch(tmp_path / "none.jsonl")


@pytest.mark.parametrize("second", ["drop", "relabel"])
def test_two_lines_on_one_image_are_refused(tmp_path: Path, second: str) -> None:
    source_index = build_index(write_files(tmp_path / "images", FILES))
    lines = [
        patch_line(source_index, "cat/0.png", "relabel", "dog"),
        patch_line(source_index, "cat/0.png", second, "dog" * (second != "drop")),
    ]
    for order in (lines, lines[::-1]):
        with pytest.raises(DataError, match=r"line 2 corrects cat/0.png, which line 1 already corrects"):
            apply_lines(source_index, tmp_path, *order)


def test_a_patch_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    source_index = build_index(write_files(tmp_path / "images", FILES))
    with pytest.raises(DataError, match="drops every image of images"):
        apply_lines(source_index, tmp_path, *[patch_line(source_index, path, "drop") for path in FILES])


def test_what_is_proposed_mends_what_was_found(tmp_path: Path) -> None:
    names = [f"{split}/{label}/{i}.jpg" for split in ("train", "test") for label in ("cat", "dog") for i in range(21)]
    files = {name: encode_scene_jpeg(i) for i, name in enumerate(names)}
    files |= {
        "train/cat/in the test too.jpg": files["test/cat/3.jpg"],
        "train/cat/once more.jpg": files["train/cat/4.jpg"],
        "train/dog/no dog 1.jpg": files["train/cat/5.jpg"],
        "train/cat/no dog 2.jpg": files["train/cat/5.jpg"],
        "train/dog/who knows.jpg": files["train/cat/6.jpg"],
        "test/dog/small.jpg": encode(draw_scene(7).resize((110, 96)), "JPEG"),
        "train/Cat/1.jpg": encode_scene_jpeg(500),
        "test/Cat/1.jpg": encode_scene_jpeg(501),
        "train/cat/gray.png": encode(draw_scene(0).convert("L").point(lambda _: 99)),
    }
    source_index = build_index(write_files(tmp_path / "images", files))
    first, copies, stats = audit_images(source_index)
    mended = {"split-leakage", "duplicates", "conflicting-duplicates", "similar-class-names", "blank"}
    assert {f.kind for f in first.findings} >= mended
    proposed = fixes.propose_fixes(source_index, copies, stats)
    actions = {(c.action, c.path, c.to) for c in proposed}
    assert actions >= {
        ("drop", "train/cat/in the test too.jpg", None), ("drop", "train/cat/gray.png", None),
        ("drop", "train/dog/who knows.jpg", None), ("drop", "train/cat/6.jpg", None),
        ("relabel", "train/Cat/1.jpg", "cat"), ("relabel", "test/Cat/1.jpg", "cat"),
        ("drop", "train/cat/7.jpg", None),  # its near duplicate stays in the test split
    }  # fmt: skip
    assert Counter(c.action for c in proposed) == {"drop": 8, "relabel": 2}
    file = label_patch.write_patch(tmp_path / "fix.jsonl", proposed)
    again = audit_images(label_patch.load_and_apply_patch(source_index, file))[0]
    assert not {f.kind for f in again.findings} & mended
    keys = [set(json.loads(row)) for row in file.read_text(encoding="utf-8").splitlines()]
    assert all(
        {"action", "path", "sha256", "label", "reason"} <= k <= {"action", "path", "sha256", "label", "to", "reason"}
        for k in keys
    )


def test_a_patch_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "holes.jsonl"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(DataError, match=r"holes\.jsonl cannot be read.*more than 268,435,456 bytes"):
        label_patch.read_patch(file)
