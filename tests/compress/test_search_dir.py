"""The folder of a search: what is chosen is copied to `best`, and whatever is damaged or made up is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damage import choose_damage, damage_value, restore
from networks import make_plan
from sightline.compress.noninferiority import ScoreTest, compare_counts
from sightline.compress.search_dir import CompressionCandidate, SearchDir
from sightline.errors import ModelError, OutputError, SightlineError
from sightline.export import keras_to_onnx
from sightline.inference import bundle
from sightline.inference.manifest import Manifest
from sightline.intervals import Interval
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec

KEY = {"what": "a test"}
ORIGINAL = CompressionCandidate(
    "original", None, "float32", ({"step": "train"},), accuracy=0.9, count=100, parameters=1000, bytes=4000,
    multiply_adds=5000, latency=1.0, latency_p99=2.0, throughput=3.0,
)  # fmt: skip
PRUNED = replace(
    ORIGINAL, name="prune", parent="original", lineage=(*ORIGINAL.lineage, {"step": "prune"}), parameters=500,
    only_original_correct=3, only_this_correct=3,
)  # fmt: skip


SCORES = ScoreTest(
    "image_iou", "validation", 90, 0.75, 0.7, -0.05, 0.01, Interval(-0.07, -0.03), 0.001, groups=40
)  # fmt: skip
SCORED = replace(
    PRUNED, only_original_correct=0, only_this_correct=0, metrics={"mean_iou": 0.6, "mean_dice": 0.7}, scores=SCORES
)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three candidates: the original and its int8 form, whose Keras model is in the run, and one with its own."""
    path = tmp_path_factory.mktemp("search") / "search"
    search_dir = SearchDir(path, KEY, 300)
    model = build_model(make_plan("cifar10-simple", side=8, classes=3, hidden_units=())).model
    int8 = replace(ORIGINAL, name="original-int8", parent="original", precision="int8", lineage=PRUNED.lineage)
    for candidate in (ORIGINAL, int8, PRUNED):
        manifest = Manifest(candidate.name, ("a", "b", "c"), PreprocessingSpec(8, 8, 3))
        packed = bundle.make(manifest, keras_to_onnx.convert_model(model), {})
        search_dir.write_candidate(candidate, packed, model.save if candidate is PRUNED else None)
    search_dir.write_comparisons({"prune": compare_counts("test", 200, 180, 7, 4)})
    return path


@pytest.fixture
def search_dir(search: Path, tmp_path: Path) -> SearchDir:
    restore(tmp_path / "search", search)
    return SearchDir(tmp_path / "search", KEY, 300)


def chosen(search_dir: SearchDir) -> tuple[str | None, bool]:
    """Return the model that `best` is a bundle of, and whether its Keras model is beside it."""
    best = search_dir.path / "best"
    return bundle.read(best).manifest.model if best.exists() else None, (search_dir.path / "best.keras").is_file()


def test_another_choice_leaves_nothing_of_the_previous_one(search_dir: SearchDir) -> None:
    search_dir.select_best(PRUNED, "prune")
    assert chosen(search_dir) == ("prune", True)
    search_dir.select_best(replace(ORIGINAL, name="original-int8"), "original")
    assert chosen(search_dir) == ("original-int8", False)
    search_dir.select_best(PRUNED, "prune")
    search_dir.clear_best()
    assert chosen(search_dir) == (None, False)
    assert not list(search_dir.path.glob(".part-*"))


def test_only_the_files_of_the_bundle_are_chosen(search_dir: SearchDir, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = search_dir.folder("prune") / "bundle"
    (folder / "note.txt").symlink_to(tmp_path / "secret")
    search_dir.select_best(PRUNED, "prune")
    assert sorted(p.name for p in (search_dir.path / "best").iterdir()) == ["manifest.json", "model.onnx"]


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("name", ["bundle/model.onnx", "bundle/manifest.json", "model.keras"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"PK"), _append, _replace_by_link, Path.unlink])
def test_a_choice_that_is_damaged_is_refused(
    search_dir: SearchDir, name: str, damage: Callable[[Path], object]
) -> None:
    search_dir.select_best(PRUNED, "prune")
    file = search_dir.folder("prune") / name
    damage(file)
    if name == "model.keras" and damage in (Path.unlink, _append):  # a zip may be followed by anything
        search_dir.select_best(PRUNED, "prune")
        return
    with pytest.raises(ModelError) as error:
        search_dir.select_best(PRUNED, "prune")
    assert str(search_dir.folder("prune")) in str(error.value)
    assert chosen(search_dir)[1] is False, "the Keras model of the previous choice"


def test_links_with_the_names_of_results_are_replaced(search_dir: SearchDir, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    (search_dir.path / "comparisons.json").unlink()
    for name in ("best", "best.keras", "comparisons.json"):
        (search_dir.path / name).symlink_to(victim if name == "best" else victim / "precious")
    search_dir.select_best(PRUNED, "prune")
    search_dir.write_comparisons({})
    assert chosen(search_dir) == ("prune", True)
    assert [(p.name, p.read_text()) for p in victim.iterdir()] == [("precious", "precious")]


@pytest.mark.parametrize("link", ["candidates", "candidates/other", "candidates/other/training"])
def test_no_candidate_is_written_through_a_link(search_dir: SearchDir, tmp_path: Path, link: str) -> None:
    victim, place = tmp_path / "victim", search_dir.path / link
    victim.mkdir()
    if place.exists():
        place.rename(tmp_path / "moved")
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(victim)
    with pytest.raises(OutputError, match="is a link"):
        search_dir.training_folder("other")
    if link != "candidates/other/training":
        with pytest.raises(OutputError, match="is a link"):
            search_dir.write_candidate(replace(ORIGINAL, name="other"), None)
    assert not list(victim.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "original"}, {"parent": "../../elsewhere"}, {"parent": None}, {"precision": "int8"},
        {"lineage": [{"step": "train"}]}, {"lineage": [{"step": "made up"}, {"step": "prune"}]}, {"count": 0},
        {"count": 301}, {"count": 1 << 62}, {"only_original_correct": -1}, {"only_original_correct": 11},
        {"only_this_correct": 91}, {"accuracy": 1.5}, {"accuracy": -0.1}, {"accuracy": 1e308}, {"parameters": 0},
        {"bytes": 0}, {"bytes": 1 << 62}, {"latency": 0.0}, {"latency": 1e300}, {"throughput": -1.0}, {"seconds": -1.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_was_made_up_is_refused(search_dir: SearchDir, changes: dict[str, Any]) -> None:
    assert search_dir.read_candidate("prune", ORIGINAL, "float32") == PRUNED
    file = search_dir.folder("prune") / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match="is not the record of prune in this search") as error:
        search_dir.read_candidate("prune", ORIGINAL, "float32")
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"p_value": 0.9}, {"difference": 0.5}, {"difference_interval": [0, 1]}, {"only_original_correct": -7},
        {"only_original_correct": 1 << 62, "count": 1 << 63}, {"count": 0}, {"count": 301}, {"split": "train set"},
        {"original_accuracy": 2.0}, {"compressed_accuracy": 0.99},
    ],
    ids=str,
)  # fmt: skip
def test_a_comparison_that_was_made_up_is_refused(search_dir: SearchDir, changes: dict[str, Any]) -> None:
    assert search_dir.read_comparisons() == {"prune": compare_counts("test", 200, 180, 7, 4)}
    file = search_dir.path / "comparisons.json"
    file.write_text(json.dumps({"prune": json.loads(file.read_text())["prune"] | changes}))
    with pytest.raises(ModelError, match="contradict each other"):
        search_dir.read_comparisons()


@pytest.mark.slow_with("comparisons.json", "search.json")
@pytest.mark.parametrize("name", ["search.json", "comparisons.json", "candidates/prune/record.json"])
def test_any_damage_is_named_or_harmless(search: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "search"

    def read() -> str:
        """Read the search; return the error, if there is one."""
        try:
            search_dir = SearchDir(path, KEY, 300)
            search_dir.read_candidate("prune", ORIGINAL, "float32")
            search_dir.read_comparisons()
        except SightlineError as error:
            return str(error)
        return ""

    messages = []
    for seed in range(150):
        restore(path, search)
        rng = np.random.default_rng(seed)
        damage = choose_damage(path / name, seed) if seed % 2 else damage_value(path / name, rng)
        damage.apply(path / name)
        messages.append(read())
        assert not messages[-1] or str(path) in messages[-1], damage.description
    assert sum(map(bool, messages)) > 75


@pytest.fixture
def scored_dir(tmp_path: Path) -> SearchDir:
    """A search that compares candidates by scores."""
    search_dir = SearchDir(tmp_path / "scored", KEY | {"score": "image_iou"}, 300)
    search_dir.write_candidate(SCORED, None)
    search_dir.write_comparisons({"prune": replace(SCORES, split="test")})
    return search_dir


def test_scores_are_stored_in_place_of_counts(scored_dir: SearchDir) -> None:
    assert scored_dir.read_candidate("prune", ORIGINAL, "float32") == SCORED
    assert scored_dir.read_comparisons() == {"prune": replace(SCORES, split="test")}
    assert SCORED.headline == ("mean_iou", 0.6)
    assert SCORED.shown_metrics == {"mean_iou": 0.6, "image_iou": 0.7}
    record = json.loads((scored_dir.folder("prune") / "record.json").read_text())
    assert not record.keys() & {"only_original_correct", "only_this_correct"}
    assert PRUNED.to_dict().keys() == record.keys() - {"metrics", "scores"} | {
        "only_original_correct", "only_this_correct",
    }  # fmt: skip
    assert PRUNED.headline == ("accuracy", 0.9)
    assert PRUNED.comparison == compare_counts("validation", 100, 90, 3, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 101}, {"count": 0}, {"original_score": 0.9}, {"compressed_score": 1.5}, {"difference": 0.5},
        {"standard_error": -0.1}, {"difference_interval": [-0.03, -0.07]}, {"difference_interval": [-2, 0]},
        {"p_value": 1.5}, {"split": "train set"}, {"groups": 91}, {"groups": -1}, {"metric": "example_f1"},
    ],
    ids=str,
)  # fmt: skip
def test_scores_that_were_made_up_are_refused(scored_dir: SearchDir, changes: dict[str, Any]) -> None:
    file, comparisons = scored_dir.folder("prune") / "record.json", scored_dir.path / "comparisons.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"scores": record["scores"] | changes}))
    with pytest.raises(ModelError, match="is not the record of prune in this search"):
        scored_dir.read_candidate("prune", ORIGINAL, "float32")
    stored = json.loads(comparisons.read_text())
    changes = {"count": 301} if changes == {"count": 101} else changes
    comparisons.write_text(json.dumps({"prune": stored["prune"] | changes}))
    with pytest.raises(ModelError, match="contradict each other"):
        scored_dir.read_comparisons()


def test_a_record_of_another_kind_is_refused(scored_dir: SearchDir, search_dir: SearchDir) -> None:
    for candidate, place in ((PRUNED, scored_dir), (SCORED, search_dir)):
        place.write_candidate(candidate, None)
        with pytest.raises(ModelError, match="is not the record of prune in this search"):
            place.read_candidate("prune", ORIGINAL, "float32")
    scored_dir.write_candidate(replace(SCORED, metrics={"mean_iou": 1.5}), None)
    with pytest.raises(ModelError, match="is not the record of prune in this search"):
        scored_dir.read_candidate("prune", ORIGINAL, "float32")


def test_a_search_that_was_killed_while_it_was_created_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "search"
    path.mkdir()
    (path / ".part-0123456789abcdef.json").write_text("{")
    assert SearchDir(path, KEY, 300).read_comparisons() == {}


def test_one_process_searches_at_a_time_and_removes_what_a_killed_one_half_wrote(search_dir: SearchDir) -> None:
    half = search_dir.folder("prune") / ".part-0123"
    (half / "bundle").mkdir(parents=True)
    with search_dir.lock():
        assert not half.exists()
        half.mkdir()
        message = "search is in use by another process"
        with pytest.raises(OutputError, match=message), SearchDir(search_dir.path, KEY, 300).lock():
            pass
        assert half.exists()
    with search_dir.lock():
        assert search_dir.read_candidate("original", None, "float32") == ORIGINAL
