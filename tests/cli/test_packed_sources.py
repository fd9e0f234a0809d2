"""Commands give the same results for a folder of images and for the same images in a Parquet file or a WebDataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it has no types
import pytest

from command import Command
from packed_images import make_table, write_table, write_tar

Trained = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module", params=["parquet", "webdataset", "arrow folder"])
def packed(request: pytest.FixtureRequest, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `colors` in another form."""
    folder = tmp_path_factory.mktemp("packed")
    files = sorted(colors.glob("*/*.png"))
    labels = [file.parent.name for file in files]
    names = sorted({*labels})
    table = make_table([file.read_bytes() for file in files], names, label=[names.index(label) for label in labels])
    if request.param == "parquet":
        return write_table(folder / "colors.parquet", table, rows_per_group=50)
    if request.param == "arrow folder":
        write_table(folder / "colors" / "data-00000-of-00001.arrow", table, rows_per_group=50)
        return folder / "colors"
    members: dict[str, bytes] = {}
    for number, (file, label) in enumerate(zip(files, labels, strict=True)):
        members |= {f"{number:04}.png": file.read_bytes(), f"{number:04}.cls": label.encode()}
    return write_tar(folder / "colors.tar", members)


def test_evaluate(sightline: Command, trained: Trained, colors: Path, packed: Path) -> None:
    metrics = [sightline("evaluate", trained[0], data, "--format", "json").json for data in (colors, packed)]
    assert metrics[0]["count"] == metrics[1]["count"] > 0
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]


def test_doctor(sightline: Command, colors: Path, packed: Path) -> None:
    reports = [sightline("doctor", data, "--format", "json").json for data in (colors, packed)]
    assert reports[0]["classes"] == reports[1]["classes"]
    assert reports[0]["count"] == reports[1]["count"] == 120
    kinds = [[finding["kind"] for finding in report["findings"]] for report in reports]
    assert kinds[0] == kinds[1]


def test_predict(sightline: Command, trained: Trained, colors: Path, packed: Path, tmp_path: Path) -> None:
    assert sightline("predict", trained[0], packed, "--out", tmp_path / "p.parquet").code == 0
    assert sightline("predict", trained[0], colors, "--out", tmp_path / "folder.parquet").code == 0
    rows, expected = (pq.read_table(tmp_path / name).drop(["path"]) for name in ("p.parquet", "folder.parquet"))
    assert rows.equals(expected)
