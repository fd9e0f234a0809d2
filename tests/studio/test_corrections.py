"""Corrections by hand: lines of a patch file, which clicks write and undo."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command import COLORS, draw_classes
from sightline import DataError, Dataset, OutputError, UsageError
from sightline.data.indexing import build_index
from sightline.data.label_patch import load_and_apply_patch
from sightline.studio.contents import Studio, open_studio
from sightline.studio.corrections import Corrections, open_corrections


def read_lines(patch: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in patch.read_text(encoding="utf-8").splitlines()]


def test_a_click_is_a_line_for_each_image_that_train_applies(studio: Studio, patch: Path, colors: Path) -> None:
    assert not patch.exists(), "nothing is written before the first click"
    studio.corrections.apply([0, 9], "relabel", "red")
    studio.corrections.apply([1], "drop")
    assert [(line["action"], line["path"], line.get("to")) for line in read_lines(patch)] == [
        ("relabel", "blue/blue-000.png", "red"),
        ("relabel", "green/green-001.png", "red"),
        ("drop", "blue/blue-001.png", None),
    ]
    corrected = load_and_apply_patch(build_index(colors), patch)
    labels = {image.path: image.label for image in corrected.images}
    assert labels["blue/blue-000.png"] == labels["green/green-001.png"] == "red"
    assert "blue/blue-001.png" not in labels
    assert len(labels) == 23


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder is read-only for everybody")
def test_a_new_patch_that_cannot_be_written_is_refused_at_the_start(colors: Path) -> None:
    patch = Path("/proc/fixes.jsonl")
    with pytest.raises(OutputError, match=r"/proc is not writable: .*--patch"), open_studio(Dataset(colors), patch):
        pass


def test_clicks_write_the_patch_and_nothing_else(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = tmp_path / "beside" / "fixes.jsonl"
    for folder in ("beside", "current"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "current")

    def look() -> dict[Path, tuple[int, int, bytes]]:
        paths = (path for path in colors.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in paths}

    before = look()
    with open_studio(Dataset(colors), patch) as studio:
        for edit, to in (("relabel", "red"), ("relabel", "a new class"), ("keep", None)):
            studio.library.update(studio.corrections.apply([0, 9], edit, to).after)
        studio.corrections.undo(studio.corrections.apply([0, 9], "drop").number)
    assert look() == before
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "beside", "beside/fixes.jsonl", "current",
    ]  # fmt: skip


def test_a_correction_that_is_taken_back_leaves_no_line(studio: Studio, patch: Path) -> None:
    studio.corrections.apply([0], "relabel", "red")
    studio.corrections.apply([0], "relabel", "blue")
    assert read_lines(patch) == []
    studio.corrections.apply([0], "drop")
    studio.corrections.apply([0], "restore")
    assert read_lines(patch) == []


def test_a_class_replaces_a_drop_and_the_reverse(studio: Studio, patch: Path) -> None:
    for edit, to in (("relabel", "red"), ("drop", None), ("relabel", "green")):
        studio.corrections.apply([0], edit, to)
        assert [(line["action"], line.get("to")) for line in read_lines(patch)] == [(edit, to)]


def test_undo_restores_what_was_there_and_spares_what_others_changed_since(studio: Studio, patch: Path) -> None:
    first = studio.corrections.apply([0, 1], "relabel", "red")
    second = studio.corrections.apply([1], "drop")
    studio.corrections.undo(first.number)
    assert [(line["path"], line["action"]) for line in read_lines(patch)] == [("blue/blue-001.png", "drop")]
    studio.corrections.undo(second.number)
    assert [(line["path"], line["action"]) for line in read_lines(patch)] == [("blue/blue-001.png", "relabel")]
    for number in (first.number, second.number, 99):
        with pytest.raises(UsageError, match="nothing to undo"):
            studio.corrections.undo(number)


def test_lines_of_before_are_undone_the_last_first(studio: Studio, patch: Path, colors: Path) -> None:
    for position, to in ((9, "red"), (0, "green"), (4, "red")):
        studio.corrections.apply([position], "relabel", to)
    with pytest.raises(UsageError, match="nothing to undo"):
        studio.corrections.undo(None)
    again = Corrections(patch, build_index(colors))
    again.apply([9], "relabel", "blue")  # which leaves two lines of before
    assert [*again.undo(None).after] == [4]
    assert again.has_earlier
    assert [*again.undo(None).after] == [0]
    assert not again.has_earlier
    assert [json.loads(line)["to"] for line in patch.read_text().splitlines()] == ["blue"]
    with pytest.raises(UsageError, match="nothing to undo"):
        again.undo(None)


def test_a_line_of_before_is_undone_for_all_copies_of_its_image(patch: Path, tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "twins", COLORS, 2)
    (folder / "blue" / "twin.png").write_bytes((folder / "blue" / "blue-000.png").read_bytes())
    index = build_index(folder)
    copies = [i for i, image in enumerate(index.images) if image.path in ("blue/blue-000.png", "blue/twin.png")]
    Corrections(patch, index).apply(copies, "relabel", "red")
    assert [*Corrections(patch, index).undo(None).after] == copies[::-1]


def test_what_was_corrected_again_cannot_be_undone(studio: Studio, patch: Path) -> None:
    first = studio.corrections.apply([0], "relabel", "red")
    studio.corrections.apply([0], "relabel", "green")
    before = patch.read_bytes()
    with pytest.raises(UsageError, match="corrected again since"):
        studio.corrections.undo(first.number)
    assert patch.read_bytes() == before


def test_a_drop_that_is_taken_back_leaves_the_class_that_was_there(studio: Studio, patch: Path) -> None:
    studio.corrections.apply([0], "relabel", "red")
    studio.corrections.apply([0], "drop")
    studio.corrections.apply([0], "drop")
    studio.corrections.apply([0], "restore")
    assert [(line["action"], line.get("to")) for line in read_lines(patch)] == [("relabel", "red")]
    studio.corrections.apply([0], "restore")
    assert read_lines(patch) == []


def test_not_every_image_is_dropped(studio: Studio, patch: Path, colors: Path) -> None:
    studio.corrections.apply(range(20), "drop")
    with pytest.raises(UsageError, match="drop every image: keep at least one"):
        studio.corrections.apply(range(20, 24), "drop")
    assert len(load_and_apply_patch(build_index(colors), patch).images) == 4


def test_the_file_that_a_link_names_is_written(colors: Path, patch: Path) -> None:
    link = patch.with_name("link.jsonl")
    link.symlink_to(patch)
    with open_studio(Dataset(colors), link) as studio:
        studio.corrections.apply([0], "drop")
    assert link.is_symlink()
    assert len(read_lines(patch)) == 1


def test_clicks_from_many_threads_are_all_kept(studio: Studio, patch: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        clicks = list(pool.map(lambda i: studio.corrections.apply([i], "drop"), range(23)))
    assert len(read_lines(patch)) == 23
    assert sorted(click.number for click in clicks) == list(range(1, 24))


def test_a_request_that_is_sent_again_changes_nothing_again(studio: Studio, patch: Path) -> None:
    first = studio.corrections.apply([0], "relabel", "red", "a")
    studio.corrections.apply([0], "relabel", "green", "b")
    before = patch.read_bytes()
    assert studio.corrections.apply([0], "relabel", "red", "a") is first
    assert patch.read_bytes() == before, "whoever corrected the image since keeps the last word"
    third = studio.corrections.apply([1], "drop", request="c")
    undone = studio.corrections.undo(third.number, "d")
    assert studio.corrections.undo(third.number, "d") is undone
    assert [line["to"] for line in read_lines(patch)] == ["green"]


def test_a_request_that_failed_is_made_when_it_is_sent_again(studio: Studio, patch: Path) -> None:
    patch.mkdir()
    with pytest.raises(DataError):
        studio.corrections.apply([0], "drop", request="a")
    patch.rmdir()
    studio.corrections.apply([0], "drop", request="a")
    assert [line["action"] for line in read_lines(patch)] == ["drop"]


def test_an_undo_that_cannot_be_written_can_be_made_again(
    studio: Studio, patch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    click = studio.corrections.apply([0], "drop")

    def fail(*_: object) -> None:
        raise OutputError("The disk is full.")

    with monkeypatch.context() as full:
        full.setattr("sightline.studio.corrections.write_patch", fail)
        with pytest.raises(OutputError, match="disk is full"):
            studio.corrections.undo(click.number)
    assert studio.corrections.get(0)
    studio.corrections.undo(click.number)
    assert read_lines(patch) == []


def test_a_request_that_arrives_in_many_threads_at_once_is_one_click(studio: Studio) -> None:
    with ThreadPoolExecutor(8) as pool:
        clicks = list(pool.map(lambda _: studio.corrections.apply([0], "drop", request="a"), range(20)))
    assert {click.number for click in clicks} == {1}
    assert studio.corrections.revision == 1


def test_lines_that_a_person_writes_meanwhile_are_kept(studio: Studio, patch: Path, colors: Path) -> None:
    studio.corrections.apply([0], "drop")
    (line,) = read_lines(patch)
    other = build_index(colors).images[5]
    added = line | {"path": other.path, "sha256": other.sha256, "reason": "blurred"}
    with patch.open("a", encoding="utf-8") as file:
        file.write(json.dumps(added) + "\n")
    studio.corrections.apply([7], "drop")
    assert [line["reason"] for line in read_lines(patch)] == ["corrected by hand", "blurred", "corrected by hand"]
    assert studio.corrections.read_changes(1)[1] == [5, 7]
    patch.unlink()
    assert studio.corrections.read_changes(3)[1] == [0, 5, 7], "a file that is deleted corrects nothing"
    assert len(studio.corrections) == 0


def test_an_earlier_patch_is_continued(colors: Path, patch: Path) -> None:
    with open_studio(Dataset(colors), patch) as studio:
        studio.corrections.apply([3], "relabel", "purple")
    with open_studio(Dataset(colors), patch) as studio:
        assert studio.library.describe([3])[0]["label"] == "purple"
        studio.corrections.apply([4], "drop")
    assert len(read_lines(patch)) == 2


def test_the_patch_of_a_run_is_where_a_new_one_begins(colors: Path, patch: Path, tmp_path: Path) -> None:
    index, initial = build_index(colors), tmp_path / "initial.jsonl"
    Corrections(initial, index).apply([0], "drop")
    begun = Corrections(patch, index, initial)
    assert begun.get(0)
    begun.apply([1], "drop")
    assert len(read_lines(patch)) == 2
    assert len(read_lines(initial)) == 1
    patch.unlink()
    assert begun.read_changes()[1]
    assert not begun.get(0), "a file that is deleted corrects nothing"


def test_a_patch_of_other_images_is_refused(colors: Path, patch: Path) -> None:
    patch.write_text(
        '{"action": "drop", "path": "blue/gone.png", "sha256": "0", "label": "blue", "reason": ""}\n', encoding="utf-8"
    )
    before = patch.read_bytes()
    with pytest.raises(DataError, match=r"line 1 matches no image"), open_studio(Dataset(colors), patch):
        pass
    assert patch.read_bytes() == before


def test_two_studios_do_not_edit_one_patch(studio: Studio, colors: Path, patch: Path) -> None:
    index = build_index(colors)
    link = patch.with_name("link.jsonl")
    studio.corrections.apply([0], "drop")
    link.symlink_to(patch)
    for path in (patch, link):
        with pytest.raises(OutputError, match=r"is in use by another process"), open_corrections(path, index):
            pass


@pytest.mark.parametrize(
    ("positions", "edit", "to", "words"),
    [
        ([], "drop", None, "1 to 10,000 images"),
        ([24], "drop", None, "no such image"),
        ([-1], "drop", None, "no such image"),
        ([0], "delete", None, "no correction 'delete'"),
        ([0], "relabel", "", "A class name"),
        ([0], "relabel", None, "A class name"),
        ([0], "relabel", " red", "leading or trailing spaces"),
        ([0], "relabel", "a/b", "no slash"),
        ([0], "relabel", "x" * 256, "255 characters"),
        ([0], "relabel", "\ud800", "A class name"),
        ([0], "move", "holdout", "no split 'holdout'"),
        ([0], "move", "test", "has no splits"),
    ],
)
def test_an_impossible_correction_changes_nothing(
    studio: Studio, patch: Path, positions: list[int], edit: str, to: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        studio.corrections.apply(positions, edit, to)
    assert not patch.exists()
    assert studio.corrections.revision == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(colors: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with open_studio(Dataset(colors), folder / "fixes.jsonl") as studio, pytest.raises(OutputError, match="closed"):
        studio.corrections.apply([0], "drop")
    assert len(studio.corrections) == 0


EDITS = st.tuples(
    st.lists(st.integers(0, 23), min_size=1, max_size=5, unique=True),
    st.sampled_from([("drop", None), ("restore", None), ("relabel", "red"), ("relabel", "blue"), ("relabel", "new")]),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(EDITS, st.integers(0, 20)), max_size=12))
def test_any_clicks_and_undos_leave_a_file_that_says_what_the_page_says(
    colors: Path, tmp_path: Path, steps: list[tuple[list[int], tuple[str, str | None]] | int]
) -> None:
    index, path = build_index(colors), tmp_path / "any.jsonl"
    path.unlink(missing_ok=True)
    corrections, clicks = Corrections(path, index), []
    for step in steps:
        if isinstance(step, tuple):
            try:
                clicks.append(corrections.apply(step[0], *step[1]).number)
            except UsageError:  # all are dropped
                continue
        elif step < len(clicks):
            try:
                corrections.undo(clicks.pop(step))
            except UsageError:
                continue
    read = Corrections(path, index)
    assert [read.get(i) for i in range(24)] == [corrections.get(i) for i in range(24)]
    for number in reversed(clicks):  # the last first: nothing stands in their way, unless one in the middle was undone
        try:
            corrections.undo(number)
        except UsageError:
            continue
    if all(isinstance(step, tuple) for step in steps):
        assert len(corrections) == 0
