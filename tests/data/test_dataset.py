"""From an index to images ready to train on: classes fixed, rejects dropped, duplicates sharing a row."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pictures import Hostile, PictureFolder, encode, picture, pixels, png, write, write_zip
from sightline.config import SplitConfig
from sightline.data import dataset
from sightline.data.dataset import Dataset, assemble, check_classes
from sightline.data.index import index
from sightline.data.sources.arrays import array_entries
from sightline.data.sources.listing import Listing
from sightline.errors import DataError
from sightline.preprocess import Preprocess
from sightline.records import PARTS

pytestmark = pytest.mark.usefixtures("own_cache", "no_thread_left")

SMALL = Preprocess(12, 12)
NOISE = encode(picture(0, 0, 64, 64), "JPEG", quality=95)
HALF = NOISE[: len(NOISE) // 2]  # sound by its header, not by its pixels


def made(sources: Any, *, seed: int = 0, keep: bool = True, **settings: Any) -> Dataset:
    return assemble(index(sources), SMALL, SplitConfig(**settings), seed, keep=keep)


def fault(sources: Any) -> str:
    with pytest.raises(DataError) as caught:
        made(sources)
    return str(caught.value)


def test_every_picture_has_its_pixels_its_class_and_its_part(picture_folder: PictureFolder) -> None:
    folder = picture_folder({"dog": 20, "Cat": 20, "猫": 20})
    data = made(folder)
    assert data.classes == ("Cat", "dog", "猫")
    assert (data.name, data.skipped, data.rejects, data.cache_hit) == ("pictures", 0, (), False)
    assert data.counts() == Counter(data.parts)
    assert sum(data.counts().values()) == 60
    seen: list[str] = []
    for part in PARTS:
        samples = data.part(part)
        assert len(samples) == data.counts()[part] > 0
        for i, path in enumerate(samples.paths):
            np.testing.assert_array_equal(samples.take(slice(i, i + 1))[0], SMALL.decode((folder / path).read_bytes()))
            assert data.classes[samples.labels[i]] == path.split("/")[0]
        seen += samples.paths
    assert sorted(seen) == sorted(p.path for p in data.pictures)


def test_the_second_time_no_file_is_decoded(picture_folder: PictureFolder) -> None:
    folder = picture_folder({"cat": 5, "dog": 5})
    found = index(folder)
    first = assemble(found, SMALL, SplitConfig(), 0)
    shutil.rmtree(folder)
    again = assemble(found, SMALL, SplitConfig(), 0)
    assert (first.cache_hit, again.cache_hit) == (False, True)
    np.testing.assert_array_equal(again.pixels[again.rows], first.pixels[first.rows])
    assert again.parts == first.parts


def test_another_split_or_name_uses_the_same_cache(picture_folder: PictureFolder) -> None:
    folder = picture_folder({"cat": 8, "dog": 8})
    one = made(folder)
    folder = folder.rename(folder.with_name("renamed"))
    (folder / "cat").rename(folder / "lion")
    two = made(folder, seed=1, validation=0.5)
    assert two.cache_hit
    assert two.classes == ("dog", "lion")
    assert two.parts != one.parts


def test_not_keeping_is_handed_on(picture_folder: PictureFolder) -> None:
    folder = picture_folder({"cat": 3, "dog": 3})
    assert not made(folder, keep=False).cache_hit
    assert not made(folder, keep=False).cache_hit
    assert made(folder, keep=False).pixels.shape == (6, 12, 12, 3)


def test_a_hostile_folder_becomes_what_can_be_used_of_it(hostile_folder: Hostile) -> None:
    data = made(hostile_folder.path)
    assert data.classes == hostile_folder.classes  # by code point
    assert {p.path for p in data.pictures} == set(hostile_folder.pictures)
    reasons = {**hostile_folder.unreadable, **hostile_folder.undecodable}
    assert {r.path: r.reason for r in data.rejects} == {**reasons, "cover.jpg": "is not in a class folder"}
    assert next(r.label for r in data.rejects if r.path == "Zebra/half.jpg") == "Zebra"
    assert data.skipped == hostile_folder.skipped
    for p, row, label in zip(data.pictures, data.rows, data.labels, strict=True):
        np.testing.assert_array_equal(data.pixels[row], SMALL.decode((hostile_folder.path / p.path).read_bytes()))
        assert data.classes[label] == p.label
    assert any("'single'" in note for note in data.notes)
    again = made(hostile_folder.path)
    assert again.cache_hit
    assert again.rejects == data.rejects
    np.testing.assert_array_equal(again.rows, data.rows)


def test_copies_share_a_row_and_a_side(tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": png(i, colour) for colour, label in enumerate(("cat", "dog")) for i in range(30)}
    copies = {name.replace("/", "/copy of "): content for name, content in files.items()}
    crossed = {"dog/a cat.png": files["cat/7.png"]}
    data = made(write(tmp_path, files | copies | crossed))
    assert len(data.pictures) == 121
    assert len(data.pixels) == 60
    row = {p.path: r for p, r in zip(data.pictures, data.rows, strict=True)}
    part = {p.path: q for p, q in zip(data.pictures, data.parts, strict=True)}
    assert all(row[name] == row[name.replace("/", "/copy of ")] for name in files)
    assert all(part[name] == part[name.replace("/", "/copy of ")] for name in files)
    assert (row["dog/a cat.png"], part["dog/a cat.png"]) == (row["cat/7.png"], part["cat/7.png"])


def test_arrays_of_one_shape_may_be_grey_or_colour() -> None:
    grey = np.stack([pixels(i)[..., 0] for i in range(8)])
    data = assemble(
        index(Listing(array_entries(grey, [0, 1] * 4, "grey"))), Preprocess(12, 12, 1), SplitConfig(test=0.0), 0
    )
    assert data.pixels.shape == (8, 12, 12, 1)
    assert data.classes == ("0", "1")


def test_progress_is_handed_on(picture_folder: PictureFolder) -> None:
    calls: list[tuple[str, int, int]] = []
    found = index(picture_folder({"cat": 20, "dog": 20}))
    assemble(found, SMALL, SplitConfig(), 0, progress=lambda *call: calls.append(call))
    assert calls == [("decoding", 32, 40), ("decoding", 40, 40)]


# Parts and classes.


def test_given_parts_are_kept_and_validation_made(picture_folder: PictureFolder) -> None:
    data = made(picture_folder({"Train": {"cat": 60, "dog": 60}, "TEST": {"cat": 5, "dog": 5}}))
    counts = data.counts()
    assert counts["test"] == 10
    assert counts["train"] + counts["validation"] == 120
    assert counts["validation"] == pytest.approx(18, abs=16)  # chance
    assert all(path.startswith("TEST/") for path in data.part("test").paths)


@pytest.mark.parametrize(("test", "expected"), [(None, True), (0.0, False)])
def test_a_test_part_may_be_done_without(picture_folder: PictureFolder, test: float | None, expected: bool) -> None:
    data = made(picture_folder({"cat": 60, "dog": 60}), test=test)
    assert bool(data.counts()["test"]) is expected
    assert bool(len(data.part("test"))) is expected


def test_the_seed_divides(picture_folder: PictureFolder) -> None:
    folder = picture_folder({"cat": 30, "dog": 30})
    assert made(folder, seed=1).parts == made(folder, seed=1).parts != made(folder, seed=2).parts


def test_a_class_missing_elsewhere_shifts_nothing(picture_folder: PictureFolder) -> None:
    data = made(picture_folder({"train": {"a": 3, "b": 3, "c": 3}, "val": {"a": 2, "c": 2}, "test": {"c": 2}}))
    assert data.classes == ("a", "b", "c")
    assert data.part("validation").labels.tolist() == [0, 0, 2, 2]
    assert data.part("test").labels.tolist() == [2, 2]


def test_the_order_of_archives_does_not_matter(tmp_path: Path) -> None:
    paths = [
        write_zip(tmp_path / f"{label}.zip", {f"all/{label}/{i}.png": png(i, colour) for i in range(9)})
        for colour, label in enumerate(("cat", "dog", "ant"))
    ]
    one, two = made(paths), made(paths[::-1])
    assert one.classes == two.classes == ("ant", "cat", "dog")
    assert two.cache_hit

    def known(data: Dataset) -> dict[str, tuple[str, int, bytes]]:
        rows = zip(data.pictures, data.parts, data.labels, data.rows, strict=True)
        return {p.path: (part, int(label), data.pixels[row].tobytes()) for p, part, label, row in rows}

    assert known(one) == known(two)


# Messages.


def test_one_class_is_too_few(picture_folder: PictureFolder) -> None:
    message = fault(picture_folder({"cat": 3}))
    assert message.startswith("pictures has only one class, 'cat': a classifier needs at least two.")
    assert "pass the folder directly above them" in message


def test_one_class_is_told_before_anything_is_decoded(
    picture_folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preprocess, "decode", lambda self, data: pytest.fail("a picture was decoded"))
    with pytest.raises(DataError, match="only one class"):
        check_classes(index(picture_folder({"cat": 3})))
    assert "only one class" in fault(picture_folder({"cat": 3}))


@pytest.mark.parametrize("part", ["", "train/"])
@pytest.mark.parametrize(("content", "reason"), [(b"", "empty file"), (HALF, "truncated")], ids=["header", "pixels"])
def test_a_class_of_nothing_but_damage_is_named(tmp_path: Path, content: bytes, reason: str, part: str) -> None:
    files = {f"{part}{label}/{i}.png": png(i, c) for c, label in enumerate(("cat", "dog")) for i in range(3)}
    write(tmp_path, files | {f"{part}eel/{i}.jpg": content for i in range(2)})
    assert fault(tmp_path) == (
        f"No image of class 'eel' in {tmp_path.name} can be used: 2 rejected, such as {part}eel/0.jpg ({reason}). "
        "Restore or replace them; if you do not need the class, remove its folder or rows."
    )


def test_one_sound_picture_saves_a_class(tmp_path: Path) -> None:
    files = {"cat/1.png": png(1), "dog/1.png": png(2, 1), "dog/2.jpg": HALF, "dog/3.png": b""}
    data = made(write(tmp_path, files))
    assert data.classes == ("cat", "dog")
    assert len(data.rejects) == 2


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_training_does_not_know_is_named(picture_folder: PictureFolder, part: str) -> None:
    message = fault(picture_folder({"train": {"cat": 2, "dog": 2}, part: {"cat": 1, "eel": 1}}))
    assert message == (
        f"{part}/eel/10000.png has class 'eel', which is missing from the training split of pictures (it has cat, "
        "dog). Add training images of this class, or remove it."
    )


def test_no_training_part_is_told(picture_folder: PictureFolder) -> None:
    message = fault(picture_folder({"val": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}))
    assert message == "pictures has no training images: expected a train split next to the others."


def test_images_none_of_which_can_be_decoded_are_told(tmp_path: Path) -> None:
    found = index(write(tmp_path, {"cat/1.jpg": HALF, "dog/2.jpg": HALF + b"2"}))
    with pytest.raises(DataError, match=r"^None of the 2 images in .* can be used; the first, cat/1.jpg: "):
        assemble(found, SMALL, SplitConfig(), 0, keep=False)


def test_decoding_takes_each_content_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    found = index(write(tmp_path, {f"cat/{i}.png": png(i % 3) for i in range(9)} | {"dog/1.png": png(1)}))
    read = found.read

    def counted(i: int) -> Any:
        reads.append(i)
        return read(i)

    object.__setattr__(found, "read", counted)
    decoded = dataset.decode(found, SMALL)
    rows = decoded.rows
    assert sorted(reads) == [0, 1, 2]
    assert len(decoded.pixels.array) == 3
    assert rows[0] == rows[3] == rows[6]
    assert rows[9] == rows[1]


@pytest.mark.parametrize("change", ["rewritten", "cut short", "removed"])
def test_a_file_that_changes_after_indexing_is_an_error_and_leaves_nothing_in_the_cache(
    tmp_path: Path, own_cache: Path, change: str
) -> None:
    contents = {f"{label}/{i}.png": png(i, colour) for colour, label in enumerate(("cat", "dog")) for i in range(4)}
    folder = write(tmp_path / "images", contents)
    found = index(folder)
    victim = folder / "dog/2.png"
    if change == "removed":
        victim.unlink()
    else:
        victim.write_bytes(png(99, 3) if change == "rewritten" else contents["dog/2.png"][:60])
    with pytest.raises(DataError, match=r"^dog/2\.png changed while the images were being read.*: wait until nothing"):
        dataset.decode(found, SMALL)
    assert list(own_cache.iterdir()) == []
    write(folder, contents)
    decoded = dataset.decode(index(folder), SMALL)
    assert decoded.rejects == ()
    np.testing.assert_array_equal(decoded.pixels.array[decoded.rows[6]], SMALL.decode(contents["dog/2.png"]))


def test_arrays_that_change_after_indexing_are_an_error() -> None:
    images = np.stack([pixels(i) for i in range(4)])
    found = index(Listing(array_entries(images, [0, 1, 0, 1], "mine", classes=["a", "b"])))
    images[2, 0, 0] ^= 255
    with pytest.raises(DataError, match="changed while the images were being read"):
        dataset.decode(found, SMALL)
