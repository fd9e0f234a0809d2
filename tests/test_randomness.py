"""Named random streams are reproducible in every process and independent of each other."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sightline.randomness import derive, generator

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.integers(), max_size=4)


def test_the_streams_are_pinned() -> None:
    """Changing them would silently change every split and every run of the users."""
    assert derive(0) == 4066689987807800415
    assert derive(0, "split") == 770319470761481405
    assert derive(7, "augment", 3) == 6180644149748632105
    assert generator(7, "augment", 3).integers(0, 1000, 5).tolist() == [974, 144, 166, 802, 298]


@given(st.integers(0), NAMES)
def test_seed_is_of_64_bits_and_repeats(seed: int, names: list[str | int]) -> None:
    found = derive(seed, *names)
    assert 0 <= found < 2**64
    assert found == derive(seed, *names)
    np.testing.assert_array_equal(generator(seed, *names).random(4), generator(seed, *names).random(4))


@given(st.integers(0, 9), NAMES, st.integers(0, 9), NAMES)
def test_other_name_other_stream(seed: int, names: list[str | int], seed2: int, names2: list[str | int]) -> None:
    same = (seed, [str(n) for n in names]) == (seed2, [str(n) for n in names2])
    assert (derive(seed, *names) == derive(seed2, *names2)) is same


def test_names_do_not_run_together() -> None:
    assert len({derive(1, "ab"), derive(1, "a", "b"), derive(1, "a", "b", ""), derive(11, "b"), derive(1, 1, "b")}) == 5


def test_global_state_neither_matters_nor_moves() -> None:
    expected = generator(3, "order", 1).permutation(50)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global state is what is tested
    following = random.random(), np.random.random()  # noqa: NPY002, S311
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(generator(3, "order", 1).permutation(50), expected)
    assert following == (random.random(), np.random.random())  # noqa: NPY002, S311


def test_streams_look_independent() -> None:
    a, b = generator(0, "a").random(20_000), generator(0, "b").random(20_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(a.mean() - 0.5) < 0.01


def test_another_process_draws_the_same() -> None:
    code = "from sightline.randomness import derive; print(derive(5, 'ä', 2))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive(5, "ä", 2)
