"""`sightline doctor`, and how `train` uses its fixes and advice, as a user sees it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command import SMALL, Command, draw_classes
from sightline import Dataset
from sightline.config import SplitConfig
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.data.label_patch import make_entry, write_patch
from sightline.preprocessing import PreprocessingSpec
from sightline.studio.corrections import open_corrections
from synthetic_images import draw_scene, encode, encode_scene_jpeg, write_files

pytestmark = pytest.mark.usefixtures("plain_figures")

CLEAN = {
    f"{label}/{i}.jpg": encode_scene_jpeg(100 * k + i) for k, label in enumerate(("cat", "dog")) for i in range(24)
}
SICK = CLEAN | {
    "dog/twin.jpg": CLEAN["cat/3.jpg"],
    "cat/copy.jpg": CLEAN["cat/5.jpg"],
    "cat/<b>odd</b>.jpg": b"not an image",
    **{f"cat/near {i}.jpg": encode(draw_scene(i).resize((100, 90)), "JPEG") for i in range(6, 16)},
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("data") / "clean", CLEAN)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("data") / "sick", SICK)


def test_json_is_one_object_with_all_findings(sightline: Command, sick: Path) -> None:
    result = sightline("doctor", sick, "--format", "json")
    assert (result.code, result.out.count("\n"), result.err) == (0, 1, "")
    assert (result.json["count"], result.json["classes"]) == (len(SICK) - 1, {"cat": 35, "dog": 25})
    findings = {f["kind"]: f for f in result.json["findings"]}
    assert set(findings) == {"conflicting-duplicates", "unreadable", "duplicates", "near-duplicates"}
    assert sorted(findings["conflicting-duplicates"]["groups"][0]) == ["cat/3.jpg", "dog/twin.jpg"]
    assert findings["near-duplicates"]["count"] == 10
    assert result.json["errors"] == 1


def test_the_table_says_what_and_what_to_do(sightline: Command, sick: Path) -> None:
    result = sightline("doctor", sick)
    assert result.code == 0
    assert re.search(r"error +conflicting-duplicates +1 +group of identical files has different classes", result.out)
    assert "cat/<b>odd</b>.jpg: not an image" in result.out
    assert "split.group=near_duplicates" in result.out


def test_a_table_in_gbk_is_named_without_a_reason(sightline: Command, clean: Path, tmp_path: Path) -> None:
    rows = [f"{key},{'猫' if key.startswith('cat') else '小狗'}" for key in CLEAN]
    (tmp_path / "list.csv").write_text("\n".join(["文件名,类别", *rows]), encoding="gbk")
    result = sightline("doctor", tmp_path / "list.csv", "--set", f"data.root={clean}", "--html", tmp_path / "page.html")
    (line,) = [line for line in result.out.splitlines() if "guessed-encoding" in line and "warning" in line]
    assert line.endswith("list.csv")
    assert "list.csv</li>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_strict_fails_on_errors_alone(sightline: Command, sick: Path, clean: Path) -> None:
    assert sightline("doctor", sick, "--strict", "--format", "json").code == 1
    result = sightline("doctor", clean, "--strict")
    assert (result.code, result.out) == (0, "clean: 48 images in 2 classes\nnothing found\n")


def test_strict_accepts_what_the_settings_allow(sightline: Command, sick: Path) -> None:
    allowed = 'data.allow_findings=["conflicting-duplicates"]'
    assert sightline("doctor", sick, "--strict", "--set", allowed, "--format", "json").code == 0


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in {"src", "href"}]
        self.open.append(tag)
        if tag in {"meta", "img", "link", "input"}:
            self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing is open after an element without content."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(sightline: Command, sick: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>My page</title>")
    result = sightline("doctor", sick, "--html", tmp_path / "index.html")
    assert result.code == 2
    assert "exists and is not a page of Sightline: choose another file" in " ".join(result.err.split())
    assert (tmp_path / "index.html").read_text() == "<title>My page</title>"
    sightline("doctor", sick, "--html", tmp_path / "page.html")
    result = sightline("doctor", sick, "--html", tmp_path / "page.html")  # in place of the former one
    assert f"page       {tmp_path / 'page.html'}" in result.out
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in page.links)
    assert sum(link.startswith("data:") for link in page.links) >= 24
    assert "<b>odd" not in text
    assert "&lt;b&gt;odd" in text
    assert len(text) < 5_000_000
    assert "://" not in text


def test_corrections_are_applied_by_train_and_kept_with_the_run(sightline: Command, sick: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in sick.rglob("*.*")}
    result = sightline("doctor", sick, "--write-fixes", tmp_path / "fix.jsonl", "--format", "json")
    assert result.json["corrections"] == 3
    assert {p: p.read_bytes() for p in sick.rglob("*.*")} == before
    mended = sightline("doctor", sick, "--patch", tmp_path / "fix.jsonl", "--format", "json").json["findings"]
    assert {f["kind"] for f in mended} == {"unreadable", "near-duplicates"}
    out = tmp_path / "run"
    result = sightline("train", sick, *SMALL, "--patch", tmp_path / "fix.jsonl", "--out", out, "--format", "json")
    assert result.code == 0, result.err
    assert f"{tmp_path / 'fix.jsonl'}: 3 corrections applied; to undo one, delete its line" in result.err
    assert "conflicting-duplicates" not in result.err
    assert (out / "patch.jsonl").read_bytes() == (tmp_path / "fix.jsonl").read_bytes()
    used = {json.loads(row)["path"] for row in (out / "data.jsonl").read_text(encoding="utf-8").splitlines()}
    assert not used & {"dog/twin.jpg", "cat/3.jpg", "cat/copy.jpg"}
    (tmp_path / "fix.jsonl").unlink()  # the run has its own copy
    assert sightline("evaluate", out, "--format", "json").code == 0


def test_a_file_of_fixes_keeps_the_lines_that_it_has(sightline: Command, sick: Path, tmp_path: Path) -> None:
    patch = tmp_path / "fix.jsonl"
    images = {image.path: image for image in build_index(sick).images}
    by_hand = [
        make_entry("relabel", images["cat/copy.jpg"], "corrected by hand", "dog"),
        make_entry("drop", images["dog/twin.jpg"], "corrected by hand"),
        make_entry("keep", images["cat/7.jpg"], "the label is right"),
    ]
    write_patch(patch, by_hand)
    before = patch.read_text()
    result = sightline("doctor", sick, "--write-fixes", patch)
    assert (result.code, patch.read_text()) == (2, before)
    assert f"{patch} has corrections already: to keep them and add new ones, add --patch {patch}" in result.err
    result = sightline("doctor", sick, "--patch", patch, "--write-fixes", patch, "--format", "json")
    assert result.json["corrections"] == len(patch.read_text().splitlines()) - 1
    assert patch.read_text().startswith(before)
    again = sightline("doctor", sick, "--patch", patch, "--format", "json")  # no two lines on one image
    assert again.code == 0, again.err


def test_fixes_are_not_written_into_a_file_that_a_studio_has_open(
    sightline: Command, clean: Path, tmp_path: Path
) -> None:
    with open_corrections(tmp_path / "fix.jsonl", build_index(clean)) as corrections:
        result = sightline("doctor", clean, "--write-fixes", tmp_path / "fix.jsonl")
        assert (result.code, corrections.path.exists()) == (2, False)
    assert "is in use by another process" in result.err


def test_a_patch_that_does_not_fit_stops_train_before_any_work(sightline: Command, clean: Path, tmp_path: Path) -> None:
    row = {"action": "drop", "path": "cat/99.jpg", "sha256": "0", "label": "cat", "reason": "gone"}
    (tmp_path / "7").write_text(json.dumps(row), encoding="utf-8")
    result = sightline("train", clean, *SMALL, "--patch", tmp_path / "7", "--out", tmp_path / "run")
    assert result.code == 2
    assert "line 1 matches no image: there is no image cat/99.jpg in clean; delete the line." in result.err
    assert not (tmp_path / "run").exists()


def test_train_names_the_corrections_of_the_studio_that_it_does_not_use(
    sightline: Command, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = build_index(clean).images[0]
    entry = make_entry("drop", image, "seen")
    options = ("--set", "evaluation.positive_class=zebra")  # an error, once the images are read
    for lines, hint in (
        ([entry], "clean-fixes.jsonl holds 1 correction of these images: to use them, add --patch clean-fixes.jsonl"),
        ([make_entry("keep", image, "seen")], ""),
        ([replace(entry, path="other.png")], ""),
    ):
        write_patch(Path("clean-fixes.jsonl"), lines)
        result = sightline("train", clean, *SMALL, *options, "--out", "run")
        assert result.code == 2
        assert ("--patch" in result.err) == bool(hint)
        assert hint in result.err
    write_patch(Path("clean-fixes.jsonl"), [entry])
    result = sightline("train", clean, *SMALL, *options, "--out", "run", "--patch", "clean-fixes.jsonl")
    assert "to use them" not in result.err


@pytest.mark.slow
def test_train_says_briefly_what_is_wrong_and_recommends_groups(
    sightline: Command, sick: Path, clean: Path, tmp_path: Path
) -> None:
    result = sightline("train", sick, *SMALL, "--set", "train.epochs=1", "--out", tmp_path / "run")
    assert (result.code, (tmp_path / "run").exists()) == (2, False)
    assert "conflicting-duplicates: 1 group of identical files" in result.err
    allow = ("--allow", "conflicting-duplicates")
    result = sightline("train", sick, *SMALL, "--set", "train.epochs=1", *allow, "--out", tmp_path / "run")
    assert result.code == 0
    assert "allowed error: conflicting-duplicates: 1 group of identical files" in result.err
    assert "`sightline doctor` lists them all with advice" in result.err
    assert re.search(
        r"\d+ groups? of near duplicates (is|are) in more than one split .*split.group=near_duplicates", result.err
    )
    grouped = ("--set", "train.epochs=1", "--set", "split.group=near_duplicates", *allow)
    result = sightline("train", sick, *SMALL, *grouped, "--out", tmp_path / "near")
    assert "of near duplicates" not in result.err
    result = sightline("train", clean, *SMALL, "--set", "train.epochs=1", "--out", tmp_path / "clean")
    assert "doctor" not in result.err


def test_groups_lie_on_one_side(sick: Path) -> None:
    def count_separated(group: str) -> int:
        dataset = build_dataset(build_index(sick), PreprocessingSpec(16, 16), SplitConfig(group=group), 0, keep=False)
        split_of = dict(zip((p.path for p in dataset.images), dataset.splits, strict=True))
        return sum(split_of[f"cat/{i}.jpg"] != split_of[f"cat/near {i}.jpg"] for i in range(6, 16))

    assert count_separated("none") > 0
    assert count_separated("near_duplicates") == 0


def test_class_names_that_no_font_draws_are_named(
    sightline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw_classes(tmp_path / "data", {"\U0010fffd": (9, 9, 9), "cat": (200, 9, 9)}, 21)  # in no font
    findings = {f["kind"]: f for f in sightline("doctor", data, "--format", "json").json["findings"]}
    assert findings["names-without-font"]["severity"] == "note"
    assert findings["names-without-font"]["paths"] == ["\U0010fffd"]
    assert "install a font that has them" in findings["names-without-font"]["advice"]
    monkeypatch.setattr("sightline.report.fonts.fonts_by_script", lambda: {"Chinese": "none", "emoji": "Symbola"})
    assert sightline("env", "--format", "json").json["plot_fonts"] == "Chinese: none; emoji: Symbola"


def test_a_corrected_set_becomes_folders_that_are_read_back(
    tmp_path: Path, sightline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw_classes(tmp_path / "photos", {"cat": (200, 60, 60), "dog": (60, 60, 200)}, 3, 16)
    index = build_index(photos)
    first, second = index.images[0], index.images[4]
    lines = [
        {"action": "relabel", "path": first.path, "sha256": first.sha256, "label": "cat", "to": "dog", "reason": ""},
        {"action": "drop", "path": second.path, "sha256": second.sha256, "label": "dog", "reason": ""},
    ]
    patch = tmp_path / "fixes.jsonl"
    patch.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result = sightline("doctor", photos, "--patch", patch, "--write-folders", tmp_path / "clean", "--format", "json")
    assert result.json["folders"] | {"path": "", "renamed": {}} == {
        "path": "", "images": 5, "hard_links": 5, "symbolic_links": 0, "copies": 0, "left_out": 0, "renamed": {},
    }  # fmt: skip
    assert sorted(path.relative_to(tmp_path / "clean").as_posix() for path in (tmp_path / "clean").rglob("*.png")) == [
        "cat/cat-001.png", "cat/cat-002.png", "dog/cat-000.png", "dog/dog-000.png", "dog/dog-002.png",
    ]  # fmt: skip
    assert (tmp_path / "clean" / "dog" / "cat-000.png").samefile(photos / "cat" / "cat-000.png"), "no image is copied"
    assert Dataset(tmp_path / "clean").counts == {"cat": 2, "dog": 3}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = sightline("doctor", photos, "--write-folders", ".")
    assert result.code == 2
    assert ". is the current folder, which cannot be replaced: name a folder in it." in " ".join(result.err.split())
    again = Dataset(photos).check(write_folders=tmp_path / "as-is", patch=patch, progress=False)
    assert again.folders is not None
    assert str(again.folders) == "5 images: 5 hard links"
