"""A tree of classes: paths, probabilities that add up, predicted nodes, and tables that are not a tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.config import DataConfig
from sightline.data.class_tree import LEAST_PROBABILITY, MAX_DEPTH, build_tree, check_paths, resolve_paths
from sightline.data.sources.class_parents import read_parents
from sightline.errors import DataError

NAMES = st.sampled_from(["a", "b", "c", "a-b", "Ä", "z z"])


@st.composite
def draw_classes(draw: st.DrawFn) -> tuple[str, ...]:
    """Return the leaves of a random tree: paths of which none is the start of another."""
    paths = draw(st.lists(st.lists(NAMES, min_size=1, max_size=5).map("/".join), min_size=2, max_size=20, unique=True))
    leaves = [path for path in paths if not any(other.startswith(path + "/") for other in paths)]
    leaves.append("root/leaf")
    return tuple(draw(st.permutations(leaves)))


@st.composite
def draw_outputs(draw: st.DrawFn) -> tuple[tuple[str, ...], np.ndarray]:
    """Return classes, and the softmax of random logits, float32 [4, K]."""
    classes = draw(draw_classes())
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = rng.normal(size=(4, len(classes))) * draw(st.sampled_from([0.1, 3, 30]))
    p = np.exp(logits - logits.max(1, keepdims=True))
    return classes, (p / p.sum(1, keepdims=True)).astype(np.float32)


@given(draw_outputs())
def test_probabilities_add_up_along_any_tree(outputs: tuple[tuple[str, ...], np.ndarray]) -> None:
    classes, p = outputs
    tree = build_tree(classes)
    sums = tree.sum_probabilities(p)
    assert set(classes) <= set(tree.nodes)
    for node, parent in enumerate(tree.parents.tolist()):
        below = [k for k, name in enumerate(classes) if f"{name}/".startswith(f"{tree.nodes[node]}/")]
        np.testing.assert_allclose(sums[:, node], p[:, below].sum(1), atol=1e-6)
        if parent >= 0:
            assert tree.nodes[node].startswith(tree.nodes[parent] + "/")
            assert (sums[:, node] <= sums[:, parent]).all()
    np.testing.assert_allclose(sums[:, tree.parents == -1].sum(1), 1, atol=1e-5)
    # an image has the same probabilities whatever other images are beside it
    np.testing.assert_array_equal(sums[1:2], tree.sum_probabilities(p[1:2]))


@given(draw_outputs(), st.floats(0, 1))
def test_the_deepest_class_that_reaches_the_threshold(
    outputs: tuple[tuple[str, ...], np.ndarray], threshold: float
) -> None:
    classes, p = outputs
    tree = build_tree(classes)
    sums = tree.sum_probabilities(p)
    limit = max(threshold, LEAST_PROBABILITY)
    for row, deepest in zip(sums, tree.find_deepest_nodes(sums, threshold).tolist(), strict=True):
        passing = [node for node, value in enumerate(row) if value >= limit]
        if deepest == -1:
            assert not passing
        else:
            assert all(f"{tree.nodes[deepest]}/".startswith(f"{tree.nodes[node]}/") for node in passing)
            assert deepest in passing
    looser = tree.find_deepest_nodes(sums, threshold / 2)
    depths = np.append(tree.depths, 0)
    assert (depths[looser] >= depths[tree.find_deepest_nodes(sums, threshold)]).all()


def test_classes_of_different_depths_keep_their_order() -> None:
    tree = build_tree(("plant", "animal/dog", "animal/cat/wild"))
    assert tree.nodes == ("animal", "animal/cat", "animal/cat/wild", "animal/dog", "plant")
    assert tree.parents.tolist() == [-1, 0, 1, 0, -1]
    assert tree.depths.tolist() == [1, 2, 3, 2, 1]
    sums = tree.sum_probabilities(np.array([[0.5, 0.25, 0.25]], np.float32))
    assert sums.tolist() == [[0.5, 0.25, 0.25, 0.25, 0.5]]
    assert tree.find_deepest_nodes(sums, 0.5).tolist() == [-1]  # two classes have one half
    assert tree.are_above(np.array([0, 4, -1]), np.array([2, 2, 2])).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dog"], "There is no tree: none of the classes cat, dog is a path"),
        (["animal", "animal/cat"], "'animal' has images of its own, and so has 'animal/cat' below it"),
        (["animal//cat", "b"], "'animal//cat' has an empty name in its path"),
        (["/cat", "b"], "has an empty name in its path"),
        (["/".join("a" * (MAX_DEPTH + 1)), "b"], f"is {MAX_DEPTH + 1} levels deep: a tree has at most {MAX_DEPTH}"),
    ],
)
def test_classes_that_are_not_a_tree_are_refused(classes: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_paths(classes)


def test_a_name_that_starts_like_another_is_not_below_it() -> None:
    assert build_tree(("cat", "cat-like/x")).nodes == ("cat", "cat-like", "cat-like/x")


def test_parents_become_paths() -> None:
    parents = {"cat": "pet", "pet": "animal", "animal": "", "car": "vehicle/road"}
    assert resolve_paths(parents, "t") == {
        "cat": "animal/pet/cat", "pet": "animal/pet", "animal": "animal", "car": "vehicle/road/car"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,parent\na,b\nb,c\nc,a\n", r"the parents of 'a' form a cycle \(a < b < c < a\)"),
        ("name,parent\na,a\n", r"form a cycle \(a < a\)"),
        (
            "name,parent\na,b\na,c\nb,\nc,\n",
            "line 3: 'a' has the parent 'c' here, but 'b' above: a class has one parent",
        ),
        ("name,parent\na,missing\n", "'a' has the parent 'missing', which has no row: add one"),
        ("name,parent\na/b,c\nc,\n", "line 2: the name is 'a/b'"),
        ("name,parent\n,c\nc,\n", "line 2: the name is ''"),
        ("name,above\na,b\n", "has the columns name, above: expected name and parent"),
        (
            "name,parent\n" + "".join(f"n{i},n{i + 1}\n" for i in range(40)) + "n40,\n",
            f"'n0' is more than {MAX_DEPTH} levels deep",
        ),
    ],
)
def test_a_table_that_is_not_a_tree_is_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "tree.csv").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_parents(tmp_path / "tree.csv", DataConfig())


def test_a_table_of_parents_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The table of classes .*tree\.csv cannot be read"):
        read_parents(tmp_path / "tree.csv", DataConfig())
