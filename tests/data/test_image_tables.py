"""Images in Parquet and Arrow files, and in tars of WebDataset: as they are listed, labeled and read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # it has no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it has no types
import pytest
from PIL import Image

from packed_images import make_table, write_table, write_tar
from sightline._io import open_regular
from sightline.config import DataConfig, LimitsConfig
from sightline.data import archives, image_tables, packed_tar
from sightline.data.image_tables import ImageTable
from sightline.data.indexing import build_index
from sightline.data.targets import LABEL_SETS
from sightline.errors import DataError, ImageError
from sightline.inference.background_count import BackgroundCount
from sightline.inference.inputs import expand_inputs
from synthetic_images import encode
from waiting import wait_until

NAMES = ("cat", "dog")
SUFFIXES = (".parquet", ".arrow", ".feather")


def make_images(count: int) -> list[bytes]:
    return [encode(Image.new("RGB", (6, 5), (10 * i, 0, 0))) for i in range(count)]


IMAGES = make_images(10)
LABELS = [i % 2 for i in range(10)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_row_is_an_image_in_order(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", make_table(IMAGES, NAMES, label=LABELS))
    items = list(expand_inputs([path]))
    assert [item.path for item in items] == [f"{path}/row-{i}" for i in range(10)]
    assert [item.read() for item in items] == IMAGES
    assert [items[i].read() for i in (9, 0, 5, 9)] == [IMAGES[i] for i in (9, 0, 5, 9)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_classes_have_the_names_that_the_schema_states(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", make_table(IMAGES, NAMES, label=LABELS, split=["train"] * 9 + ["test"]))
    index = build_index(path)
    assert [(image.path, image.label, image.split) for image in index.images] == [
        (f"row-{i}", NAMES[i % 2], "test" if i == 9 else "train") for i in range(10)
    ]
    assert [index.read(i) for i in range(10)] == IMAGES


def test_files_of_one_folder_split_their_labels_alike(tmp_path: Path) -> None:
    """In the first file alone, the names of a cell are also alone in others."""
    write_table(tmp_path / "d/part-0.parquet", make_table(IMAGES[:4], label=["a|b", "b", "a", "c"]))
    write_table(tmp_path / "d/part-1.parquet", make_table(IMAGES[4:7], label=["a|c", "b|c", None]))
    images = build_index(tmp_path / "d", targets=LABEL_SETS).images
    assert [image.label for image in images] == ["a;b", "b", "a", "c", "a;c", "b;c", ""]
    (tmp_path / "d/part-0.parquet").unlink()
    assert [image.label for image in build_index(tmp_path / "d").images] == ["a|c", "b|c"], "for one label each"
    assert [image.label for image in build_index(tmp_path / "d", targets=LABEL_SETS).images] == ["a;c", "b;c", ""]


def test_text_and_binary_columns(tmp_path: Path) -> None:
    table = pa.table(
        {"jpg": pa.array(IMAGES, pa.large_binary()), "breed": ["pug", "owl"] * 5, "embedding": [[0.5]] * 10}
    )
    path = write_table(tmp_path / "t.parquet", table)
    assert [image.label for image in build_index(path).images] == ["pug", "owl"] * 5


def test_a_folder_of_files_as_the_hub_has_it(tmp_path: Path) -> None:
    for name, images in (("train-00000-of-00002", IMAGES[:4]), ("train-00001-of-00002", IMAGES[4:8])):
        write_table(tmp_path / f"d/data/{name}.parquet", make_table(images, NAMES, label=LABELS[: len(images)]))
    write_table(tmp_path / "d/data/test-00000-of-00001.parquet", make_table(IMAGES[8:], NAMES, label=[0, 1]))
    (tmp_path / "d/README.md").write_text("---\n")
    index = build_index(tmp_path / "d")
    assert [image.split for image in index.images].count("train") == 8
    assert {image.path for image in index.images if image.split == "test"} == {
        f"data/test-00000-of-00001.parquet/row-{i}" for i in range(2)
    }
    assert len(list(expand_inputs([tmp_path / "d"]))) == 10


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    for split, images in (("train", IMAGES[:8]), ("test", IMAGES[8:])):
        table = make_table(images, NAMES, label=LABELS[: len(images)])
        write_table(tmp_path / f"d/{split}/data-00000-of-00001.arrow", table)
        (tmp_path / f"d/{split}/state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    assert [image.split for image in build_index(tmp_path / "d").images] == ["test"] * 2 + ["train"] * 8


def test_rows_without_an_image_or_a_label_are_reported(tmp_path: Path) -> None:
    table = make_table([None, b"no image", *IMAGES[2:]], NAMES, label=[0, 1, -1, *LABELS[3:]])
    path = write_table(tmp_path / "t.parquet", table)
    index = build_index(path)
    reasons = {file.path: file.reason for file in index.unreadable}
    assert reasons["row-0"] == "the row has no bytes of an image"
    assert "row-1" in reasons
    assert "has no label" in reasons["row-2"]
    assert [image.path for image in index.images] == [f"row-{i}" for i in range(3, 10)]


def test_the_column_of_images_may_have_to_be_named(tmp_path: Path) -> None:
    table = pa.table({"front": IMAGES, "back": IMAGES[::-1], "label": ["a", "b"] * 5})
    path = write_table(tmp_path / "t.parquet", table)
    with pytest.raises(DataError, match=r"columns front, back, label; which one .* --column path=NAME"):
        build_index(path)
    assert ImageTable(path, column="back").read("row-0") == IMAGES[9]
    with pytest.raises(DataError, match="'label' holds no bytes of images"):
        ImageTable(path, column="label")


@pytest.mark.parametrize("column", ["", "file_name"])
def test_a_table_of_paths_is_to_be_written_as_csv(tmp_path: Path, column: str) -> None:
    path = write_table(tmp_path / "t.parquet", pa.table({"file_name": ["1.png", "2.png"], "label": ["a", "b"]}))
    with pytest.raises(DataError, match=r"columns file_name, label, none of which .* as CSV, or .*from_dataframe"):
        ImageTable(path, column=column)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", make_table(IMAGES))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if suffix != ".arrow" else content[:50])
    with pytest.raises(DataError, match="not a readable Parquet or Arrow file"):
        list(expand_inputs([path]))


@pytest.mark.parametrize(
    ("suffix", "compression"), [*((suffix, None) for suffix in SUFFIXES), (".arrow", "zstd"), (".feather", "lz4")]
)
def test_no_damage_does_more_than_raise(tmp_path: Path, suffix: str, compression: str | None) -> None:
    table = make_table(IMAGES, label=LABELS, breed=["pug", "owl"] * 5)
    path = write_table(tmp_path / f"t{suffix}", table, compression=compression)
    content = path.read_bytes()
    outcomes: set[type] = set()
    for position in range(0, len(content), 19):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            table = ImageTable(path)
            outcomes |= {type(table.read(key)) for key in table.keys()}  # noqa: SIM118  # not a dict
            assert len(list(table.read_rows())) == len(table)
        except (DataError, ImageError) as error:
            outcomes.add(type(error))
    assert bytes in outcomes
    assert DataError in outcomes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_that_was_checked_is_read_whatever_has_its_name_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = write_table(tmp_path / f"t{suffix}", make_table(IMAGES, NAMES, label=LABELS))

    def open_and_replace(name: str | Path) -> Any:
        file = open_regular(name)
        Path(tmp_path, "other").write_bytes(b"another file")
        Path(tmp_path, "other").replace(name)
        return file

    monkeypatch.setattr(image_tables, "open_regular", open_and_replace)
    table = ImageTable(path)
    assert path.read_bytes() == b"another file"
    assert [table.read(key) for key in table.keys()] == IMAGES  # noqa: SIM118  # not a dict


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "t.parquet", make_table(IMAGES))
    with pytest.raises(DataError, match=r"data\.limits\.archive_members"):
        ImageTable(path, LimitsConfig(archive_members=9))
    with pytest.raises(ImageError, match=r"data\.limits\.file_mb"):
        ImageTable(path, LimitsConfig(file_mb=1e-5)).read("row-0")
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 1 << 20)
    bomb = write_table(tmp_path / "bomb.parquet", make_table([bytes(1 << 18)] * 20))
    with pytest.raises(DataError, match="decompression bomb"):
        ImageTable(bomb, LimitsConfig(archive_ratio=2))


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
def test_the_limits_hold_before_a_compressed_arrow_file_is_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, compression: str
) -> None:
    table = make_table([bytes(1 << 22)] * 12, label=[0, 1] * 6).append_column(
        "breed", pa.array(["pug", "owl"] * 6).dictionary_encode()
    )
    path = write_table(tmp_path / f"t{suffix}", table, compression=compression)
    assert path.stat().st_size < 1 << 20
    peak = pa.default_memory_pool().max_memory()
    allowed = archives._ALWAYS_ALLOWED
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 1 << 20)
    with pytest.raises(DataError, match="decompression bomb"):
        ImageTable(path, LimitsConfig(archive_ratio=2))
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", allowed)
    assert pa.default_memory_pool().max_memory() - peak < 1 << 20
    opened = ImageTable(path)
    assert (opened.read("row-5"), len(list(opened.read_rows()))) == (bytes(1 << 22), 12)
    assert {row["breed"] for row in opened.read_rows()} == {"pug", "owl"}
    monkeypatch.setattr(image_tables, "_MAX_GROUP_BYTES", 1 << 23)
    with pytest.raises(DataError, match="would be in memory at once"):
        ImageTable(path)


def test_batches_that_the_end_of_an_arrow_file_does_not_state_are_refused(tmp_path: Path) -> None:
    one, two = (write_table(tmp_path / f"{n}.feather", make_table(IMAGES[:n]), 1).read_bytes() for n in (1, 2))
    end = int.from_bytes(one[-10:-6], "little") + 10
    (tmp_path / "t.feather").write_bytes(two[: -int.from_bytes(two[-10:-6], "little") - 10] + one[-end:])
    with pytest.raises(DataError, match="its end states 1 batches, but there are 2"):
        ImageTable(tmp_path / "t.feather")


def test_at_most_two_groups_of_rows_are_in_memory(tmp_path: Path) -> None:
    images = make_images(25)
    pq.write_table(make_table(images), tmp_path / "t.parquet", row_group_size=2)
    table = ImageTable(tmp_path / "t.parquet")
    for i, image in enumerate(images):
        assert table.read(f"row-{i}") == image
        assert len(table._loaded) <= 2


# Archives and WebDataset.


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.tar", write_tar), ("a.tar.gz", lambda path, files: write_tar(path, files, "w:gz")), ("a.zip", write_zip)],
    ids=["tar", "tar.gz", "zip"],
)
def test_the_images_of_an_archive_are_predicted_like_a_folder(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    files = {
        "cat/2.png": IMAGES[1],
        "cat/1.png": IMAGES[0],
        "cat/notes.txt": b"text",
        "dog/3": IMAGES[2],
        ".x.png": b"",
    }
    path = write(tmp_path / name, files)
    items = list(expand_inputs([path]))
    assert [item.path for item in items] == [f"{path}/cat/1.png", f"{path}/cat/2.png", f"{path}/dog/3"]
    assert [item.read() for item in items] == IMAGES[:3]


def test_a_compressed_tar_is_unpacked_once_for_all_who_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[str] = []
    unpack = packed_tar.open_plain_tar

    def record(file: Any, check_size: Any) -> Any:
        unpacked.append(file.name)
        return unpack(file, check_size)

    monkeypatch.setattr(archives, "open_plain_tar", record)
    path = write_tar(tmp_path / "a.tgz", {f"cat/{i}.png": image for i, image in enumerate(IMAGES)}, "w:gz")
    with BackgroundCount(expand_inputs([path])) as count:
        index = build_index(path)
        wait_until(lambda: count.value is not None)
        assert [item.read() for item in expand_inputs([path])] == [index.read(i) for i in range(10)] == IMAGES
    assert (count.value, len(unpacked)) == (10, 1)
    write_tar(path, {"dog/1.png": IMAGES[3]}, "w:gz")
    assert [item.read() for item in expand_inputs([path])] == [IMAGES[3]]
    assert index.read(1) == IMAGES[1]
    assert len(unpacked) == 2


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_a_webdataset_has_its_labels_beside_the_images(tmp_path: Path, kind: str) -> None:
    files = {}
    for i, image in enumerate(IMAGES):
        files[f"{i:04}.png"] = image
        files[f"{i:04}.{kind}"] = (
            f"{i % 2}\n".encode() if kind == "cls" else b'{"id": 7, "label": "%d", "box": {}}' % (i % 2)
        )
    path = write_tar(tmp_path / "shard-000000.tar", files)
    index = build_index(path)
    assert [(image.path, image.label) for image in index.images] == [(f"{i:04}.png", str(i % 2)) for i in range(10)]
    assert [item.path for item in expand_inputs([path])] == [f"{path}/{i:04}.png" for i in range(10)]
    several = build_index([path, write_tar(tmp_path / "shard-000001.tar", files)])
    assert len(several.images) == 20
    assert several.images[0].path == "shard-000000.tar/0000.png"
    (tmp_path / "p.parquet").mkdir()
    for name in ("_predictions.json", "part-00000000.parquet"):  # of predict --out
        (tmp_path / "p.parquet" / name).write_bytes(b"PAR1")
    assert build_index(tmp_path).images == several.images


def test_a_tar_of_class_folders_with_json_is_read_as_folders(tmp_path: Path) -> None:
    files = {f"{NAMES[i % 2]}/{i}.{kind}": content for i, image in enumerate(IMAGES) for kind, content in
             (("png", image), ("json", b'{"caption": "a"}'))}  # fmt: skip
    assert {image.label for image in build_index(write_tar(tmp_path / "a.tar", files)).images} == {*NAMES}


def test_sidecar_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": IMAGES[0], "1.json": b"{"})
    with pytest.raises(DataError, match=r"a\.tar/1\.json is not JSON"):
        build_index(path)


def test_options_of_columns_apply(tmp_path: Path) -> None:
    table = make_table(IMAGES, label=LABELS, kind=["a", "b"] * 5)
    path = write_table(tmp_path / "t.parquet", table)
    options = DataConfig()
    columns = type(options.columns)(label="kind")
    index = build_index(path, options=type(options)(columns=columns))
    assert {image.label for image in index.images} == {"a", "b"}


def write_repeated(path: Path, images: pa.Array, labels: pa.Array) -> Path:
    """Write a Parquet file that states each value once, and read it as one whose columns are plain."""
    table = pa.table({"image": images, "label": labels})
    pq.write_table(table, path, store_schema=False)
    assert path.stat().st_size < 20_000
    return path


def repeat(value: bytes | str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def test_a_group_that_states_an_image_once_for_many_rows_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = IMAGES[0] + bytes(100_000)
    path = write_repeated(tmp_path / "a.parquet", repeat(image, 64), repeat("pug", 64))
    assert ImageTable(path).read("row-63") == image
    monkeypatch.setattr(image_tables, "_MAX_GROUP_BYTES", 1 << 20)
    table = ImageTable(path)
    for row in ("row-0", "row-1"):
        with pytest.raises(ImageError, match="a group of them unpacks to more than 1,048,576 bytes"):
            table.read(row)
        monkeypatch.setattr(table, "_read_images", None)  # which is not tried again
    assert [row["label"] for row in table.read_rows()] == ["pug"] * 64


def test_a_long_label_of_many_rows_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_repeated(tmp_path / "a.parquet", repeat(IMAGES[0], 64), repeat("x" * 100_000, 64))
    labels = [row["label"] for row in ImageTable(path).read_rows()]
    assert len(labels) == 64
    assert len({id(label) for label in labels}) == 1
    monkeypatch.setattr(image_tables, "_MAX_LONG_TEXTS", 50_000)
    with pytest.raises(DataError, match="long texts have more than 50,000 characters"):
        list(ImageTable(path).read_rows())
