"""Images that a person keeps: no check questions them again, as long as they and their labels stay the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import COLORS, draw_classes
from sightline import DataError, Dataset, UsageError
from sightline.data.indexing import build_index
from sightline.data.label_patch import load_and_apply_patch
from sightline.studio.contents import Studio, open_studio
from sightline.studio.corrections import Corrections
from sightline.studio.query import Query


def read_lines(patch: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in patch.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colors with one image in two classes, and a blank one."""
    folder = draw_classes(tmp_path_factory.mktemp("kept") / "twins", COLORS, 3)
    (folder / "red" / "twin.png").write_bytes((folder / "blue" / "blue-001.png").read_bytes())
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / "green" / "blank.png")
    return folder


def test_keeping_is_a_line_that_is_undone_and_survives(studio: Studio, patch: Path, colors: Path) -> None:
    click = studio.corrections.apply([0, 1], "keep")
    assert [(line["action"], line["path"], line["label"], line.get("to")) for line in read_lines(patch)] == [
        ("keep", "blue/blue-000.png", "blue", None), ("keep", "blue/blue-001.png", "blue", None),
    ]  # fmt: skip
    again = Corrections(patch, build_index(colors))
    assert set(again.get(0)) == {"keep"}
    assert [image.is_kept for image in load_and_apply_patch(build_index(colors), patch).images[:3]] == [
        True,
        True,
        False,
    ]
    studio.corrections.undo(click.number)
    assert read_lines(patch) == []


def test_a_correction_replaces_keeping_and_is_itself_a_decision(studio: Studio, patch: Path) -> None:
    studio.corrections.apply([0], "keep")
    studio.corrections.apply([0], "relabel", "red")
    studio.corrections.apply([0], "keep")
    assert [line["action"] for line in read_lines(patch)] == ["relabel"]
    studio.corrections.apply([1], "drop")
    studio.corrections.apply([1], "keep")
    assert [line["action"] for line in read_lines(patch)] == ["relabel", "keep"]
    studio.corrections.apply([1], "restore")
    assert [line["action"] for line in read_lines(patch)] == ["relabel"]


def test_an_image_that_gets_the_label_that_it_has_is_still_kept(studio: Studio, patch: Path) -> None:
    studio.corrections.apply([0], "keep")
    studio.corrections.apply([0, 8], "relabel", "blue")
    assert [(line["action"], line["path"]) for line in read_lines(patch)] == [
        ("keep", "blue/blue-000.png"), ("relabel", "green/green-000.png"),
    ]  # fmt: skip


def test_an_image_without_a_class_cannot_be_kept(tmp_path: Path, patch: Path) -> None:
    folder = draw_classes(tmp_path / "some", COLORS, 2)
    (folder / "red" / "red-001.png").rename(folder / "red-001.png")
    index = build_index(folder, unlabeled=True, lenient=True)
    position = next(i for i, image in enumerate(index.images) if not image.label)
    with pytest.raises(UsageError, match="without a class cannot be kept"):
        Corrections(patch, index).apply([position], "keep")


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"label": "green"}, {"path": "blue/gone.png"}])
def test_a_line_says_nothing_of_another_image_or_label(
    studio: Studio, colors: Path, patch: Path, change: dict[str, str]
) -> None:
    studio.corrections.apply([0], "keep")
    stale = read_lines(patch)[0] | change
    patch.write_text(json.dumps(stale) + "\n", encoding="utf-8")
    assert not any(image.is_kept for image in load_and_apply_patch(build_index(colors), patch).images)
    studio.corrections.apply([5], "drop")
    assert [line["action"] for line in read_lines(patch)] == ["drop", "keep"], "it is left in the file"
    assert not studio.corrections.get(0)


def test_a_kept_image_cannot_be_corrected_by_another_line(studio: Studio, colors: Path, patch: Path) -> None:
    studio.corrections.apply([0], "keep")
    (line,) = read_lines(patch)
    text = json.dumps(line) + "\n"
    patch.write_text(text + text, encoding="utf-8")
    assert load_and_apply_patch(build_index(colors), patch).images[0].is_kept, "two people kept it"
    patch.write_text(text + json.dumps(line | {"action": "drop"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 corrects blue/blue-000\.png, which line 1 already corrects"):
        load_and_apply_patch(build_index(colors), patch)


def test_doctor_does_not_question_what_is_kept(twins: Path, patch: Path, tmp_path: Path) -> None:
    index = build_index(twins)
    positions = {image.path: i for i, image in enumerate(index.images)}
    pair = [positions["blue/blue-001.png"], positions["red/twin.png"]]
    corrections = Corrections(patch, index)
    corrections.apply([positions["green/blank.png"], pair[0]], "keep")

    def check() -> tuple[set[str], list[str]]:
        fixes = tmp_path / "proposed.jsonl"
        fixes.unlink(missing_ok=True)
        report = Dataset(twins).check(patch=patch, write_fixes=fixes)
        return {f.kind for f in report.findings}, [line["path"] for line in read_lines(fixes)]

    assert {"conflicting-duplicates", "blank"} <= {f.kind for f in Dataset(twins).check().findings}
    kinds, proposed = check()
    assert "blank" not in kinds
    assert "conflicting-duplicates" in kinds, "the other one of the two is still in question"
    assert proposed == ["red/twin.png"]
    corrections.apply(pair[1:], "keep")
    kinds, proposed = check()
    assert "conflicting-duplicates" not in kinds
    assert proposed == []


def test_a_queue_holds_what_is_to_review(twins: Path, patch: Path) -> None:
    with open_studio(Dataset(twins), patch) as studio:
        studio.check.start()
        studio.check.wait()
        queue = Query(finding="conflicting-duplicates", state="to-review", sort="group")
        first, second = studio.library.list_ids(queue)
        assert studio.library.count_values()["finding"]["conflicting-duplicates"] == 2
        studio.library.update(studio.corrections.apply([first], "keep").after)
        assert studio.library.list_ids(queue) == [second]
        assert studio.library.count_values()["finding"]["conflicting-duplicates"] == 1
        assert studio.library.list_ids(Query(state="kept")) == [first]
        studio.library.update(studio.corrections.apply([second], "drop").after)
        assert studio.library.list_ids(queue) == []
    with open_studio(Dataset(twins), patch) as studio:
        assert studio.library.list_ids(Query(state="kept")) == [first]
