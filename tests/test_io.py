"""Atomic file writes that do not follow links, and locks."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sightline import _io, _packed
from sightline.errors import OutputError, UsageError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need special rights on Windows")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"1234 what must stay")
    return path


def test_a_path_may_begin_with_the_home_folder_and_no_address_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for path in ("~/runs/a", Path("~/runs/a")):
        assert _io.output_path(path) == Path("/home/ada/runs/a")
    for name in ("~no such user/a", "a~", "C:/a", "a:b", "runs/s3:/a"):
        assert _io.output_path(name) == Path(name)
    for address in ("s3://bucket/a.npy", Path("s3://bucket/a.npy")):  # a path has one slash less
        with pytest.raises(UsageError, match=r"^s3://bucket/a\.npy is an address, but this is written to a local disk"):
            _io.output_path(address)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path, victim: Path) -> None:
    place = tmp_path / "run" / "run.json"
    place.parent.mkdir()
    place.symlink_to(victim)
    _io.write_atomic(place, b"new", root=place.parent)
    assert (place.read_bytes(), place.is_symlink()) == (b"new", False)
    assert victim.read_bytes() == b"1234 what must stay"


def test_a_folder_that_is_a_link_is_refused_below_the_root_only(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = tmp_path / "run"
    run.symlink_to(elsewhere)  # the root may be a link: the user named it
    _io.write_atomic(run / "eval" / "test" / "metrics.json", b"{}", root=run)
    assert (elsewhere / "eval" / "test" / "metrics.json").read_bytes() == b"{}"
    (run / "figures").symlink_to(tmp_path)
    with pytest.raises(OutputError, match=r"figures is a link to .*: replace it with a folder"):
        _io.write_atomic(run / "figures" / "deep" / "a.png", b"", root=run)
    assert not (tmp_path / "deep").exists()


def test_temporary_names_cannot_be_guessed_and_keep_the_ending(tmp_path: Path) -> None:
    names = {_io.temporary_path(tmp_path / "model.keras").name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(".part-") and name.endswith(".keras") for name in names)


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_without_a_name_is_not_a_file(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="cannot be written"):
        _io.write_atomic(Path(path), b"")
    assert [file.name for file in tmp_path.rglob("*")] == ["here"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges two folders in one step")
def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, folder, rename = tmp_path / "part" / "new", tmp_path / "folder", Path.rename
    for path in (new, folder):
        path.mkdir(parents=True)
        (path / "file").write_text(path.name)

    def check(path: Path, target: Path) -> None:
        rename(path, target)
        assert folder.is_dir(), "a process that is killed now leaves none"

    monkeypatch.setattr(Path, "rename", check)
    _io.replace_folder(new, folder)
    assert (folder / "file").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("has_former", [True, False])
def test_a_folder_that_is_not_replaced_is_put_back(
    tmp_path: Path, has_former: bool, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_io, "_exchange", lambda *_: False)  # as on systems that cannot exchange files
    new, folder, rename = tmp_path / "part" / "new", tmp_path / "folder", Path.rename
    for path in (new, folder) if has_former else (new,):
        path.mkdir(parents=True)
        (path / "file").write_text(path.name)

    def interrupt(path: Path, target: Path) -> None:
        if path == new:
            raise error
        rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(error):
        _io.replace_folder(new, folder)
    assert [file.read_text() for file in folder.glob("*")] == ["folder"] * has_former
    monkeypatch.undo()
    _io.replace_folder(new, folder)
    assert [file.read_text() for file in folder.glob("*")] == ["new"]


def test_only_nothing_and_an_empty_folder_elsewhere_are_free(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    assert _io.is_free(tmp_path / "here")
    assert _io.is_free(tmp_path / "new" / "newer")
    assert not _io.is_free(victim)
    assert not _io.is_free(tmp_path)
    for path in (victim / "in a file", tmp_path / ("long" * 100)):
        with pytest.raises(OutputError, match="cannot be read"):
            _io.is_free(path)
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path(), tmp_path / "here", Path("../here")):
        with pytest.raises(OutputError, match="is the current folder, which cannot be replaced: name a folder in it"):
            _io.is_free(path)


def test_a_new_file_is_new(tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (victim, link):
        with pytest.raises(FileExistsError):
            _io.create_exclusive(path)
    assert not (tmp_path / "nowhere").exists()


# Arrays


def test_arrays_come_back_and_a_packed_file_is_refused(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.npz", tmp_path / "packed.npz"
    np.savez(plain, a=np.arange(5), b=np.zeros((2, 3), np.float32))
    np.savez_compressed(packed, a=np.zeros(1 << 22))
    with plain.open("rb") as file:
        assert {name: array.shape for name, array in _packed.load_arrays(file).items()} == {"a": (5,), "b": (2, 3)}
    with packed.open("rb") as file:
        with pytest.raises(ValueError, match=r"its arrays take 33,554,\d+ bytes, more than 1 times"):
            _packed.load_arrays(file)
        assert _packed.load_arrays(file, 10_000)["a"].shape == (1 << 22,)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_a_file_of_ours_has_no_member_that_expands_without_a_limit(tmp_path: Path, method: int) -> None:
    """`zipfile` decompresses all of a piece of such a member, however little was requested."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("x.npy", b"")
    for read in (_packed.open_zip, _packed.load_arrays):
        with (
            (tmp_path / "a.npz").open("rb") as file,
            pytest.raises((ValueError, zipfile.BadZipFile), match=r"'x\.npy' is compressed with a method other than"),
        ):
            read(file)
    with (tmp_path / "a.npz").open("rb") as file:
        assert _packed.open_zip(file, lambda count: None).namelist() == ["x.npy"], "an archive of images may"


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", stream.getvalue() + bytes(100))
    with path.open("rb") as file, pytest.raises(ValueError, match=r"damaged|EOF"):
        _packed.load_arrays(file)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + bytes(40), bytes(100)])
def test_a_file_that_is_not_an_array_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an \.npz file, or a damaged one"):
        _packed.load_arrays(io.BytesIO(content))


def test_an_object_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{}], object))
    with path.open("rb") as file, pytest.raises(ValueError, match="allow_pickle=False"):
        _packed.load_arrays(file)


def test_what_is_read_whole_is_a_file_of_limited_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert _io.read_regular(tmp_path / "file", 3) == b"abc"
    with pytest.raises(OSError, match="more than 2 bytes"):
        _io.read_regular(tmp_path / "file", 2)
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        _io.read_regular(tmp_path / "file", 1000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        _io.read_regular(tmp_path / "pipe", 3)
    (tmp_path / "empty").touch()
    assert _io.read_regular(tmp_path / "empty", 0) == b""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status")
def test_a_file_of_size_0_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("/proc/self/status")
    assert (tmp_path / "link.png").stat().st_size == 0
    with pytest.raises(OSError, match="not a regular file"):
        _io.open_regular(tmp_path / "link.png")


def test_an_array_comes_back_from_its_file(tmp_path: Path) -> None:
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 4)), np.float64(3.0)):
        np.save(tmp_path / "a.npy", array)
        with (tmp_path / "a.npy").open("rb") as file:
            np.testing.assert_array_equal(_packed.load_array(file), array)


def _header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00", b"PK\x03\x04" + bytes(60), _header("(1 << 50,)"),
        _header(f"({1 << 50},)") + bytes(400), _header("(-1,)") + bytes(400), _header("(3,)"), _header("(3,)", "'O'"),
        _header("(" * 3000), _header(f"({'9' * 5000},)"),
    ],
)  # fmt: skip
def test_an_array_larger_than_its_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # NumPy's own message, or ours
        _packed.load_array(io.BytesIO(content))


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
def test_whatever_is_removed_is_gone_and_links_are_not_followed(tmp_path: Path, victim: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    (tmp_path / "link to a folder").symlink_to(tmp_path / "outside")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "link").symlink_to(tmp_path / "outside")
    for name in ("pipe", "link", "link to a folder", "folder", "missing"):
        _io.remove(tmp_path / name)
        assert not os.path.lexists(tmp_path / name)
    assert victim.is_file()
    assert (tmp_path / "outside" / "file").exists()


def test_the_members_of_a_zip_are_counted_before_any_object_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30):
            archive.writestr(str(number), b"x")
    with path.open("rb") as file, _packed.open_zip(file) as archive:
        assert archive.read("29") == b"x"
    monkeypatch.setattr(_packed, "MAX_MEMBERS", 29)
    monkeypatch.setattr(zipfile.ZipInfo, "__init__", lambda *_: pytest.fail("an object was made"))
    with path.open("rb") as file, pytest.raises(zipfile.BadZipFile, match="more than 29 members"):
        _packed.open_zip(file)
    monkeypatch.setattr(_packed, "_MAX_DIRECTORY_BYTES", 1000)
    with path.open("rb") as file, pytest.raises(zipfile.BadZipFile, match=r"its directory has 1,\d\d\d bytes"):
        _packed.open_zip(file)
