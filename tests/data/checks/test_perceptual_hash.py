"""Perceptual hashes: what they are robust to, and the search for similar ones without comparing all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.fft import dctn

from sightline.data.checks import perceptual_hash
from strategies import near_values


def brute_force_pairs(hash_values: NDArray[np.uint64], radius: int) -> set[tuple[int, int]]:
    values = hash_values.tolist()
    return {(i, j) for i, j in combinations(range(len(values)), 2) if (values[i] ^ values[j]).bit_count() <= radius}


def candidate_pairs(hash_values: NDArray[np.uint64], radius: int, few: int) -> list[tuple[int, int]]:
    return [
        (i, j)
        for a, b in perceptual_hash.find_similar_pairs(hash_values, radius, few)
        for i, j in zip(a.tolist(), b.tolist(), strict=True)
    ]


@settings(deadline=None, max_examples=6)
@given(near_values(), st.integers(0, perceptual_hash.RADIUS))
def test_bands_find_exactly_the_pairs_that_brute_force_finds(values: list[int], radius: int) -> None:
    hash_values = np.array(values, np.uint64)
    by_bands = candidate_pairs(hash_values, radius, few=0)
    assert len(by_bands) == len(set(by_bands))
    assert (
        set(by_bands)
        == brute_force_pairs(hash_values, radius)
        == set(candidate_pairs(hash_values, radius, few=len(hash_values)))
    )


def test_bands_compare_a_small_fraction_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    hash_values = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)
    looked = 0
    original = perceptual_hash._pairs_in_buckets

    def count(*arguments: object) -> list[perceptual_hash.Pairs]:
        nonlocal looked
        bucket_pairs = list(original(*arguments))  # type: ignore[arg-type]
        looked += sum(len(a) for a, _ in bucket_pairs)
        return bucket_pairs

    monkeypatch.setattr(perceptual_hash, "_pairs_in_buckets", count)
    monkeypatch.setattr(perceptual_hash, "CANDIDATES_PER_BATCH", 1000)  # chunks lose nothing
    radius = perceptual_hash.RADIUS
    assert set(candidate_pairs(hash_values, radius, few=0)) == set(candidate_pairs(hash_values, radius, few=10_000))
    assert looked < 0.06 * 2000 * 3999 / 2


def test_the_hash_is_the_signs_of_low_frequencies() -> None:
    gray = np.random.default_rng(2).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    for one, hash_value in zip(gray, perceptual_hash.perceptual_hash(gray).tolist(), strict=True):
        spectrum = dctn(one.astype(float))
        low = [spectrum[0, 1] > 0, spectrum[1, 0] > 0, spectrum[1, 1] > 0]
        assert [bool(hash_value >> bit & 1) for bit in range(3)] == low
        assert hash_value.bit_count() == sum(
            spectrum[r, c] > 0
            for r, c in zip(*perceptual_hash._low_frequencies()[1:], strict=True)  # 64 of them, without the mean
        )
    assert perceptual_hash.perceptual_hash(gray).dtype == np.uint64
    assert perceptual_hash.perceptual_hash(gray[:0]).shape == (0,)


def test_brightness_and_contrast_change_no_hash() -> None:
    gray = np.random.default_rng(3).integers(60, 160, (4, 32, 32), dtype=np.uint8)
    assert (perceptual_hash.perceptual_hash(gray) == perceptual_hash.perceptual_hash(gray + 40)).all()
