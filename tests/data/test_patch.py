"""Patches: corrections in a separate file, applied to an index and undone by deleting lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pictures import encode, jpeg, png, scene, write
from sightline.data import cure, patch
from sightline.data.audit import audit
from sightline.data.index import index
from sightline.errors import DataError
from sightline.records import Index

FILES = {f"{label}/{i}.png": png(i, colour) for colour, label in enumerate(("cat", "dog")) for i in range(3)}
IN_PARTS = {
    f"{part}/{name}": png(10 * k + i, k) for k, part in enumerate(("train", "test")) for i, name in enumerate(FILES)
}


def line(found: Index, path: str, action: str, to: str | None = None, /, **changed: Any) -> str:
    picture = next(p for p in found.pictures if p.path == path)
    row = {"action": action, "path": path, "sha256": picture.sha256, "label": picture.label, "reason": "seen"}
    row |= {"to": to} if to else {}
    return json.dumps({k: v for k, v in (row | changed).items() if v is not ...})


def patched(found: Index, tmp_path: Path, *lines: str) -> Index:
    file = tmp_path / "fixes.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return patch.corrected(found, file)


def test_pictures_are_dropped_relabelled_and_moved_in_the_index_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "pictures", IN_PARTS)
    before = {p: p.read_bytes() for p in root.rglob("*.png")}
    found = index(root)
    fixes = [
        line(found, "train/cat/0.png", "drop"), "",
        line(found, "train/cat/1.png", "relabel", "dog"),
        line(found, "test/dog/2.png", "move", "validation"),
        line(found, "test/dog/1.png", "relabel", "cat"),
        line(found, "test/dog/1.png", "move", "train"),
    ]  # fmt: skip
    now = patched(found, tmp_path, *fixes)
    told = {p.path: (p.label, p.part) for p in now.pictures}
    assert set(IN_PARTS) - set(told) == {"train/cat/0.png"}
    assert told["train/cat/1.png"] == ("dog", "train")
    assert told["test/dog/2.png"] == ("dog", "validation")
    assert told["test/dog/1.png"] == ("cat", "train")
    for i, picture in enumerate(now.pictures):
        assert now.read(i) == IN_PARTS[picture.path]
    assert {p: p.read_bytes() for p in root.rglob("*.png")} == before
    assert (
        patched(found, tmp_path, *fixes[1:]).pictures == now.pictures[:6] + index(root).pictures[6:7] + now.pictures[6:]
    )  # taken back
    assert patched(found, tmp_path, "") == found


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"path": "cat/9.png"}, "line 2 matches no image: there is no image cat/9.png"),
        ({"sha256": "0" * 64}, "line 2 matches no image: cat/1.png has changed since the line was written"),
        ({"label": "dog"}, "line 2 matches no image: cat/1.png has class 'cat', not 'dog'"),
        ({"action": "delete"}, "line 2: action is 'delete'; expected drop, relabel or move"),
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
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, made: Mapping[str, Any], message: str) -> None:
    found = index(write(tmp_path / "pictures", FILES))
    with pytest.raises(DataError) as caught:
        patched(found, tmp_path, line(found, "cat/0.png", "drop"), line(found, "cat/1.png", "drop", **made))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"The patch {tmp_path / 'fixes.jsonl'}, ")


@pytest.mark.parametrize(("text", "message"), [("{", "line 1: not JSON"), ("[1]", "line 1: expected an object")])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str, message: str) -> None:
    found = index(write(tmp_path / "pictures", FILES))
    with pytest.raises(DataError, match=message):
        patched(found, tmp_path, text)


def test_a_missing_patch_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        patch.read(tmp_path / "none.jsonl")


@pytest.mark.parametrize("second", ["drop", "relabel"])
def test_two_lines_on_one_picture_are_refused(tmp_path: Path, second: str) -> None:
    found = index(write(tmp_path / "pictures", FILES))
    lines = [line(found, "cat/0.png", "relabel", "dog"), line(found, "cat/0.png", second, "dog" * (second != "drop"))]
    for order in (lines, lines[::-1]):
        with pytest.raises(DataError, match=r"line 2 corrects cat/0.png, which line 1 already corrects"):
            patched(found, tmp_path, *order)


def test_a_patch_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    found = index(write(tmp_path / "pictures", FILES))
    with pytest.raises(DataError, match="drops every image of pictures"):
        patched(found, tmp_path, *[line(found, path, "drop") for path in FILES])


def test_what_is_proposed_mends_what_was_found(tmp_path: Path) -> None:
    names = [f"{part}/{label}/{i}.jpg" for part in ("train", "test") for label in ("cat", "dog") for i in range(21)]
    files = {name: jpeg(i) for i, name in enumerate(names)}
    files |= {
        "train/cat/in the test too.jpg": files["test/cat/3.jpg"],
        "train/cat/once more.jpg": files["train/cat/4.jpg"],
        "train/dog/no dog 1.jpg": files["train/cat/5.jpg"],
        "train/cat/no dog 2.jpg": files["train/cat/5.jpg"],
        "train/dog/who knows.jpg": files["train/cat/6.jpg"],
        "test/dog/small.jpg": encode(scene(7).resize((110, 96)), "JPEG"),
        "train/Cat/1.jpg": jpeg(500),
        "test/Cat/1.jpg": jpeg(501),
        "train/cat/grey.png": encode(scene(0).convert("L").point(lambda _: 99)),
    }
    found = index(write(tmp_path / "pictures", files))
    first, copies, seen = audit(found)
    mended = {"split-leakage", "duplicates", "conflicting-duplicates", "similar-class-names", "blank"}
    assert {f.kind for f in first.findings} >= mended
    proposed = cure.propose(found, copies, seen)
    told = {(c.action, c.path, c.to) for c in proposed}
    assert told >= {
        ("drop", "train/cat/in the test too.jpg", None), ("drop", "train/cat/grey.png", None),
        ("drop", "train/dog/who knows.jpg", None), ("drop", "train/cat/6.jpg", None),
        ("relabel", "train/Cat/1.jpg", "cat"), ("relabel", "test/Cat/1.jpg", "cat"),
        ("drop", "train/cat/7.jpg", None),  # its near duplicate stays in the test split
    }  # fmt: skip
    assert Counter(c.action for c in proposed) == {"drop": 8, "relabel": 2}
    file = patch.write(tmp_path / "fix.jsonl", proposed)
    again = audit(patch.corrected(found, file))[0]
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
        patch.read(file)
