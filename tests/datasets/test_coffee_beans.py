import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sightline.datasets import coffee_beans
from sightline.errors import OutputError, UsageError

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def sample() -> tuple[Images, NDArray[np.int64]]:
    return np.stack([coffee_beans.draw(i, 56, seed=3) for i in range(240)]), np.arange(240) % 4


def test_classes_are_the_four_roasts_in_order() -> None:
    assert coffee_beans.CLASSES == ("Dark", "Green", "Light", "Medium")


def test_an_image_depends_on_its_seed_and_index_alone() -> None:
    image = coffee_beans.draw(5, 64, seed=1)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, coffee_beans.draw(5, 64, seed=1))
    assert not np.array_equal(image, coffee_beans.draw(5, 64, seed=2))
    assert not np.array_equal(image, coffee_beans.draw(9, 64, seed=1))


@pytest.mark.parametrize(
    ("index", "means"),
    [
        (0, [[58.4, 100.5], [88.7, 103.3]]),
        (1, [[109.9, 119.0], [116.6, 106.5]]),
        (2, [[87.9, 108.0], [68.2, 89.4]]),
        (3, [[92.8, 78.3], [108.5, 93.6]]),
    ],
)
def test_other_images_need_another_generator_version(index: int, means: list[list[float]]) -> None:
    """Means of the four quarters: when they change on purpose, increase `GENERATOR_VERSION` along with them."""
    assert coffee_beans.GENERATOR_VERSION == 1
    quarters = coffee_beans.draw(index, 32).reshape(2, 16, 2, 16, 3).mean((1, 3, 4))
    np.testing.assert_allclose(quarters, means, atol=0.5)


@pytest.mark.parametrize("index", range(8))
def test_the_scene_is_the_same_at_every_size(index: int) -> None:
    planes = [
        np.asarray(
            Image.fromarray(coffee_beans.draw(index, size)).convert("L").resize((28, 28), Image.Resampling.BOX), float
        )
        for size in (56, 100, 224, 333)
    ]
    for plane in planes[1:]:
        assert np.corrcoef(planes[0].ravel(), plane.ravel())[0, 1] > 0.97
        assert abs(planes[0].mean() - plane.mean()) < 3


def test_classes_are_balanced_and_images_varied_and_well_exposed(sample: tuple[Images, NDArray[np.int64]]) -> None:
    images, labels = sample
    assert np.bincount(labels).tolist() == [60] * 4
    assert len({image.tobytes() for image in images}) == len(images)
    assert images.std(axis=(1, 2, 3)).min() > 8
    assert np.mean(images == 255) < 0.05
    assert np.mean(images == 0) < 0.02


def features(images: Images) -> NDArray[np.float64]:
    """Return color quantiles, hue and texture of the center of each image."""
    side = images.shape[1]
    middle = images[:, side // 4 : -side // 4, side // 4 : -side // 4] / 255
    pixels = middle.reshape(len(middle), -1, 3)
    quantiles = np.quantile(pixels, (0.1, 0.3, 0.5, 0.7, 0.9), axis=1).transpose(1, 0, 2).reshape(len(middle), -1)
    hue = np.median(pixels[:, :, ::2] / (pixels[:, :, 1:2] + 0.05), axis=1)
    edges = np.abs(np.diff(middle.mean(axis=-1), axis=1)).mean(axis=(1, 2))
    return np.column_stack([quantiles, hue, edges, pixels.std(axis=1)])


def test_roasts_can_be_learned_but_not_from_the_mean_color(sample: tuple[Images, NDArray[np.int64]]) -> None:
    images, labels = sample
    known, new = slice(0, 180), slice(180, None)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features(images[known]), labels[known])
    assert model.score(features(images[new]), labels[new]) > 0.8

    colors = images.mean(axis=(1, 2))
    means = np.stack([colors[known][labels[known] == label].mean(axis=0) for label in range(4)])
    nearest = np.linalg.norm(colors[new][:, None] - means, axis=2).argmin(axis=1)
    assert 0.3 < np.mean(nearest == labels[new]) < 0.8


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_write_makes_class_folders(tmp_path: Path, kind: str) -> None:
    coffee_beans.write(tmp_path / "beans", 9, 32, seed=4, kind=kind)
    names = sorted(path.relative_to(tmp_path / "beans").as_posix() for path in tmp_path.rglob(f"*.{kind}"))
    assert len(names) == 9
    assert names[:4] == [f"Dark/dark-0001.{kind}", f"Dark/dark-0002.{kind}", f"Dark/dark-0003.{kind}", names[3]]
    assert names[3:] == [f"{c}/{c.lower()}-000{n}.{kind}" for c in ("Green", "Light", "Medium") for n in (1, 2)]
    with Image.open(tmp_path / "beans" / "Light" / f"light-0002.{kind}") as image:
        difference = np.asarray(image, float) - coffee_beans.draw(6, 32, seed=4)
    assert np.abs(difference).mean() < (0.01 if kind == "png" else 8)


def test_write_refuses_a_folder_that_holds_beans(tmp_path: Path) -> None:
    (tmp_path / "Green").mkdir()
    with pytest.raises(OutputError, match="Choose a new folder"):
        coffee_beans.write(tmp_path, 8, 16)


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
        coffee_beans.write(tmp_path / "beans", *arguments)
    assert not (tmp_path / "beans").exists()


def test_wrong_index_size_and_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("numbered from 0, got -1")):
        coffee_beans.draw(-1)
    with pytest.raises(UsageError, match="got 8"):
        coffee_beans.draw(0, 8)
    with pytest.raises(UsageError, match="got 'gif'"):
        coffee_beans.write(tmp_path / "beans", 8, 16, kind="gif")


def test_the_mask_of_an_image_has_its_beans() -> None:
    seen = []
    for index in range(12):
        mask, image = coffee_beans.draw_mask(index, 48, seed=1), coffee_beans.draw(index, 48, seed=1)
        assert mask.shape == (48, 48)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask).tolist()) == {0, 1}
        assert mask[20:28, 20:28].mean() > 0.5, "the first bean is near the middle"
        seen.append(mask.mean())
        border = mask.astype(bool)
        colors = image.astype(float)
        within = np.linalg.norm(np.diff(colors, axis=1)[border[:, 1:] == border[:, :-1]], axis=1).mean()
        across = np.linalg.norm(np.diff(colors, axis=1)[border[:, 1:] != border[:, :-1]], axis=1).mean()
        assert across > within, "colors change where the mask does"
    assert 0.15 < np.mean(seen) < 0.6
    large = coffee_beans.draw_mask(3, 96, seed=1).reshape(48, 2, 48, 2).mean((1, 3))
    assert ((large >= 0.5) == coffee_beans.draw_mask(3, 48, seed=1)).mean() > 0.97, "any size has the same scene"
