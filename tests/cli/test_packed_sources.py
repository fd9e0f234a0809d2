"""Commands give the same results for a folder of images and for the same images packed, or at an address."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it has no types
import pytest

from command import SMALL, Command
from packed_images import make_table, write_table, write_tar
from s3_server import start_bucket
from sightline.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("plain_figures")

Trained = tuple[Path, dict[str, Any]]
TINY = (*SMALL[:-3], "model.hidden_units=[4]", "--set", "input.height=16", "--epochs", "1")
FORMS = ["parquet", "webdataset", "arrow folder", "shards", "address", "address of shards"]


@pytest.fixture(scope="module", params=FORMS)
def packed(request: pytest.FixtureRequest, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    """The images of `colors` in another form."""
    folder = tmp_path_factory.mktemp("packed")
    files = sorted(colors.glob("*/*.png"))
    if request.param == "address":
        client = fsspec.filesystem("memory", use_listings_cache=False)
        for file in files:
            client.pipe_file(f"/packed/colors/{file.parent.name}/{file.name}", file.read_bytes())
        return "memory://packed/colors/"
    labels = [file.parent.name for file in files]
    names = sorted({*labels})
    table = make_table([file.read_bytes() for file in files], names, label=[names.index(label) for label in labels])
    if request.param == "parquet":
        return write_table(folder / "colors.parquet", table, rows_per_group=50)
    if request.param == "arrow folder":
        write_table(folder / "colors" / "data-00000-of-00001.arrow", table, rows_per_group=50)
        return folder / "colors"
    members: list[tuple[str, bytes]] = []
    for number, (file, label) in enumerate(zip(files, labels, strict=True)):
        members += [(f"{number:04}.png", file.read_bytes()), (f"{number:04}.cls", label.encode())]
    if request.param == "webdataset":
        return write_tar(folder / "colors.tar", dict(members))
    for number in range(3):
        write_tar(folder / f"shards/{number:06}.tar", dict(members[80 * number : 80 * (number + 1)]))
    if request.param == "shards":
        return folder / "shards"
    fsspec.filesystem("memory").put(f"{folder}/shards", "/packed/", recursive=True)
    return "memory://packed/shards"


@pytest.mark.slow_with("webdataset", "arrow folder", "shards", "address")  # the other commands read these, too
def test_train(sightline: Command, trained: Trained, packed: Path | str, tmp_path: Path) -> None:
    assert sightline("train", packed, "--out", tmp_path / "run", *TINY).code == 0
    runs = [RunDirectory.open(path).read_data() or () for path in (tmp_path / "run", trained[0])]
    images, expected = (Counter((row.sha256, row.label, row.split) for row in rows) for rows in runs)
    assert images == expected
    metrics = sightline("evaluate", tmp_path / "run", "--format", "json").json
    assert metrics["count"] == sum(row.split == "test" for row in runs[0]) > 0


def test_evaluate(sightline: Command, trained: Trained, colors: Path, packed: Path | str) -> None:
    metrics = [sightline("evaluate", trained[0], data, "--format", "json").json for data in (colors, packed)]
    assert metrics[0]["count"] == metrics[1]["count"] > 0
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]


def test_doctor(sightline: Command, colors: Path, packed: Path | str) -> None:
    reports = [sightline("doctor", data, "--format", "json").json for data in (colors, packed)]
    assert reports[0]["classes"] == reports[1]["classes"]
    assert reports[0]["count"] == reports[1]["count"] == 120
    kinds = [[finding["kind"] for finding in report["findings"]] for report in reports]
    assert kinds[0] == kinds[1]


def test_predict(sightline: Command, trained: Trained, colors: Path, packed: Path | str, tmp_path: Path) -> None:
    assert sightline("predict", trained[0], packed, "--out", tmp_path / "p.parquet").code == 0
    assert sightline("predict", trained[0], colors, "--out", tmp_path / "folder.parquet").code == 0
    rows, expected = (pq.read_table(tmp_path / name).drop(["path"]) for name in ("p.parquet", "folder.parquet"))
    assert rows.equals(expected)


@pytest.mark.slow
def test_a_bucket_of_s3_is_trained_on_and_gets_the_predictions(
    sightline: Command, trained: Trained, colors: Path, tmp_path: Path
) -> None:
    with start_bucket() as client:
        client.put(f"{colors}/", "bucket/train/", recursive=True)
        run = tmp_path / "run"
        assert sightline("train", "s3://bucket/train/", "--out", run, *SMALL).code == 0
        hashes = [sorted(row.sha256 for row in RunDirectory.open(path).read_data() or ()) for path in (run, trained[0])]
        assert hashes[0] == hashes[1]
        assert sightline("evaluate", run, "--format", "json").json["count"] > 0
        out = "s3://bucket/labels.parquet"
        for shard in ("1/2", "0/2", "0/2"):
            options = ("--out", out, "--shard", shard, "--rows-per-part", 8)
            result = sightline("predict", run, "s3://bucket/train", *options)
            assert (result.code, out in result.err) == (0, True)
        assert sightline("predict", run, colors, "--out", tmp_path / "p.parquet", "--rows-per-part", 8).code == 0
        rows, expected = (
            pq.read_table(path, filesystem=filesystem).drop(["path"])
            for path, filesystem in (("bucket/labels.parquet", client), (str(tmp_path / "p.parquet"), None))
        )
        assert rows.equals(expected)
        assert "should end with .parquet" in sightline("predict", run, colors, "--out", "s3://bucket/labels.csv").err
