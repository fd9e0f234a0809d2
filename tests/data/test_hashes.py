"""Perceptual hashes: what they survive, and groups found without comparing all pairs."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from sightline.data import hashes
from sightline.data.survey import fingerprints, tiny


def brute(found: NDArray[np.uint64], radius: int) -> set[tuple[int, int]]:
    values = found.tolist()
    return {(i, j) for i, j in combinations(range(len(values)), 2) if (values[i] ^ values[j]).bit_count() <= radius}


def pairs(found: NDArray[np.uint64], radius: int, few: int) -> list[tuple[int, int]]:
    return [
        (i, j) for a, b in hashes.candidates(found, radius, few) for i, j in zip(a.tolist(), b.tolist(), strict=True)
    ]


def changed(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


NEAR = st.lists(
    st.tuples(st.sampled_from([0, 0x0123456789ABCDEF, 2**64 - 1]), st.lists(st.integers(0, 63), max_size=20)),
    min_size=1,
    max_size=20,
)


@settings(deadline=None, max_examples=6)
@given(NEAR, st.integers(0, 14))
def test_bands_find_exactly_the_pairs_that_brute_force_finds(drawn: list[tuple[int, list[int]]], radius: int) -> None:
    found = np.array([changed(value, bits) for value, bits in drawn], np.uint64)
    by_bands = pairs(found, radius, few=0)
    assert len(by_bands) == len(set(by_bands))
    assert set(by_bands) == brute(found, radius) == set(pairs(found, radius, few=len(found)))


def test_bands_look_at_a_small_share_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)
    looked = 0
    original = hashes._in_buckets

    def count(*arguments: object) -> list[hashes.Pairs]:
        nonlocal looked
        given = list(original(*arguments))  # type: ignore[arg-type]
        looked += sum(len(a) for a, _ in given)
        return given

    monkeypatch.setattr(hashes, "_in_buckets", count)
    monkeypatch.setattr(hashes, "CHUNK", 1000)  # chunks lose nothing
    assert set(pairs(found, 14, few=0)) == set(pairs(found, 14, few=10_000))
    assert looked < 0.06 * 2000 * 3999 / 2


@settings(deadline=None, max_examples=12)
@given(NEAR, st.randoms())
def test_groups_are_the_connected_parts_in_any_order(drawn: list[tuple[int, list[int]]], chance: object) -> None:
    values = [changed(value, bits) for value, bits in drawn]
    thumb = np.random.default_rng(0).integers(0, 256, (1, 16, 16), dtype=np.uint8)  # all alike: the hashes decide
    order = sorted(range(len(values)), key=lambda _: chance.random())  # type: ignore[attr-defined]

    def groups_of(some: list[int]) -> set[frozenset[int]]:
        found = np.array([values[i] for i in some], np.uint64)
        leaders = hashes.groups(found, np.repeat(thumb, len(some), 0)).tolist()
        assert all(leader <= i for i, leader in enumerate(leaders))
        return {frozenset(some[i] for i, x in enumerate(leaders) if x == leader) for leader in leaders}

    expected = {frozenset({i}) for i in range(len(values))}
    for i, j in brute(np.array(values, np.uint64), hashes.RADIUS):
        one, other = (next(g for g in expected if k in g) for k in (i, j))
        expected = expected - {one, other} | {one | other}
    assert groups_of(list(range(len(values)))) == groups_of(order) == expected


def test_many_equal_hashes_are_no_trouble() -> None:
    rng = np.random.default_rng(1)
    thumbs = rng.integers(0, 256, (3, 16, 16), dtype=np.uint8)
    found = np.zeros(1500, np.uint64)
    leaders = hashes.groups(found, thumbs[np.arange(1500) % 3])
    assert leaders.tolist() == [i % 3 for i in range(1500)]  # a hash alone proves nothing


def test_the_hash_is_the_signs_of_low_frequencies() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    for one, found in zip(grey, hashes.perceptual(grey).tolist(), strict=True):
        spectrum = dctn(one.astype(float))
        low = [spectrum[0, 1] > 0, spectrum[1, 0] > 0, spectrum[1, 1] > 0]
        assert [bool(found >> bit & 1) for bit in range(3)] == low
        assert found.bit_count() == sum(
            spectrum[r, c] > 0
            for r, c in zip(*hashes._waves()[1:], strict=True)  # 64 of them, without the mean
        )
    assert hashes.perceptual(grey).dtype == np.uint64
    assert hashes.perceptual(grey[:0]).shape == (0,)


def test_brightness_and_contrast_change_no_hash() -> None:
    grey = np.random.default_rng(3).integers(60, 160, (4, 32, 32), dtype=np.uint8)
    assert (hashes.perceptual(grey) == hashes.perceptual(grey + 40)).all()


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def versions(image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    w, h = image.size
    x, y = rng.uniform(0, 0.05, 2)
    cut = image.crop((int(x * w), int(y * h), int((x + 0.95) * w), int((y + 0.95) * h)))
    half = image.resize((w // 2, h // 2))
    return {"half": half, "enlarged": image.resize((2 * w, 2 * h)), "quality 50": jpeg(image, 50), "crop 5%": cut,
            "all": jpeg(cut.resize((w // 2, h // 2)), 50)}  # fmt: skip


def test_real_photographs_are_known_again_and_told_apart(shared: Path) -> None:
    paths = sorted((shared / "data" / "cats_vs_dogs" / "test").rglob("*.jpg"))[::8]
    images = [Image.open(path).convert("RGB") for path in paths]
    prints, thumbs = fingerprints(np.stack([tiny(image) for image in images]))
    assert (hashes.groups(prints, thumbs) == np.arange(len(paths))).all()
    rng = np.random.default_rng(0)
    changed = [versions(image, rng) for image in images]
    for name, least in {"half": 1, "enlarged": 1, "quality 50": 1, "crop 5%": 0.9, "all": 0.9}.items():
        others, small = fingerprints(np.stack([tiny(made[name]) for made in changed]))
        found = hashes.groups(np.concatenate([prints, others]), np.concatenate([thumbs, small]))
        assert (found[len(paths) :] == np.arange(len(paths))).mean() >= least, name


@pytest.mark.slow
def test_a_hundred_thousand_hashes_are_grouped() -> None:
    rng = np.random.default_rng(0)
    found = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    thumbs = rng.integers(0, 256, (100_000, 16, 16), dtype=np.uint8)
    found[50_000:51_000] = found[:1000] ^ np.uint64(0b1001)
    thumbs[50_000:51_000] = thumbs[:1000]
    leaders = hashes.groups(found, thumbs)
    assert (leaders[50_000:51_000] == np.arange(1000)).all()
    assert (leaders != np.arange(100_000)).sum() == 1000
