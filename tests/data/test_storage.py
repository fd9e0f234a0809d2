"""Folders, archives and arrays: what they list and read, and that damage is reported and never crashes."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.config import LimitsConfig
from sightline.data import storage
from sightline.data.archives import TarStore, ZipStore, _decode_names
from sightline.data.sources.filenames import is_hidden
from sightline.data.storage import ArrayStore, FileStore, FolderStore, GeneratedStore, iterate_files
from sightline.errors import DataError, ImageError, OutputError
from synthetic_images import draw_pixels, write_files, write_tar, write_zip

FILES = {"cat/1.png": b"one" * 400, "cat/nested/2.png": b"", "dög/ü 3.png": os.urandom(3000), "README": b"hello"}
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"  # how a zip's two headers of each member begin

METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def write_zip_store(method: int, tmp: Path) -> FileStore:
    return ZipStore(write_zip(tmp / "a.zip", FILES, method))


def write_tar_store(kind: str, tmp: Path) -> FileStore:
    return TarStore(write_tar(tmp / "a.tar", FILES, kind))


MAKERS: dict[str, Callable[[Path], FileStore]] = {
    "folder": lambda tmp: FolderStore(write_files(tmp / "folder", FILES)),
    **{f"zip {name}": partial(write_zip_store, method) for name, method in METHODS.items()},
    **{f"tar {kind}": partial(write_tar_store, kind) for kind in ("", "gz", "bz2", "xz")},
}


def patch_bytes(path: Path, *changes: tuple[bytes, int, bytes]) -> Path:
    """Overwrite bytes at an offset behind every place where a signature stands."""
    data = bytearray(path.read_bytes())
    for signature, offset, value in changes:
        at = data.find(signature)
        assert at >= 0
        while at >= 0:
            data[at + offset : at + offset + len(value)] = value
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    return path


def read_error(store: FileStore, key: str) -> str:
    with pytest.raises(ImageError) as caught:
        store.read(key)
    return str(caught.value)


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_every_kind_lists_and_reads_the_same(tmp_path: Path, maker: Callable[[Path], FileStore]) -> None:
    store = maker(tmp_path)
    assert list(store.keys()) == sorted(FILES)
    assert {key: store.read(key) for key in FILES} == FILES
    assert store.name in {"folder", "a.zip", "a.tar"}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_reading_from_many_threads_mixes_nothing_up(tmp_path: Path, maker: Callable[[Path], FileStore]) -> None:
    store = maker(tmp_path)
    keys = sorted(FILES) * 40
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.read, keys)) == [FILES[key] for key in keys]


# Folders.


def test_a_folder_of_nothing_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert list(FolderStore(tmp_path).keys()) == []


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", {"1.png": b"1"})
    write_files(tmp_path / "root", {"cat/2.png": b"2"})
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "dog again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "loop").symlink_to(tmp_path / "root")
    store = FolderStore(tmp_path / "root")
    assert list(store.keys()) == ["cat/2.png", "dog/1.png"]
    assert list(iterate_files(tmp_path / "root")) == ["cat/2.png", "dog/1.png"]
    assert store.read("dog/1.png") == b"1"


@pytest.mark.parametrize("link", ["a link", "ants/dog", "zebra"])
def test_a_folder_wins_over_a_link_to_it(tmp_path: Path, link: str) -> None:
    write_files(tmp_path, {"ants/1.png": b"1", "dog/2.png": b"2"})
    (tmp_path / link).symlink_to(tmp_path / "dog")
    assert list(FolderStore(tmp_path).keys()) == ["ants/1.png", "dog/2.png"]


def test_links_to_folders_elsewhere_in_the_source_name_the_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {"z raw/batch1/1.png": b"1", "z raw/batch2/2.png": b"2"})
    (tmp_path / "cat").symlink_to(tmp_path / "z raw" / "batch1")
    (tmp_path / "dog").symlink_to(tmp_path / "z raw" / "batch2")
    assert list(FolderStore(tmp_path).keys()) == ["cat/1.png", "dog/2.png"]


def test_links_to_hidden_folders_are_followed(tmp_path: Path) -> None:
    """As Kubernetes mounts a volume: ``cat`` is a link into ``..data``, which is a link to a hidden folder."""
    write_files(tmp_path, {"..2026/cat/1.png": b"1", ".dogs/2.png": b"2"})
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "cat").symlink_to("..data/cat")
    (tmp_path / "dog").symlink_to(".dogs")
    (tmp_path / "..2026" / "self").symlink_to(tmp_path)
    keys = FolderStore(tmp_path).keys()
    assert [key for key in keys if not is_hidden(key)] == ["cat/1.png", "dog/2.png"]


def test_runs_among_the_images_are_left_out(tmp_path: Path) -> None:
    """As after `sightline train .` in a folder of images: figures are no class."""
    results = ("a/run.json", "a/figures/1.png", ".studio/log", "s/sweep.json", "s/figures/1.png")
    bundle = ("dog/fox/manifest.json", "dog/fox/model.onnx", "dog/fox/reference/0.jpeg")
    write_files(tmp_path, dict.fromkeys(("cat/1.png", "dog/2.png", "new/run.json.png", *bundle), b"1"))
    write_files(tmp_path / "runs", dict.fromkeys(results, b"1"))
    (tmp_path / "empty").mkdir()
    store = FolderStore(tmp_path)
    keys = list(store.keys())
    assert [key for key in keys if "/." not in key] == ["cat/1.png", "dog/2.png", "new/run.json.png"]
    assert list(store.folders()) == ["cat", "dog", "empty", "new", "runs/.studio"]
    assert list(iterate_files(tmp_path)) == keys
    assert list(FolderStore(tmp_path / "runs" / "a").keys()) == ["figures/1.png", "run.json"], "as was asked for"


def test_links_that_lead_nowhere_are_files_that_cannot_be_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/2.png": b"2"})
    (tmp_path / "cat" / "itself").symlink_to("itself")
    (tmp_path / "cat" / "nowhere").symlink_to("gone")
    store = FolderStore(tmp_path)
    assert list(store.keys()) == list(iterate_files(tmp_path)) == ["cat/2.png", "cat/itself", "cat/nowhere"]
    assert "itself" not in read_error(store, "cat/nowhere")
    assert read_error(store, "cat/itself")


def test_listing_a_folder_holds_few_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20_000
    monkeypatch.setattr(storage, "NAMES_IN_MEMORY", 2000)
    write_files(tmp_path, {f"all/IMG_{number:08d}.jpg": b"" for number in range(count)})
    next(iterate_files(tmp_path))  # what is imported and cached at the first call
    tracemalloc.start()
    try:
        names = iterate_files(tmp_path)
        assert next(names) == "all/IMG_00000000.jpg"
        assert tracemalloc.get_traced_memory()[1] < 40 * count, "a name takes twice as much"
    finally:
        tracemalloc.stop()
    assert sum(1 for _ in names) == count - 1


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")) | st.just("\udcff\n"), max_size=20))
def test_names_are_sorted_in_files_as_in_memory(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "NAMES_IN_MEMORY", 3)
        assert list(storage.sort_names(names)) == sorted(names)


def test_no_room_to_sort_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "NAMES_IN_MEMORY", 2)
    write_files(tmp_path, {f"{number}.jpg": b"" for number in range(3)})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match=r"The names in a large folder cannot be sorted in .*missing: No such"):
        next(iterate_files(tmp_path))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: Path) -> Iterator[os.DirEntry[str]]:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"Cannot list the folder .*locked: Permission denied"):
        FolderStore(tmp_path).keys()


def test_a_folder_whose_files_may_not_be_looked_up_is_not_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if Path(path).name == "run.json":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert not storage.holds_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("gone.png", "cannot be opened: No such file or directory"),
        ("link.png", "cannot be opened: No such file or directory"),
        ("folder", "cannot be opened: not a regular file"),
        ("pipe.png", "cannot be opened: not a regular file"),  # reading it would wait for ever
        ("huge.png", "too large: 256 MiB, limit 256 (data.limits.file_mb)"),
        ("a\0b.png", "cannot be opened: no file can have this name"),
        ("a\ud800.png", "cannot be opened: no file can have this name"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, key: str, why: str) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate((256 << 20) + 1)
    assert read_error(FolderStore(tmp_path), key) == why


# Zip archives.


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("gbk", ["狗/图片.jpg", "猫/1.jpg", "猫/图片 1.jpg"]),  # of these, only the first is not UTF-8 as well
        ("utf-8", ["élan/ä.jpg", "猫/图片.jpg"]),
        ("cp437", ["café/1.jpg"]),
        ("ascii", ["cat/1.jpg"]),
    ],
)
def test_zip_names_without_the_utf_8_flag_share_one_encoding(tmp_path: Path, encoding: str, names: list[str]) -> None:
    stand_ins = [letter * len(name.encode(encoding)) for letter, name in zip("xyz", names, strict=False)]
    path = write_zip(tmp_path / "old.zip", {stand_in: stand_in[:1].encode() for stand_in in stand_ins})
    data = path.read_bytes()
    for stand_in, name in zip(stand_ins, names, strict=True):
        data = data.replace(stand_in.encode(), name.encode(encoding))
    path.write_bytes(data)
    store = ZipStore(path)
    assert list(store.keys()) == names
    assert [store.read(name) for name in names] == [b"x", b"y", b"z"][: len(names)]


def test_zip_names_with_the_flag_are_taken_as_they_are(tmp_path: Path) -> None:
    assert list(ZipStore(write_zip(tmp_path / "new.zip", {"café/é.jpg": b""})).keys()) == ["café/é.jpg"]


def test_a_zip_name_that_python_took_from_an_extra_field_is_unicode_already() -> None:
    info = zipfile.ZipInfo("猫/1.jpg")  # as Python 3.12 reads it; no flag is set
    assert _decode_names([info]) == ["猫/1.jpg"]


def test_zip_folders_are_not_files_and_backslashes_separate_folders(tmp_path: Path) -> None:
    store = ZipStore(write_zip(tmp_path / "a.zip", {"cat/": b"", "train\\cat\\1.jpg": b"x"}))
    assert list(store.keys()) == ["train/cat/1.jpg"]
    assert store.read("train/cat/1.jpg") == b"x"


def test_an_encrypted_member_says_so(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/1.jpg": b"secret"})
    store = ZipStore(patch_bytes(path, (LOCAL, 6, b"\1"), (CENTRAL, 8, b"\1")))
    assert "encrypted" in read_error(store, "cat/1.jpg")


def test_an_unknown_packing_method_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/1.jpg": b"x"})
    store = ZipStore(patch_bytes(path, (LOCAL, 8, b"\x61"), (CENTRAL, 10, b"\x61")))
    assert read_error(store, "cat/1.jpg") == "cannot be unpacked: That compression method is not supported"


def test_a_bomb_is_refused_by_its_stated_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/1.jpg": bytes(100_000)})
    patch_bytes(path, (CENTRAL, 24, struct.pack("<I", 1 << 30)))
    with pytest.raises(
        DataError, match=r"a\.zip unpacks to more than 100 times its \d+ bytes.*data\.limits\.archive_ratio"
    ):
        ZipStore(path)
    store = ZipStore(path, LimitsConfig(archive_ratio=1e9))
    assert read_error(store, "cat/1.jpg") == "too large: 1,024 MiB, limit 256 (data.limits.file_mb)"


def test_a_bomb_that_states_less_is_not_unpacked_beyond_that(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/1.jpg": bytes(100_000)})
    store = ZipStore(patch_bytes(path, (CENTRAL, 24, struct.pack("<I", 100))))
    assert read_error(store, "cat/1.jpg").startswith("damaged in the archive: Bad CRC-32")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_damaged_member_does_not_harm_the_others(tmp_path: Path, method: int) -> None:
    rng = np.random.default_rng(0)
    files = {"cat/1.jpg": rng.bytes(2000), "cat/2.jpg": rng.bytes(2000)}
    path = write_zip(tmp_path / "a.zip", files, method)
    data = bytearray(path.read_bytes())
    data[100:1500] = bytes(1400)
    path.write_bytes(data)
    store = ZipStore(path)
    assert read_error(store, "cat/1.jpg").startswith(("damaged in the archive: ", "cannot be unpacked: "))
    assert store.read("cat/2.jpg") == files["cat/2.jpg"]


# Tar archives.


def test_tar_names_lose_their_leading_dot(tmp_path: Path) -> None:
    assert list(TarStore(write_tar(tmp_path / "a.tar", {"./cat/1.jpg": b""})).keys()) == ["cat/1.jpg"]


@pytest.mark.parametrize("folder", ["BZ", "BZhang", "BZh9", "\x1f\x8b"])
def test_a_plain_tar_may_begin_with_any_name(tmp_path: Path, folder: str) -> None:
    store = TarStore(write_tar(tmp_path / "a.tar", {f"{folder}/1.jpg": b"x"}))
    assert store.read(f"{folder}/1.jpg") == b"x"


def test_a_hard_link_stands_for_its_file_and_other_links_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("./cat/1.jpg", tarfile.REGTYPE, ""),
            ("./cat/copy.jpg", tarfile.LNKTYPE, "./cat/1.jpg"),
            ("./cat/soft.jpg", tarfile.SYMTYPE, "1.jpg"),
            ("./cat/pipe.jpg", tarfile.FIFOTYPE, ""),
            ("./cat/lost.jpg", tarfile.LNKTYPE, "./gone.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"meow"))
    store = TarStore(tmp_path / "a.tar")
    assert list(store.keys()) == ["cat/1.jpg", "cat/copy.jpg"]
    assert store.read("cat/copy.jpg") == b"meow"


def test_a_tar_with_a_damaged_header_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"cat/{i}.jpg": bytes(600) for i in range(4)})
    data = bytearray(path.read_bytes())
    at = data.index(b"cat/2.jpg")
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"a.tar is not a readable tar archive: damaged at byte {at}"):
        TarStore(path)


def test_a_tar_that_shrinks_while_in_use_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"cat/1.jpg": bytes(5000)})
    store = TarStore(path)
    os.truncate(path, 2000)
    assert read_error(store, "cat/1.jpg") == "truncated: the archive ends before the end of this file"


def test_a_huge_member_of_a_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"cat/1.jpg": bytes((1 << 20) + 1), "cat/2.jpg": bytes(1 << 20)})
    store = TarStore(path, LimitsConfig(file_mb=1))
    assert read_error(store, "cat/1.jpg") == "too large: 1 MiB, limit 1 (data.limits.file_mb)"
    assert store.read("cat/2.jpg") == bytes(1 << 20)


# Damage of any kind.


@pytest.mark.parametrize("cut", [0, 1, 30, 300, -700])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: write_zip(path, FILES), ZipStore),
        *((lambda path, k=k: write_tar(path, FILES, k), TarStore) for k in ("", "gz", "bz2", "xz")),
    ],
    ids=["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"],
)
def test_an_archive_cut_off_is_named(
    tmp_path: Path, make: Callable[[Path], Path], kind: Callable[[Path], FileStore], cut: int
) -> None:
    path = make(tmp_path / "cut off")
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:cut])
    with pytest.raises(DataError, match=f"{path} is not a readable (zip|tar) archive: ."):
        kind(path)


def make_archives() -> dict[str, tuple[bytes, Callable[[Path], FileStore]]]:
    archives_by_kind: dict[str, tuple[bytes, Callable[[Path], FileStore]]] = {}
    files = {"cat/1.png": b"one" * 40, "dög/ü 3.png": bytes(range(256))}
    for name, method in METHODS.items():
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for key, content in files.items():
                archive.writestr(key, content)
        archives_by_kind[f"zip {name}"] = stream.getvalue(), ZipStore
    for kind in ("", "gz", "xz"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=f"w:{kind}") as tar:  # type: ignore[call-overload]  # put together
            for key, content in files.items():
                info = tarfile.TarInfo(key)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        archives_by_kind[f"tar {kind}"] = stream.getvalue(), TarStore
    return archives_by_kind


ARCHIVES = make_archives()


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(ARCHIVES)),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_no_damage_to_an_archive_is_a_crash(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int]]
) -> None:
    data, kind = ARCHIVES[name]
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] ^= value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        store = kind(path)
        keys = store.keys()
    except DataError:
        return
    for key in keys:
        try:
            assert isinstance(store.read(key), bytes)
        except ImageError as error:
            assert str(error)  # noqa: PT017  # either is right; a reason there must be


# Arrays.


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3)])
def test_arrays_are_read_by_position(shape: tuple[int, ...]) -> None:
    array = np.arange(5 * np.prod(shape)).astype(np.uint8).reshape(5, *shape)
    store = ArrayStore(array)
    np.testing.assert_array_equal(store.read("3"), array[3])


def test_a_generated_image_is_identified_without_generating_it() -> None:
    calls = []

    def draw(i: int) -> np.typing.NDArray[np.uint8]:
        calls.append(i)
        return draw_pixels(i)

    store = GeneratedStore("drawn", (16, 16, 3), draw, lambda i: f"image {i}")
    assert store.identity("4") == "image 4"
    assert calls == []
    np.testing.assert_array_equal(store.read("4"), draw_pixels(4))
    assert calls == [4]


def test_a_limit_above_all_memory_takes_the_memory_of_the_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": b"x" * 1000})
    assert FolderStore(tmp_path, LimitsConfig(file_mb=1e300)).read("a.png") == b"x" * 1000


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": b"x" * 1000})

    def grow(start: bytes) -> None:
        with (tmp_path / "a.png").open("ab") as file:
            file.write(b"y" * 1000)

    with pytest.raises(ImageError, match="grew while being read"):
        FolderStore(tmp_path).read("a.png", grow)
