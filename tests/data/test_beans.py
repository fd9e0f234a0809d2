import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sightline.data import beans
from sightline.errors import OutputError, UsageError

Pictures = NDArray[np.uint8]


@pytest.fixture(scope="module")
def some() -> tuple[Pictures, NDArray[np.int64]]:
    return beans.draw_all(240, 56, seed=3)


def test_classes_are_the_four_roasts_in_order() -> None:
    assert beans.CLASSES == ("Dark", "Green", "Light", "Medium")


def test_a_picture_depends_on_its_seed_and_index_alone() -> None:
    picture = beans.draw(5, 64, seed=1)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, beans.draw(5, 64, seed=1))
    assert not np.array_equal(picture, beans.draw(5, 64, seed=2))
    assert not np.array_equal(picture, beans.draw(9, 64, seed=1))


def test_the_number_of_threads_and_of_pictures_changes_nothing() -> None:
    few, labels = beans.draw_all(8, 16, threads=1)
    many, _ = beans.draw_all(100, 16, threads=3)
    np.testing.assert_array_equal(few, many[:8])
    np.testing.assert_array_equal(few[5], beans.draw(5, 16))
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_progress_counts_every_picture() -> None:
    seen: list[tuple[int, int]] = []
    beans.draw_all(9, 16, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 9) for done in range(1, 10)]


@pytest.mark.parametrize("index", range(8))
def test_the_scene_is_the_same_at_every_size(index: int) -> None:
    planes = [
        np.asarray(Image.fromarray(beans.draw(index, size)).convert("L").resize((28, 28), Image.Resampling.BOX), float)
        for size in (56, 100, 224, 333)
    ]
    for plane in planes[1:]:
        assert np.corrcoef(planes[0].ravel(), plane.ravel())[0, 1] > 0.97
        assert abs(planes[0].mean() - plane.mean()) < 3


def test_classes_are_balanced_and_pictures_varied_and_well_exposed(some: tuple[Pictures, NDArray[np.int64]]) -> None:
    pictures, labels = some
    assert np.bincount(labels).tolist() == [60] * 4
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert pictures.std(axis=(1, 2, 3)).min() > 8
    assert np.mean(pictures == 255) < 0.05
    assert np.mean(pictures == 0) < 0.02


def features(pictures: Pictures) -> NDArray[np.float64]:
    """Return color quantiles, hue and texture of the center of each image."""
    side = pictures.shape[1]
    middle = pictures[:, side // 4 : -side // 4, side // 4 : -side // 4] / 255
    pixels = middle.reshape(len(middle), -1, 3)
    quantiles = np.quantile(pixels, (0.1, 0.3, 0.5, 0.7, 0.9), axis=1).transpose(1, 0, 2).reshape(len(middle), -1)
    hue = np.median(pixels[:, :, ::2] / (pixels[:, :, 1:2] + 0.05), axis=1)
    edges = np.abs(np.diff(middle.mean(axis=-1), axis=1)).mean(axis=(1, 2))
    return np.column_stack([quantiles, hue, edges, pixels.std(axis=1)])


def test_roasts_can_be_learned_but_not_from_the_mean_colour(some: tuple[Pictures, NDArray[np.int64]]) -> None:
    pictures, labels = some
    known, new = slice(0, 180), slice(180, None)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features(pictures[known]), labels[known])
    assert model.score(features(pictures[new]), labels[new]) > 0.8

    colours = pictures.mean(axis=(1, 2))
    means = np.stack([colours[known][labels[known] == label].mean(axis=0) for label in range(4)])
    nearest = np.linalg.norm(colours[new][:, None] - means, axis=2).argmin(axis=1)
    assert 0.3 < np.mean(nearest == labels[new]) < 0.8


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_write_makes_class_folders(tmp_path: Path, kind: str) -> None:
    beans.write(tmp_path / "beans", 9, 32, seed=4, kind=kind)
    names = sorted(path.relative_to(tmp_path / "beans").as_posix() for path in tmp_path.rglob(f"*.{kind}"))
    assert len(names) == 9
    assert names[:4] == [f"Dark/dark-0001.{kind}", f"Dark/dark-0002.{kind}", f"Dark/dark-0003.{kind}", names[3]]
    assert names[3:] == [f"{c}/{c.lower()}-000{n}.{kind}" for c in ("Green", "Light", "Medium") for n in (1, 2)]
    with Image.open(tmp_path / "beans" / "Light" / f"light-0002.{kind}") as image:
        difference = np.asarray(image, float) - beans.draw(6, 32, seed=4)
    assert np.abs(difference).mean() < (0.01 if kind == "png" else 8)


def test_write_refuses_a_folder_that_holds_beans(tmp_path: Path) -> None:
    (tmp_path / "Green").mkdir()
    with pytest.raises(OutputError, match="Choose a new folder"):
        beans.write(tmp_path, 8, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, 15), "16 to 1024 pixels per side, got 15"),
        ((8, 1025), "16 to 1024 pixels per side, got 1025"),
        ((7, 64), "at least 8 images, two per roast, got 7"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: tuple[int, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        beans.draw_all(*arguments)
    with pytest.raises(UsageError, match=words):
        beans.write(tmp_path / "beans", *arguments)
    assert not (tmp_path / "beans").exists()


def test_wrong_index_size_and_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("numbered from 0, got -1")):
        beans.draw(-1)
    with pytest.raises(UsageError, match="got 8"):
        beans.draw(0, 8)
    with pytest.raises(UsageError, match="got 'gif'"):
        beans.write(tmp_path / "beans", 8, 16, kind="gif")
