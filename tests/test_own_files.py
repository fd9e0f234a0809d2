"""Sightline's own files are always written as new files, and read only if they are regular and within limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from sightline import _io, backend
from sightline.cli.demo import draw_images
from sightline.config import LimitsConfig
from sightline.data import cache, feature_cache, file_records
from sightline.data.checks.leakage import SmallImages
from sightline.data.remote import RemotePath
from sightline.data.remote_folder import open_remote_folder
from sightline.data.staging import stage
from sightline.data.storage import FolderStore
from sightline.errors import OutputError, UsageError
from sightline.inference import embedding_files
from sightline.inference.embeddings import Embeddings
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.access import read_token
from sightline.training import precision
from synthetic_images import encode_png, write_files

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need special rights on Windows, which has no FIFOs")

SPEC = PreprocessingSpec(8, 8)


def write_embeddings(suffix: str, folder: Path) -> None:
    vectors = np.ones((2, 3), np.float32)
    embedding_files.write(
        folder / f"a{suffix}", [Embeddings(vectors, ("a.png", "b.png"), (None, None), (None, None), "fake@a")]
    )


def save_model(folder: Path) -> None:
    keras = backend.keras()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    _io.save_atomic(folder / "model.keras", model.save)


def write_records(folder: Path) -> None:
    _io.save_atomic(folder / "a.sqlite3", lambda path: file_records._write(path, ()))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda folder: _io.write_atomic(folder / "a", b"new"),
    "models": save_model,
    "records of files": write_records,
    "thumbnails": lambda folder: _io.write_atomic(
        folder / "a.npz", SmallImages(("a",), np.zeros((1, 32, 32), np.uint8)).save
    ),
    "images": lambda folder: draw_images(folder, 1, 32),
    **{f"embeddings{suffix}": partial(write_embeddings, suffix) for suffix in embedding_files.SUFFIXES},
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_name_that_was_guessed_is_not_written_through(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user with write access to the folder puts a link where the new file will be."""
    folder, victim = tmp_path / "out", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(b"what must stay")

    def guess(path: Path) -> Path:
        place = path.with_name(f".part-guessed{path.suffix}")
        if not place.is_symlink():
            place.symlink_to(victim)
        return place

    with monkeypatch.context() as patch:
        patch.setattr(_io, "temporary_path", guess)
        with pytest.raises(OutputError, match="cannot be written: File exists"):
            WRITERS[name](folder)
    assert victim.read_bytes() == b"what must stay"
    WRITERS[name](folder)
    assert victim.read_bytes() == b"what must stay"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not name open files")
def test_a_model_is_not_saved_through_a_link_in_place_of_the_new_file(tmp_path: Path) -> None:
    """Another user with write access waits for the new file and replaces it before Keras opens it."""
    folder, victim = tmp_path / "out", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(b"what must stay")
    keras = backend.keras()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    def save(name: Path) -> None:
        (new,) = folder.iterdir()
        new.unlink()
        new.symlink_to(victim)
        model.save(name)
        assert keras.saving.load_model(name).count_params() == 3, "what was saved is in the file that was opened"

    _io.save_atomic(folder / "model.keras", save)
    assert victim.read_bytes() == b"what must stay"


# ---- files that are read: each has a function that returns False if its file cannot be read --------------------------


def build_pixels(_tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    def load() -> bool:
        return cache.load_pixels(["a"], lambda _: encode_png(), SPEC).hit

    load()
    (folder,) = cache.cache_folder().glob("[0-9a-f]*")
    return folder, load


def build_features(_tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    def load() -> bool:
        return feature_cache.load_features("f" * 32) is not None

    feature_cache.save_features("f" * 32, np.ones((2, 3), np.float32))
    return cache.cache_folder() / ("f" * 32), load


def build_records(tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    image = write_files(tmp_path / "images", {"a.png": encode_png()}) / "a.png"

    def load() -> bool:
        records = file_records.FileRecords([image.parent], LimitsConfig())
        watched = records.watch(FolderStore(image.parent), image.name)
        assert watched is not None
        is_known = watched.header is not None
        watched.record(("0" * 64, 4, 4, False, False, None))
        records.save()
        return is_known

    load()
    return cache.cache_folder() / file_records.FOLDER, load


def build_gain(tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    (tmp_path / "gain.json").write_text('{"gain": 1.5}')
    return tmp_path, lambda: precision._load_cached_gain(tmp_path / "gain.json") == 1.5


def build_remote_folder(_tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    source = RemotePath.parse("memory://own-files")

    def load() -> bool:
        folder = open_remote_folder(source, LimitsConfig())
        before = len(downloads)
        assert folder.read("cat/a.png") == encode_png()
        return len(downloads) == before

    load()
    return cache.cache_folder() / "remote", load


def build_staged_file(_tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    def load() -> bool:
        before = len(downloads)
        assert stage(RemotePath.parse("memory://own-files/cat/a.png"), LimitsConfig()).read_bytes() == encode_png()
        return len(downloads) == before

    load()
    return cache.cache_folder() / "remote", load


downloads: list[str] = []


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with an image in memory; `downloads` lists the opened files."""
    client = fsspec.filesystem("memory", use_listings_cache=False)
    client.pipe_file("/own-files/cat/a.png", encode_png())
    original = RemotePath.open_stream

    def record(self: RemotePath) -> Any:
        downloads.append(self.url)
        return original(self)

    monkeypatch.setattr(RemotePath, "open_stream", record)
    monkeypatch.setattr(file_records, "FRESH_NS", 0)  # files that were just written are recorded too
    yield
    client.rm("/own-files", recursive=True)


READ = {
    "pixels.npy": build_pixels, "meta.json": build_pixels, "features.npy": build_features,
    "meta.json of features": build_features, "gain.json": build_gain, "*.files": build_remote_folder,
    "*/a.png": build_remote_folder, "*.json": build_staged_file, "*.sqlite3": build_records,
}  # fmt: skip


@pytest.mark.usefixtures("storage", "own_cache")
@pytest.mark.parametrize("kind", ["fifo", "zeros"])
@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_none_is_made_anew(tmp_path: Path, name: str, kind: str) -> None:
    """A FIFO would hang, and a link to /dev/zero would never end."""
    folder, load = READ[name](tmp_path)
    assert load(), "the file is read"
    for path in [*folder.glob(name.partition(" ")[0])]:
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
    if name == "*.files":
        with pytest.raises(OutputError, match="cannot be written"):
            load()
        return
    assert not load()
    if name not in {"gain.json", "features.npy", "meta.json of features"}:  # these are written again by their users
        assert load(), "it was written again"


@pytest.mark.usefixtures("storage", "own_cache")
def test_a_record_is_not_appended_to_through_a_link(tmp_path: Path) -> None:
    folder, load = build_remote_folder(tmp_path)
    (record,) = folder.glob("*.files")
    (tmp_path / "victim").write_bytes(b"what must stay\n")
    record.unlink()
    record.symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="cannot be written"):
        load()
    assert (tmp_path / "victim").read_bytes() == b"what must stay\n"


@pytest.mark.usefixtures("own_cache")
def test_rows_that_were_begun_are_not_continued_through_a_link(tmp_path: Path) -> None:
    partial = cache.cache_folder() / f"{'e' * 32}.part-begun"
    partial.mkdir(parents=True)
    (tmp_path / "victim").write_bytes(b"what must stay")
    (partial / "rows").symlink_to(tmp_path / "victim")
    with feature_cache.resumable_features("e" * 32, np.zeros((4, 2), np.float32)) as (done, store):
        store(0, 2)
    assert (done, (tmp_path / "victim").read_bytes()) == (0, b"what must stay")


def test_a_token_is_read_from_a_file_and_nothing_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match=f"The token file {path} cannot be read: not a regular file"):
            read_token(path)
    (tmp_path / "real").write_text("a-token\n")
    (tmp_path / "link").symlink_to("real")  # like mounted secrets
    assert read_token(tmp_path / "link") == "a-token"
