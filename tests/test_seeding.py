"""Named random streams are reproducible in every process and independent of each other."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sightline.seeding import derive_seed, make_generator

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.integers(), max_size=4)


def test_the_streams_are_pinned() -> None:
    """Changing them would silently change every split and every run of the users."""
    assert derive_seed(0) == 4066689987807800415
    assert derive_seed(0, "split") == 770319470761481405
    assert derive_seed(7, "augment", 3) == 6180644149748632105
    assert make_generator(7, "augment", 3).integers(0, 1000, 5).tolist() == [974, 144, 166, 802, 298]


@given(st.integers(0), NAMES)
def test_seed_is_of_64_bits_and_repeats(seed: int, names: list[str | int]) -> None:
    derived = derive_seed(seed, *names)
    assert 0 <= derived < 2**64
    assert derived == derive_seed(seed, *names)
    np.testing.assert_array_equal(make_generator(seed, *names).random(4), make_generator(seed, *names).random(4))


@given(st.integers(0, 9), NAMES, st.integers(0, 9), NAMES)
def test_other_name_other_stream(seed: int, names: list[str | int], seed2: int, names2: list[str | int]) -> None:
    same = (seed, [str(n) for n in names]) == (seed2, [str(n) for n in names2])
    assert (derive_seed(seed, *names) == derive_seed(seed2, *names2)) is same


def test_names_do_not_run_together() -> None:
    assert (
        len(
            {
                derive_seed(1, "ab"),
                derive_seed(1, "a", "b"),
                derive_seed(1, "a", "b", ""),
                derive_seed(11, "b"),
                derive_seed(1, 1, "b"),
            }
        )
        == 5
    )


def test_global_state_neither_matters_nor_moves() -> None:
    expected = make_generator(3, "order", 1).permutation(50)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # tests the global state
    following = random.random(), np.random.random()  # noqa: NPY002, S311
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(make_generator(3, "order", 1).permutation(50), expected)
    assert following == (random.random(), np.random.random())  # noqa: NPY002, S311


def test_streams_look_independent() -> None:
    a, b = make_generator(0, "a").random(20_000), make_generator(0, "b").random(20_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(a.mean() - 0.5) < 0.01


def test_another_process_draws_the_same() -> None:
    code = "from sightline.seeding import derive_seed; print(derive_seed(5, 'ä', 2))"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(completed.stdout) == derive_seed(5, "ä", 2)
