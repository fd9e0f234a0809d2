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
    for name in ("large-int8", "slim"):
        (search_dir.folder(name) / "bundle").mkdir(parents=True)
        (search_dir.folder(name) / "bundle" / "manifest.json").write_text(name)
    (search_dir.folder("slim") / "model.keras").write_text("slim weights")
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
    store.select_best(chosen("slim"), "slim")
    assert content(store) == {"best.keras": "slim weights", "best/manifest.json": "slim"}
    store.select_best(chosen("large-int8"), "large")
    assert content(store) == {"best/manifest.json": "large-int8"}
    store.select_best(chosen("slim"), "slim")
    store.clear_best()
    assert content(store) == {}


def test_a_choice_that_cannot_be_written_leaves_no_half_of_it(store: SearchDir) -> None:
    store.select_best(chosen("slim"), "slim")
    with pytest.raises(OutputError, match="best cannot be written"):
        store.select_best(chosen("absent"), "slim")
    assert content(store) == {}
