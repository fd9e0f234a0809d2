"""Embeddings: rows in order, files that are read back as they were written, and exact search in bounded memory."""

from __future__ import annotations

import csv
import sys
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from command import open_and_replace
from sightline import _io
from sightline.data import image_tables
from sightline.errors import DataError, MissingExtraError, OutputError, UsageError
from sightline.inference import embedding_files, nearest, stream
from sightline.inference.embeddings import ROWS, Embeddings, check_same_model, join_embeddings, regroup
from sightline.inference.inputs import InputItem
from sightline.inference.predictor import NOT_FINITE_REASON, FakePredictor, Outputs
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode

MODEL = "fake@" + 64 * "a"
SUFFIXES = (".parquet", ".npy", ".csv")
ODD_PATHS = (
    "=1+1.png",
    "'=x",
    "''-y",
    "'quoted'",
    "line\nfeed.png",
    'quote",.png',
    "café/ü.png",
    "plain.png",
    "-2.png",
)


def make_embeddings(count: int, size: int = 5, seed: int = 0, prefix: str = "") -> Embeddings:
    """Return random embeddings; every seventh image has none, every third no label."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, size)).astype(np.float32)
    errors = tuple("it is truncated" if i % 7 == 6 else None for i in range(count))
    vectors[[error is not None for error in errors]] = np.nan
    paths = tuple(ODD_PATHS[i] if i < len(ODD_PATHS) and not prefix else f"{prefix}{i}.png" for i in range(count))
    return Embeddings(vectors, paths, tuple(None if i % 3 else "@cat" for i in range(count)), errors, MODEL)


def assert_equal(first: Embeddings, second: Embeddings) -> None:
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert (first.labels, first.errors, first.model) == (second.labels, second.errors, second.model)
    assert first.paths == second.paths


def read(path: Path) -> Embeddings:
    file = embedding_files.open_file(path)
    return join_embeddings(list(file.iterate()), 0, file.model)


def test_the_vectors_that_were_checked_are_read_whatever_has_their_name_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "a.npy", make_embeddings(20)
    embedding_files.write(path, [written])
    monkeypatch.setattr(_io, "open_regular", open_and_replace(path, tmp_path / "other"))
    assert_equal(read(path), written)
    assert path.read_bytes() == b"another file"


def test_vectors_of_python_objects_are_refused_unread(tmp_path: Path) -> None:
    """Their pickles would run code."""
    path = tmp_path / "a.npy"
    embedding_files.write(path, [make_embeddings(2)])
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2, 5)})
        file.write(bytes(2 * 5 * 8))
    with pytest.raises(DataError, match="it holds Python objects"):
        read(path)


def search(
    queries: Embeddings, batches: list[Embeddings] | Iterator[Embeddings], count: int
) -> list[nearest.SimilarImage]:
    return nearest.find_similar(queries, batches, count, lambda _: None)


class ChannelPredictor(FakePredictor):
    """Its features are the mean red, green and blue; NaN for a black image."""

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        outputs = super().outputs(pixels)
        outputs.features[pixels.reshape(len(pixels), -1).max(1) == 0] = np.nan
        return outputs


def test_each_image_has_a_row_in_order_or_the_reason_why_not() -> None:
    predictor = ChannelPredictor(("dark", "bright"), PreprocessingSpec(4, 4))
    contents = [encode(Image.new("RGB", (4, 4), (level,) * 3)) for level in (51, 102, 0)]
    contents.insert(1, b"not an image")
    names = ("a", "b", "c", "d")
    items = [InputItem(p, partial(bytes, c), "x") for p, c in zip(names, contents, strict=True)]
    result = join_embeddings(list(stream.embed(predictor, items, MODEL)), 0, MODEL)
    np.testing.assert_allclose(result.vectors, np.array([[0.2], [np.nan], [0.4], [np.nan]]).repeat(3, 1), rtol=1e-6)
    assert result.vectors.dtype == np.float32
    assert (result.paths, result.labels) == (names, ("x",) * 4)
    assert result.errors[0] is None
    assert result.errors[1] is not None
    assert "not an image" in result.errors[1]
    assert result.errors[3] == NOT_FINITE_REASON
    only_unreadable = next(stream.embed(predictor, items[1:2], MODEL))
    assert only_unreadable.vectors.shape == (1, 3), "as many features as for the others"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_read_as_it_was_written(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_files, "ROWS", 8)
    path, embeddings = tmp_path / f"e{suffix}", make_embeddings(29)
    batches = [embeddings.select(np.arange(start, min(start + 3, 29))) for start in range(0, 29, 3)]
    assert embedding_files.write(path, batches) == (29, 4)
    assert_equal(read(path), embeddings)
    assert embeddings.save(path) == path, "an own file is replaced"
    with pytest.raises(UsageError, match=r"path must be a file that ends with .*, not None"):
        embeddings.save(None)  # type: ignore[arg-type]
    assert not list(tmp_path.glob(".part-*"))
    assert embedding_files.has_embeddings(path)


def test_other_tools_read_the_files(tmp_path: Path) -> None:
    pandas, embeddings = pytest.importorskip("pandas"), make_embeddings(8)
    for suffix in SUFFIXES:
        embeddings.save(tmp_path / f"e{suffix}")
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), embeddings.vectors)
    frame = pandas.read_parquet(tmp_path / "e.parquet")
    np.testing.assert_array_equal(np.stack(frame["embedding"].to_numpy()), embeddings.vectors)
    assert tuple(frame["path"]) == embeddings.paths
    with (tmp_path / "e.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"][0] for row in rows[:2]] == ["'", "'"], "no spreadsheet takes a name for a formula"
    assert rows[0]["label"] == "'@cat"
    assert rows[3]["path"] == "'quoted'"
    assert [float(rows[0][f"feature_{k}"]) for k in range(5)] == pytest.approx(embeddings.vectors[0].tolist())
    table = embeddings.to_frame()
    assert list(table.columns) == ["path", "label", "error", *(f"feature_{k}" for k in range(5))]
    assert repr(embeddings) == "Embeddings(8 x 5 of fake, 1 without one)"
    np.testing.assert_array_equal(embeddings, embeddings.vectors)
    assert np.asarray(embeddings, np.float64).dtype == np.float64


def test_raw_csv_has_text_as_it_is_and_is_read_back(tmp_path: Path) -> None:
    paths = ("=1.png", "'=2.png", "''=3.png", "'quoted'", "-")
    embeddings = Embeddings(np.ones((5, 2), np.float32), paths, ("@cat",) * 5, (None,) * 5, "fake")
    for name, raw in (("raw.csv", True), ("e.csv", False)):
        assert_equal(read(embeddings.save(tmp_path / name, raw_csv=raw)), embeddings)
    with (tmp_path / "raw.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["path"], rows[4]["path"], rows[0]["label"]) == ("=1.png", "-", "@cat")


def test_the_name_of_a_model_is_escaped_too(tmp_path: Path) -> None:
    embeddings = Embeddings(np.ones((1, 2), np.float32), ("a.png",), (None,), (None,), "=cmd|' /C calc'!A0@f")
    path = embeddings.save(tmp_path / "e.csv")
    with path.open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["model"] == "'=cmd|' /C calc'!A0@f"
    assert_equal(read(path), embeddings)


def test_rows_are_regrouped_into_blocks_of_one_size() -> None:
    embeddings = make_embeddings(23)
    batches = [embeddings.select(np.arange(start, stop)) for start, stop in ((0, 1), (1, 2), (2, 3), (3, 20), (20, 23))]
    blocks = list(regroup(batches, 3))
    assert [len(block) for block in blocks] == [3, 3, 3, 3, 3, 3, 5]
    assert_equal(join_embeddings(blocks, 0, MODEL), embeddings)
    assert [len(block) for block in regroup([embeddings.select(np.arange(0))], 3)] == [0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_of_the_reader_of_the_rows_is_not_a_damaged_file(suffix: str, tmp_path: Path) -> None:
    batches = embedding_files.open_file(make_embeddings(3).save(tmp_path / f"e{suffix}")).iterate()
    next(batches)
    with pytest.raises(ValueError, match=r"^my own$"):
        batches.throw(ValueError("my own"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_are_not_utf8_are_escaped(suffix: str, tmp_path: Path) -> None:
    embeddings = Embeddings(np.ones((1, 2), np.float32), ("b\udcff.png",), (None,), (None,), MODEL)
    back = read(embeddings.save(tmp_path / f"e{suffix}"))
    assert back.paths in [("b\\udcff.png",), embeddings.paths]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_files_are_not_replaced(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"path,label\n1.png,cat\n")
    with pytest.raises(OutputError, match="not a file of embeddings"):
        make_embeddings(3).save(path)
    assert path.read_bytes() == b"path,label\n1.png,cat\n"
    with pytest.raises(DataError, match="is not a file of embeddings"):
        embedding_files.open_file(path)


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    def fail_late() -> Iterator[Embeddings]:
        yield make_embeddings(ROWS, size=1)
        raise DataError("the disk was removed")

    for suffix in SUFFIXES:
        path = make_embeddings(9).save(tmp_path / f"e{suffix}")
        with pytest.raises(DataError, match="the disk was removed"):
            embedding_files.write(path, fail_late())
        assert len(read(path)) == 9
    assert len(list(tmp_path.iterdir())) == 4


def test_a_suffix_without_a_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"should end with \.parquet, \.npy or \.csv"):
        make_embeddings(3).save(tmp_path / "e.txt")


def test_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_embeddings(3).save(tmp_path / "e.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"needs the package 'pyarrow', which is not installed: pip install \"\.\[parquet\]\""
    with pytest.raises(MissingExtraError, match=f"Writing Parquet {message}"):
        make_embeddings(3).save(path)
    with pytest.raises(MissingExtraError, match=f"Reading Parquet {message}"):
        embedding_files.open_file(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_an_error_of_one_sentence(suffix: str, tmp_path: Path) -> None:
    path = make_embeddings(40).save(tmp_path / f"e{suffix}")
    content = path.read_bytes()
    for size in range(8, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:size])
        try:
            rows = len(read(path))
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017  # some sizes of a CSV file are whole
        else:
            assert suffix == ".csv"
            assert rows < 40


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_old_vectors_keep_their_rows_if_new_ones_cannot_take_their_place(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old, replace = tmp_path / "e.npy", make_embeddings(9), Path.replace
    old.save(path)

    def fail(self: Path, target: Path) -> Path:
        if target == path:
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        make_embeddings(5).save(path)
    monkeypatch.undo()
    assert_equal(read(path), old)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.npy", "e.npy.jsonl"]


def test_a_damaged_header_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    path = make_embeddings(9).save(tmp_path / "e.npy")
    content = path.read_bytes()
    assert b"{'descr':" in content
    for header in (b"{'descr:\0", b"{'descr'(", b"{'dexcr':"):
        path.write_bytes(content.replace(b"{'descr':", header))
        with pytest.raises(DataError, match=r"e\.npy cannot be read: "):
            read(path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"schema": 1', b'"schema": 2', "another schema than 1"),
        (b'{"path": "plain.png"', b'{"pth": "plain.png"', "path"),
        (b'{"path": "plain.png"', b'{"path": 5', "it holds 5 instead of a path"),
        (b'{"path": "plain.png", "label": null', b'{"path": "plain.png", "label": []', "instead of a label"),
        (b'{"path": "plain.png", "label": null, "error": null}\n', b"[]\n", "a row lacks its path"),
        (b'{"path": "plain.png", "label": null, "error": null}\n', b"", "another number"),
    ],
)
def test_rows_that_do_not_fit_are_refused(old: bytes, new: bytes, reason: str, tmp_path: Path) -> None:
    path = make_embeddings(9).save(tmp_path / "e.npy")
    rows = tmp_path / "e.npy.jsonl"
    assert old in rows.read_bytes()
    rows.write_bytes(rows.read_bytes().replace(old, new))
    with pytest.raises(DataError, match=reason):
        read(path)
    rows.unlink()
    with pytest.raises(DataError, match=r"there is no .*e\.npy\.jsonl with its paths"):
        read(path)


def test_parquet_of_other_columns_is_refused(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(make_embeddings(3).save(tmp_path / "e.parquet"))
    numbers = pyarrow.array([1, 2, 3])
    paths = pyarrow.array(["a", None, "c"])
    for name, column, reason in (
        ("path", numbers, "its columns are not"),
        ("embedding", numbers, "its columns are not"),
        ("path", paths, "it holds None instead of a path"),
    ):
        parquet.write_table(
            table.set_column(table.column_names.index(name), name, column), tmp_path / "e.parquet", compression="none"
        )
        with pytest.raises(DataError, match=reason):
            read(tmp_path / "e.parquet")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    embeddings = make_embeddings(3)
    embeddings.vectors[1, 1] = np.inf
    with pytest.raises(DataError, match="NaN or infinity"):
        read(embeddings.save(tmp_path / "e.npy"))


def test_another_model_is_refused_in_one_sentence() -> None:
    check_same_model("e.npy", MODEL, MODEL)
    with pytest.raises(DataError, match=r"^e\.npy holds embeddings of another model \(vgg bbbbbbbbbbbb, not fake aaaa"):
        check_same_model("e.npy", "vgg@" + 64 * "b", MODEL)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_nearest_images_are_those_of_an_exhaustive_search(rows: int) -> None:
    data, queries = make_embeddings(300, 8, prefix="data/"), make_embeddings(20, 8, seed=1, prefix="query/")
    queries.vectors[1] = 0  # no direction: as far from any other
    batches = [data.select(np.arange(start, min(start + rows, 300))) for start in range(0, 300, rows)]
    results = search(queries, batches, 4)
    valid = np.flatnonzero(data.is_valid)
    norms = np.linalg.norm(data.vectors[valid].astype(float), axis=1)
    for i in np.flatnonzero(queries.is_valid):
        query = queries.vectors[i].astype(float)
        cosines = data.vectors[valid] @ query / np.maximum(norms * np.linalg.norm(query), 1e-30)
        best = valid[np.argsort(-cosines, kind="stable")[:4]]
        own = [row for row in results if row.image == queries.paths[i]]
        assert [row.path for row in own] == [data.paths[j] for j in best]
        assert [row.rank for row in own] == [1, 2, 3, 4]
        np.testing.assert_allclose([row.similarity or 0.0 for row in own], np.sort(cosines)[::-1][:4], atol=1e-6)
    assert [row.to_dict() for row in results if row.error] == [
        {"image": f"query/{i}.png", "error": "it is truncated"} for i in (6, 13)
    ]


def test_an_image_is_not_similar_to_itself_but_to_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    data = Embeddings(vectors, ("a.png", "copy.png", "b.png"), (None,) * 3, (None,) * 3, MODEL)
    query = Embeddings(vectors[:1], (str(tmp_path / "a.png"),), (None,), (None,), MODEL)
    assert [(row.path, row.similarity) for row in search(query, [data], 9)] == [("copy.png", 1.0), ("b.png", 0.0)]


def test_images_without_a_path_are_all_compared() -> None:
    data = Embeddings(np.eye(2, dtype=np.float32), ("[0]", "[1]"), (None,) * 2, (None,) * 2, MODEL)
    results = search(data.select(np.arange(1)), [data], 9)
    assert [(row.image, row.path, row.similarity) for row in results] == [("[0]", "[0]", 1.0), ("[0]", "[1]", 0.0)]


def test_images_to_search_that_cannot_be_read_are_reported() -> None:
    data, messages = make_embeddings(8, prefix="data/"), list[str]()
    nearest.find_similar(data.select(np.arange(1)), [data], 1, messages.append)
    assert messages == ["1 of 8 images to compare with cannot be read, e.g. data/6.png: it is truncated"]
    with pytest.raises(DataError, match=r"The image to compare with cannot be read: data/6\.png: it is"):
        search(data, [data.select(np.array([6]))], 1)


def test_one_large_value_is_compared_in_blocks() -> None:
    rows, queries = 4 * ROWS, make_embeddings(100, 4, prefix="q/")
    data = Embeddings(np.ones((rows, 4), np.float32), ("x",) * rows, (None,) * rows, (None,) * rows, MODEL)
    tracemalloc.start()
    try:
        search(queries, [data], 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(queries) * rows * 4 / 2, "half of all similarities"


def test_a_search_holds_a_part_of_the_rows_in_memory() -> None:
    rows, size, count = 256, 512, 30
    batch = rows * size * 4

    def iterate() -> Iterator[Embeddings]:
        for number in range(count):
            vectors = np.random.default_rng(number).normal(size=(rows, size)).astype(np.float32)
            yield Embeddings(vectors, ("x",) * rows, (None,) * rows, (None,) * rows, MODEL)

    queries = make_embeddings(2, size, prefix="q/")
    tracemalloc.start()
    try:
        search(queries, iterate(), 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch < peak < count * batch / 2


def test_a_text_that_is_stated_once_for_many_rows_is_read_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    embeddings = make_embeddings(64)
    embeddings = Embeddings(embeddings.vectors, ("x" * 100_000,) * 64, embeddings.labels, embeddings.errors, MODEL)
    embedding_files.write(path := tmp_path / "a.parquet", [embeddings])
    assert path.stat().st_size < 50_000
    assert_equal(read(path), embeddings)
    monkeypatch.setattr(image_tables, "_MAX_BATCH_BYTES", 1 << 20)
    file = embedding_files.open_file(path)
    assert max(map(len, file.iterate())) <= 10
    assert_equal(read(path), embeddings)
