"""Near duplicates: copies are found, merely similar images are not, and a chain is not a group."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sightline.data.checks import cross_correlation, near_duplicates, perceptual_hash
from sightline.data.checks.image_stats import shrink_gray
from strategies import near_values
from synthetic_images import draw_scene
from xrays import torso


def groups(images: Sequence[Image.Image]) -> NDArray[np.int64]:
    small = np.stack([shrink_gray(image) for image in images])
    return near_duplicates.group_near_duplicates(perceptual_hash.perceptual_hash(small), small)


def recompress(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def make_versions(image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    w, h = image.size
    x, y = rng.uniform(0, 0.05, 2)
    cut = image.crop((int(x * w), int(y * h), int((x + 0.95) * w), int((y + 0.95) * h)))
    half = image.resize((w // 2, h // 2))
    center = image.crop((round(0.05 * w), round(0.05 * h), round(0.95 * w), round(0.95 * h)))
    return {"half": half, "enlarged": image.resize((2 * w, 2 * h)), "quality 50": recompress(image, 50), "crop 5%": cut,
            "crop 10%": center, "all": recompress(cut.resize((w // 2, h // 2)), 50)}  # fmt: skip


# Images of one aligned subject.


@pytest.fixture(scope="module")
def torsos() -> list[Image.Image]:
    return [torso(i) for i in range(200)]


@pytest.mark.parametrize("count", [2, 11, 30])
def test_few_different_torsos_are_not_near_duplicates(torsos: list[Image.Image], count: int) -> None:
    for start in (0, 60, 120):
        assert (groups(torsos[start : start + count]) == np.arange(count)).all()


def test_torsos_are_distinguished_and_copies_of_them_found(torsos: list[Image.Image]) -> None:
    thumbs = perceptual_hash.make_thumbnails(np.stack([shrink_gray(image) for image in torsos[:40]]))
    correlations = perceptual_hash.correlate_thumbnails(*(thumbs[rows] for rows in np.triu_indices(40, 1)))
    assert np.quantile(correlations, 0.01) > near_duplicates.MIN_THUMBNAIL_CORRELATION, "thumbnails look the same"
    rng = np.random.default_rng(0)
    copies = [make_versions(image, rng)[kind] for kind in ("half", "enlarged", "quality 50") for image in torsos[:10]]
    leaders = groups([*torsos, *copies])
    assert (leaders[:200] == np.arange(200)).all()
    assert (leaders[200:] == np.tile(np.arange(10), 3)).all()


# Photographs.


def test_scenes_are_recognized_and_distinguished() -> None:
    images = [draw_scene(i) for i in range(40)]
    rng = np.random.default_rng(0)
    copies = [make_versions(image, rng) for image in images]
    assert (groups(images) == np.arange(40)).all()
    for kind in ("half", "enlarged", "quality 50"):
        assert (groups([*images, *(copy[kind] for copy in copies)])[40:] == np.arange(40)).all(), kind


def test_real_photographs_are_recognized_and_distinguished(shared: Path) -> None:
    paths = sorted((shared / "data" / "cats_vs_dogs" / "test").rglob("*.jpg"))[::8]
    images = [Image.open(path).convert("RGB") for path in paths]
    assert (groups(images) == np.arange(len(paths))).all()
    rng = np.random.default_rng(0)
    copies = [make_versions(image, rng) for image in images]
    fractions = {"half": 1, "enlarged": 1, "quality 50": 1, "crop 5%": 0.9, "crop 10%": 0.92, "all": 0.9}
    for kind, least in fractions.items():
        leaders = groups([*images, *(copy[kind] for copy in copies)])
        assert (leaders[len(paths) :] == np.arange(len(paths))).mean() >= least, kind


# Groups.


@settings(deadline=None, max_examples=12)
@given(near_values(perceptual_hash.RADIUS // 2), st.randoms())
def test_groups_are_the_near_hashes_in_any_order_where_all_pixels_are_equal(values: list[int], chance: object) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    order = sorted(range(len(values)), key=lambda _: chance.random())  # type: ignore[attr-defined]

    def groups_of(positions: list[int]) -> set[frozenset[int]]:
        prints = np.array([values[i] for i in positions], np.uint64)
        leaders = near_duplicates.group_near_duplicates(prints, np.repeat(image, len(positions), 0)).tolist()
        assert all(leader <= i for i, leader in enumerate(leaders))
        return {frozenset(positions[i] for i, x in enumerate(leaders) if x == leader) for leader in leaders}

    expected = {frozenset({i}) for i in range(len(values))}
    for i, j in combinations(range(len(values)), 2):
        if (values[i] ^ values[j]).bit_count() <= perceptual_hash.RADIUS:
            one, other = (next(g for g in expected if k in g) for k in (i, j))
            expected = expected - {one, other} | {one | other}
    assert groups_of(list(range(len(values)))) == groups_of(order) == expected


def test_a_chain_of_near_duplicates_is_not_a_group() -> None:
    """A scene that turns into another in 30 steps: each is like the next, the first not like the last."""
    one, other = (np.asarray(draw_scene(i).convert("L"), np.float64) for i in (0, 1))
    steps = [Image.fromarray(np.round(one + (other - one) * t).astype(np.uint8)) for t in np.linspace(0, 1, 30)]
    images = [*steps, *(draw_scene(i) for i in range(2, 40))]
    small = np.stack([shrink_gray(image) for image in images])
    beside = cross_correlation.correlate_pairs(small, np.arange(29), np.arange(1, 30))
    assert beside.min() > near_duplicates.MIN_CORRELATION
    leaders = near_duplicates.group_near_duplicates(perceptual_hash.perceptual_hash(small), small)
    sizes = Counter(leaders.tolist())
    assert max(sizes.values()) < 20
    assert len({*leaders[:30].tolist()}) > 1
    for leader, size in sizes.items():
        members = np.flatnonzero(leaders == leader)
        if size > 1:
            pairs = [
                cross_correlation.correlate_pairs(small, np.full(size, c), members).min() for c in members.tolist()
            ]
            assert max(pairs) >= near_duplicates.MIN_CORRELATION  # all are like one of them


def test_each_frame_of_a_film_is_compared_with_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waves that move: every frame is like the next, so that one chain holds most of them."""
    rng, compared = np.random.default_rng(1), 0
    frequencies, start, speed = rng.integers(-6, 7, (40, 2)), rng.uniform(0, 2 * np.pi, 40), rng.normal(0, 0.05, 40)
    phases = 2 * np.pi * np.tensordot(frequencies, np.indices((32, 32)) / 32, 1) + start[:, None, None]
    frames = [np.cos(phases + (time * speed)[:, None, None]).sum(0) for time in range(500)]
    small = np.clip(128 + 20 * np.array(frames), 0, 255).astype(np.uint8)
    correlate = perceptual_hash.correlate_thumbnails

    def count(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal compared
        compared += len(a)
        return correlate(a, b)

    monkeypatch.setattr(perceptual_hash, "correlate_thumbnails", count)
    leaders = near_duplicates.group_near_duplicates(perceptual_hash.perceptual_hash(small), small)
    assert len({*leaders.tolist()}) < 250
    assert compared < 10 * len(small)


def test_equal_hashes_alone_do_not_group_images() -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    leaders = near_duplicates.group_near_duplicates(np.zeros(600, np.uint64), small[np.arange(600) % 3])
    assert leaders.tolist() == [i % 3 for i in range(600)]  # a hash alone proves nothing


def test_copies_count_when_no_looks_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "verification_budget", lambda _: 10)
    rng = np.random.default_rng(1)
    originals = np.stack([shrink_gray(draw_scene(i)) for i in range(300)])
    noisy = np.clip(originals[:1].astype(int) + rng.integers(-3, 4, (50, 32, 32)), 0, 255).astype(np.uint8)
    small = np.concatenate([originals, noisy])
    leaders = near_duplicates.group_near_duplicates(perceptual_hash.perceptual_hash(small), small)
    assert (leaders[:300] == np.arange(300)).all()
    assert (leaders[300:] == 0).all()


def test_no_images_and_one() -> None:
    small = np.zeros((1, 32, 32), np.uint8)
    assert near_duplicates.group_near_duplicates(perceptual_hash.perceptual_hash(small[:0]), small[:0]).tolist() == []
    assert near_duplicates.group_near_duplicates(perceptual_hash.perceptual_hash(small), small).tolist() == [0]


@pytest.mark.slow
def test_a_hundred_thousand_hashes_are_grouped() -> None:
    rng = np.random.default_rng(0)
    prints = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    small = rng.integers(0, 256, (100_000, 32, 32), dtype=np.uint8)
    prints[50_000:51_000] = prints[:1000] ^ np.uint64(0b1001)
    small[50_000:51_000] = small[:1000]
    leaders = near_duplicates.group_near_duplicates(prints, small)
    assert (leaders[50_000:51_000] == np.arange(1000)).all()
    assert (leaders != np.arange(100_000)).sum() == 1000


# The second look.


def test_alignment_finds_the_crop() -> None:
    images = [draw_scene(i) for i in range(20)]
    small = np.stack([shrink_gray(image) for image in images])
    for left, top, side in ((0, 0, 0.95), (0.05, 0.02, 0.95), (0.1, 0.1, 0.9), (0.03, 0, 0.97), (0, 0, 1)):
        cut = [image.crop((round(left * w), round(top * h), round((left + side) * w), round((top + side) * h)))
               for image in images for w, h in [image.size]]  # fmt: skip
        both = np.concatenate([small, np.stack([shrink_gray(image) for image in cut])])
        numbers = np.arange(20)
        correlations = cross_correlation.correlate_pairs(both, numbers, numbers + 20)
        assert correlations.min() > 0.9
        np.testing.assert_allclose(
            cross_correlation.correlate_pairs(both, numbers + 20, numbers), correlations, atol=1e-5
        )
        assert cross_correlation.correlate_pairs(both, numbers, (numbers + 1) % 20 + 20).max() < 0.6


def test_correlations_lie_between_minus_one_and_one_and_flat_images_are_like_none() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 32, 32), dtype=np.uint8)
    small[2], small[3] = 128, np.clip(small[3] // 128 + 100, 0, 255)
    one, other = (np.array(x) for x in zip(*combinations(range(4), 2), strict=True))
    correlations = cross_correlation.correlate_pairs(small, one, other)
    assert correlations.dtype == np.float32
    assert (np.abs(correlations) <= 1.001).all()
    assert correlations[[1, 3, 5]] == pytest.approx(0, abs=1e-6)  # with the flat one
    assert cross_correlation.correlate_pairs(small, np.arange(2), np.arange(2)) == pytest.approx([1, 1], abs=1e-3)
    assert cross_correlation.correlate_pairs(small, np.arange(0), np.arange(0)).shape == (0,)
