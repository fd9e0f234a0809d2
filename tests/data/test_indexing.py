"""Every kind of source gives the same index; unusable files are listed with a reason."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from sightline.config import ColumnsConfig, DataConfig, SplitConfig
from sightline.data.checks.audit import quick_audit
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.data.sources import container_files, named
from sightline.data.sources.arrays import list_array_items
from sightline.data.sources.listing import SourceItem, SourceListing
from sightline.data.sources.split_names import parse_split
from sightline.data.storage import ArrayStore, CheckHeader, FolderStore, GeneratedStore, accept_any
from sightline.data.types import Index
from sightline.errors import ConfigError, DataError, UsageError
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import (
    HostileFolder,
    ImageFolder,
    draw_image,
    draw_pixels,
    encode,
    encode_png,
    write_files,
    write_tar,
    write_zip,
)

Source = Callable[[Path, Mapping[str, bytes]], Path]

FILES = {
    f"{label}/{i}.png": encode_png(i, color)
    for color, label in enumerate(("dog", "Cat", "été", "猫"))
    for i in range(3)
}
SPLIT_FILES = {
    f"{split}/{label}/{i}.png": encode_png(10 * i + len(split), color)
    for split in ("train", "validation", "test")
    for color, label in enumerate(("dog", "cat"))
    for i in range(2)
}


def manifest_rows(files: Mapping[str, bytes]) -> list[dict[str, str]]:
    paths = [PurePosixPath(name).parts for name in files]
    return [
        {"path": f"files/{'/'.join(p)}", "label": p[-2], "site": "x"} | ({"split": p[0]} if len(p) == 3 else {})
        for p in paths
    ]


def write_as_folder(tmp: Path, files: Mapping[str, bytes]) -> Path:
    return write_files(tmp / "folder", files)


def write_as_zip(wrapper: str, tmp: Path, files: Mapping[str, bytes]) -> Path:
    return write_zip(tmp / "images.zip", {wrapper + name: content for name, content in files.items()})


def write_as_tar(end: str, tmp: Path, files: Mapping[str, bytes]) -> Path:
    kind = {"tar": "", "tgz": "gz", "txz": "xz"}.get(end, end.rpartition(".")[2])
    return write_tar(tmp / f"images.{end}", {f"./data/{name}": content for name, content in files.items()}, kind)


def write_as_csv(tmp: Path, files: Mapping[str, bytes]) -> Path:
    write_files(tmp / "files", files)
    path, table = tmp / "list.csv", manifest_rows(files)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def write_as_jsonl(tmp: Path, files: Mapping[str, bytes]) -> Path:
    write_files(tmp / "files", files)
    path = tmp / "list.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in manifest_rows(files)), encoding="utf-8")
    return path


KINDS: dict[str, Source] = {
    "folder": write_as_folder,
    "zip": partial(write_as_zip, ""),
    "wrapped zip": partial(write_as_zip, "archive/all images/"),
    **{end: partial(write_as_tar, end) for end in ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "txz")},
    "csv": write_as_csv,
    "jsonl": write_as_jsonl,
}


def summarize(source_index: Index) -> Counter[tuple[str, str | None, str, int, int]]:
    return Counter((p.label, p.split, p.sha256, p.width, p.height) for p in source_index.images)


def error_message(sources: Any) -> str:
    with pytest.raises(DataError) as caught:
        build_index(sources)
    return str(caught.value)


@pytest.mark.parametrize("as_text", [False, True], ids=["path", "text"])
@pytest.mark.parametrize("files", [FILES, SPLIT_FILES], ids=["whole", "parts"])
@pytest.mark.parametrize("source", KINDS.values(), ids=KINDS)
def test_every_kind_of_source_is_the_same(
    tmp_path: Path, source: Source, files: Mapping[str, bytes], as_text: bool
) -> None:
    path = source(tmp_path, files)
    source_index = build_index(str(path) if as_text else path)
    expected = Counter(
        (p[-2], p[0] if len(p) == 3 else None, hashlib.sha256(data).hexdigest(), 16, 16)
        for p, data in ((PurePosixPath(name).parts, data) for name, data in files.items())
    )
    assert summarize(source_index) == expected
    assert source_index.name == path.name
    assert (source_index.unreadable, source_index.other_files) == ((), ())
    for i, p in enumerate(source_index.images):
        data = source_index.read(i)
        assert isinstance(data, bytes)
        assert hashlib.sha256(data).hexdigest() == p.sha256


@pytest.mark.parametrize("suffix", [".ZIP", ".Tar.GZ", ".CSV", ".JsonL"])
def test_a_file_extension_is_recognized_in_any_case(tmp_path: Path, suffix: str) -> None:
    source = {".ZIP": KINDS["zip"], ".Tar.GZ": KINDS["tar.gz"], ".CSV": write_as_csv, ".JsonL": write_as_jsonl}[suffix]
    path = source(tmp_path, FILES)
    assert len(build_index(path.rename(tmp_path / f"UPPER{suffix}")).images) == len(FILES)


def test_manifests_keep_their_further_columns(tmp_path: Path) -> None:
    assert {json.dumps(dict(p.extra)) for p in build_index(write_as_csv(tmp_path, FILES)).images} == {'{"site": "x"}'}


def test_a_home_folder_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_as_folder(tmp_path, FILES)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_index("~/folder").name == "folder"


# Nuisances.


def test_each_file_of_a_hostile_folder_is_classified(hostile_folder: HostileFolder) -> None:
    source_index = build_index(hostile_folder.path)
    headed = {**hostile_folder.images, **dict.fromkeys(hostile_folder.undecodable, (64, 64))}
    assert {p.path: (p.width, p.height) for p in source_index.images} == headed
    assert all(p.label == p.path.split("/")[0] for p in source_index.images)
    reasons = {**hostile_folder.unreadable, **dict.fromkeys(hostile_folder.stray, "is not in a class folder")}
    assert {r.path: r.reason for r in source_index.unreadable} == reasons
    assert {r.label for r in source_index.unreadable if r.path in hostile_folder.unreadable} == {
        "Zebra",
        "ant hill",
        "猫",
    }
    assert len(source_index.other_files) == hostile_folder.skipped
    for p in source_index.images:
        assert p.sha256 == hashlib.sha256((hostile_folder.path / p.path).read_bytes()).hexdigest()
    by_path = {p.path: p for p in source_index.images}
    assert by_path["ant hill/1.jpg"].sha256 == by_path["Zebra/also an ant.jpg"].sha256
    assert {path for path, p in by_path.items() if p.grayscale} == {"ant hill/deep.png", "Zebra/half.jpg"}


@pytest.mark.parametrize("kind", ["zip", "tar.xz"])
def test_a_hostile_archive_is_indexed_as_a_hostile_folder(
    tmp_path: Path, hostile_folder: HostileFolder, kind: str
) -> None:
    store = FolderStore(hostile_folder.path)
    keys = set(store.keys()) - hostile_folder.stray  # beside the classes inside a wrapper, it would make that a class
    source_index = build_index(KINDS[kind](tmp_path, {key: store.read(key) for key in keys}))
    assert summarize(source_index) == summarize(build_index(hostile_folder.path))
    assert Counter(r.reason for r in source_index.unreadable) == Counter(hostile_folder.unreadable.values())
    assert len(source_index.other_files) == hostile_folder.skipped


def test_a_damaged_member_of_an_archive_is_one_reject(tmp_path: Path) -> None:
    path = write_as_zip("", tmp_path, FILES)
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(data)
    source_index = build_index(path)
    (reject,) = source_index.unreadable
    assert reject.reason.startswith("damaged in the archive: ")
    assert len(source_index.images) == len(FILES) - 1


def test_encrypted_archives_say_so(tmp_path: Path) -> None:
    path = write_as_zip("", tmp_path, FILES)
    data = path.read_bytes()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        pattern = re.escape(signature) + b"(" + b"." * (offset - 4) + b")."
        data = re.sub(pattern, signature + rb"\1" + b"\x01", data, flags=re.DOTALL)
    path.write_bytes(data)
    assert re.search(r"None of the 12 images in .* can be used; .*encrypted", error_message(path))


@pytest.mark.parametrize("columns", ["path,label", "path,label,site"])
@pytest.mark.parametrize("name", ["gone.png", "gone", "notes.txt"])
def test_whatever_a_manifest_names_must_be_an_image(tmp_path: Path, columns: str, name: str) -> None:
    write_files(tmp_path, {"1.png": encode_png(), "2.png": encode_png(2), "notes.txt": b"not an image"})
    (tmp_path / "list.csv").write_text(f"{columns}\n1.png,cat\n{name},cat\n2.png,dog\n", encoding="utf-8")
    source_index = build_index(tmp_path / "list.csv")
    reason = "not an image" if name == "notes.txt" else f"the file is missing (line 3 of {tmp_path / 'list.csv'})"
    assert [(r.path, r.reason, r.label) for r in source_index.unreadable] == [(name, reason, "cat")]
    assert (len(source_index.images), len(source_index.other_files)) == (2, 0)


def test_non_images_are_recognized_by_their_name_whatever_their_content(tmp_path: Path) -> None:
    text = b"a long enough text that is not an image at all"
    files = {
        "cat/a": encode_png(1),
        "cat/b.txt": encode_png(2),
        "cat/c.txt": text,
        "cat/d": text,
        "cat/e.log": b"",
        "cat/f.TIF": text,
    }
    source_index = build_index(write_files(tmp_path, files | {"dog/1.png": encode_png(3)}))
    assert [p.path for p in source_index.images] == ["cat/a", "cat/b.txt", "dog/1.png"]
    assert [(r.path, r.reason) for r in source_index.unreadable] == [("cat/f.TIF", "not an image")]
    assert len(source_index.other_files) == 3


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_class_names_that_are_not_utf_8_are_rejected_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = KINDS[kind](tmp_path, {"caf\udce9/1.png": encode_png(1), "dog/2.png": encode_png(2)})
    message = error_message(source)
    assert message.startswith("The class name 'caf\\udce9', of ")
    assert message.endswith("is not valid UTF-8, so a model cannot store it: rename the folder.")
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")  # the name of the folder may be right
    assert error_message(source).endswith("cannot store it: set PYTHONUTF8=1, as Python reads names as ascii.")


def test_class_names_read_in_the_encoding_of_another_locale_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misread = "猫".encode().decode("iso8859-1")
    source = write_files(tmp_path, {f"{misread}/1.png": encode_png(1), "caf\xe9/2.png": encode_png(2)})
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    assert error_message(source) == (
        f"The class name {misread!r}, of {misread + '/1.png'!r}, is UTF-8, but Python reads it as iso8859-1: "
        "set PYTHONUTF8=1."
    )


def test_class_names_in_the_encoding_of_the_locale_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_files(tmp_path, {"caf\xe9/1.png": encode_png(1), "th\xe9/2.png": encode_png(2)})
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    assert tuple(sorted({image.label for image in build_index(source).images})) == ("caf\xe9", "th\xe9")


def test_file_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "caf\udce9.png").write_bytes(encode_png(1))
    write_files(tmp_path, {"dog/1.png": encode_png(2)})
    assert build_index(tmp_path).images[0].path == "cat/caf\udce9.png"


# Several sources.


def test_archives_given_together_are_one_source(tmp_path: Path) -> None:
    files = list(SPLIT_FILES.items())
    half = [f for f in files if f[0].startswith("train")]
    paths = [
        write_zip(tmp_path / "train-1.zip", dict(half[:2])),
        write_tar(tmp_path / "train-2.tar.gz", {f"wrapped/{k}": v for k, v in half[2:]}, "gz"),
        write_files(tmp_path / "rest", dict(f for f in files if f not in half)),
    ]
    source_index = build_index(paths)
    assert summarize(source_index) == summarize(build_index(write_as_folder(tmp_path, SPLIT_FILES)))
    assert source_index.name == "train-1.zip+train-2.tar.gz+rest"
    assert [p.path for p in source_index.images][:3] == [
        "train-1.zip/train/dog/0.png",
        "train-1.zip/train/dog/1.png",
        "train-2.tar.gz/wrapped/train/cat/0.png",
    ]
    assert summarize(build_index(paths[::-1])) == summarize(source_index)
    assert [source_index.read(i) for i in (0, 2)] == [SPLIT_FILES["train/dog/0.png"], SPLIT_FILES["train/cat/0.png"]]


@pytest.mark.parametrize("sources", [["photos", "./photos/"], ["beans:8@32", "beans:8@32"], ["a", "photos", "link"]])
def test_a_source_that_is_given_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {f"{folder}/{label}/1.png": encode_png(1) for folder in ("a", "photos") for label in "xy"})
    (tmp_path / "link").symlink_to("photos")
    problem = "the same as photos" if sources[-1] != sources[-2] else "given twice"
    message = f"{sources[-1]} is {problem}, and its images would count twice: name each source once."
    assert error_message(sources) == message
    assert len(build_index(["a", "photos"]).images) == 4


def test_the_name_of_a_class_is_parsed_once_however_many_images_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = list[str]()

    def parse(name: str) -> str | None:
        parsed.append(name)
        return parse_split(name)

    monkeypatch.setattr(container_files, "parse_split", parse)
    build_index(write_files(tmp_path, {f"{c}/{i}.png": encode_png(i) for c in "ab" for i in range(5)}))
    assert len(parsed) <= 2


@pytest.mark.parametrize("names", [("train.zip", "test.zip"), ("Training_Set.ZIP", "my test set.zip")])
def test_sources_named_as_splits_are_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    paths = [
        write_zip(tmp_path / name, {f"{c}/{i}.png": encode_png(i + 9 * k) for c in "ab" for i in range(2)})
        for k, name in enumerate(names)
    ]
    assert [p.split for p in build_index(paths).images] == ["train"] * 4 + ["test"] * 4
    assert {p.split for p in build_index(paths[:1]).images} == {None}
    other = write_zip(tmp_path / "more.zip", {"a/1.png": encode_png(77)})
    assert {p.split for p in build_index([*paths, other]).images} == {None}


@pytest.mark.parametrize("folders", [("", ""), ("train/", "test1/")])
def test_a_source_of_test_images_without_labels_is_left_out(tmp_path: Path, folders: tuple[str, str]) -> None:
    train = {f"{folders[0]}{label}.{i}.png": encode_png(i) for label in ("cat", "dog") for i in range(2)}
    paths = [
        write_zip(tmp_path / "train.zip", train),
        write_zip(tmp_path / "test1.zip", {f"{folders[1]}{i}.png": encode_png(i) for i in (8, 9)}),
    ]
    source_index = build_index(paths)
    assert {(p.label, p.split) for p in source_index.images} == {("cat", "train"), ("dog", "train")}
    assert [(r.path, r.reason) for r in source_index.notes if r.kind == "unlabeled-folders"] == [
        ("test1.zip", "2 images")
    ]
    assert source_index.unreadable == ()


def test_split_names_beside_empty_ones_are_rejected(tmp_path: Path) -> None:
    message = error_message([write_files(tmp_path / "a", SPLIT_FILES), write_zip(tmp_path / "b.zip", FILES)])
    assert message.startswith("Some images are in a split (train, validation or test), but others, such as b.zip/")
    assert message.endswith("/0.png, are not: put every image into a split, or none.")


# idx, arrays and names.


def write_idx_folder(folder: Path, end: str = "") -> Path:
    folder.mkdir()
    for stem, count in (("train", 6), ("t10k", 2)):
        images, labels = np.stack([draw_pixels(i)[..., 0] for i in range(count)]), np.arange(count, dtype=np.uint8) % 2
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            (folder / f"{stem}-{name}-ubyte{end}").write_bytes(gzip.compress(data) if end else data)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_may_be_given_in_any_way(tmp_path: Path, end: str) -> None:
    folder = write_idx_folder(tmp_path / "mnist", end)
    (folder / "LICENSE").write_text("MIT", encoding="utf-8")
    names = [f"{stem}-images-idx3-ubyte{end}" for stem in ("t10k", "train")]
    whole = build_index(folder)
    assert whole.name == "mnist"
    assert Counter(p.split for p in whole.images) == {"train": 6, "test": 2}
    assert all(p.grayscale and (p.width, p.height) == (16, 16) for p in whole.images)
    assert [p.label for p in whole.images] == ["0", "1", "0", "1", "0", "1", "0", "1"]
    assert whole.images[0].path == f"{names[0]}[0]"
    assert whole.images[0].sha256 == whole.images[2].sha256  # the same pixels in both splits
    assert len({p.sha256 for p in whole.images}) == 6
    np.testing.assert_array_equal(whole.read(7), draw_pixels(5)[..., 0])
    assert summarize(build_index([folder / name for name in names])) == summarize(whole)
    both = [folder / f"train-{kind}-ubyte{end}" for kind in ("labels-idx1", "images-idx3")]
    assert summarize(build_index(both)) == summarize(build_index(folder / names[1]))
    assert len(build_index([str(p) for p in both]).images) == 6


def test_the_classes_of_idx_files_are_numbers_whichever_a_file_has(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "letters")
    for stem, labels in (("train", (11, 2, 10, 0, 9, 1)), ("t10k", (2, 9))):
        header = struct.pack(">HBBI", 0, 8, 1, len(labels))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(header + bytes(labels))
    index = build_index(folder)
    assert {p.label for p in index.images if p.split == "test"} == {"2", "9"}
    decoded = build_dataset(index, PreprocessingSpec(16, 16, 1), SplitConfig(validation=0.0), 0, keep=False)
    assert decoded.classes == ("0", "1", "2", "9", "10", "11")
    audit = quick_audit(index)
    assert tuple(audit.classes) == decoded.classes
    assert "numeric-class-names" not in {finding.kind for finding in audit.findings}


def test_idx_labels_alone_say_what_is_missing(tmp_path: Path) -> None:
    assert "also pass the IDX3 file next to it" in error_message(
        write_idx_folder(tmp_path / "mnist") / "train-labels-idx1-ubyte"
    )


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "mnist", ".gz")
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:50])
    assert f"{path} cannot be read as an IDX file" in error_message(folder)


def array_listing(kind: str) -> SourceListing:
    images = np.stack([draw_pixels(i, i % 2) for i in range(6)])
    images = {"color": images, "gray": images[..., 0], "channel": images[..., :1]}[kind]
    return SourceListing(list_array_items(images, ["cat", "dog"] * 3, "mine"))


@pytest.mark.parametrize(("kind", "gray"), [("color", False), ("gray", True), ("channel", True)])
def test_arrays_are_a_source(kind: str, gray: bool) -> None:
    source_index = build_index(array_listing(kind))
    assert source_index.name == "mine"
    assert [p.label for p in source_index.images] == ["cat", "dog"] * 3
    assert {(p.width, p.height, p.grayscale) for p in source_index.images} == {(16, 16, gray)}
    assert len({p.sha256 for p in source_index.images}) == 6
    first = source_index.read(1)
    assert isinstance(first, np.ndarray)
    assert source_index.images[1].sha256 == hashlib.sha256(f"uint8{first.shape}".encode() + first.tobytes()).hexdigest()
    assert build_index(array_listing(kind)).images == source_index.images


def test_a_folder_is_preferred_to_a_data_set_of_its_name(
    tmp_path: Path, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder({"cat": 1, "dog": 1}).rename(tmp_path / "digits")
    assert len(build_index("digits").images) == 1797
    monkeypatch.chdir(tmp_path)
    assert {p.label for p in build_index("digits").images} == {"cat", "dog"}


# Messages.


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "No source given: pass a folder, an archive, a manifest or the name of a data set such as beans."),
        (
            "no/such/folder",
            "There is no folder, file or data set 'no/such/folder'. Check the path; the named data sets are",
        ),
        ("bean:100@32", "There is no folder, file or data set 'bean:100@32'"),
        ("", "No source given"),
    ],
    ids=["none", "path", "name", "empty"],
)
def test_a_missing_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_message(source).startswith(message)


def test_the_named_sets_are_listed_for_a_wrong_name() -> None:
    assert all(name in error_message("mnits") for name in named.NAMES)


@pytest.mark.parametrize(
    "files", [{}, {"cat/notes.txt": b"x" * 30}, {".git/HEAD": b"x"}], ids=["none", "text", "hidden"]
)
def test_a_folder_without_images_says_what_was_expected(tmp_path: Path, files: Mapping[str, bytes]) -> None:
    message = (
        f"No images in {write_files(tmp_path, files)}: expected one folder per class with images inside, as in cat/1"
    )
    assert error_message(tmp_path).startswith(message)


def test_a_folder_of_tfrecord_files_says_that_they_are_not_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"cats-train.tfrecord-00000-of-00001": b"x" * 30, "features.json": b"{}"})
    message = " cats-train.tfrecord-00000-of-00001 may hold images in a format that is not read: export them as "
    assert message in error_message(tmp_path)


def test_class_folders_given_one_by_one_are_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/IMG_1.png": encode_png(1), "dog/IMG_1.png": encode_png(2)})
    index = build_index([tmp_path / "cat", tmp_path / "dog"])
    assert [(image.path, image.label) for image in index.images] == [("cat/IMG_1.png", "cat"), ("dog/IMG_1.png", "dog")]


def test_an_empty_folder_given_beside_others_is_a_class_without_images(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/1.png": encode_png(1), "dog/1.png": encode_png(2), "bird/.keep": b""})
    assert build_index([tmp_path / "cat", tmp_path / "dog", tmp_path / "bird"]).empty_classes == ("bird",)


def test_a_link_given_as_a_source_names_the_class(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.png": encode_png(1), "b/1.png": encode_png(2)})
    for name, target in {"cat": "a", "dog": "b"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    index = build_index([tmp_path / "cat", tmp_path / "dog"])
    assert [(image.path, image.label) for image in index.images] == [("cat/1.png", "cat"), ("dog/1.png", "dog")]


def test_the_folders_above_distinguish_sources_of_the_same_name(tmp_path: Path) -> None:
    write_files(tmp_path, {"old/cat/1.png": encode_png(1), "new/cat/1.png": encode_png(2), "dog/1.png": encode_png(3)})
    index = build_index([tmp_path / "old/cat", tmp_path / "new/cat", tmp_path / "dog"])
    paths = ["old/cat/1.png", "new/cat/1.png", f"{tmp_path.name}/dog/1.png"]
    assert [(i.path, i.label) for i in index.images] == list(zip(paths, ["cat", "cat", "dog"], strict=True))


def test_class_folders_of_splits_given_one_by_one_are_in_these_splits(tmp_path: Path) -> None:
    folders = ["train/cat", "train/dog", "test/cat", "test/dog"]
    write_files(tmp_path, {f"{folder}/1.png": encode_png(i) for i, folder in enumerate(folders)})
    index = build_index([tmp_path / folder for folder in folders])
    assert [f"{image.split}/{image.label}" for image in index.images] == folders
    counts = {finding.kind: finding.count for finding in quick_audit(index).findings}
    assert counts["labels-from-names"] == 2, "classes, not folders"


@pytest.mark.parametrize(
    ("sources", "splits"),
    [
        (("test1/photos", "test2/photos"), (None, None)),
        (("train1/photos", "train2/photos"), (None, None)),
        (("train/photos", "eval/photos", "test/photos"), ("train", "validation", "test")),
        (("a/train", "b/train", "a/test", "b/test"), ("train", "train", "test", "test")),
    ],
)
def test_folders_around_sources_are_splits_if_they_differ(
    tmp_path: Path, sources: tuple[str, ...], splits: tuple[str | None, ...]
) -> None:
    """As if each source had the name of the folder."""
    for i, source in enumerate(sources):
        write_files(tmp_path / source, {f"{label}/{i}.png": encode_png(2 * i + (label == "b")) for label in "ab"})
    index = build_index([tmp_path / source for source in sources])
    assert [image.split for image in index.images] == [split for split in splits for _ in "ab"]


def test_folders_that_are_parts_of_a_set_are_not_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {"part1/IMG_1.png": encode_png(1), "part2/IMG_1.png": encode_png(2)})
    with pytest.raises(DataError, match=r"is not in a class folder\. Sort the images into one folder per class"):
        build_index([tmp_path / "part1", tmp_path / "part2"])


def test_images_without_class_folders_say_so(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.png": encode_png(1), "2.png": encode_png(2)})
    message = error_message(tmp_path)
    assert message.startswith(
        f"None of the 2 images in {tmp_path} can be used; the first, 1.png: is not in a class folder."
    )
    assert "data.label_pattern" in message
    assert "data.labels" in message


def test_an_archive_of_archives_says_to_unpack_it(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "train-1.zip", FILES)
    archive = write_zip(tmp_path / "all.zip", {path.name: path.read_bytes()})
    assert error_message(archive).endswith(" train-1.zip is an archive inside an archive: unpack the outer one.")


def test_only_unreadable_images_say_so(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/1.png": b"", "dog/2.png": b"x"})
    message = "None of the 2 images in .* can be used; the first, cat/1.png: empty file."
    assert re.fullmatch(message, error_message(tmp_path))


def test_no_arrays_are_named_shortly() -> None:
    assert error_message(SourceListing([])) == "There are no images: the arrays are empty."


@pytest.mark.parametrize("name", ["images.7z", "images.rar", "README"])
def test_other_files_are_refused_with_the_kinds_that_are_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encode_png())
    message = error_message(tmp_path / name)
    assert f"{name} is not a source of labeled images" in message
    assert ".zip or .tar" in message


def test_images_given_one_by_one_are_refused(tmp_path: Path) -> None:
    """As a shell expands ``photos/*`` for a folder with images and a table."""
    write_files(tmp_path, {"1.png": encode_png(), "labels.csv": b"path,label\n1.png,cat\n"})
    paths = sorted(tmp_path.iterdir())
    assert error_message(paths) == f"{paths[0]} is a single image: name the folder or the table that has its label."


@pytest.mark.parametrize("prefix", ["", "../photos/"])
def test_a_table_beside_the_folders_of_its_images_is_refused(tmp_path: Path, prefix: str) -> None:
    rows = f"path,label\n{prefix}cat/1.png,cat\n{prefix}dog/2.png,dog\n".encode()
    photos = tmp_path / "photos"
    write_files(photos, {"cat/1.png": encode_png(1), "dog/2.png": encode_png(2), "labels.csv": rows})
    assert (
        "1.png is in two of the sources, so it would count twice: name only one of them, such as the table or the "
        in (error_message(sorted(photos.iterdir())))
    )


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("train_32x32.mat", "is a MATLAB file, which is not read: export its images as PNG or JPEG."),
        ("fer2013.csv", "is a table: name it instead of the folder."),
    ],
)
def test_a_folder_without_images_names_the_file_that_may_have_them(tmp_path: Path, file: str, advice: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    assert error_message(tmp_path).endswith(f"as in cat/1.jpg, dog/2.jpg. {file} {advice}")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_a_file_that_is_not_an_archive_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>404</html>" * 100)
    assert re.search(r"a\.\w+ is not a readable (zip|tar) archive: ", error_message(tmp_path / name))


# How it works.


def test_ctrl_c_ends_indexing_before_all_files_are_read() -> None:
    reads = 0

    class SlowStore(ArrayStore):
        def read(self, key: str, check: CheckHeader = accept_any) -> Any:
            nonlocal reads
            reads += 1
            time.sleep(0.0005)
            return super().read(key, check)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    store = SlowStore(np.zeros((5000, 2, 2), np.uint8))
    items = [SourceItem(store, str(i), f"{i}", "cat") for i in range(5000)]
    with pytest.raises(KeyboardInterrupt):
        build_index(SourceListing(items), interrupt, threads=1)
    assert reads < 2500


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    images = np.stack([draw_pixels(0)] * 700)
    build_index(SourceListing(list_array_items(images, ["a"] * 700, "many")), lambda *call: calls.append(call))
    assert calls == [("indexing", 256, 700), ("indexing", 512, 700), ("indexing", 700, 700)]


@pytest.mark.usefixtures("no_thread_left")
def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    files = {f"{'cat' if i % 3 else 'dog'}/{i}.png": encode_png(i, width=2) for i in range(600)}
    path = write_as_folder(tmp_path, files)
    one, five = build_index(path, threads=1), build_index(path, threads=5)
    assert one.images == five.images
    assert [p.path for p in one.images] == sorted(files)


def test_every_file_is_read_once_and_no_pixel_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile_folder: HostileFolder
) -> None:
    reads: list[str] = []
    original = FolderStore.read

    def read(self: FolderStore, key: str, check: CheckHeader) -> bytes:
        reads.append(key)
        return original(self, key, check)

    monkeypatch.setattr(FolderStore, "read", read)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    source_index = build_index(hostile_folder.path)
    assert max(Counter(reads).values()) == 1
    assert set(reads) >= {p.path for p in source_index.images}
    assert not any(key.endswith((".DS_Store", "Thumbs.db")) for key in reads)


def test_drawn_images_are_indexed_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GeneratedStore, "read", lambda self, key: pytest.fail("an image was drawn"))
    source_index = build_index("beans:40@32")
    assert Counter(p.label for p in source_index.images) == {"Dark": 10, "Green": 10, "Light": 10, "Medium": 10}
    assert {(p.width, p.height, p.grayscale) for p in source_index.images} == {(32, 32, False)}
    assert len({p.sha256 for p in source_index.images}) == 40


def test_gray_images_are_known_by_their_header(tmp_path: Path) -> None:
    modes: Sequence[str] = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    for mode in modes:
        image = draw_image().convert("L").convert("I;16") if mode == "I;16" else draw_image().convert(mode)
        write_files(tmp_path, {f"{'a' if mode < 'M' else 'b'}/{mode.replace(';', '')}.png": encode(image)})
    gray = {PurePosixPath(p.path).stem: p.grayscale for p in build_index(tmp_path).images}
    assert gray == {"1": True, "L": True, "LA": True, "P": False, "RGB": False, "RGBA": False, "I16": True}


def test_real_flowers_hold_their_known_duplicates(shared: Path) -> None:
    source_index = build_index(shared / "data" / "flowers5")
    assert len(source_index.images) == 4317
    copies: dict[str, set[str]] = {}
    for p in source_index.images:
        copies.setdefault(p.sha256, set()).add(p.label)
    groups = [sha for sha, count in Counter(p.sha256 for p in source_index.images).items() if count > 1]
    assert (len(groups), sum(len(copies[sha]) > 1 for sha in groups)) == (6, 4)


def test_real_idx_files(shared: Path) -> None:
    source_index = build_index(shared / "data" / "fashion_mnist_3615")
    assert (len(source_index.images), {p.split for p in source_index.images}) == (3615, {"train"})
    assert sorted({p.label for p in source_index.images}) == list("0123456789")
    assert np.shape(source_index.read(0)) == (28, 28)


def test_a_source_whose_name_is_not_text_is_rejected_with_a_reason() -> None:
    assert error_message("caf\udce9").startswith("The name 'caf\\udce9' is not valid UTF-8")


def test_bare_arrays_are_rejected_as_a_source() -> None:
    bare: Any = (np.zeros((2, 4, 4), np.uint8), [0, 1])
    with pytest.raises(UsageError, match=r"^Images come from a path or a Dataset, not from ndarray: "):
        build_index(bare)


def test_copies_in_several_class_folders_are_one_image_with_all_of_their_classes(tmp_path: Path) -> None:
    both, car, tree = (encode_png(i) for i in range(3))
    files = {"car/1.png": both, "car/2.png": car, "tree/other.png": both, "tree/3.png": tree, "tree/again.png": tree}
    write_files(tmp_path, files)
    index = build_index(tmp_path, options=DataConfig(merge_copies=True))
    assert {image.path: image.label for image in index.images} == {
        "car/1.png": "car;tree", "car/2.png": "car", "tree/3.png": "tree",
    }  # fmt: skip
    assert [index.read(i) for i, image in enumerate(index.images) if image.path == "car/1.png"] == [both]
    assert index.several_labels == "car/1.png and tree/other.png are the same image, with several labels (car;tree)"
    kinds = {finding.kind: finding for finding in quick_audit(build_index(tmp_path)).findings}
    assert "--set data.merge_copies=true --set model.task=multi_label" in kinds["conflicting-duplicates"].advice
    assert "conflicting-duplicates" not in {finding.kind for finding in quick_audit(index).findings}


def test_copies_in_different_splits_stay_and_a_class_cannot_contain_the_separator(tmp_path: Path) -> None:
    same = encode_png(1)
    write_files(tmp_path, {"train/car/1.png": same, "test/tree/1.png": same})
    index = build_index(tmp_path, options=DataConfig(merge_copies=True))
    assert sorted((image.split, image.label) for image in index.images) == [("test", "tree"), ("train", "car")]
    assert index.several_labels == ""
    write_files(tmp_path, {"train/a;b/1.png": encode_png(2)})
    with pytest.raises(DataError, match=r"The class name 'a;b', of train/a;b/1\.png, contains ';'"):
        build_index(tmp_path, options=DataConfig(merge_copies=True))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("list.csv", DataConfig(labels="other.csv"), r"data\.labels is a table for a folder or an archive of images"),
        ("list.csv", DataConfig(label_pattern="(?P<label>p)"), r"data\.label_pattern reads classes from the names"),
        ("list.csv", DataConfig(class_level=1), r"data\.class_level chooses class folders, but the labels of .*list"),
        ("images", DataConfig(columns=ColumnsConfig(label="breed")), r"data\.columns\.label names a column of a table"),
        ("images", DataConfig(labels="../list.csv", class_level=1), r"data\.class_level chooses class folders, but"),
    ],
)
def test_settings_on_labels_that_no_source_is_read_with_are_refused(
    tmp_path: Path, source: str, options: DataConfig, message: str
) -> None:
    rows = "".join(f"{name}/1.png,{i}\n" for i, name in enumerate(("cat", "dog")))
    write_files(tmp_path / "images", {f"{name}/1.png": encode_png(i) for i, name in enumerate(("cat", "dog"))})
    (tmp_path / "list.csv").write_text(f"path,breed\n{rows}")
    with pytest.raises(ConfigError, match=message):
        build_index(tmp_path / source, options=options)
    both = [tmp_path / "images", tmp_path / "list.csv"]
    assert len(build_index(both, options=replace(options, labels="")).images) == 4, "one of them is read with each"
