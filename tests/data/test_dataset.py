"""From an index to images ready to train on: classes fixed, rejects dropped, duplicates sharing a row."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.config import SplitConfig
from sightline.data import dataset
from sightline.data.dataset import DecodedDataset, build_dataset, check_classes
from sightline.data.indexing import build_index
from sightline.data.sources.arrays import list_array_items
from sightline.data.sources.listing import SourceListing
from sightline.data.types import SPLITS, ImageRecord
from sightline.errors import DataError
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import (
    HostileFolder,
    ImageFolder,
    draw_image,
    draw_pixels,
    encode,
    encode_png,
    write_files,
    write_zip,
)

pytestmark = pytest.mark.usefixtures("own_cache", "no_thread_left")

SMALL = PreprocessingSpec(12, 12)
NOISE = encode(draw_image(0, 0, 64, 64), "JPEG", quality=95)
HALF = NOISE[: len(NOISE) // 2]  # sound by its header, not by its pixels


def build(sources: Any, *, seed: int = 0, keep: bool = True, **settings: Any) -> DecodedDataset:
    return build_dataset(build_index(sources), SMALL, SplitConfig(**settings), seed, keep=keep)


def error_message(sources: Any) -> str:
    with pytest.raises(DataError) as caught:
        build(sources)
    return str(caught.value)


def test_every_image_has_its_pixels_class_and_split(image_folder: ImageFolder) -> None:
    folder = image_folder({"dog": 20, "Cat": 20, "猫": 20})
    data = build(folder)
    assert data.classes == ("Cat", "dog", "猫")
    assert (data.name, data.skipped, data.unreadable, data.cache_hit) == ("images", 0, (), False)
    assert data.counts() == Counter(data.splits)
    assert sum(data.counts().values()) == 60
    paths: list[str] = []
    for split in SPLITS:
        samples = data.subset(split)
        assert len(samples) == data.counts()[split] > 0
        for i, path in enumerate(samples.paths):
            np.testing.assert_array_equal(samples.take(slice(i, i + 1))[0], SMALL.decode((folder / path).read_bytes()))
            assert data.classes[samples.labels[i]] == path.split("/")[0]
        paths += samples.paths
    assert sorted(paths) == sorted(p.path for p in data.images)


def test_the_second_time_no_file_is_decoded(image_folder: ImageFolder) -> None:
    folder = image_folder({"cat": 5, "dog": 5})
    source_index = build_index(folder)
    first = build_dataset(source_index, SMALL, SplitConfig(), 0)
    shutil.rmtree(folder)
    again = build_dataset(source_index, SMALL, SplitConfig(), 0)
    assert (first.cache_hit, again.cache_hit) == (False, True)
    np.testing.assert_array_equal(again.pixels[again.rows], first.pixels[first.rows])
    assert again.splits == first.splits


def test_another_split_or_name_uses_the_same_cache(image_folder: ImageFolder) -> None:
    folder = image_folder({"cat": 8, "dog": 8})
    one = build(folder)
    folder = folder.rename(folder.with_name("renamed"))
    (folder / "cat").rename(folder / "lion")
    two = build(folder, seed=1, validation=0.5)
    assert two.cache_hit
    assert two.classes == ("dog", "lion")
    assert two.splits != one.splits


def test_not_keeping_is_handed_on(image_folder: ImageFolder) -> None:
    folder = image_folder({"cat": 3, "dog": 3})
    assert not build(folder, keep=False).cache_hit
    assert not build(folder, keep=False).cache_hit
    assert build(folder, keep=False).pixels.shape == (6, 12, 12, 3)


def test_a_hostile_folder_becomes_what_can_be_used_of_it(hostile_folder: HostileFolder) -> None:
    data = build(hostile_folder.path)
    assert data.classes == hostile_folder.classes  # by code point
    assert {p.path for p in data.images} == set(hostile_folder.images)
    reasons = {**hostile_folder.unreadable, **hostile_folder.undecodable}
    assert {r.path: r.reason for r in data.unreadable} == {**reasons, "cover.jpg": "is not in a class folder"}
    assert next(r.label for r in data.unreadable if r.path == "Zebra/half.jpg") == "Zebra"
    assert data.skipped == hostile_folder.skipped
    for p, row, label in zip(data.images, data.rows, data.labels, strict=True):
        np.testing.assert_array_equal(data.pixels[row], SMALL.decode((hostile_folder.path / p.path).read_bytes()))
        assert data.classes[label] == p.label
    assert any("'single'" in note for note in data.notes)
    again = build(hostile_folder.path)
    assert again.cache_hit
    assert again.unreadable == data.unreadable
    np.testing.assert_array_equal(again.rows, data.rows)


def test_copies_share_a_row_and_a_side(tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": encode_png(i, color) for color, label in enumerate(("cat", "dog")) for i in range(30)}
    copies = {name.replace("/", "/copy of "): content for name, content in files.items()}
    crossed = {"dog/a cat.png": files["cat/7.png"]}
    data = build(write_files(tmp_path, files | copies | crossed))
    assert len(data.images) == 121
    assert len(data.pixels) == 60
    row = {p.path: r for p, r in zip(data.images, data.rows, strict=True)}
    split_of = {p.path: q for p, q in zip(data.images, data.splits, strict=True)}
    assert all(row[name] == row[name.replace("/", "/copy of ")] for name in files)
    assert all(split_of[name] == split_of[name.replace("/", "/copy of ")] for name in files)
    assert (row["dog/a cat.png"], split_of["dog/a cat.png"]) == (row["cat/7.png"], split_of["cat/7.png"])


def test_arrays_of_one_shape_may_be_gray_or_color() -> None:
    gray = np.stack([draw_pixels(i)[..., 0] for i in range(8)])
    data = build_dataset(
        build_index(SourceListing(list_array_items(gray, [0, 1] * 4, "gray"))),
        PreprocessingSpec(12, 12, 1),
        SplitConfig(test=0.0),
        0,
    )
    assert data.pixels.shape == (8, 12, 12, 1)
    assert data.classes == ("0", "1")


def test_progress_is_handed_on(image_folder: ImageFolder) -> None:
    calls: list[tuple[str, int, int]] = []
    source_index = build_index(image_folder({"cat": 20, "dog": 20}))
    build_dataset(source_index, SMALL, SplitConfig(), 0, progress=lambda *call: calls.append(call))
    assert calls == [("decoding", 32, 40), ("decoding", 40, 40)]


# Parts and classes.


def test_given_splits_are_kept_and_a_validation_split_is_made(image_folder: ImageFolder) -> None:
    data = build(image_folder({"Train": {"cat": 60, "dog": 60}, "TEST": {"cat": 5, "dog": 5}}))
    counts = data.counts()
    assert counts["test"] == 10
    assert counts["train"] + counts["validation"] == 120
    assert counts["validation"] == pytest.approx(18, abs=16)  # chance
    assert all(path.startswith("TEST/") for path in data.subset("test").paths)


@pytest.mark.parametrize(("test", "expected"), [(None, True), (0.0, False)])
def test_a_test_split_is_optional(image_folder: ImageFolder, test: float | None, expected: bool) -> None:
    data = build(image_folder({"cat": 60, "dog": 60}), test=test)
    assert bool(data.counts()["test"]) is expected
    assert bool(len(data.subset("test"))) is expected


def test_the_seed_divides(image_folder: ImageFolder) -> None:
    folder = image_folder({"cat": 30, "dog": 30})
    assert build(folder, seed=1).splits == build(folder, seed=1).splits != build(folder, seed=2).splits


def test_a_class_missing_elsewhere_shifts_nothing(image_folder: ImageFolder) -> None:
    data = build(image_folder({"train": {"a": 3, "b": 3, "c": 3}, "val": {"a": 2, "c": 2}, "test": {"c": 2}}))
    assert data.classes == ("a", "b", "c")
    assert data.subset("validation").labels.tolist() == [0, 0, 2, 2]
    assert data.subset("test").labels.tolist() == [2, 2]


def test_the_order_of_archives_does_not_matter(tmp_path: Path) -> None:
    paths = [
        write_zip(tmp_path / f"{label}.zip", {f"all/{label}/{i}.png": encode_png(i, color) for i in range(9)})
        for color, label in enumerate(("cat", "dog", "ant"))
    ]
    one, two = build(paths), build(paths[::-1])
    assert one.classes == two.classes == ("ant", "cat", "dog")
    assert two.cache_hit

    def known(data: DecodedDataset) -> dict[str, tuple[str, int, bytes]]:
        rows = zip(data.images, data.splits, data.labels, data.rows, strict=True)
        return {p.path: (split, int(label), data.pixels[row].tobytes()) for p, split, label, row in rows}

    assert known(one) == known(two)


# Messages.


def test_one_class_is_too_few(image_folder: ImageFolder) -> None:
    message = error_message(image_folder({"cat": 3}))
    assert message.startswith("images has only one class, 'cat': a classifier needs at least two.")
    assert "pass the folder directly above them" in message


def test_one_class_beside_a_table_names_the_table(image_folder: ImageFolder) -> None:
    folder = image_folder({"train": 2})
    images = [path.name for path in (folder / "train").iterdir()]
    (folder / "trainLabels.csv").write_text("image,level\n" + "".join(f"{name},0\n" for name in images))
    assert error_message(folder) == (
        "images has only one class, 'train': a classifier needs at least two. trainLabels.csv may hold labels (a table "
        "whose columns are image, level). Use a table with --set data.labels=FILE --column label=NAME."
    )


def test_a_single_class_is_reported_before_anything_is_decoded(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreprocessingSpec, "decode", lambda self, data: pytest.fail("an image was decoded"))
    with pytest.raises(DataError, match="only one class"):
        check_classes(build_index(image_folder({"cat": 3})))
    assert "only one class" in error_message(image_folder({"cat": 3}))


@pytest.mark.parametrize("split", ["", "train/"])
@pytest.mark.parametrize(("content", "reason"), [(b"", "empty file"), (HALF, "truncated")], ids=["header", "pixels"])
def test_a_class_of_nothing_but_damage_is_named(tmp_path: Path, content: bytes, reason: str, split: str) -> None:
    files = {f"{split}{label}/{i}.png": encode_png(i, c) for c, label in enumerate(("cat", "dog")) for i in range(3)}
    write_files(tmp_path, files | {f"{split}eel/{i}.jpg": content for i in range(2)})
    assert error_message(tmp_path) == (
        f"No image of class 'eel' in {tmp_path.name} can be used: 2 could not be read, such as {split}eel/0.jpg "
        f"({reason}). Restore or replace them; if you do not need the class, remove its folder or rows."
    )


def test_one_sound_image_saves_a_class(tmp_path: Path) -> None:
    files = {"cat/1.png": encode_png(1), "dog/1.png": encode_png(2, 1), "dog/2.jpg": HALF, "dog/3.png": b""}
    data = build(write_files(tmp_path, files))
    assert data.classes == ("cat", "dog")
    assert len(data.unreadable) == 2


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_training_does_not_know_is_named(image_folder: ImageFolder, split: str) -> None:
    message = error_message(image_folder({"train": {"cat": 2, "dog": 2}, split: {"cat": 1, "eel": 1}}))
    assert message == (
        f"{split}/eel/10000.png has class 'eel', which is missing from the training split of images (it has cat, "
        "dog). Add training images of this class, or remove it."
    )


def test_a_missing_training_split_is_reported(image_folder: ImageFolder) -> None:
    message = error_message(image_folder({"val": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}))
    assert message == "images has no training images: expected a train split next to the others."


def test_images_none_of_which_can_be_decoded_are_reported(tmp_path: Path) -> None:
    source_index = build_index(write_files(tmp_path, {"cat/1.jpg": HALF, "dog/2.jpg": HALF + b"2"}))
    with pytest.raises(DataError, match=r"^None of the 2 images in .* can be used; the first, cat/1.jpg: "):
        build_dataset(source_index, SMALL, SplitConfig(), 0, keep=False)


def test_decoding_takes_each_content_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    source_index = build_index(
        write_files(tmp_path, {f"cat/{i}.png": encode_png(i % 3) for i in range(9)} | {"dog/1.png": encode_png(1)})
    )
    read = source_index.read

    def counted(i: int) -> Any:
        reads.append(i)
        return read(i)

    object.__setattr__(source_index, "read", counted)
    decoded = dataset.decode_images(source_index, SMALL)
    rows = decoded.rows
    assert sorted(reads) == [0, 1, 2]
    assert len(decoded.pixels.array) == 3
    assert rows[0] == rows[3] == rows[6]
    assert rows[9] == rows[1]


@pytest.mark.parametrize("change", ["rewritten", "cut short", "removed"])
def test_a_file_that_changes_after_indexing_is_an_error_and_leaves_nothing_in_the_cache(
    tmp_path: Path, own_cache: Path, change: str
) -> None:
    contents = {
        f"{label}/{i}.png": encode_png(i, color) for color, label in enumerate(("cat", "dog")) for i in range(4)
    }
    folder = write_files(tmp_path / "images", contents)
    source_index = build_index(folder)
    victim = folder / "dog/2.png"
    if change == "removed":
        victim.unlink()
    else:
        victim.write_bytes(encode_png(99, 3) if change == "rewritten" else contents["dog/2.png"][:60])
    with pytest.raises(DataError, match=r"^dog/2\.png changed while the images were being read.*: wait until nothing"):
        dataset.decode_images(source_index, SMALL)
    assert list(own_cache.iterdir()) == []
    write_files(folder, contents)
    decoded = dataset.decode_images(build_index(folder), SMALL)
    assert decoded.unreadable == ()
    np.testing.assert_array_equal(decoded.pixels.array[decoded.rows[6]], SMALL.decode(contents["dog/2.png"]))


def test_arrays_that_change_after_indexing_are_an_error() -> None:
    images = np.stack([draw_pixels(i) for i in range(4)])
    source_index = build_index(SourceListing(list_array_items(images, [0, 1, 0, 1], "mine", classes=["a", "b"])))
    images[2, 0, 0] ^= 255
    with pytest.raises(DataError, match="changed while the images were being read"):
        dataset.decode_images(source_index, SMALL)


def test_a_split_states_the_groups_of_its_images() -> None:
    images = tuple(ImageRecord(f"{i}.png", str(i), "a", None, 1, 1) for i in range(3))
    pixels, rows = np.zeros((3, 1, 1, 3), np.uint8), np.arange(3)
    data = DecodedDataset(
        "d", ("a",), images, ("train", "test", "test"), np.zeros(3, np.int32), pixels, rows, (), 0, (), cache_hit=False
    )
    assert data.labeled_subset("test").groups == {}
    grouped = replace(data, groups=("p", "q", "q")).labeled_subset("test")
    assert grouped.groups == dict.fromkeys(grouped.subset.paths, "q") != {}
