"""What a search has chosen is what lies in its folder, whatever was chosen before."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.compress.search_dir import CompressionCandidate, SearchDir
from sightline.errors import OutputError


@pytest.fixture
def store(tmp_path: Path) -> SearchDir:
    """Two candidates: the large model, whose Keras model lies in the run, and a slim one with its own."""
    search_dir = SearchDir(tmp_path / "search", {"what": "a test"})
    for name in ("original-int8", "prune"):
        (search_dir.folder(name) / "bundle").mkdir(parents=True)
        (search_dir.folder(name) / "bundle" / "manifest.json").write_text(name)
    (search_dir.folder("prune") / "model.keras").write_text("pruned weights")
    return search_dir


def content(store: SearchDir) -> dict[str, str]:
    known = {"candidates", "search.json"}
    return {
        path.relative_to(store.path).as_posix(): path.read_text()
        for path in sorted(store.path.rglob("*"))
        if path.is_file() and path.relative_to(store.path).parts[0] not in known
    }


def chosen(name: str) -> CompressionCandidate:
    return CompressionCandidate(name, None, "float32", ())


def test_another_choice_leaves_nothing_of_the_one_before(store: SearchDir) -> None:
    store.select_best(chosen("prune"), "prune")
    assert content(store) == {"best.keras": "pruned weights", "best/manifest.json": "prune"}
    store.select_best(chosen("original-int8"), "original")
    assert content(store) == {"best/manifest.json": "original-int8"}
    store.select_best(chosen("prune"), "prune")
    store.clear_best()
    assert content(store) == {}


def test_a_choice_that_cannot_be_written_leaves_no_half_of_it(store: SearchDir) -> None:
    store.select_best(chosen("prune"), "prune")
    with pytest.raises(OutputError, match="best cannot be written"):
        store.select_best(chosen("absent"), "prune")
    assert content(store) == {}
