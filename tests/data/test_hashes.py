"""Perceptual hashes: what they are robust to, and the search for similar ones without comparing all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.fft import dctn

from sightline.data import hashes


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
