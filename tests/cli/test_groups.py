"""Groups from the command line: patients stay in one split, and invalid rules are rejected before any work."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from command import SMALL, Command
from sightline import load
from sightline.api.reference_sample import load_sample
from sightline.evaluation import selective
from synthetic_images import draw_scene, encode, encode_png, encode_scene_jpeg, write_files

pytestmark = pytest.mark.usefixtures("plain_figures")

BRIEF = (*SMALL, "--set", "train.epochs=1")


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 60 images of 15 patients in two classes."""
    root = tmp_path_factory.mktemp("clinic")
    rows = [(f"p{i // 4}-{i}.png", ("sick", "well")[i // 4 % 2], f"p{i // 4}") for i in range(60)]
    write_files(root, {path: encode_png(i, i // 4 % 2) for i, (path, _, _) in enumerate(rows)})
    with (root / "all.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "patient"), *rows])
    return root / "all.csv"


def read_rows(run: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run / "data.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("rule", ["column:patient", r"pattern:(p\d+)-"])
def test_patients_stay_on_one_side_and_the_run_says_who(
    sightline: Command, clinic: Path, tmp_path: Path, rule: str
) -> None:
    result = sightline("train", clinic, *BRIEF, "--set", f"split.group={rule}", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "(15 groups)" in result.err
    assert "group-candidates" not in result.err
    assert "group-candidates" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    sides: dict[str, set[str]] = defaultdict(set)
    for row in read_rows(tmp_path / "run"):
        assert row["group"] == row["path"].split("-")[0]
        sides[row["group"]].add(row["split"])
    assert len(sides) == 15
    assert all(len(side) == 1 for side in sides.values())
    assert {next(iter(side)) for side in sides.values()} == {"train", "validation", "test"}
    test = load(tmp_path / "run").labeled_images().load("test")
    assert test.groups == {path: path.split("-")[0] for path in test.subset.paths}
    if rule.startswith("column"):
        assert sightline("evaluate", tmp_path / "run", "--format", "json").code == 0
        shutil.copytree(tmp_path / "run", tmp_path / "twin")
        compared = sightline("compare", tmp_path / "run", tmp_path / "twin")
        count = len(set(test.groups.values()))
        low, high = json.loads((tmp_path / "run" / "run.json").read_text())["result"]["test"]["accuracy_interval"]
        assert f"{low:.4f} to {high:.4f}" in compared.out, "as of groups, as the run states it"
        assert f"permutation test of {count} groups, p = 1." in " ".join(compared.out.split())
        compared = sightline("compare", tmp_path / "run", tmp_path / "twin", "--format", "json")
        assert compared.json["comparisons"][0]["groups"] == count


def test_the_sample_that_logs_are_compared_with_knows_the_groups(
    sightline: Command, clinic: Path, tmp_path: Path
) -> None:
    run, small = tmp_path / "run", tmp_path / "small.zip"
    settings = ("split.group=column:patient", "split.validation=0.5", "split.test=0")
    result = sightline("train", clinic, *BRIEF, *(f"--set={value}" for value in settings), "--out", run)
    assert result.code == 0, result.err
    assert "these images chose the epoch" in result.out, "there are no others"
    result = sightline("export", run, "--precision", "int8", "--tolerance", 1, "--min-agreement", 0, "--out", small)
    assert result.code == 0, result.err
    patients = Counter(row["group"] for row in read_rows(run) if row["split"] == "validation")
    assert len(patients) > 4
    for model in (run, small):
        groups = load_sample(load(model)).groups
        assert sorted(Counter(groups.tolist()).values()) == sorted(patients.values())


@pytest.mark.slow
def test_thresholds_of_compressed_models_are_chosen_by_groups(
    sightline: Command, clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the thresholds of the run are: chosen by images, they would promise more than they keep."""
    run = tmp_path / "run"
    used: list[Any] = []
    settings = ("split.group=column:patient", "split.validation=0.5", "split.test=0", "evaluation.target_precision=0.5")
    result = sightline("train", clinic, *BRIEF, *(f"--set={value}" for value in settings), "--out", run)
    assert result.code == 0, result.err
    choose = selective.choose_threshold

    def choose_and_note(*arguments: Any, **options: Any) -> Any:
        used.append(options["groups"])
        return choose(*arguments, **options)

    monkeypatch.setattr(selective, "choose_threshold", choose_and_note)
    load(run).compress(methods="float16", out=tmp_path / "search", progress=False)
    assert used
    assert all(groups is not None for groups in used)


def test_train_names_a_candidate_where_no_group_is_set(sightline: Command, clinic: Path, tmp_path: Path) -> None:
    result = sightline("train", clinic, *BRIEF, "--out", tmp_path / "run")
    assert "warning: group-candidates: 2 settings would keep together images" in result.err
    assert "split.group=column:patient: 15 groups of up to 4 images" in result.err
    assert "group" not in read_rows(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (
            "column:person",
            "names the column 'person', which this source does not have: its extra columns are patient.",
        ),
        ("pattern:(q\\d+)", "finds no group in 60 of 60 paths, such as p0-0.png"),
        ("pattern:(p", "an invalid regular expression"),
        ("folder", "no image is in a subfolder of its class folder"),
        ("patient", "expected none, near_duplicates, folder, column:NAME or pattern:REGEX."),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    sightline: Command, clinic: Path, tmp_path: Path, rule: str, sentence: str
) -> None:
    result = sightline("train", clinic, *BRIEF, "--set", f"split.group={rule}", "--out", tmp_path / "run")
    assert result.code == 2
    assert sentence in result.err
    assert not (tmp_path / "run").exists()


def test_near_duplicates_across_stated_splits_are_reported_and_not_moved(sightline: Command, tmp_path: Path) -> None:
    files = {f"{split_name}/{label}/{label}{split_name}{i}.jpg": encode_scene_jpeg(100 * p + 10 * c + i)
             for p, split_name in enumerate(("train", "test")) for c, label in enumerate(("cat", "dog"))
             for i in range(9)}  # fmt: skip
    test, train = (encode(draw_scene(0).resize((110, 96)), "JPEG", quality=quality) for quality in (60, 70))
    root = write_files(tmp_path / "pets", {**files, "test/cat/small.jpg": test, "train/cat/small.jpg": train})
    result = sightline("train", root, *BRIEF, "--set", "split.group=near_duplicates", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "1 group spans more than one split of the source, such as that of " in result.err
    assert "--set split.group=near_duplicates" not in result.err
    split = {row["path"]: row["split"] for row in read_rows(tmp_path / "run")}
    assert all(split[path] == "test" for path in split if path.startswith("test/"))
    assert not any(split[path] == "test" for path in split if path.startswith("train/"))
    assert split["train/cat/cattrain0.jpg"] == split["train/cat/small.jpg"]
