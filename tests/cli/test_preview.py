"""`sightline preview` as a user sees it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from command import COLORS, Command, draw_classes
from sightline import backend
from sightline.api import preview as workflow
from sightline.config import AugmentConfig
from sightline.data.sources.arrays import list_array_items
from sightline.data.sources.listing import SourceListing
from sightline.errors import UsageError
from sightline.report.image_grid import plot_grid
from sightline.training.augment import pipeline

pytestmark = pytest.mark.usefixtures("plain_figures")

Rows = list[list[workflow.LabeledPixels]]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn_grids(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """The rows that were drawn, newest last."""
    grids: list[Rows] = []

    def keep(rows: Rows) -> bytes:
        grids.append(rows)
        return plot_grid(rows)

    monkeypatch.setattr(workflow, "plot_grid", keep)
    return grids


@pytest.mark.usefixtures("drawn_figures")
def test_two_rows_of_five_spread_over_the_classes(sightline: Command, colors: Path, drawn_grids: list[Rows]) -> None:
    result = sightline("preview", colors, "--format", "json")
    assert result.code == 0
    assert result.json == {"figure": "colors-samples.png", "classes": ["blue", "green", "red"], "count": 10}
    with Image.open("colors-samples.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height
    (rows,) = drawn_grids
    assert [len(row) for row in rows] == [5, 5]
    labels = [label for row in rows for _, label in row]
    assert labels == ["blue", "green", "red"] * 3 + ["blue"]
    for pixels, label in (cell for row in rows for cell in row):
        assert pixels.shape == (32, 32, 3)
        assert pixels.reshape(-1, 3).mean(0).argmax() == {"red": 0, "green": 1, "blue": 2}[label]


@pytest.mark.usefixtures("drawn_figures")
def test_the_path_is_printed_and_the_seed_decides(sightline: Command, colors: Path, drawn_grids: list[Rows]) -> None:
    runs = [
        ("--out", "a.png"),
        ("--out", "b.png"),
        ("--out", "c.png", "--seed", "1"),
        ("--out", "d.png", "--count", "3"),
    ]
    for options in runs:
        result = sightline("preview", colors, *options)
        assert (result.code, result.out) == (0, f"{options[1]}\n")
    first, again, other, few = (Path(options[1]).read_bytes() for options in runs)
    assert first == again
    assert first != other
    assert len(few) < len(first)
    assert [len(row) for row in drawn_grids[3]] == [3]
    np.testing.assert_array_equal([p for p, _ in drawn_grids[3][0]], [p for p, _ in drawn_grids[0][0][:3]])


def test_of_more_classes_than_places_some_are_chosen(
    sightline: Command, tmp_path: Path, drawn_grids: list[Rows]
) -> None:
    many = draw_classes(tmp_path / "many", {f"c{i:02}": (10 * i, 0, 0) for i in range(20)}, 1)
    chosen = set()
    for seed in range(3):
        assert sightline("preview", many, "--count", "4", "--seed", seed).code == 0
        labels = [label for _, label in drawn_grids[-1][0]]
        assert labels == sorted(set(labels))
        assert len(labels) == 4
        chosen.add(tuple(labels))
    assert len(chosen) == 3


def test_fewer_images_than_places_are_all_shown_once(
    sightline: Command, tmp_path: Path, drawn_grids: list[Rows]
) -> None:
    few = draw_classes(tmp_path / "few", COLORS, 1)
    assert sightline("preview", few, "--format", "json").json["count"] == 3
    assert len(drawn_grids[0][0]) == 3


@pytest.mark.usefixtures("drawn_figures")
def test_images_keep_their_proportions_and_bad_ones_are_left_out(
    sightline: Command, tmp_path: Path, drawn_grids: list[Rows]
) -> None:
    for label in "图表":
        (tmp_path / "odd" / label).mkdir(parents=True)
        Image.new("RGB", (600, 300), "red").save(tmp_path / "odd" / label / "1.png")
        whole = tmp_path / "odd" / label / "2.jpg"
        Image.effect_noise((300, 300), 90).save(whole)
        whole.write_bytes(whole.read_bytes()[:5000])  # the header is valid
    result = sightline("preview", tmp_path / "odd", "--format", "json")
    assert result.json["count"] == 2
    assert result.json["classes"] == ["图", "表"]
    assert [p.shape for p, _ in drawn_grids[0][0]] == [(128, 256, 3)] * 2


def augment_rows(config: AugmentConfig, originals: list[NDArray[np.uint8]], seed: int, epoch: int) -> NDArray[np.uint8]:
    pixels = np.stack(originals)
    parameters = pipeline.sample_params(config, len(pixels), pixels.shape[1:3], seed, epoch)
    return np.asarray(backend.keras().ops.convert_to_numpy(pipeline.apply(config, pixels, parameters)))


def test_augmented_images_are_those_of_training(sightline: Command, colors: Path, drawn_grids: list[Rows]) -> None:
    options = ("--set", "augment.rotation=30", "--set", "augment.cutmix=1.0", "--set", "input.height=24")
    result = sightline("preview", colors, "--augment", "--recipe", "quick", *options, "--seed", "5", "--format", "json")
    assert result.json == {"figure": "colors-augmented.png", "classes": ["blue", "green", "red"], "count": 4}
    (rows,) = drawn_grids
    assert [len(row) for row in rows] == [6] * 4
    config = AugmentConfig(horizontal_flip=True, rotation=30, cutmix=1.0)  # quick flips too
    originals = [row[0][0] for row in rows]
    assert originals[0].shape == (24, 24, 3)
    for epoch in range(1, 6):
        np.testing.assert_array_equal([row[epoch][0] for row in rows], augment_rows(config, originals, 5, epoch))
    words = [row[epoch][1] for row in rows for epoch in range(1, 6)]
    assert any("\n" in text for text in words)
    for text in words:
        assert sum(float(line.split()[0]) for line in text.split("\n")) == pytest.approx(1, abs=0.011)


def test_augment_by_the_recipe_that_training_would_take(
    sightline: Command, colors: Path, drawn_grids: list[Rows]
) -> None:
    for options in ((), ("--set", "model.weights=none")):  # auto: transfer, and from scratch quick
        assert sightline("preview", colors, "--augment", "--count", "2", *options).code == 0
        assert drawn_grids[-1][0][1][1] == "epoch 1"
    (original, version), (quick, flipped) = ((grid[0][0][0], grid[0][1][0]) for grid in drawn_grids)
    assert original.shape == (224, 224, 3)
    assert abs(original.astype(int) - version).max() > 20  # brighter, darker, shifted or zoomed
    assert quick.shape == (32, 32, 3)
    np.testing.assert_array_equal(np.sort(quick, axis=1), np.sort(flipped, axis=1))  # flipped at most


def test_without_augmentation_the_images_are_those_that_training_takes(
    sightline: Command, colors: Path, drawn_grids: list[Rows]
) -> None:
    options = ("--set", "augment.horizontal_flip=false", "--set", "input.height=24", "--count", "6")
    result = sightline("preview", colors, "--augment", "--recipe", "quick", *options)
    assert result.code == 0
    assert "The recipe quick has no augmentation" in result.err
    assert [len(row) for row in drawn_grids[0]] == [5, 1]
    assert {pixels.shape for row in drawn_grids[0] for pixels, _ in row} == {(24, 24, 3)}


def test_only_training_images_are_augmented(sightline: Command, tmp_path: Path, drawn_grids: list[Rows]) -> None:
    for split, level in (("train", 10), ("test", 240)):
        draw_classes(tmp_path / "parts" / split, {"a": (level,) * 3, "b": (level,) * 3}, 3)
    assert sightline("preview", tmp_path / "parts", "--augment", "--recipe", "quick", "--count", "9").code == 0
    assert len(drawn_grids[0]) == 6
    assert all(row[0][0].mean() < 100 for row in drawn_grids[0])
    sightline("preview", tmp_path / "parts")
    assert any(pixels.mean() > 150 for row in drawn_grids[1] for pixels, _ in row)


def test_arrays_are_shown_from_python(drawn_grids: list[Rows]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    source = SourceListing(list_array_items(pixels, np.arange(6) % 2, "mine"))
    result = workflow.preview_images(source, out="mine.png")
    assert result.count == 6
    assert {p.shape for p, _ in drawn_grids[0][0]} == {(8, 8, 1)}
    with pytest.raises(UsageError, match="--augment"):
        workflow.preview_images(source, recipe="quick")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{data}", "--out", "figure.jpg"), "PNG"),
        (("{data}", "--out", "no/such/figure.png"), "no folder"),
        (("{data}", "--out", "mine.png"), "was not written by Sightline"),
        (("{data}", "--out", "text.png"), "was not written by Sightline"),
        (("{data}", "--out", "folder.png"), "was not written by Sightline"),
        (("{data}", "--out", "bomb.png"), "was not written by Sightline"),
        (("{data}", "--recipe", "quick"), "--augment"),
        (("{data}", "--augment", "--set", "augment.rotatoin=3"), "'augment.rotation'"),
        (("{data}", "--augment", "--set", "augment.mixup=-1"), "between 0 and 100"),
        (("nowhere",), "nowhere"),
    ],
    ids=range(10),
)
def test_bad_use_is_explained(
    sightline: Command, colors: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    Image.new("RGB", (8, 8)).save("mine.png")
    Path("text.png").write_text("notes")
    Path("folder.png").mkdir()
    data = bytearray(Path("mine.png").read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 20_000)  # as its header states
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    Path("bomb.png").write_bytes(data)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    result = sightline("preview", *[a.format(data=colors) for a in arguments])
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("drawn_figures")
def test_its_own_plot_is_replaced(sightline: Command, colors: Path) -> None:
    assert sightline("preview", colors, "--count", "2").code == 0
    first = Path("colors-samples.png").read_bytes()
    assert sightline("preview", colors, "--count", "3").code == 0
    assert Path("colors-samples.png").read_bytes() != first
    assert [path.name for path in Path().iterdir()] == ["colors-samples.png"]


def test_an_unwritable_folder_is_reported(sightline: Command, colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    result = sightline("preview", colors)
    assert result.code == 2
    assert "Permission denied" in result.err
    assert list(Path().iterdir()) == []


def test_real_photographs(sightline: Command, shared: Path, drawn_grids: list[Rows]) -> None:
    result = sightline("preview", shared / "data" / "cats_vs_dogs", "--format", "json")
    assert result.json["classes"] == ["cat", "dog"]
    assert len({p.shape for row in drawn_grids[0] for p, _ in row}) > 2
