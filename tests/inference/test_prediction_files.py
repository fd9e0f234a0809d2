"""Folders of Parquet files of predictions: resumed, divided among shards, and never mixed with those of another job."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it has no types
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline import _io, jsonio
from sightline.data import remote
from sightline.errors import DataError, ImageError, OutputError, UsageError
from sightline.inference import outages, prediction_files, stream
from sightline.inference.inputs import InputItem, expand_inputs
from sightline.inference.prediction_files import PredictionFiles, PredictionFolder, Shard
from sightline.inference.prediction_rows import PredictionFormat
from sightline.inference.predictor import FakePredictor
from sightline.inference.results import Decision, Prediction
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode

pytestmark = pytest.mark.usefixtures("no_thread_left")

CLASSES = ("black", "dark", "bright", "white")
FORMAT = PredictionFormat("fake@0", CLASSES, rows=4, top=2)


def make_items(count: int, reads: list[int] | None = None) -> Iterator[InputItem]:
    """Yield items of every gray level in turn, every tenth of which cannot be read; `reads` records which are."""

    def read(number: int) -> NDArray[np.uint8]:
        if reads is not None:
            reads.append(number)
        if number % 10 == 9:
            raise ImageError("empty")
        return np.full((4, 4, 3), 60 * number % 256, np.uint8)

    for number in range(count):
        yield InputItem(f"{number:04}.png", lambda number=number: read(number))  # type: ignore[misc]


def predict(items: Iterator[InputItem]) -> Iterator[Prediction]:
    return stream.predict(FakePredictor(CLASSES, PreprocessingSpec(4, 4)), items, top=4, batch_size=2, threads=1)


def write(
    path: Path | str,
    items: Iterator[InputItem],
    shard: str | None = None,
    form: PredictionFormat = FORMAT,
    **options: Any,
) -> PredictionFiles:
    return PredictionFolder(path, form).write(items, options.pop("predict", predict), Shard.parse(shard), **options)


def read_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_the_rows_are_those_of_predict_in_order(tmp_path: Path) -> None:
    result = write(tmp_path / "p.parquet", make_items(23))
    assert result == PredictionFiles(tmp_path / "p.parquet", 23, 2, 23, is_complete=True)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    for row, prediction in zip(rows, predict(make_items(23)), strict=True):
        expected = prediction.to_dict()
        if prediction.error is None:
            expected["top"] = expected["top"][:2]
        assert {name: value for name, value in row.items() if value is not None} == expected
    assert sorted(read_files(tmp_path / "p.parquet")) == [
        "_predictions.json", *(f"part-{number:08}.parquet" for number in range(6)),
    ]  # fmt: skip
    manifest = jsonio.loads((tmp_path / "p.parquet" / "_predictions.json").read_bytes())
    assert (manifest["status"], manifest["images"], manifest["classes"]) == ("complete", 23, list(CLASSES))


@pytest.mark.parametrize("count", [0, 1, 23, 24])
@pytest.mark.parametrize("shards", [2, 3, 9])
def test_the_union_of_the_shards_equals_the_whole(tmp_path: Path, count: int, shards: int) -> None:
    write(tmp_path / "whole.parquet", make_items(count))
    reads: list[int] = []
    results = [
        write(tmp_path / "shards.parquet", make_items(count, reads), f"{index}/{shards}")
        for index in reversed(range(shards))
    ]
    assert read_files(tmp_path / "shards.parquet") == read_files(tmp_path / "whole.parquet")
    assert sorted(reads) == list(range(count)), "no image is read twice"
    assert sum(result.images for result in results) == count
    assert {result.total for result in results} == {count}
    assert results[-1].is_complete
    if count > 8:
        assert not results[0].is_complete


@pytest.mark.parametrize("stop", [1, 5, 9, 10, 22])
def test_a_killed_job_goes_on_and_scores_no_finished_part_again(tmp_path: Path, stop: int) -> None:
    def predict_some(items: Iterator[InputItem]) -> Iterator[Prediction]:
        for number, prediction in enumerate(predict(items)):
            if number == stop:
                raise KeyboardInterrupt
            yield prediction

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "p.parquet", make_items(23), predict=predict_some)
    written = stop - stop % 4
    if written:
        assert len(pq.read_table(tmp_path / "p.parquet")) == written
    reads: list[int] = []
    result = write(tmp_path / "p.parquet", make_items(23, reads))
    assert sorted(reads) == list(range(written, 23))
    assert (result.images, result.failed, result.is_complete) == (23, 2, True)
    write(tmp_path / "whole.parquet", make_items(23))
    assert read_files(tmp_path / "p.parquet") == read_files(tmp_path / "whole.parquet")


def test_another_number_of_shards_may_go_on(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", make_items(23), "1/3")
    reads: list[int] = []
    write(tmp_path / "p.parquet", make_items(23, reads))
    assert sorted(reads) == [n for n in range(23) if n // 4 % 3 != 1]


def test_shards_that_see_different_images_do_not_end_as_one_result(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write(path, make_items(24), "0/2")
    items = [*make_items(25)][1:]  # as many, but an image has gone and another one has come in between
    with pytest.raises(DataError, match=r"Images 1 to 4, from 0001\.png on, are not those that .*part-00000000"):
        write(path, iter(items), "1/2")
    assert jsonio.loads((path / "_predictions.json").read_bytes())["status"] == "writing"


def test_a_damaged_part_of_another_shard_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write(path, make_items(23), "0/2")
    (path / "part-00000002.parquet").write_bytes(b"PAR1")
    assert not write(path, make_items(23), "1/2").is_complete
    assert write(path, make_items(23), "0/2").is_complete


def test_a_folder_whose_list_becomes_longer_is_not_complete_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write(path, make_items(8))
    assert not write(path, make_items(16), "0/2").is_complete
    manifest = jsonio.loads((path / "_predictions.json").read_bytes())
    assert (manifest["status"], manifest["images"]) == ("writing", None)
    assert write(path, make_items(16), "1/2").is_complete
    assert jsonio.loads((path / "_predictions.json").read_bytes())["images"] == 16


def test_a_damaged_part_is_written_again(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", make_items(23))
    before = read_files(tmp_path / "p.parquet")
    (tmp_path / "p.parquet" / "part-00000001.parquet").write_bytes(before["part-00000001.parquet"][:-9])
    (tmp_path / "p.parquet" / "part-00000002.parquet").write_bytes(b"")
    reads: list[int] = []
    assert write(tmp_path / "p.parquet", make_items(23, reads)).is_complete
    assert sorted(reads) == list(range(4, 12))
    assert read_files(tmp_path / "p.parquet") == before


def test_a_part_that_cannot_be_read_is_not_predicted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "p.parquet", make_items(8))

    def fail(*_: object) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = PredictionFolder(tmp_path / "p.parquet", FORMAT)
    monkeypatch.setattr(_io, "open_regular", fail)
    with pytest.raises(OutputError, match=r"part-00000000\.parquet cannot be read: Input/output error\. Run the same"):
        folder.write(make_items(8), predict, Shard())


def test_of_two_jobs_that_start_together_one_goes_on(tmp_path: Path) -> None:
    first = PredictionFolder(tmp_path / "p.parquet", FORMAT)
    (tmp_path / "p.parquet" / "_predictions.json").unlink()  # as if the other had not seen it
    second = PredictionFolder(tmp_path / "p.parquet", replace(FORMAT, rows=8))
    with pytest.raises(OutputError, match="another setting of rows"):
        first.write(make_items(23), predict, Shard())
    assert second.write(make_items(23), predict, Shard()).is_complete


@pytest.mark.parametrize(
    "change",
    [lambda items: items[1:], lambda items: [items[0], *items], lambda items: items[:5]],
    ids=["without the first", "with one more", "shorter"],
)
def test_another_list_of_images_is_refused(
    tmp_path: Path, change: Callable[[list[InputItem]], list[InputItem]]
) -> None:
    write(tmp_path / "p.parquet", make_items(23))
    before = read_files(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="Name a new folder with --out"):
        write(tmp_path / "p.parquet", iter(change(list(make_items(23)))))
    assert read_files(tmp_path / "p.parquet") == before


@pytest.mark.parametrize(
    ("name", "value"), [("model", "fake@1"), ("classes", CLASSES[::-1]), ("rows", 8), ("top", 3), ("decisions", True)]
)
def test_another_model_and_other_options_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path / "p.parquet", make_items(8), "0/2")
    changed = replace(FORMAT, **{name: value})
    with pytest.raises(OutputError, match=rf"another setting of {name}.*new folder with --out"):
        write(tmp_path / "p.parquet", make_items(8), form=changed)
    (tmp_path / "p.parquet" / "_predictions.json").unlink()  # as if two jobs had started at once
    with pytest.raises(OutputError, match=r"without _predictions\.json"):
        write(tmp_path / "p.parquet", make_items(8), form=changed)
    PredictionFolder(tmp_path / "empty.parquet", changed)
    (tmp_path / "empty.parquet" / "_predictions.json").rename(tmp_path / "p.parquet" / "_predictions.json")
    with pytest.raises(OutputError, match="with another model or other options"):
        write(tmp_path / "p.parquet", make_items(8), form=changed)


def test_a_folder_whose_name_does_not_say_what_it_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a name that ends with \.parquet, not .*p\.csv"):
        write(tmp_path / "p.csv", make_items(8))
    assert not (tmp_path / "p.csv").exists()
    write(tmp_path / "P.PARQUET", make_items(8))


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty storage in memory."""
    client = pytest.importorskip("fsspec").filesystem("memory", use_listings_cache=False)
    client.store.clear()
    yield client
    client.store.clear()
    client.pseudo_dirs[:] = [""]


def test_a_folder_at_an_address_has_the_files_of_a_local_one_and_is_resumed(memory: Any, tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", make_items(23))
    address = "memory://bucket/p.parquet"
    assert write(address, make_items(23), "1/2") == PredictionFiles(address, 11, 0, 23, is_complete=False)
    del memory.store["/bucket/p.parquet/part-00000001.parquet"]
    memory.pipe_file("/bucket/p.parquet/part-00000003.parquet", b"damaged")
    reads: list[int] = []
    assert write(address, make_items(23, reads)).is_complete
    files = {name: memory.cat_file(f"/bucket/p.parquet/{name}") for name in read_files(tmp_path / "p.parquet")}
    assert files == read_files(tmp_path / "p.parquet")
    assert len(reads) == 20
    reads.clear()
    write(address, make_items(23, reads))
    assert not reads
    with pytest.raises(OutputError, match=f"{address} was written with another setting of top"):
        write(address, make_items(23), form=replace(FORMAT, top=1))


def test_an_outage_of_a_storage_leaves_no_rows_and_a_refused_image_one(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "MAX_NOT_FETCHED", 6)
    encoded = encode(Image.new("RGB", (6, 5), (40, 0, 0)))
    for number in range(30):
        memory.pipe_file(f"/photos/{number:02}.png", encoded)
    refused = {f"/photos/{number:02}.png" for number in (0, 9, 11, 12, 13, 14, 15, 29)}
    original = type(memory).open

    def refuse(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        if path in refused:
            raise PermissionError("Access Denied")
        return original(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "open", refuse)

    def write_photos(name: str) -> PredictionFiles:
        return write(tmp_path / name, expand_inputs(["memory://photos"]))

    assert write_photos("whole.parquet") == PredictionFiles(tmp_path / "whole.parquet", 30, 8, 30, is_complete=True)
    rows = pq.read_table(tmp_path / "whole.parquet").to_pylist()
    assert [row["error"] for row in rows] == [
        "cannot be fetched: Access Denied" if f"/photos/{number:02}.png" in refused else None for number in range(30)
    ]
    expired = {f"/photos/{number:02}.png" for number in range(6, 30)}
    refused |= expired
    with pytest.raises(
        DataError,
        match=r"^6 images in a row, from memory://photos/06.png on, cannot be fetched: Access Denied\. Check the ",
    ):
        write_photos("p.parquet")
    assert sorted(path.name for path in (tmp_path / "p.parquet").glob("part-*")) == ["part-00000000.parquet"]
    refused -= expired - {f"/photos/{number:02}.png" for number in (9, 11, 12, 13, 14, 15, 29)}
    assert write_photos("p.parquet").is_complete
    assert read_files(tmp_path / "p.parquet") == read_files(tmp_path / "whole.parquet")


def test_an_address_that_holds_anything_else_is_refused(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/bucket/file.parquet", b"PAR1")
    memory.pipe_file("/bucket/folder.parquet/part-0.parquet", b"PAR1")
    for name, words in (("file", "is a file"), ("folder", "is a folder without _predictions.json")):
        with pytest.raises(OutputError, match=words):
            write(f"memory://bucket/{name}.parquet", make_items(3))
    with pytest.raises(UsageError, match=r"cannot be written to.*s3://"):
        write("https://example.org/p.parquet", make_items(3))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0)
    monkeypatch.setattr(type(memory), "pipe_file", fail_to_connect)
    with pytest.raises(OutputError, match=r"_predictions.json cannot be written after 5 attempts: reset by peer"):
        write("memory://bucket/p.parquet", make_items(3))


def fail_to_connect(*_: object) -> None:
    raise ConnectionError("reset by peer")


def test_what_predict_did_not_write_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file.parquet").write_bytes(b"PAR1")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "folder.parquet" / "part-0.parquet").write_bytes(b"PAR1")
    (tmp_path / "json.parquet").mkdir()
    (tmp_path / "json.parquet" / "_predictions.json").write_bytes(b'{"schema": 1}')
    for name in ("file", "folder", "json"):
        with pytest.raises(OutputError, match="--out"):
            write(tmp_path / f"{name}.parquet", make_items(3))
    assert (tmp_path / "file.parquet").read_bytes() == b"PAR1"


def test_jobs_that_start_together_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").mkdir()
    (tmp_path / "p.parquet" / ".part-0123456789abcdef.json").write_bytes(b"{")  # of a process that has just started
    assert write(tmp_path / "p.parquet", make_items(3)).is_complete


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/0", "0/4/2", ""])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="from 0/N to N-1/N"):
        Shard.parse(text)


def test_few_images_are_taken_ahead_of_the_parts_that_are_written(tmp_path: Path) -> None:
    taken = 0

    def count_up() -> Iterator[InputItem]:
        nonlocal taken
        for item in make_items(100):
            taken += 1
            ahead = taken - 4 * len(list((tmp_path / "p.parquet").glob("part-*")))
            assert ahead <= 4 + 4 * 2 + 4, "a part, four batches, and the next part"
            yield item

    write(tmp_path / "p.parquet", count_up())
    assert taken == 100


def test_the_progress_counts_what_this_process_has_to_predict(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", make_items(23), "0/2")
    events: list[tuple[str, int, int]] = []
    write(tmp_path / "p.parquet", make_items(23), progress=lambda *event: events.append(event), count=lambda: 23)
    assert events == [("predicting", done, 11) for done in range(1, 12)]


def test_all_columns(tmp_path: Path) -> None:
    form = replace(FORMAT, probabilities=True, decisions=True, several_labels=True, sets=("undecided",))
    prediction = next(predict(make_items(1)))
    full = replace(prediction, path="a\udcff.png", labels=("black",), decision=Decision("set", ("black", "dark"), -1.5))
    full = replace(full, undecided=("dark",))
    write(tmp_path / "p.parquet", make_items(1), form=form, predict=lambda items: (full for _ in items))
    (row,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert row["path"] == "a\\udcff.png"
    assert (row["labels"], row["decision"], row["set"], row["ood_score"]) == (["black"], "set", ["black", "dark"], -1.5)
    assert (row["undecided"], row["is_ood"]) == (["dark"], False)
    by_label = {candidate.label: candidate.probability for candidate in prediction.top}
    assert row["probabilities"] == [by_label[name] for name in CLASSES]
    assert len(row["top"]) == 2
    schema = pq.read_schema(tmp_path / "p.parquet" / "part-00000000.parquet")
    assert schema.field("probabilities").type.list_size == 4
    assert prediction_files.MANIFEST.startswith("_"), "readers of data sets skip it"


def test_what_predicts_stops_before_an_error_is_raised(tmp_path: Path) -> None:
    stopped = []

    def predict_and_tell(items: Iterator[InputItem]) -> Iterator[Prediction]:
        try:
            yield from predict(items)
        finally:
            stopped.append(True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        write(tmp_path / "p.parquet", make_items(23), predict=predict_and_tell, progress=interrupt, count=lambda: 23)
    assert stopped == [True], error
