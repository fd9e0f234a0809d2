"""Images behind addresses: memory:// in quick tests; a server of S3 and one of HTTP on loopback in slow ones."""

from __future__ import annotations

import errno
import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry, known_implementations
from PIL import Image

from packed_images import make_table, write_table, write_tar
from pixel_predictor import PixelPredictor
from s3_server import start_bucket
from sightline import process
from sightline.api.classifier import Classifier
from sightline.config import LimitsConfig, SplitConfig
from sightline.data import containers, remote, staging, storage
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.data.remote import RemotePath
from sightline.data.staging import stage
from sightline.errors import DataError, ImageError, MissingExtraError, OutputError, SightlineError, UsageError
from sightline.inference import outages, stream
from sightline.inference.inputs import expand_inputs
from sightline.inference.masks import predict_masks
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode

LIMITS = LimitsConfig()
SPEC = PreprocessingSpec(4, 4)
IMAGES = [encode(Image.new("RGB", (6, 5), (40 * i, 0, 0))) for i in range(5)]
NAMES = ["a-b/2.png", "a/1.png", "a/b/3.png", "a/notes.txt", "a.png", "a/.hidden.png"]
IN_ORDER = ["a-b/2.png", "a.png", "a/1.png", "a/b/3.png"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were opened, in order."""
    urls: list[str] = []
    original = RemotePath.open_stream

    def record(self: RemotePath) -> Any:
        urls.append(self.url)
        return original(self)

    monkeypatch.setattr(RemotePath, "open_stream", record)
    return urls


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty storage in memory."""
    client = fsspec.filesystem("memory", use_listings_cache=False)
    client.store.clear()
    yield client
    client.store.clear()
    client.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0)


def fill(client: Any, root: str) -> None:
    for i, name in enumerate(NAMES):
        client.pipe_file(f"{root}/{name}", IMAGES[i % 5])


def test_a_folder_is_listed_in_the_order_of_paths(memory: Any) -> None:
    fill(memory, "/bucket/photos")
    for url in ("memory://bucket/photos", "memory://bucket/photos/"):
        items = list(expand_inputs([url]))
        assert [item.path for item in items] == [f"memory://bucket/photos/{name}" for name in IN_ORDER]
        assert [item.read() for item in items] == [IMAGES[NAMES.index(name)] for name in IN_ORDER]


def test_predictions_that_are_written_among_images_are_not_listed(memory: Any) -> None:
    fill(memory, "/b")
    items = expand_inputs(["memory://b"])
    paths = [next(items).path]
    for name in ("_predictions.json", "part-00000000.parquet"):
        memory.pipe_file(f"/b/a/p.parquet/{name}", b"PAR1")
    paths += [item.path for item in items]
    assert paths == [f"memory://b/{name}" for name in IN_ORDER]


def test_a_range_of_archives(memory: Any, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"1.png": IMAGES[0]}).read_bytes()
    for number in range(3):
        memory.pipe_file(f"/b/{number:02}.tar", archive)
    paths = [item.path for item in expand_inputs(["memory://b/{00..02}.tar"])]
    assert paths == [f"memory://b/{number:02}.tar/1.png" for number in range(3)]
    memory.pipe_file("/b/7.png", IMAGES[0])
    assert [item.path for item in expand_inputs(["memory://b/{7..7}.png"])] == ["memory://b/7.png"]
    with pytest.raises(DataError, match="nothing at memory://b/03"):
        list(expand_inputs(["memory://b/{02..03}.tar"]))


def test_predictions_are_those_of_the_files(memory: Any, tmp_path: Path) -> None:
    fill(memory, "/b")
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(memory.cat_file(f"/b/{name}"))
    predictor = FakePredictor(("dark", "bright"), PreprocessingSpec(4, 4))
    local = stream.predict(predictor, (i for i in expand_inputs([tmp_path]) if not i.path.endswith(".txt")))
    distant = list(stream.predict(predictor, expand_inputs(["memory://b"])))
    assert [(p.label, p.top) for p in distant] == [(p.label, p.top) for p in local]
    assert len(distant) == 4


@pytest.mark.parametrize("task", ["predict", "embed", "predict_masks"])
def test_images_at_an_address_are_awaited_together(memory: Any, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    fill(memory, "/b")
    together = threading.Barrier(4)  # as many images as there are
    read = RemotePath.read

    def wait(self: RemotePath, *arguments: Any) -> bytes:
        together.wait(10)
        return read(self, *arguments)

    monkeypatch.setattr(RemotePath, "read", wait)
    monkeypatch.setattr(process, "count_cores", lambda: 1)
    items = expand_inputs(["memory://b"])
    predictor = FakePredictor(("dark", "bright"), PreprocessingSpec(4, 4))
    if task == "predict":
        assert [one.error for one in stream.predict(predictor, items)] == [None] * 4
    elif task == "embed":
        assert [len(batch.paths) for batch in stream.embed(predictor, items, "fake")] == [4]
    else:
        assert [one.error for one in predict_masks(PixelPredictor(PreprocessingSpec(16, 24)), items)] == [None] * 4


def test_a_missing_file_is_a_row_and_a_missing_folder_an_error(memory: Any) -> None:
    (item,) = expand_inputs(["memory://b/gone.png"])
    with pytest.raises(ImageError, match="No such file"):
        item.read()
    with pytest.raises(DataError, match="There is nothing at memory://b/gone"):
        list(expand_inputs(["memory://b/gone"]))
    memory.pipe_file("/b/empty/notes.txt", b"")
    with pytest.raises(DataError, match="contains no images"):
        list(expand_inputs(["memory://b/empty"]))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/a.png",
        "simplecache::memory://b/a.png",
        "memory://b::file:///etc",
        "github://a",
    ],
)
def test_other_kinds_of_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="addresses begin with s3://"):
        RemotePath.parse(url)


def test_a_failure_of_the_network_is_tried_again_and_then_a_row_or_the_end(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, "/b")
    calls = 0
    original = type(memory).open

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < failures:
            raise ConnectionError("reset by peer")
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(memory), "open", fail)
    failures = 5
    assert RemotePath.parse("memory://b/a.png").read(LIMITS) == IMAGES[4]
    assert calls == 5
    failures = 1000
    sentence = "cannot be fetched: reset by peer (5 attempts)"
    items = list(expand_inputs(["memory://b"]))
    predictor, masks = FakePredictor(("dark", "bright"), SPEC), PixelPredictor(PreprocessingSpec(16, 24))
    jobs: dict[str, Callable[[], Any]] = {
        "predict": lambda: [one.error for one in stream.predict(predictor, items)],
        "embed": lambda: [error for batch in stream.embed(predictor, items, "fake") for error in batch.errors],
        "masks": lambda: [one.error for one in predict_masks(masks, items)],
        "tiles": lambda: [one.error for one in predict_masks(masks, items, tile=1.0)],
    }
    assert {name: job() for name, job in jobs.items()} == dict.fromkeys(jobs, [sentence] * 4)
    monkeypatch.setattr(outages, "MAX_NOT_FETCHED", 4)
    for job in jobs.values():
        with pytest.raises(
            DataError, match=r"4 images in a row, from memory://b/a-b/2.png on, cannot be fetched: reset"
        ):
            job()
    with pytest.raises(DataError, match=r"after 5 attempts: reset by peer.*run the same command again"):
        build_index("memory://b")  # training leaves no image out


class HttpResponseError(Exception):
    """An error of Azure's client, with its own name for the status."""

    status_code = 403


class HttpError(Exception):
    """An error of Google's client."""

    code = 401


class ClientAuthenticationError(Exception):
    """The error of Azure's client without credentials."""


class ResourceNotFoundError(Exception):
    """The error of Azure's client for a missing container."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            HttpResponseError("The signature is wrong."),
            "may not be read: The signature is wrong. Check the credentials.",
        ),
        (HttpError("Invalid token, 401"), "may not be read: Invalid token, 401. Check the credentials."),
        (OSError("Forbidden: b/o\nno access"), "may not be read: Forbidden: b/o. Check the credentials."),
        (ClientAuthenticationError("no token"), "may not be read: no token. Check the credentials."),
        (ResourceNotFoundError("no container"), "There is nothing at memory://b. Check the address."),
    ],
)
def test_what_no_further_attempt_changes_is_said_at_once(
    error: Exception, sentence: str, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(_: Any, path: str) -> None:
        calls.append(path)
        raise error

    monkeypatch.setattr(type(memory), "info", fail)
    with pytest.raises(DataError) as raised:
        RemotePath.parse("memory://b").describe()
    assert str(raised.value).endswith(sentence)
    assert len(calls) == 1


def test_a_client_that_takes_long_over_an_attempt_gets_fewer(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0

    def wait(*_: Any) -> None:
        nonlocal seconds
        seconds += 0.7 * remote.PATIENCE
        raise TimeoutError("no answer")

    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: seconds, sleep=lambda _: None))
    monkeypatch.setattr(type(memory), "info", wait)
    with pytest.raises(DataError, match=r"cannot be read after 2 attempts: no answer\. Check the connection"):
        RemotePath.parse("memory://b").describe()


def test_a_client_that_cannot_be_opened_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **options: Any) -> None:
        raise ValueError("no account_name!!")

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(DataError, match=r"^memory://b cannot be opened: no account_name\. Check the credentials\.$"):
        RemotePath.parse("memory://b")


def test_the_limit_of_a_file_holds_whatever_the_storage_states(memory: Any) -> None:
    memory.pipe_file("/b/a.png", bytes(1 << 20))
    with pytest.raises(ImageError, match=r"data\.limits\.file_mb"):
        RemotePath.parse("memory://b/a.png").read(LimitsConfig(file_mb=0.5))


@pytest.mark.usefixtures("own_cache")
def test_an_archive_is_staged_once_and_again_when_it_changes(
    memory: Any, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_tar(tmp_path / "a.tar", {f"cat/{i}.png": image for i, image in enumerate(IMAGES)})
    opened: list[str] = []
    original = type(memory).open

    def record(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        opened.append(path)
        return original(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "open", record)
    for path in ("/b/a.tar", "/b/copy/a.tar"):
        memory.pipe_file(path, archive.read_bytes())
    opened.clear()
    for _ in range(2):
        items = list(expand_inputs(["memory://b/a.tar"]))
        assert [item.path for item in items] == [f"memory://b/a.tar/cat/{i}.png" for i in range(5)]
        assert items[3].read() == IMAGES[3]
    assert len(opened) == 1
    first = stage(RemotePath.parse("memory://b/a.tar"), LIMITS)
    assert stage(RemotePath.parse("memory://b/copy/a.tar"), LIMITS) == first, "the content is stored once"
    memory.pipe_file("/b/a.tar", write_tar(archive, {"dog/1.png": IMAGES[0]}).read_bytes())
    assert [item.path for item in expand_inputs(["memory://b/a.tar"])] == ["memory://b/a.tar/dog/1.png"]
    assert not list((own_cache / "remote").glob("download*"))
    memory.pipe_file("/b/large.tar", bytes(5000))
    with pytest.raises(DataError, match=r"data\.limits\.archive_gb"):
        stage(RemotePath.parse("memory://b/large.tar"), LimitsConfig(archive_gb=1e-6))
    assert not list((own_cache / "remote").glob("download*"))


@pytest.mark.usefixtures("own_cache")
def test_the_next_archive_is_downloaded_while_one_is_read(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        memory.pipe_file(f"/b/{number}.tar", write_tar(tmp_path / "a.tar", {"0.png": IMAGES[number]}).read_bytes())
    started = [threading.Event() for _ in range(3)]

    def record(source: RemotePath, *arguments: Any) -> Path:
        started[int(source.path[-5])].set()
        return stage(source, *arguments)

    monkeypatch.setattr(containers, "stage", record)
    items = expand_inputs(["memory://b"])
    assert next(items).read() == IMAGES[0]
    assert started[1].wait(30), "while the first one is read"
    assert not started[2].is_set()
    assert [item.read() for item in items] == [IMAGES[1], IMAGES[2]]


def test_staged_files_make_room_for_new_ones(memory: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", "2500")
    for i in range(4):
        memory.pipe_file(f"/b/{i}.zip", bytes([i]) * 1000)
        stage(RemotePath.parse(f"memory://b/{i}.zip"), LIMITS)
    assert len(list((own_cache / "remote").glob("*/*.zip"))) == 2
    memory.pipe_file("/b/large.zip", bytes(2500))
    with pytest.raises(DataError, match=r"data\.limits\.archive_gb"):
        stage(RemotePath.parse("memory://b/large.zip"), LimitsConfig(archive_gb=2000 / 2**30))
    assert len(list((own_cache / "remote").glob("*/*.zip"))) == 2, "a refused file takes no room of others"
    assert stage(RemotePath.parse("memory://b/0.zip"), LIMITS).read_bytes() == bytes(1000), "it is downloaded again"
    abandoned, current = own_cache / "remote" / "download1-2", own_cache / "remote" / "download3-4"
    for path in (abandoned, current):
        path.write_bytes(bytes(1000))
    os.utime(abandoned, (0, 0))
    stage(RemotePath.parse("memory://b/1.zip"), LIMITS)
    assert not abandoned.exists(), "a killed process left it"
    assert current.exists(), "another process may be writing it"
    assert len(list((own_cache / "remote").glob("*/*.zip"))) == 1


@pytest.mark.usefixtures("own_cache")
def test_a_new_signature_of_an_address_does_not_stage_again(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/b/a.zip", b"content")
    signatures = iter(range(9))
    info = type(memory).info
    monkeypatch.setattr(type(memory), "info", lambda *a, **k: info(*a, **k) | {"url": f"?signature={next(signatures)}"})
    first = stage(RemotePath.parse("memory://b/a.zip"), LIMITS)
    monkeypatch.setattr(RemotePath, "open_stream", None)  # another download would fail
    assert stage(RemotePath.parse("memory://b/a.zip"), LIMITS) == first


@pytest.mark.parametrize("full", [False, True])
def test_a_cache_that_cannot_be_written_is_reported_at_once(
    memory: Any, own_cache: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    memory.pipe_file("/b/a.zip", b"content")
    if full:
        monkeypatch.setattr(staging, "_write_all", fill_disk)
    else:
        own_cache.write_bytes(b"a file")
    with pytest.raises(OutputError, match=r"The cache folder .* cannot be written: .*SIGHTLINE_CACHE"):
        stage(RemotePath.parse("memory://b/a.zip"), LIMITS)
    assert len(opened) == full, "it is not tried again"
    assert not full or not list((own_cache / "remote").iterdir())


def fill_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("url", ["https://user:secret@host/a.zip", "HTTP://secret@host", "http://u:secret@h::file:///"])
def test_a_password_in_an_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UsageError, match="password") as caught:
        RemotePath.parse(url)
    assert "secret" not in str(caught.value)


def test_signatures_and_passwords_are_hidden_in_messages(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://b/1.png?X-Amz-Security-Token=s3cret&X-Amz-Expires=60&X-Amz-Signature=s3cret"
    memory.pipe_file(url.removeprefix("memory:/"), IMAGES[0])

    def refuse(self: Any, path: str, *_: Any, **__: Any) -> Any:
        raise PermissionError(f"403, message='Forbidden', url='http:/{path}'")

    monkeypatch.setattr(type(memory), "open", refuse)
    path = RemotePath.parse(url)
    sentences = []
    for call in (
        lambda: path.read(LIMITS),
        lambda: path.download(LIMITS),
        lambda: stage(path, LIMITS),
        lambda: stage(path, LimitsConfig(archive_gb=1e-9)),
        lambda: RemotePath.parse(url.replace("/1", "/2")).describe(),
        lambda: RemotePath.parse("ftp://me:s3cret@host/1.png"),
        lambda: build_index(url),
        lambda: [*expand_inputs([url.replace("/1", "/2")])],
    ):
        with pytest.raises(SightlineError) as caught:
            call()
        sentences.append(str(caught.value))
    assert not [text for text in sentences if "s3cret" in text]
    assert sentences[1].startswith(
        "memory://b/1.png?X-Amz-Security-Token=***&X-Amz-Expires=60&X-Amz-Signature=*** may not be read: 403,"
    )


def test_a_key_may_hold_what_an_address_may_not(memory: Any) -> None:
    memory.pipe_file("/b/a::b.png", IMAGES[1])
    (item,) = expand_inputs(["memory://b"])
    assert (item.path, item.read()) == ("memory://b/a::b.png", IMAGES[1])


@pytest.mark.usefixtures("own_cache")
def test_labeled_images_at_an_address(memory: Any, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", make_table(IMAGES[:4], ("cat", "dog"), label=[0, 1, 0, 1]))
    memory.pipe_file("/b/t.parquet", table.read_bytes())
    index = build_index("memory://b/t.parquet")
    assert [(image.path, image.label) for image in index.images] == [
        (f"row-{i}", label) for i, label in enumerate(["cat", "dog"] * 2)
    ]
    memory.pipe_file("/b/notes.txt", b"")
    with pytest.raises(DataError, match="expected a folder of class folders"):
        build_index("memory://b/notes.txt")


@pytest.mark.usefixtures("own_cache")
def test_a_fault_of_a_table_names_its_address_not_its_copy(memory: Any, tmp_path: Path) -> None:
    """This holds for single tables and folders of tables, in training and prediction."""
    table = write_table(tmp_path / "t.parquet", make_table(IMAGES[:2], ("cat", "dog"), label=[0, 1]))
    memory.pipe_file("/b/damaged.parquet", b"PAR1")
    memory.pipe_file("/b/d/train/damaged.parquet", b"PAR1")
    memory.pipe_file("/b/d/train/a.parquet", table.read_bytes())
    memory.pipe_file("/b/damaged.zip", b"PK")
    for source, file in (("damaged.parquet",) * 2, ("d", "d/train/damaged.parquet"), ("damaged.zip",) * 2):
        for read in (build_index, lambda source: list(expand_inputs([source]))):
            with pytest.raises(DataError, match=f"^memory://b/{file} is not a readable ") as caught:
                read(f"memory://b/{source}")
            assert "remote" not in str(caught.value)


@pytest.mark.usefixtures("own_cache")
def test_a_range_may_be_of_tables_that_are_folders(memory: Any, tmp_path: Path) -> None:
    for name in ("0.parquet/part-0.parquet", "0.parquet/part-1.parquet", "1.parquet/part-0.parquet", "f2.parquet"):
        path = write_table(tmp_path / name.replace("/", "-"), make_table(IMAGES[:1], ("cat", "dog"), label=[0]))
        memory.pipe_file(f"/b/{name}", path.read_bytes())
    paths = [item.path for item in expand_inputs(["memory://b/{0..1}.parquet"])]
    assert paths == [
        f"memory://b/{name}/row-0"
        for name in ("0.parquet/part-0.parquet", "0.parquet/part-1.parquet", "1.parquet/part-0.parquet")
    ]
    assert [item.path for item in expand_inputs(["memory://b/f{2..2}.parquet"])] == ["memory://b/f2.parquet/row-0"]


@pytest.mark.usefixtures("own_cache")
def test_a_folder_of_tables_at_an_address_is_read_as_one_on_disk(
    memory: Any, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("test/c.parquet", "train/a.parquet", "train/b.parquet")):
        labels = [i % 2 for i in range(4)]
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        images = [encode(Image.new("RGB", (6, 5), (10 * i, number, 0))) for i in range(4)]
        path = write_table(tmp_path / "d" / name, make_table(images, ("cat", "dog"), label=labels))
        memory.pipe_file(f"/b/d/{name}", path.read_bytes())
    memory.pipe_file("/b/d/README.md", b"")
    memory.pipe_file("/b/d/.hidden.parquet", b"")
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", "1")  # each table makes room for the next one
    local, distant = build_index(tmp_path / "d"), build_index("memory://b/d")
    assert distant.images == local.images
    assert {(image.label, image.split) for image in distant.images} == {
        (label, split) for label in ("cat", "dog") for split in ("train", "test")
    }
    assert [distant.read(i) for i in range(12)] == [local.read(i) for i in range(12)]
    assert opened == [f"memory://b/d/{name}" for name in ("test/c.parquet", "train/a.parquet", "train/b.parquet")]


@pytest.mark.usefixtures("own_cache")
def test_a_table_may_be_a_folder_of_parts_some_of_them_empty(memory: Any, tmp_path: Path) -> None:
    """As Spark and Dask write them."""
    table = make_table(IMAGES[:4], ("cat", "dog"), label=[0, 1, 0, 1])
    for number, rows in enumerate((table.slice(0, 0), table.slice(0, 3), table.slice(3))):
        (tmp_path / "x.parquet").mkdir(exist_ok=True)
        write_table(tmp_path / f"x.parquet/part-{number:05}.snappy.parquet", rows)
    (tmp_path / "x.parquet/_SUCCESS").write_bytes(b"")
    (tmp_path / "x.parquet/.part-00001.snappy.parquet.crc").write_bytes(b"crc")
    memory.put(f"{tmp_path}/x.parquet", "/b/", recursive=True)
    for source in (f"{tmp_path}/x.parquet", "memory://b/x.parquet", "memory://b/x.parquet/"):
        paths = [
            f"{source.rstrip('/')}/part-{number:05}.snappy.parquet/row-{row}"
            for number, row in ((1, 0), (1, 1), (1, 2), (2, 0))
        ]
        items = list(expand_inputs([source]))
        assert [item.path for item in items] == paths
        assert [item.read() for item in items] == IMAGES[:4]
        assert [image.label for image in build_index(source).images] == ["cat", "dog", "cat", "dog"]
    for path in (tmp_path / "x.parquet").glob("part-0000[12]*"):
        path.unlink()
    with pytest.raises(DataError, match=r"The folder .*x\.parquet contains no images"):
        list(expand_inputs([tmp_path / "x.parquet"]))
    with pytest.raises(DataError, match=r"No images in .*x\.parquet"):
        build_index(tmp_path / "x.parquet")


@pytest.mark.usefixtures("own_cache")
def test_a_folder_of_archives_is_one_source_on_disk_and_at_an_address(
    memory: Any, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"val/0.tar": (0, 1), "train/1.tar": (2, 3, 0), "train/0.tar": (4, 1)}
    for name, numbers in shards.items():
        samples = [((f"{i}.png", IMAGES[i]), (f"{i}.cls", ("cat", "dog")[i % 2].encode())) for i in numbers]
        write_tar(tmp_path / "d" / name, dict(file for sample in samples for file in sample))
    write_tar(tmp_path / "d/train/folders.tgz", {"cat/9.png": IMAGES[0], "dog/9.png": b"broken"}, "w:gz")
    (tmp_path / "d/sizes.json").write_text("{}")
    memory.put(f"{tmp_path}/d", "/b/", recursive=True)
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", "1")  # each archive makes room for the next one
    local, distant = build_index(tmp_path / "d"), build_index("memory://b/d")
    assert distant.images == local.images
    assert [(image.path, image.label, image.split) for image in local.images] == [
        ("train/0.tar/1.png", "dog", "train"), ("train/0.tar/4.png", "cat", "train"),
        ("train/1.tar/0.png", "cat", "train"), ("train/1.tar/2.png", "cat", "train"),
        ("train/1.tar/3.png", "dog", "train"), ("train/folders.tgz/cat/9.png", "cat", "train"),
        ("val/0.tar/0.png", "cat", "validation"), ("val/0.tar/1.png", "dog", "validation"),
    ]  # fmt: skip
    assert [image.path for image in local.unreadable] == ["train/folders.tgz/dog/9.png"]
    assert local.empty_classes == ()
    assert [distant.read(i) for i in range(8)] == [local.read(i) for i in range(8)]
    assert len(opened) == 4, "each archive is downloaded once"
    memory.pipe_file("/b/d/val/2.tar", b"no archive")
    with pytest.raises(DataError, match=r"2\.tar is not a readable tar archive"):
        build_index("memory://b/d")


@pytest.mark.usefixtures("own_cache")
def test_the_class_folders_of_an_address_are_labels(memory: Any, own_cache: Path, opened: list[str]) -> None:
    for i, image in enumerate(IMAGES[:4]):
        memory.pipe_file(f"/b/photos/train/{('cat', 'dog')[i % 2]}/{i}.png", image)
    memory.pipe_file("/b/photos/test/cat/9.png", IMAGES[4])
    memory.pipe_file("/b/photos/train/cat/broken.png", b"no image")
    index = build_index("memory://b/photos/")
    assert {image.path: (image.label, image.split) for image in index.images} == {
        "test/cat/9.png": ("cat", "test"),
        **{f"train/{('cat', 'dog')[i % 2]}/{i}.png": (("cat", "dog")[i % 2], "train") for i in range(4)},
    }
    assert [index.read(i) for i in range(5)] == [IMAGES[4], *IMAGES[0:4:2], *IMAGES[1:4:2]]
    assert [file.path for file in index.unreadable] == ["train/cat/broken.png"]
    assert sorted(opened) == sorted({*opened}), "each file is downloaded once"
    assert len(opened) == 6
    again = build_index("memory://b/photos")
    assert [image.sha256 for image in again.images] == [image.sha256 for image in index.images]
    assert opened[6:] == ["memory://b/photos/train/cat/broken.png"], "what was refused by its header is not kept"
    memory.pipe_file("/b/photos/train/dog/1.png", IMAGES[0])
    changed = build_index("memory://b/photos")
    assert "memory://b/photos/train/dog/1.png" in opened[7:]
    assert changed.read(3) == IMAGES[0]
    shutil.rmtree(own_cache / "remote")
    assert changed.read(3) == IMAGES[0], "downloaded again if the copy had to make room"


@pytest.mark.usefixtures("own_cache")
def test_images_of_an_address_are_downloaded_once_where_their_pixels_need_the_room(
    memory: Any, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [encode(Image.new("RGB", (64, 64), (20 * i, 0, 0))) for i in range(8)]
    for i, image in enumerate(images):
        memory.pipe_file(f"/b/{('cat', 'dog')[i % 2]}/{i}.png", image)
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", str(sum(map(len, images))))
    dataset = build_dataset(build_index("memory://b"), PreprocessingSpec(64, 64), SplitConfig(), 0)
    assert (len(dataset.images), len(opened)) == (8, 8)


def test_files_of_an_address_that_made_room_are_given_it_again(
    memory: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        for i, image in enumerate(IMAGES[:4]):
            memory.pipe_file(f"/b/{name}/{('cat', 'dog')[i % 2]}/{i}.png", image + name.encode())
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", str(4 * len(IMAGES[0]) + 100))
    for name in ("old", "new", "old"):
        build_index(f"memory://b/{name}")
        size = sum(file.stat().st_size for file in (own_cache / "remote").glob("*/*"))
        assert size <= 4 * len(IMAGES[0]) + 100


@pytest.mark.usefixtures("own_cache")
def test_a_table_in_a_folder_of_an_address_has_the_labels(memory: Any) -> None:
    for i, image in enumerate(IMAGES[:4]):
        memory.pipe_file(f"/b/{i}.png", image)
    memory.pipe_file("/b/labels.csv", b"path,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n")
    assert [image.label for image in build_index("memory://b").images] == ["a", "b", "a", "b"]


# Servers on loopback.


STAND_IN = """
import contextlib
import types

import fsspec.asyn
from fsspec.implementations.memory import MemoryFileSystem

class {name}(MemoryFileSystem):
    protocol = ("{kind}", "{alias}")
    store, pseudo_dirs = {{}}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        for kind in cls.protocol:
            path = path.removeprefix(kind + "://")
        return super()._strip_protocol(path)

    def call(self, method, path, bucket, *, json_out, prefix, delimiter, pageToken="0"):
        "Google's `objects.list`, two entries a page."
        assert (method, path, json_out, delimiter) == ("GET", "b/{{}}/o", True, "/")
        below = [name.removeprefix("/" + bucket + "/") for name in self.store]
        below = [name.removeprefix(prefix) for name in below if name.startswith(prefix)]
        entries = sorted({{name.partition("/")[0] + "/" * ("/" in name) for name in below}})
        page = [prefix + name for name in entries[int(pageToken) :][:2]]
        end = int(pageToken) + 2
        return {{
            "kind": "storage#objects",
            "items": [dict(name=name) for name in page if not name.endswith("/")],
            "prefixes": [name for name in page if name.endswith("/")],
            **(dict(nextPageToken=str(end)) if end < len(entries) else {{}}),
        }}

    loop, service_client = fsspec.asyn.get_loop(), property(lambda self: self)

    @contextlib.asynccontextmanager
    async def get_container_client(self, container):
        "Azure's `walk_blobs`, two entries a page, in no order; an object of no bytes stands for each folder."
        names = sorted(name.removeprefix("/" + container + "/") for name in self.store)

        def walk_blobs(name_starts_with, include, delimiter):
            assert (include, delimiter) == (["metadata"], "/")
            below = [name.removeprefix(name_starts_with) for name in names if name.startswith(name_starts_with)]
            folders = {{name.partition("/")[0] for name in below if "/" in name}}
            blobs = [(name, None) for name in below if "/" not in name]
            blobs += [(name, {{"Hdi_isfolder": "true"}}) for name in folders] + [(name + "/", None) for name in folders]
            blobs.reverse()
            pages = [blobs[at : at + 2] for at in range(0, len(blobs), 2)]
            blob = lambda name, metadata: types.SimpleNamespace(name=name_starts_with + name, metadata=metadata)

            class Pages:
                def __init__(self, token):
                    self.continuation_token, self.at = token, int(token or 0)

                async def __anext__(self):
                    async def iterate(page):
                        for entry in page:
                            yield blob(*entry)

                    self.continuation_token = str(self.at + 1) if self.at + 1 < len(pages) else None
                    return iterate(pages[self.at] if pages else [])

            return types.SimpleNamespace(by_page=Pages)

        yield types.SimpleNamespace(walk_blobs=walk_blobs)
"""


@pytest.mark.parametrize("kind", sorted(remote.PACKAGES))
def test_the_package_that_an_address_needs_is_the_one_that_fsspec_opens_it_with(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = remote.PACKAGES[kind]
    if package not in {"aiohttp", "fsspec"}:  # others are in fsspec itself
        assert known_implementations[kind]["class"].partition(".")[0] == package
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    sentence = rf"Reading {kind}:// needs the package '{package}', which is not installed: .*\.\[remote\]"
    with pytest.raises(MissingExtraError, match=sentence):
        RemotePath.parse(f"{kind}://bucket/photos")


@pytest.mark.parametrize(
    ("package", "name", "kind", "alias"),
    [("gcsfs", "GCSFileSystem", "gs", "gcs"), ("adlfs", "AzureBlobFileSystem", "az", "abfs")],
)
@pytest.mark.usefixtures("own_cache")
def test_other_storages_are_read_and_written_by_the_classes_that_fsspec_names(
    package: str, name: str, kind: str, alias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class has the package's name and keeps files in memory: what is ours is tested, not how clouds answer."""
    (tmp_path / f"{package}.py").write_text(STAND_IN.format(name=name, kind=kind, alias=alias))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    for scheme in (kind, alias):
        monkeypatch.delitem(_registry, scheme, raising=False)
    try:
        for scheme in (kind, alias):
            client = RemotePath.parse(f"{scheme}://bucket").client
            assert type(client).__name__ == name
            fill(client, "/bucket/photos")
            with monkeypatch.context() as only_pages:
                only_pages.setattr(type(client), "ls", None)  # which holds a whole folder
                items = list(expand_inputs([f"{scheme}://bucket/photos"]))
            assert [item.path for item in items] == [f"{scheme}://bucket/photos/{path}" for path in IN_ORDER]
            predictor = FakePredictor(("dark", "bright"), PreprocessingSpec(4, 4))
            assert all(p.error is None for p in stream.predict(predictor, items))
            for i, image in enumerate(IMAGES):
                client.pipe_file(f"/bucket/train/{'ab'[i % 2]}/{i}.png", image)
            index = build_index(f"{scheme}://bucket/train/")
            assert [image.label for image in index.images] == ["a", "a", "a", "b", "b"]
            classifier = Classifier(predictor)
            classifier.feature_model_id = "shades@0"
            result = classifier.write_predictions(
                f"{scheme}://bucket/photos", f"{scheme}://bucket/{scheme}.parquet", progress=False
            )
            assert (result.images, result.failed, result.is_complete) == (4, 0, True)
    finally:
        for key in (kind, alias):
            _registry.pop(key, None)
        sys.modules.pop(package, None)


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_a_bucket_of_s3(tmp_path: Path) -> None:
    with start_bucket() as client:
        fill(client, "bucket/photos")
        items = list(expand_inputs(["s3://bucket/photos"]))
        assert [item.path for item in items] == [f"s3://bucket/photos/{name}" for name in IN_ORDER]
        predictor = FakePredictor(("dark", "bright"), PreprocessingSpec(4, 4))
        assert all(p.error is None for p in stream.predict(predictor, items))
        archive = write_tar(tmp_path / "a.tar", {f"cat/{i}.png": image for i, image in enumerate(IMAGES)})
        client.put_file(str(archive), "bucket/a.tar")
        assert len(build_index("s3://bucket/a.tar").images) == 5
        for i, image in enumerate(IMAGES):
            client.pipe_file(f"bucket/train/{'ab'[i % 2]}/{i}.png", image)
        for _ in range(2):  # the second time, from the cache
            index = build_index("s3://bucket/train/")
            assert [image.label for image in index.images] == ["a", "a", "a", "b", "b"]
            assert index.read(3) == IMAGES[1]
        with pytest.raises(DataError, match="There is nothing at s3://bucket/gone"):
            list(expand_inputs(["s3://bucket/gone"]))
        table = write_table(tmp_path / "t.parquet", make_table(IMAGES, ("cat", "dog"), label=[0, 1, 0, 1, 0]))
        client.put_file(str(table), "bucket/t.parquet/part-0.parquet")
        assert len(build_index("s3://bucket/t.parquet").images) == 5
        assert len(list(expand_inputs(["s3://bucket/t.parquet"]))) == 5
        client.call_s3("put_object", Bucket="bucket", Key="photos/b.png", Body=IMAGES[0], StorageClass="GLACIER")
        errors = [one.error for one in stream.predict(predictor, expand_inputs(["s3://bucket/photos"]))]
        assert errors[:4] == [None] * 4
        assert str(errors[4]).startswith("cannot be fetched: "), "an archived object may not be read"
        with pytest.raises(DataError, match="There is nothing at s3://bucket/gone"):
            build_index("s3://bucket/gone")


@pytest.mark.slow
def test_the_names_in_a_folder_of_s3_are_listed_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    calls: list[str] = []
    call = s3fs.S3FileSystem.call_s3

    def record(self: Any, method: str, **options: Any) -> Any:
        calls.append(method)
        return call(self, method, **options)

    with start_bucket() as client:
        names = [*(f"{i:04}.png" for i in range(1_100)), "0500-b/1.png", "0500/é.png", "0500/ü/1.png"]
        client.pipe({f"bucket/many/{name}": b"" for name in [*names, "", "/1.png", "0500/"]})
        monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", record)
        files = RemotePath.parse("s3://bucket/many/").walk()
        first = next(files).url
        assert (first, calls) == ("s3://bucket/many/0000.png", ["list_objects_v2"])
        assert [first, *(file.url for file in files)] == [f"s3://bucket/many/{name}" for name in sorted(names)]
        assert calls == ["list_objects_v2"] * 5, "two pages of one folder, and the three below it"
        monkeypatch.setattr(remote, "_UNORDERED_BUCKET", "bucket")
        monkeypatch.setattr(storage, "NAMES_IN_MEMORY", 100)
        assert [file.url for file in RemotePath.parse("s3://bucket/many").walk()] == [
            f"s3://bucket/many/{name}" for name in sorted(names)
        ]


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_files_over_http(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"cat/{i}.png": image for i, image in enumerate(IMAGES)})
    (tmp_path / "1.png").write_bytes(IMAGES[1])
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if "private" in self.path:
                self.send_error(403)
            else:
                super().do_GET()

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            root = f"http://127.0.0.1:{server.server_port}"
            signed = f"{root}/a.tar?X-Amz-Credential=id/s3/request&X-Amz-Signature=s3cret"
            items = list(expand_inputs([f"{root}/1.png", f"{root}/a.tar", signed, f"{root}/gone.png"]))
            assert [item.read() for item in items[:-1]] == [IMAGES[1], *IMAGES, *IMAGES]
            assert len(build_index(signed).images) == len(IMAGES)
            with pytest.raises(ImageError, match="No such file"):
                items[-1].read()
            with pytest.raises(ImageError, match="file_mb"):
                RemotePath.parse(f"{root}/1.png").read(LimitsConfig(file_mb=1e-5))
            requests.clear()
            with pytest.raises(ImageError, match="cannot be fetched: 403") as caught:
                RemotePath.parse(f"{root}/private.png?X-Amz-Signature=s3cret").read(LIMITS)
            assert "s3cret" not in str(caught.value)
            assert len(requests) == 1, "it is not asked for again"
        finally:
            server.shutdown()
            thread.join()
