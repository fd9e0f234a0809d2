"""Malicious archives: their total size is limited before any member is read."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline import process
from sightline.config import DataConfig, LimitsConfig
from sightline.data.archives import TarStore, ZipStore, make_names_unique
from sightline.data.checks.audit import quick_audit
from sightline.data.indexing import build_index
from sightline.errors import DataError, ImageError
from sightline.preprocessing import detect_format
from synthetic_images import draw_pixels, encode, write_tar, write_zip

MIB = 1 << 20


def encode_image(number: int) -> bytes:
    return encode(Image.fromarray(draw_pixels(number)))


def write_bomb(path: Path, size: int) -> Path:
    """A zip of one member of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("cat/1.png", "w") as file:
        for _ in range(size // MIB):
            file.write(bytes(MIB))
    return path


def test_the_members_of_a_zip_are_counted_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of ten million takes several gigabytes."""
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(30):
            archive.writestr(f"{number}.png", b"x")
    assert len(ZipStore(tmp_path / "many.zip", LimitsConfig(archive_members=30)).keys()) == 30
    monkeypatch.setattr(zipfile.ZipInfo, "__init__", lambda *_: pytest.fail("an object was made"))
    with pytest.raises(DataError, match=r"more than 29 members\..*data\.limits\.archive_members"):
        ZipStore(tmp_path / "many.zip", LimitsConfig(archive_members=29))


def test_a_zip_without_its_beginning_is_refused(tmp_path: Path) -> None:
    """Python reads the list of its members, and the last of them."""
    path = write_zip(tmp_path / "photos.zip", {f"{number}.png": encode_image(number) for number in range(3)})
    path.write_bytes(path.read_bytes()[100:])
    message = r"photos\.zip is not a readable zip archive: its beginning is missing, as in the last file of a split"
    with pytest.raises(DataError, match=message):
        ZipStore(path)


def extended_header(size: int) -> bytes:
    """The beginning of a tar whose first member has an extended header (PAX) of `size` bytes."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def test_a_zip_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "bomb.zip", 300 * MIB)
    with pytest.raises(DataError, match=r"unpacks to more than 100 times its .* bytes.*decompression bomb"):
        ZipStore(path)
    assert ZipStore(path, LimitsConfig(archive_ratio=2000)).keys() == ["cat/1.png"]
    with pytest.raises(DataError, match=r"unpacks to more than 0\.1 GiB.*data\.limits\.archive_gb"):
        ZipStore(path, LimitsConfig(archive_ratio=2000, archive_gb=0.1))


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["deflate", "bzip2", "lzma"]
)
def test_a_member_that_states_less_than_it_holds_is_not_unpacked(tmp_path: Path, method: int) -> None:
    """`zipfile` would decompress all of it, and then cut it to its stated size."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("cat/1.png", "w") as file:
        for _ in range(64):
            file.write(bytes(MIB))
    stated_size = 100_000
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    data[entry + 16 : entry + 20] = zlib.crc32(bytes(stated_size)).to_bytes(4, "little")
    data[entry + 24 : entry + 28] = stated_size.to_bytes(4, "little")
    path.write_bytes(data)
    store = ZipStore(path)
    tracemalloc.start()
    assert store.read("cat/1.png") == bytes(stated_size)
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()


def test_a_small_archive_of_blank_images_is_accepted(tmp_path: Path) -> None:
    assert ZipStore(write_bomb(tmp_path / "blank.zip", 200 * MIB)).keys() == ["cat/1.png"]


def test_a_compressed_tar_is_unpacked_no_further_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(extended_header(2 << 30))
        for _ in range(300):
            file.write(bytes(MIB))
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(DataError, match="unpacks to more than 100 times"):
        TarStore(path)
    assert list(folder.iterdir()) == []


def write_tar_xz(path: Path, files: dict[str, bytes], dictionary: int | None = None) -> Path:
    """Write a tar.xz, whose header states another dictionary: 28 is one of 64 MiB, 34 of 512 MiB, 40 of 4 GiB."""
    write_tar(path, files, "xz")
    data = bytearray(path.read_bytes())
    if dictionary is not None:
        end = 12 + (data[12] + 1) * 4 - 4  # of the header of the first block, before its checksum
        assert data[14:16] == b"\x21\1"  # LZMA2, one byte of properties
        data[16] = dictionary
        data[end : end + 4] = zlib.crc32(data[12:end]).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def test_the_dictionary_of_an_xz_has_a_limit(tmp_path: Path) -> None:
    files = {"cat/1.png": encode_image(1)}
    assert TarStore(write_tar_xz(tmp_path / "64.tar.xz", files, 28)).read("cat/1.png") == files["cat/1.png"]
    for dictionary in (34, 40):
        with pytest.raises(DataError, match=r"not a readable tar archive: .* limit of 256 MiB, .* as xz -9 does"):
            TarStore(write_tar_xz(tmp_path / "large.tar.xz", files, dictionary))


def test_an_xz_may_have_several_streams_and_must_be_whole(tmp_path: Path) -> None:
    files = {"cat/1.png": os.urandom(3 * MIB), "cat/2.png": encode_image(2)}
    content = write_tar(tmp_path / "a.tar", files).read_bytes()
    first, second = (lzma.compress(half, preset=0) for half in (content[: 2 * MIB], content[2 * MIB :]))
    path = tmp_path / "a.tar.xz"
    for between, behind in ((b"", b""), (bytes(8), b"no xz"), (bytes(2 * MIB), bytes(4))):
        path.write_bytes(first + between + second + behind)
        assert TarStore(path).read("cat/2.png") == encode_image(2)
    for end in (-1, -len(second) // 2):
        path.write_bytes((first + second)[:end])
        with pytest.raises(DataError, match="not a readable tar archive: the compressed data ends too early"):
            TarStore(path)
    path.write_bytes(first[:100] + b"?" + first[101:])
    with pytest.raises(DataError, match="not a readable tar archive"):
        TarStore(path)


def test_the_dictionary_of_a_zip_member_is_as_large_as_the_member(tmp_path: Path) -> None:
    """Without this, 4 GiB of memory may be taken for a kilobyte."""
    content = encode_image(1) * 20
    path = write_zip(tmp_path / "a.zip", {"cat/1.png": content}, zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    begin = data.index(b"\x05\0", 30)  # the size of the properties
    assert begin < 60
    data[begin + 3 : begin + 7] = b"\xff" * 4
    path.write_bytes(data)
    started: list[int] = []
    original = lzma.LZMADecompressor

    def record(form: int, *, filters: Any) -> Any:
        started.append(filters[0]["dict_size"])
        return original(form, filters=filters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lzma, "LZMADecompressor", record)
        assert ZipStore(path).read("cat/1.png") == content
    assert started == [max(len(content), 4096)]


def test_a_header_of_a_tar_is_short(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(extended_header(2 * MIB) + bytes(2 * MIB + 1024))
    with pytest.raises(DataError, match=r"tar archive: headers of 2,09[0-9,]+ bytes at byte 512, .* 1,048,576"):
        TarStore(path)


def test_a_chain_of_headers_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes((extended_header(512) + b"11 path=ab\n".ljust(512, b"\0")) * 5000 + bytes(1024))
    with pytest.raises(DataError, match="not a readable tar archive"):
        TarStore(path)


@pytest.mark.parametrize("way", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["PAX", "GNU"])
def test_long_names_have_a_budget(tmp_path: Path, way: int) -> None:
    """70 names of a megabyte take 0.3 MB of a tar.gz, and 280 of memory if one character of each is wide."""
    path = tmp_path / "names.tar.gz"
    with tarfile.open(path, "w:gz", format=way, compresslevel=1) as archive:
        for number in range(70):
            archive.addfile(tarfile.TarInfo(f"cat/{number}{chr(0x1F431)}{'a' * 1_000_000}.png"))
    assert path.stat().st_size < 2 * MIB
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"names of more than 256,000,000 bytes in all.*data\.limits\.archive_members"
        ):
            build_index(path)
        assert tracemalloc.get_traced_memory()[1] < 300 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_names_of_all_members_count(tmp_path: Path, kind: str) -> None:
    files = {f"cat/{i}{'a' * 200}.png": b"" for i in range(10)}
    path = write_zip(tmp_path / "a.zip", files) if kind == "zip" else write_tar(tmp_path / "a.tar", files)
    store = ZipStore if kind == "zip" else TarStore
    assert len(store(path, LimitsConfig(archive_members=30)).keys()) == 10
    with pytest.raises(DataError, match=r"names of more than 1,920 bytes in all"):
        store(path, LimitsConfig(archive_members=15))


def test_headers_for_all_members_are_few(tmp_path: Path) -> None:
    """`tarfile` copies them for each member: 100,000 took minutes."""

    def write(count: int, size: int) -> Path:
        path = tmp_path / f"{count}-{size}.tar"
        with path.open("wb") as file:
            for number in range(count):
                file.write(tarfile.TarInfo.create_pax_global_header({f"key{number}": "a" * size}))
                file.write(tarfile.TarInfo(f"{number}.png").tobuf())
            file.write(bytes(1024))
        return path

    assert len(TarStore(write(3, 3)).keys()) == 3
    with pytest.raises(DataError, match="more than 1,000 global headers"):
        TarStore(write(1001, 3))
    with pytest.raises(DataError, match="names of more than"):
        TarStore(write(20, 100_000), LimitsConfig(archive_members=1000))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_are_counted(tmp_path: Path, kind: str) -> None:
    files = {f"cat/{i}.png": b"" for i in range(11)}
    few = LimitsConfig(archive_members=10)
    path = write_zip(tmp_path / "a.zip", files) if kind == "zip" else write_tar(tmp_path / "a.tar", files)
    store = ZipStore if kind == "zip" else TarStore
    with pytest.raises(DataError, match=r"more than 10 members.*data\.limits\.archive_members"):
        store(path, few)


def test_a_file_that_is_not_an_image_is_not_read_beyond_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    original = zipfile.ZipExtFile.read

    def counting(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        nonlocal read
        data = original(self, n)
        read += len(data)
        return data

    store = ZipStore(write_bomb(tmp_path / "a.zip", 100 * MIB))
    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    with pytest.raises(ImageError, match="starts with zeros"):
        store.read("cat/1.png", detect_format)
    assert 0 < read < 1000


def write_archive(kind: str, path: Path, members: list[tuple[str, bytes]]) -> Path:
    """An archive that holds members in this order, of the same name too."""
    if kind == "zip":
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.filterwarnings("ignore", "Duplicate name")
            for name, data in members:
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as packed:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_with_the_same_name_are_all_kept_and_reported(tmp_path: Path, kind: str) -> None:
    one, two, three, dog = (encode_image(number) for number in range(4))
    members = [("cat/1.png", one), ("cat/1.png", two), ("cat/1 (2).png", three), ("dog/1.png", dog)]
    path = write_archive(kind, tmp_path / f"a.{kind}", members)
    source_index = build_index(path)
    assert sorted(p.path for p in source_index.images) == [
        "cat/1 (2) (2).png",
        "cat/1 (2).png",
        "cat/1.png",
        "dog/1.png",
    ]
    assert len({p.sha256 for p in source_index.images}) == 4
    (finding,) = [f for f in quick_audit(source_index).findings if f.kind == "repeated-members"]
    assert (finding.severity, finding.count) == ("warning", 2)


def list_forms() -> dict[str, tuple[str, list[tuple[str, bytes]]]]:
    """Return the members of an archive of each form that has no class folders, and its kind; 1.png comes twice."""
    one, two, three = (encode_image(number) for number in range(3))
    images = [("1.png", one), ("1.png", two), ("2.png", three)]
    mask = encode(Image.fromarray(np.eye(16, dtype=np.uint8)))
    masks = [("masks/1.png", mask), ("masks/2.png", mask), ("classes.csv", b"value,name\n0,sky\n1,tree\n")]
    return {
        "WebDataset": ("tar", [*images, ("1.cls", b"cat"), ("1.cls", b"cat"), ("2.cls", b"dog")]),
        "data.labels": ("zip", images),
        "mask folders": ("zip", [(f"images/{name}", content) for name, content in images] + masks),
        "table inside": ("zip", [*images, ("labels.csv", b"path,label\n1.png,cat\n2.png,dog\n")]),
    }


@pytest.mark.parametrize("form", list_forms())
def test_members_with_the_same_name_are_reported_in_every_form(tmp_path: Path, form: str) -> None:
    kind, members = list_forms()[form]
    path = write_archive(kind, tmp_path / f"a.{kind}", members)
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n1.png,cat\n2.png,dog\n", encoding="utf-8")
    source_index = build_index(path, options=DataConfig(labels=str(labels) if form == "data.labels" else ""))
    assert len(source_index.images) >= 2
    (finding,) = [f for f in quick_audit(source_index).findings if f.kind == "repeated-members"]
    assert (finding.severity, finding.count) == ("warning", 2 if form == "WebDataset" else 1)


def test_a_folder_stated_twice_is_one() -> None:
    assert make_names_unique([("cat/", 1), ("cat/", 2), ("a", 3)]) == ({"cat/": 2, "a": 3}, ())


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "train-images-idx3-ubyte", "a.csv"])
def test_a_pipe_is_rejected_as_a_source(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="not a regular file"):
        build_index(tmp_path / name)


@pytest.mark.parametrize("claimed", [True, False], ids=["command line", "library"])
def test_a_folder_has_more_archives_than_the_files_that_a_process_may_open_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed: bool
) -> None:
    resource = pytest.importorskip("resource")
    for number in range(12):
        write_tar(tmp_path / f"{number:02}.tar", {f"{'ab'[number % 2]}/1.png": encode_image(number)})
    monkeypatch.setattr(process, "_claimed", claimed)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 6, hard))
    try:
        if claimed:
            assert len(build_index(tmp_path).images) == 12
        else:
            with pytest.raises(DataError, match="Too many open files"):
                build_index(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_packed_idx_file_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    header = bytes([0, 0, 8, 3]) + (1).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    path.write_bytes(gzip.compress(header + bytes(50 * MIB)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 1]) + (1).to_bytes(4, "big") + b"\0")
    )
    with pytest.raises(DataError, match="not an IDX file of 3-dimensional bytes, or it is truncated"):
        build_index(path)
    huge = bytes([0, 0, 8, 3]) + (1 << 31).to_bytes(4, "big") + (1 << 10).to_bytes(4, "big") * 2
    path.write_bytes(gzip.compress(huge))
    with pytest.raises(DataError, match="unpacks to more than"):
        build_index(path)


def test_the_limits_are_settings_of_the_source(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/1.png": encode_image(1), "dog/1.png": encode_image(2)})
    with pytest.raises(DataError, match="more than 1 members"):
        build_index(path, options=DataConfig(limits=LimitsConfig(archive_members=1)))


def test_members_without_a_name_are_passed_over(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile warns of a name that comes twice
        write_zip(tmp_path / "a.zip", {"cat/1.png": encode_image(1), "dog/2.png": encode_image(2)})
        with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
            for name in ("", "", ".", ".", "/", "./"):
                archive.writestr(zipfile.ZipInfo(name), encode_image(3))
    source_index = build_index(tmp_path / "a.zip")
    assert [p.path for p in source_index.images] == ["cat/1.png", "dog/2.png"]
    assert len(source_index.other_files) == 4


def test_a_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("cat/1.png")
    member.size = 4
    sparse = {"GNU.sparse.realsize": "-5", "GNU.sparse.minor": "0", "GNU.sparse.name": "cat/2.png"}
    member.pax_headers = sparse
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(member, io.BytesIO(b"abcd"))
    with pytest.raises(DataError, match="a member of -5 bytes"):
        TarStore(path)


def sparse_header(name: str, blocks: int, size: int) -> bytes:
    """Return the GNU header of a sparse member, with so many blocks of its map."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (512, 0)
    header[482] = bool(blocks)
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = b"%011o\0%011o\0" % (1, 1) * 21
    return bytes(header) + (block.ljust(504, b"\0") + b"\1").ljust(512, b"\0") * blocks


def test_a_sparse_member_is_not_mistaken_for_what_follows_it(tmp_path: Path) -> None:
    """Its size counts the holes, which are not stored: read in one piece it would be the files behind it."""
    plain = write_tar(tmp_path / "plain.tar", {"cat/2.png": encode_image(2)})
    (tmp_path / "a.tar").write_bytes(sparse_header("cat/1.png", 0, 2048) + plain.read_bytes())
    store = TarStore(tmp_path / "a.tar")
    assert store.read("cat/2.png") == encode_image(2)
    with pytest.raises(ImageError, match="stored sparse"):
        store.read("cat/1.png")
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("cat/1.png")
        info.pax_headers = {"GNU.sparse.size": "4096", "GNU.sparse.map": "0,0", "GNU.sparse.name": "cat/1.png"}
        tar.addfile(info)
    with pytest.raises(ImageError, match="stored sparse"):
        TarStore(tmp_path / "b.tar").read("cat/1.png")


def test_the_map_of_a_sparse_member_is_short(tmp_path: Path) -> None:
    """Each block of 512 bytes becomes 21 pairs of numbers in memory."""
    path = tmp_path / "a.tar"
    path.write_bytes(sparse_header("cat/1.png", 4000, 2048))
    with pytest.raises(DataError, match="not a readable tar archive: headers of"):
        TarStore(path)
