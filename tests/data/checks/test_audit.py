"""Every kind of finding: each planted problem is reported, and a clean folder has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from sightline.config import DataConfig
from sightline.data.checks.audit import Audit, audit_images, quick_audit
from sightline.data.checks.finding import Finding
from sightline.data.checks.image_stats import compute_image_stats, measure_blur
from sightline.data.indexing import build_index
from sightline.data.sources.arrays import list_array_items
from sightline.data.sources.listing import SourceListing
from sightline.errors import ConfigError, DataError
from sightline.runs import preflight
from synthetic_images import HostileFolder, draw_scene, encode, encode_png, encode_scene_jpeg, write_files


def clean_files(splits: tuple[str, ...] = ("",), count: int = 21) -> dict[str, bytes]:
    names = [f"{split}{label}/{i}.jpg" for split in splits for label in ("cat", "dog") for i in range(count)]
    return {name: encode_scene_jpeg(i) for i, name in enumerate(names)}


PLAIN, SPLITS = clean_files(), clean_files(("train/", "test/"))


def audit_files(root: Path, files: Mapping[str, bytes]) -> Audit:
    return audit_images(build_index(write_files(root, files), lenient=True))[0]


def findings_by_kind(audit_result: Audit) -> dict[str, Finding]:
    assert len({f.kind for f in audit_result.findings}) == len(audit_result.findings)
    return {f.kind: f for f in audit_result.findings}


@pytest.mark.parametrize("files", [PLAIN, SPLITS], ids=["plain", "parts"])
def test_a_clean_folder_has_no_findings(tmp_path: Path, files: Mapping[str, bytes]) -> None:
    audit_result = audit_files(tmp_path, files)
    assert audit_result.findings == ()
    assert (audit_result.count, audit_result.classes, audit_result.errors) == (
        len(files),
        {"cat": len(files) // 2, "dog": len(files) // 2},
        0,
    )
    assert quick_audit(build_index(tmp_path)).findings == ()


exif = Image.Exif()
exif[ExifTags.Base.Orientation] = 6
FRAMES = [draw_scene(900), draw_scene(901)]
GIF = encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
RESIZED = encode(draw_scene(0).resize((110, 96)), "JPEG", quality=60)
CROPPED = encode(draw_scene(0).crop((4, 3, 156, 136)), "JPEG")
PAGES = encode(draw_scene(903), "TIFF", save_all=True, append_images=[draw_scene(904)])
DEEP = encode(Image.fromarray(np.asarray(draw_scene(902).convert("L")).astype(np.uint16) * 257))
TEST0 = SPLITS["test/dog/0.jpg"]

PLANTS: dict[str, tuple[str, dict[str, bytes], Mapping[str, bytes], tuple[str, ...] | int]] = {
    # kind: severity, what is planted, on which clean folder, paths or the number of groups
    "unreadable": (
        "warning", {"cat/half.jpg": PLAIN["cat/0.jpg"][:900], "dog/x.png": b""}, PLAIN, ("cat/half.jpg", "dog/x.png"),
    ),
    "unlabeled-images": ("warning", {"cover.jpg": encode_scene_jpeg(905)}, PLAIN, ("cover.jpg",)),
    "wrong-extension": ("warning", {"cat/a.png": encode_scene_jpeg(906), "cat/a.dat": encode_scene_jpeg(907)}, PLAIN,
    ("cat/a.dat", "cat/a.png")),
    "not-images": ("note", {"cat/notes.txt": b"remember", ".DS_Store": b"x"}, PLAIN, (".DS_Store", "cat/notes.txt")),
    "not-downloaded": ("warning", {"cat/.1.jpg.icloud": b"bplist00"}, PLAIN, ("cat/.1.jpg.icloud",)),
    "unread-formats": ("warning", {"cat/1.NEF": b"II*", "scan.dcm": b"x"}, PLAIN, ("cat/1.NEF", "scan.dcm")),
    "exif-rotated": ("note", {"cat/turned.jpg": encode_scene_jpeg(908, exif=exif)}, PLAIN, ("cat/turned.jpg",)),
    "odd-modes": (
        "note", {"cat/cmyk.jpg": encode(draw_scene(909).convert("CMYK"), "JPEG"),
                 "cat/glass.png": encode(draw_scene(910).convert("RGBA"))}, PLAIN,
        ("cat/cmyk.jpg", "cat/glass.png"),
    ),
    "high-bit-depth": ("note", {"cat/deep.png": DEEP}, PLAIN, ("cat/deep.png",)),
    "multi-page": ("warning", {"cat/pages.tif": PAGES}, PLAIN, ("cat/pages.tif",)),
    "animated": ("note", {"cat/moving.gif": GIF}, PLAIN, ("cat/moving.gif",)),
    "extreme-size": (
        "warning", {"cat/stamp.png": encode(draw_scene(911, 30, 28)), "cat/wall.png": encode(draw_scene(912, 1300,
        1200))}, PLAIN,
        ("cat/stamp.png", "cat/wall.png"),
    ),
    "extreme-aspect": ("warning", {"cat/strip.png": encode(draw_scene(913, 500, 130))}, PLAIN, ("cat/strip.png",)),
    "dark": ("warning", {"cat/night.png": encode(draw_scene(914).point(lambda v: v // 6))}, PLAIN, ("cat/night.png",)),
    "bright": ("warning", {"cat/snow.png": encode(draw_scene(915).point(lambda v: 220 + v // 8))}, PLAIN,
    ("cat/snow.png",)),
    "blurred": (
        "warning", {"cat/fog.png": encode(draw_scene(916).filter(ImageFilter.GaussianBlur(8)))}, PLAIN,
        ("cat/fog.png",),
    ),
    "blank": ("warning", {"cat/wall.png": encode(Image.new("RGB", (150, 150), "gray"))}, PLAIN, ("cat/wall.png",)),
    "duplicates": ("warning", {"cat/copy.jpg": PLAIN["cat/3.jpg"]}, PLAIN, 1),
    "conflicting-duplicates": ("error", {"dog/copy.jpg": PLAIN["cat/3.jpg"]}, PLAIN, 1),
    "near-duplicates": ("warning", {"cat/small.jpg": RESIZED, "cat/cut.jpg": CROPPED}, PLAIN, 1),
    "conflicting-near-duplicates": ("warning", {"dog/small.jpg": RESIZED}, PLAIN, 1),
    "split-leakage": ("error", {"train/dog/copy.jpg": TEST0, "test/cat/small.jpg": RESIZED}, SPLITS, 2),
    "class-imbalance": ("warning", {f"cat/more{i}.jpg": encode_scene_jpeg(1000 + i) for i in range(50)}, PLAIN, ("cat",
    "dog")),
    "small-classes": ("warning", {"emu/1.jpg": encode_scene_jpeg(920)}, PLAIN, ("emu",)),
    "missing-classes": (
        "warning", {f"train/emu/{i}.jpg": encode_scene_jpeg(1100 + i) for i in range(21)}, SPLITS, ("emu",),
    ),
    "similar-class-names": (
        "warning", {f"Cat \u200b/{i}.jpg": encode_scene_jpeg(1200 + i) for i in range(21)}, PLAIN,
        ("Cat \u200b", "cat"),
    ),
    "missing-value-names": (
        "warning", {f"NaN/{i}.jpg": encode_scene_jpeg(1200 + i) for i in range(21)}, PLAIN, ("NaN",),
    ),
    "unexpected-folder": ("error", {"vaild/cat/1.jpg": encode_scene_jpeg(921)}, SPLITS, ("vaild",)),
    "group-candidates": (
        "warning", {f"{'cat' if n % 2 else 'dog'}/patient{n}_{i:03}.jpg": encode_scene_jpeg(3000 + 10 * n + i)
                    for n in range(12) for i in range(4)}, {},
        (r"split.group=pattern:([^/]+?)([ ._-]+\d+)?\.\w+$",),
    ),
    "numeric-class-names": (
        "note", {f"{n}/{i}.jpg": encode_scene_jpeg(2000 + 100 * n + i) for n in (2, 10) for i in range(21)}, {}, ("10",
        "2"),
    ),
}  # fmt: skip
ACCOMPANYING = {
    "class-imbalance": {"small-classes"}, "small-classes": {"class-imbalance"},
    "unexpected-folder": {"unlabeled-images"},
    "extreme-size": {"blurred"},  # an enlarged image is blurred
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTS)
def test_what_is_planted_is_found_and_nothing_else(tmp_path: Path, kind: str) -> None:
    severity, planted, onto, expected = PLANTS[kind]
    findings = findings_by_kind(audit_files(tmp_path, {**onto, **planted}))
    assert set(findings) - {kind} <= ACCOMPANYING.get(kind, set())
    finding = findings[kind]
    assert finding.severity == severity
    assert finding.advice.endswith((".", ")"))
    values = finding.to_dict()
    assert set(values) <= {
        "kind",
        "severity",
        "count",
        "description",
        "advice",
        "paths",
        "reasons",
        "groups",
        "labels",
        "num_identical",
    }
    if isinstance(expected, int):
        assert finding.count == len(values["groups"]) == expected
        assert {path for group in values["groups"] for path in group} >= set(planted)
        assert [len(g) for g in values["labels"]] == [len(g) for g in values["groups"]]
    else:
        assert finding.count == len(values["paths"])
        assert finding.paths == expected


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        ([f"{i / 100}" for i in range(24)], 23),
        ([f"-{i}.5e-3" for i in range(12)], 12),
        ([f"{i / 2:g}" for i in range(2, 11)], 0),
        (["0.01", "0.02", "0.05", "0.10", "0.20", "0.50", "1", "2"], 0),
        ([f"{i}" for i in range(20, 60)], 0),
        ([*(f"{i / 100}" for i in range(24)), "unknown"], 0),
        ([f"1.{i}.0" for i in range(24)], 0),
    ],
    ids=["scores", "exponents", "half grades", "coins", "ages", "one has a name", "versions"],
)
def test_classes_that_are_measured_values_are_a_warning(tmp_path: Path, labels: list[str], count: int) -> None:
    rows = [f"{i}.png,{label}" for i, label in enumerate(labels)]
    write_files(tmp_path, {f"{i}.png": encode_png(i) for i in range(len(labels))})
    (tmp_path / "values.csv").write_text("\n".join(["path,label", *rows]))
    finding = findings_by_kind(quick_audit(build_index(tmp_path / "values.csv"))).get("decimal-class-names")
    assert (finding.count if finding else 0) == count


@pytest.mark.parametrize(
    ("labels", "paths"),
    [
        (["cat,pet", "dog, pet"], ("cat,pet", "dog, pet")),
        (["cat, pet", "cat, wild", "dog, pet"], ("cat, pet", "cat, wild", "dog, pet")),
        (["cat,pet", "pet", "dog"], ("cat,pet",)),
        (["tench, Tinca tinca", "goldfish, Carassius auratus", "missile", "projectile, missile"], None),
        (["Smith, John", "Doe, Jane", "cat"], None),
        (["Paris, France", "Lyon, France", "Rome, Italy"], None),
        (["Pepper,_bell___spot", "Pepper,_bell___healthy", "Tomato___spot", "Tomato___healthy", "Grape___rot"], None),
    ],
    ids=["tags", "tags with spaces", "one tag", "ImageNet", "people", "places", "PlantVillage"],
)
def test_labels_joined_by_commas_are_a_warning(
    tmp_path: Path, labels: list[str], paths: tuple[str, ...] | None
) -> None:
    rows = "".join(f'{i}.png,"{label}"\n' for i, label in enumerate(labels * 2))
    write_files(tmp_path, {f"{i}.png": encode_png(i) for i in range(2 * len(labels))})
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
    finding = findings_by_kind(quick_audit(build_index(tmp_path / "list.csv"))).get("joined-class-names")
    assert (finding and finding.paths) == paths


def test_identical_leaks_come_first_and_are_counted(tmp_path: Path) -> None:
    files = {**SPLITS, "train/cat/a copy.jpg": TEST0, "test/cat/a small one.jpg": RESIZED}
    leak = findings_by_kind(audit_files(tmp_path, files))["split-leakage"]
    assert leak.num_identical == 1
    assert leak.description.endswith("(1 of identical files, 1 of near duplicates)")
    assert set(leak.groups[0]) == {"train/cat/a copy.jpg", "test/dog/0.jpg"}
    only_near = findings_by_kind(audit_files(tmp_path / "near", {**SPLITS, "test/cat/small.jpg": RESIZED}))[
        "split-leakage"
    ]
    assert (only_near.severity, only_near.num_identical) == ("warning", 0)
    assert only_near.description.endswith("(1 of near duplicates)")


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    findings = findings_by_kind(audit_files(tmp_path, {f"cat/{i}.jpg": encode_scene_jpeg(i) for i in range(21)}))
    assert {kind: f.paths for kind, f in findings.items()} == {"one-class": ("cat",)}
    assert findings["one-class"].severity == "error"


def test_a_class_that_is_not_trained_is_an_error(tmp_path: Path) -> None:
    findings = findings_by_kind(audit_files(tmp_path, {**SPLITS, "test/emu/1.jpg": encode_scene_jpeg(930)}))[
        "missing-classes"
    ]
    assert (findings.severity, findings.paths, findings.reasons) == ("error", ("emu",), ("not in the training split",))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("extra_file", [None, "notes.txt"])
@pytest.mark.parametrize("with_splits", [False, True])
def test_empty_class_folders_do_not_vanish(
    tmp_path: Path, kind: str, extra_file: str | None, with_splits: bool
) -> None:
    where = "train/emu" if with_splits else "emu"
    root = write_files(tmp_path / "images", SPLITS if with_splits else PLAIN)
    (root / where).mkdir()
    if extra_file:
        (root / where / extra_file).write_text("no images yet", encoding="utf-8")
    source = root if kind == "folder" else Path(shutil.make_archive(str(tmp_path / "packed"), kind, root))
    (finding,) = [f for f in quick_audit(build_index(source)).findings if f.kind == "empty-classes"]
    assert finding.paths == (where,)


def test_class_folders_with_names_similar_to_splits_are_reported(tmp_path: Path) -> None:
    files = {name.replace("train/", "trian/").replace("test/", "tset/"): data for name, data in SPLITS.items()}
    findings = findings_by_kind(audit_files(tmp_path, files))["split-folders"]
    assert (findings.severity, findings.paths) == ("error", ("trian", "tset"))
    assert findings.reasons == ("did you mean 'train'?", "did you mean 'test'?")
    assert "--allow split-folders uses them as classes" in findings.advice


def test_every_problem_of_a_hostile_folder_is_reported(hostile_folder: HostileFolder) -> None:
    findings = findings_by_kind(audit_images(build_index(hostile_folder.path))[0])
    assert set(findings["unreadable"].paths) == set(hostile_folder.unreadable) | set(hostile_folder.undecodable)
    assert findings["unlabeled-images"].paths == tuple(hostile_folder.stray)
    assert findings["not-images"].count == hostile_folder.skipped
    assert findings["conflicting-duplicates"].labels == (("Zebra", "ant hill", "ant hill"),)
    assert set(findings["wrong-extension"].paths) == {"ant hill/jpeg.png", "ant hill/png.dat"}
    assert findings["exif-rotated"].paths == ("ant hill/turned.jpg",)
    assert {"odd-modes", "extreme-aspect", "small-classes", "class-imbalance"} <= set(findings)


@pytest.mark.parametrize("count", [1, 2])
def test_the_smallest_sources_are_audited(tmp_path: Path, count: int) -> None:
    audit_result = audit_files(tmp_path, {f"{i}/1.png": encode_png(i) for i in range(count)})
    assert audit_result.count == count
    assert set(findings_by_kind(audit_result)) == {"small-classes", *(["one-class"] if count == 1 else [])}


def test_a_thousand_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 8, 8), dtype=np.uint8)
    source = SourceListing(list_array_items(images, list(range(1000)), "many"))
    assert findings_by_kind(audit_images(build_index(source))[0])["small-classes"].count == 1000


def test_blur_rises_with_blur_and_knows_no_contrast() -> None:
    gray = draw_scene(940).convert("L").resize((128, 128))
    values = [measure_blur(np.asarray(gray.filter(ImageFilter.GaussianBlur(r)))) for r in (0, 0.7, 1.4, 2.1)]
    assert values == sorted(values)
    assert 0 <= values[0] < 0.6
    assert 0.77 < values[-1] <= 1
    faint = np.asarray(gray).astype(float) / 2 + 60
    assert measure_blur(faint.round().astype(np.uint8)) == pytest.approx(values[0], abs=0.02)
    assert measure_blur(np.zeros((128, 128), np.uint8)) == 0
    assert measure_blur(np.zeros((20, 128), np.uint8)) == 0  # too small to tell


def test_each_content_is_looked_at_once_with_progress(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    files = {**PLAIN, "cat/copy.jpg": PLAIN["cat/0.jpg"]}
    stats = compute_image_stats(build_index(write_files(tmp_path, files)), lambda *call: calls.append(call), threads=2)
    assert calls[-1] == ("inspecting", len(PLAIN), len(PLAIN))
    assert len(stats.images) == len(PLAIN)


def copy_filtered(source: Path, target: Path, keep: Callable[[Path], bool] = lambda _: True) -> Path:
    shutil.copytree(source, target, ignore=lambda folder, names: [n for n in names if not keep(Path(folder) / n)])
    return target


@pytest.mark.slow
def test_faults_planted_in_real_photographs(shared: Path, tmp_path: Path) -> None:
    root = copy_filtered(shared / "data" / "cats_vs_dogs", tmp_path / "pets")
    trains, tests = (sorted((root / split).rglob("*.jpg")) for split in ("train", "test"))
    for i, path in enumerate(trains[:400:20]):
        shutil.copy(path, root / "test" / path.parent.name / f"planted{i}.jpg")
    corrupt = trains[405:600:20]
    for path in corrupt:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    findings = findings_by_kind(audit_images(build_index(root))[0])
    assert findings["split-leakage"].num_identical == 20
    assert all("planted" in "".join(group) for group in findings["split-leakage"].groups[:20])
    assert sorted(findings["unreadable"].paths) == sorted(p.relative_to(root).as_posix() for p in corrupt)
    assert len(corrupt) == 10
    assert len(tests) == 240


@pytest.mark.slow
def test_real_flowers_name_their_conflicts(shared: Path) -> None:
    findings = findings_by_kind(audit_images(build_index(shared / "data" / "flowers5"))[0])
    assert findings["conflicting-duplicates"].count == 4
    assert set(findings["conflicting-duplicates"].labels) == {("rose", "tulip")}
    assert findings["duplicates"].count == 2
    assert 25 <= findings["near-duplicates"].count <= 45


def test_odd_real_files_are_examined(shared: Path) -> None:
    findings = findings_by_kind(audit_images(build_index(shared / "data" / "odd_images"))[0])
    assert {"unreadable", "exif-rotated", "odd-modes", "animated", "blank"} <= set(findings)
    assert all(f"exif_orientation/Landscape_{i}.jpg" in findings["exif-rotated"].paths for i in range(2, 9))


@pytest.mark.parametrize(("count", "severity"), [(99, "error"), (201, "warning")])
def test_conflicts_are_errors_above_one_percent_of_the_images(count: int, severity: str) -> None:
    values = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((count, 4, 4), np.uint8)
    values[1] = values[0]
    labels = np.arange(count) % 2
    (finding,) = [
        f
        for f in quick_audit(build_index(SourceListing(list_array_items(values, labels, "mine")))).findings
        if f.groups
    ]
    assert (finding.kind, finding.severity) == ("conflicting-duplicates", severity)
    assert ("--allow conflicting-duplicates" in finding.advice) == (severity == "error")


def test_images_without_a_class_are_not_called_unreadable(tmp_path: Path) -> None:
    root = write_files(
        tmp_path, {**{f"a/{name}": data for name, data in PLAIN.items()}, "b/1.jpg": encode_scene_jpeg(990)}
    )
    findings = findings_by_kind(audit_images(build_index(root, options=DataConfig(class_level=2)))[0])
    assert set(findings) == {"unlabeled-images"}
    assert (findings["unlabeled-images"].paths, findings["unlabeled-images"].reasons) == (
        ("b/1.jpg",),
        ("is above the level of the class folders",),
    )


@pytest.mark.parametrize(("tests", "severity"), [(50, "error"), (150, "warning")])
def test_leaks_are_errors_above_one_percent_of_the_held_out_split(tests: int, severity: str) -> None:
    values = np.arange(250, dtype=np.uint8)[:, None, None] + np.zeros((250, 4, 4), np.uint8)
    train = list_array_items(values[:100], np.arange(100) % 2, "train", "train")
    values[100] = values[0]
    test = list_array_items(values[100 : 100 + tests], np.arange(tests) % 2, "test", "test")
    (finding,) = [f for f in quick_audit(build_index(SourceListing([*train, *test]))).findings if f.groups]
    assert (finding.kind, finding.severity, finding.num_identical) == ("split-leakage", severity, 1)


def test_what_stops_training_is_what_the_doctor_calls_an_error(tmp_path: Path) -> None:
    flat = build_index(
        write_files(
            tmp_path, {f"{split}/{i}.jpg": encode_scene_jpeg(i) for split in ("train", "test") for i in range(2)}
        )
    )
    with pytest.raises(DataError, match=r"^split-folders: 2 folders are read as classes but look like splits \(test: "):
        preflight.raise_for_errors(quick_audit(flat).findings, ())
    with pytest.raises(DataError, match=r"--allow conflicting-duplicates keeps them as they are"):
        preflight.raise_for_errors(quick_audit(flat).findings, ("split-folders",))
    preflight.raise_for_errors(quick_audit(flat).findings, ("split-folders", "conflicting-duplicates"))
    with pytest.raises(ConfigError, match=r"no kind of error 'split-folder'. Did you mean 'split-folders'"):
        preflight.raise_for_errors((), ("split-folder",))


def test_real_flowers_hold_no_error(shared: Path) -> None:
    audit_result = quick_audit(build_index(shared / "data" / "flowers5"))
    kinds = {f.kind: f.severity for f in audit_result.findings}
    assert (audit_result.errors, kinds["conflicting-duplicates"]) == (0, "warning")


def test_the_doctor_counts_the_splits_that_the_source_states(tmp_path: Path) -> None:
    files = {
        f"{split}/{name}/{i}.jpg": encode_scene_jpeg(i)
        for split in ("seg_train", "seg_test")
        for name in "ab"
        for i in (1, 2)
    }
    assert quick_audit(build_index(write_files(tmp_path / "stated", files))).splits == {"train": 4, "test": 4}
    assert (
        quick_audit(
            build_index(
                write_files(tmp_path / "none", {"a/1.jpg": encode_scene_jpeg(1), "b/2.jpg": encode_scene_jpeg(2)})
            )
        ).splits
        == {}
    )
