"""The pixel cache: reused, rebuilt if damaged, never half written, never in the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from sightline import backend
from sightline.data import cache
from sightline.data.cache import CachedPixels
from sightline.errors import ImageError, OutputError, UsageError
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import draw_pixels as drawn
from synthetic_images import encode_png

pytestmark = pytest.mark.usefixtures("no_thread_left")

SMALL = PreprocessingSpec(8, 8)
COUNT = 70  # more than two chunks
BAD = {5: "truncated", 69: "not an image"}


def hashes(count: int = COUNT, name: str = "image") -> list[str]:
    return [hashlib.sha256(f"{name} {i}".encode()).hexdigest() for i in range(count)]


class Reader:
    """Reads images and records the calls; those in `BAD` are unreadable."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __call__(self, i: int) -> bytes:
        self.reads.append(i)
        if i in BAD:
            raise ImageError(BAD[i])
        return encode_png(i, i % 5)


def build_cache(name: str = "image", **options: Any) -> tuple[CachedPixels, Reader]:
    reader = Reader()
    return cache.load_pixels(hashes(name=name), reader, SMALL, **options), reader


def expected_pixels() -> np.typing.NDArray[np.uint8]:
    rows = [np.zeros((8, 8, 3), np.uint8) if i in BAD else SMALL.decode(encode_png(i, i % 5)) for i in range(COUNT)]
    return np.stack(rows)


def only_cache(folder: Path) -> Path:
    (cache_path,) = folder.iterdir()
    return cache_path


def make_environment() -> dict[str, str]:
    """The environment of a process that can import this file."""
    here = Path(__file__).parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])}


# Found again.


def test_the_second_time_nothing_is_read(own_cache: Path) -> None:
    first, reader = build_cache()
    assert sorted(reader.reads) == list(range(COUNT))
    assert (first.hit, first.failures) == (False, BAD)
    np.testing.assert_array_equal(first.array, expected_pixels())
    second, reader = build_cache()
    assert reader.reads == []
    assert (second.hit, second.failures) == (True, BAD)
    np.testing.assert_array_equal(second.array, expected_pixels())
    assert not second.array.flags.writeable
    assert sorted(p.name for p in only_cache(own_cache).iterdir()) == ["meta.json", "pixels.npy"]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("threads", [1, 4, None])
def test_the_number_of_threads_changes_nothing(threads: int | None) -> None:
    np.testing.assert_array_equal(build_cache(threads=threads)[0].array, expected_pixels())
    assert build_cache(threads=threads)[0].hit


@pytest.mark.usefixtures("own_cache")
def test_arrays_are_brought_to_size_too() -> None:
    def read(i: int) -> np.typing.NDArray[np.uint8]:
        return drawn(i)

    cached = cache.load_pixels(hashes(3), read, SMALL)
    np.testing.assert_array_equal(cached.array, np.stack([SMALL.apply(drawn(i)) for i in range(3)]))


OTHERS = [
    replace(SMALL, height=9),
    replace(SMALL, width=9),
    replace(SMALL, channels=1),
    replace(SMALL, resize="crop"),
    replace(SMALL, interpolation="box"),
]


@pytest.mark.parametrize("other", OTHERS, ids=["height", "width", "channels", "resize", "interpolation"])
def test_the_preprocessing_spec_is_in_the_key(other: PreprocessingSpec) -> None:
    assert cache.cache_key(hashes(), other) != cache.cache_key(hashes(), SMALL)


@pytest.mark.parametrize(
    "other", [hashes()[:-1], hashes()[::-1], [*hashes()[:-1], "0" * 64]], ids=["fewer", "order", "content"]
)
def test_the_contents_in_their_order_are_part_of_the_key(other: Sequence[str]) -> None:
    assert cache.cache_key(other, SMALL) != cache.cache_key(hashes(), SMALL)
    assert cache.cache_key(list(other), SMALL) == cache.cache_key(tuple(other), SMALL)


@pytest.mark.usefixtures("own_cache")
def test_another_contract_leaves_the_first_cache_alone() -> None:
    build_cache()
    assert not cache.load_pixels(hashes(), Reader(), replace(SMALL, height=4)).hit
    assert build_cache()[0].hit


@pytest.mark.usefixtures("own_cache")
def test_progress_reaches_the_total_once() -> None:
    calls: list[tuple[str, int, int]] = []
    build_cache(progress=lambda *call: calls.append(call))
    assert calls == [("decoding", 32, COUNT), ("decoding", 64, COUNT), ("decoding", COUNT, COUNT)]
    calls.clear()
    build_cache(progress=lambda *call: calls.append(call))
    assert calls == []  # there is nothing to wait for


def test_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "SIGHTLINE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert cache.cache_folder() == Path("/home/me/.cache/sightline")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache.cache_folder() == Path("/var/cache/sightline")
    monkeypatch.setenv("SIGHTLINE_CACHE", "~/pixels")
    assert cache.cache_folder() == Path("/home/me/pixels")


@pytest.mark.skipif(sys.platform == "win32", reason="every user has a home folder")
def test_a_user_of_a_container_without_a_home_folder_has_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "SIGHTLINE_CACHE", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    assert cache.cache_folder() == Path("/.cache/sightline")
    assert backend.keras_home() == Path("/.keras")


# Damage.


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


def change_meta(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    changed = change(meta)
    (folder / "meta.json").write_text(json.dumps(meta if changed is None else changed), encoding="utf-8")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "first pixel": lambda f: flip_byte(f / "pixels.npy", 128),
    "middle pixel": lambda f: flip_byte(f / "pixels.npy", 7000),
    "last pixel": lambda f: flip_byte(f / "pixels.npy", -1),
    "truncated": lambda f: os.truncate(f / "pixels.npy", 3000),
    "only a header": lambda f: os.truncate(f / "pixels.npy", 128),
    "empty": lambda f: os.truncate(f / "pixels.npy", 0),
    "no pixels": lambda f: (f / "pixels.npy").unlink(),
    "another array": lambda f: np.save(f / "pixels.npy", np.zeros((COUNT, 8, 8, 1), np.uint8)),
    "another kind": lambda f: np.save(f / "pixels.npy", np.zeros((COUNT, 8, 8, 3), np.int8)),
    "half an archive": lambda f: (f / "pixels.npy").write_bytes(b"PK\3\4" + bytes(200)),
    "no meta": lambda f: (f / "meta.json").unlink(),
    "empty meta": lambda f: os.truncate(f / "meta.json", 0),
    "cut meta": lambda f: os.truncate(f / "meta.json", 100),
    "meta of another kind": lambda f: (f / "meta.json").write_text("[]"),
    "no checks": lambda f: change_meta(f, lambda m: m.pop("checks") and None),
    "fewer checks": lambda f: change_meta(f, lambda m: m["checks"].pop() and None),
    "other shape": lambda f: change_meta(f, lambda m: m | {"shape": [1, 8, 8, 3]}),
    "no failures": lambda f: change_meta(f, lambda m: m.pop("failed") and None),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_noticed_and_built_anew(own_cache: Path, damage: Callable[[Path], Any]) -> None:
    build_cache()
    damage(only_cache(own_cache))
    again, reader = build_cache()
    assert not again.hit
    assert len(reader.reads) == COUNT
    np.testing.assert_array_equal(again.array, expected_pixels())
    assert again.failures == BAD
    assert build_cache()[0].hit


def test_damage_anywhere_in_the_header_is_recovered_from(own_cache: Path) -> None:
    sound = cache.load_pixels(hashes(3), Reader(), SMALL)
    path = only_cache(own_cache) / "pixels.npy"
    whole, meta = path.read_bytes(), (path.parent / "meta.json").read_bytes()
    for at in range(0, 128, 3):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole)
        (path.parent / "meta.json").write_bytes(meta)
        flip_byte(path, at)
        cached = cache.load_pixels(hashes(3), Reader(), SMALL)
        np.testing.assert_array_equal(cached.array, sound.array)


def test_where_there_is_no_cache_none_is_removed_which_another_run_may_create_at_that_moment(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: removed.append(Path(path).name))
    build_cache()
    name = cache.cache_key(hashes(), SMALL)
    assert (own_cache / name).is_dir()
    assert name not in removed


def test_of_a_large_cache_an_even_sample_is_verified(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache()
    path, chunk = only_cache(own_cache) / "pixels.npy", cache.CHUNK_ROWS * 8 * 8 * 3
    monkeypatch.setattr(cache, "VERIFY_BYTES", COUNT * 8 * 8 * 3 // 2)
    flip_byte(path, 128 + chunk)  # the second chunk of three
    assert build_cache()[0].hit
    flip_byte(path, 128 + 2 * chunk)
    assert not build_cache()[0].hit


def test_a_cache_that_cannot_be_marked_as_used_serves_all_the_same(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache()

    def refuse(path: Path) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    assert build_cache()[0].hit
    assert own_cache.is_dir()


# Two at once.

BUILDER = """
import sys, time
from pathlib import Path
from test_cache import Reader, SMALL, hashes
from sightline.data import cache

mine, other, out = map(Path, sys.argv[1:4])

class Waiting(Reader):
    def __call__(self, i):
        mine.touch()
        while not other.exists():  # neither ends before both have begun
            time.sleep(0.01)
        return super().__call__(i)

result = cache.load_pixels(hashes(), Waiting(), SMALL)
out.write_bytes(result.array.tobytes())
print(result.hit, result.failures)
"""


def test_two_processes_may_build_the_same_cache_at_once(own_cache: Path, tmp_path: Path) -> None:
    marks = [tmp_path / "first", tmp_path / "second"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, *order, tmp_path / f"pixels{n}"],
            stdout=subprocess.PIPE,
            text=True,
            env=make_environment(),
        )
        for n, order in enumerate((marks, marks[::-1]))
    ]
    answers = [process.communicate(timeout=60)[0] for process in running]
    assert answers == [f"False {BAD}\n"] * 2
    for n in range(2):
        assert (tmp_path / f"pixels{n}").read_bytes() == expected_pixels().tobytes()
    assert only_cache(own_cache).is_dir()  # one, and nothing beside it
    assert build_cache()[0].hit


# Not kept.


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_without_the_cache_nothing_is_left_behind(own_cache: Path, temporary: Path) -> None:
    decoded, _ = build_cache(keep=False)
    assert list(temporary.iterdir()) == []
    assert not own_cache.exists()
    np.testing.assert_array_equal(decoded.array, expected_pixels())
    again, reader = build_cache(keep=False)
    assert not again.hit
    assert len(reader.reads) == COUNT


def test_without_the_cache_earlier_entries_are_not_used(own_cache: Path, temporary: Path) -> None:
    build_cache()
    assert not build_cache(keep=False)[0].hit
    assert only_cache(own_cache).is_dir()
    assert list(temporary.iterdir()) == []


# No room.


def names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def make_older(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_caches_unused_for_longest_make_room(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: cache.cache_key(hashes(name=name), SMALL) for name in ("old", "older", "used", "new")}
    for seconds, name in ((100, "used"), (50, "older"), (20, "old")):
        build_cache(name)
        make_older(own_cache / keys[name], seconds)
    assert build_cache("used")[0].hit  # now the latest
    one = (own_cache / keys["old"] / "pixels.npy").stat().st_size
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", str(4 * one - 1))
    build_cache("new")
    assert names_in(own_cache) == {keys["old"], keys["used"], keys["new"]}
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", "1")
    assert not build_cache("older")[0].hit  # what does not fit is kept all the same, alone
    assert names_in(own_cache) == {keys["older"]}


def test_pixels_and_downloads_share_the_limit(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache("old")
    old, download = only_cache(own_cache), own_cache / "remote" / ("a" * 64)
    download.mkdir(parents=True)
    (download / "cats.zip").write_bytes(bytes(9999))
    record = own_cache / "remote" / f"{'b' * 64}.json"
    record.write_text("{}", encoding="utf-8")
    make_older(old, 10)
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", "10000")
    cache.make_room(1)
    assert (old.exists(), download.exists()) == (False, True), "the older one has made room"
    build_cache("new")
    assert not download.exists()
    assert record.exists(), "a small file"


def test_room_is_made_of_caches_only(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache("old")
    precious = own_cache / "my features"
    stale, fresh = (own_cache / f"{'a' * 32}.part-{name}" for name in ("stale", "fresh"))
    foreign = own_cache / "film.part-1"
    for folder in (precious, stale, fresh, foreign):
        folder.mkdir()
        (folder / "pixels.npy").write_bytes(bytes(9999))
    for folder in (precious, stale, foreign):
        make_older(folder, 90_000)
    (own_cache / ("b" * 32)).write_text("a file", encoding="utf-8")
    (own_cache / ("c" * 32)).symlink_to(precious)
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", "1")
    build_cache("new")
    names = {"my features", "film.part-1", fresh.name, "b" * 32, "c" * 32, cache.cache_key(hashes(name="new"), SMALL)}
    assert names_in(own_cache) == names
    assert (precious / "pixels.npy").exists()


def test_a_cache_that_is_deleted_meanwhile_is_not_an_error(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache("old")
    going = only_cache(own_cache)
    original = Path.stat

    def stat(self: Path, **options: Any) -> os.stat_result:
        if self == going:  # another run removes it just now
            shutil.rmtree(self, ignore_errors=True)
        return original(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert not build_cache("new")[0].hit


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("text", ["20G", "-1", "1e9", "many"])
def test_a_limit_that_is_not_a_number_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match=f"SIGHTLINE_CACHE_LIMIT is '{text}': expected a number of bytes, such as 2"):
        build_cache()


def test_an_empty_limit_is_none() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGHTLINE_CACHE_LIMIT", "")
        assert cache.size_limit() == 20 << 30


@pytest.mark.parametrize("below", ["", "below"], ids=["a file", "below a file"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(OutputError, match=r"/file.* cannot be written: .*SIGHTLINE_CACHE to another folder\."):
        build_cache()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_without_permission_is_named(own_cache: Path) -> None:
    own_cache.mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"own cache cannot be written: Permission denied\."):
        build_cache()


def raise_disk_full(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("keep", [True, False])
def test_a_full_disk_is_reported_before_anything_is_decoded(
    own_cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", raise_disk_full)
    reader = Reader()
    with pytest.raises(OutputError) as caught:
        cache.load_pixels(hashes(), reader, SMALL, keep=keep)
    message = str(caught.value)
    folder = f"cache folder {own_cache}" if keep else f"temporary folder {temporary}"
    assert message.startswith(f"The {folder} cannot be written: ")
    assert "No space left on device" in message
    assert message.endswith(f"or set {'SIGHTLINE_CACHE' if keep else 'TMPDIR'} to another folder.")
    assert reader.reads == []
    assert names_in(own_cache) == set() if keep else not own_cache.exists()
    assert names_in(temporary) == set()


def test_a_disk_that_fills_up_at_the_end_leaves_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", raise_disk_full)  # of meta.json
    with pytest.raises(OutputError, match="No space left on device"):
        build_cache()
    assert names_in(own_cache) == set()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from test_cache import build_cache
from sightline.errors import OutputError
try:
    build_cache()
except OutputError as error:
    print(error)
"""


def test_a_file_larger_than_allowed_is_an_error_and_no_signal(own_cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False, timeout=60, env=make_environment()
    )
    assert done.stdout.startswith(f"The cache folder {own_cache} cannot be written: File too large.")
    assert done.returncode == 0, done.stderr
    assert names_in(own_cache) == set()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, UsageError, ZeroDivisionError])
@pytest.mark.parametrize("keep", [True, False])
def test_what_is_broken_off_leaves_nothing(
    own_cache: Path, temporary: Path, fault: type[BaseException], keep: bool
) -> None:
    def read(i: int) -> bytes:
        if i == 40:
            raise fault
        return encode_png(i)

    with pytest.raises(fault):
        cache.load_pixels(hashes(), read, SMALL, keep=keep)
    assert names_in(temporary) == set()
    assert not own_cache.exists() or names_in(own_cache) == set()
