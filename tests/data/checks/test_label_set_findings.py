"""What `doctor` counts where images have several labels, on drawn images whose label sets are listed here."""

from __future__ import annotations

import pytest

from sightline.data.checks.audit import Audit, quick_audit
from sightline.data.checks.finding import Finding
from sightline.data.indexing import build_index
from synthetic_images import encode_png, write_files

SETS = ("car;road;tree", "car;road", "car;road", "road;tree", "road", "tree", "sign", "bus;sign", "")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("sets")
    write_files(folder, {f"{i}.png": encode_png(i) for i in range(len(SETS))})
    rows = "".join(f"{i}.png,{names}\n" for i, names in enumerate(SETS))
    (folder / "labels.csv").write_text(f"path,labels\n{rows}", encoding="utf-8")
    return quick_audit(build_index(folder / "labels.csv"))


@pytest.fixture(scope="module")
def findings(audit: Audit) -> dict[str, Finding]:
    return {finding.kind: finding for finding in audit.findings}


def test_each_class_has_the_count_of_its_images(audit: Audit) -> None:
    assert audit.count == len(SETS)
    assert dict(audit.classes) == {"bus": 1, "car": 3, "road": 5, "sign": 2, "tree": 3}


def test_images_with_several_labels_and_with_none_are_counted(findings: dict[str, Finding]) -> None:
    several = findings["several-labels"]
    assert (several.count, several.description) == (5, "images have several labels, 1.6 on average")  # 14 of 9
    assert (findings["no-labels"].count, findings["no-labels"].paths) == (1, ("8.png",))


def test_pairs_come_by_how_often_they_occur_with_their_fraction_of_each_label(findings: dict[str, Finding]) -> None:
    pairs = findings["co-occurrence"]
    assert dict(zip(pairs.paths, pairs.reasons, strict=True)) == {
        "car and road": "in 3 images: 100% of car, 60% of road",
        "road and tree": "in 2 images: 40% of road, 67% of tree",
        "bus and sign": "in 1 image: 100% of bus, 50% of sign",
        "car and tree": "in 1 image: 33% of car, 33% of tree",
    }
    assert pairs.paths == ("car and road", "road and tree", "bus and sign", "car and tree")


def test_labels_that_never_occur_alone_are_listed(findings: dict[str, Finding]) -> None:
    alone = findings["labels-never-alone"]
    assert (alone.count, alone.paths) == (2, ("bus", "car"))
