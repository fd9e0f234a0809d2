"""The page that compares two runs: its test is that of `compare`, and its images are those on which they differ."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from sightline.api.comparison import compare_to_first
from sightline.runs.directory import RunDirectory
from sightline.studio import comparing
from sightline.studio.contents import open_studio

pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")
testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def client(run: sl.Run, other: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from sightline.studio.app import create_app

    patch = tmp_path_factory.mktemp("patch") / "fixes.jsonl"
    with (
        open_studio(run, patch, compare=[other]) as studio,
        testclient.TestClient(create_app(studio), "http://127.0.0.1:8000") as opened,
    ):
        yield opened


def test_the_images_on_which_two_runs_differ_are_listed(client: Any, run: sl.Run, other: sl.Run) -> None:
    page = client.get("/compare").text
    (paired,) = run.compare(other).paired
    c = paired.comparison
    assert c is not None
    assert c.difference_interval is not None
    difference = (
        f"{100 * c.difference:+.1f} [{100 * c.difference_interval.low:+.1f}, {100 * c.difference_interval.high:+.1f}]"
    )
    assert difference in page
    assert f"McNemar p = {c.p_value:.3g}, {c.count} images" in page
    predictions = [one.directory.read_predictions("test") for one in (run, other)]
    assert predictions[0] is not None
    assert predictions[1] is not None
    first, second = (of.probabilities.argmax(1) for of in predictions if of is not None)
    labels, paths = predictions[0].labels, np.array(predictions[0].paths)
    expected = {
        "only-first": (first == labels) & (second != labels),
        "only-second": (first != labels) & (second == labels),
        "both-wrong": (first != labels) & (second != labels) & (first != second),
    }
    assert sum(map(np.count_nonzero, expected.values())) == len(labels[::3]), "the runs differ on each third image"
    assert expected["only-first"].sum() == c.only_first_correct
    assert expected["only-second"].sum() == c.only_second_correct
    for kind, is_member in expected.items():
        section = page[page.index(f'id="{kind}"') :].partition("</section>")[0]
        assert f": {is_member.sum()}</h2>" in section
        if not is_member.any():
            continue
        selection = re.findall(r'href="/\?selection=(\w+)"', section)[0]
        order = np.frombuffer(client.get("/order", params={"selection": selection}).content, "<u4").tolist()
        rows = client.get("/images", params={"ids": ",".join(map(str, order))}).json()
        assert sorted(row["path"] for row in rows) == sorted(paths[is_member].tolist())
        assert sorted(re.findall(r'<img src="[^"]+" alt="([^"]+)"', section)) == sorted(paths[is_member].tolist())


def test_a_note_on_the_images_in_common_is_a_sentence(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(rows: Any) -> Any:
        return [replace(paired, note="only 12 of their test images are in both") for paired in compare_to_first(rows)]

    monkeypatch.setattr(comparing, "compare_to_first", compare)
    assert ">Only 12 of their test images are in both.<" in client.get("/compare").text


def test_only_listed_runs_can_be_chosen(client: Any, other: sl.Run, tmp_path: Path) -> None:
    shutil.copytree(other.path, tmp_path / "c")
    for name in (str(tmp_path / "c"), "../c", "none"):
        answer = client.get("/compare", params={"with": name})
        assert (answer.status_code, "no evaluated run" in answer.json()["error"]) == (404, True)
    assert client.get("/compare", params={"with": "b"}).status_code == 200


def test_runs_of_another_kind_are_offered_only_where_they_are_given(
    run: sl.Run, other: sl.Run, label_run: sl.Run, tmp_path: Path
) -> None:
    for name, one in (("a", run), ("b", other), ("labels", label_run)):
        shutil.copytree(one.path, tmp_path / name)
    shutil.copytree(other.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.toml").write_text("[model")
    directory = RunDirectory(tmp_path / "a")
    assert list(comparing.list_runs(directory, [])) == ["b"]
    assert list(comparing.list_runs(directory, [tmp_path / "labels"])) == ["labels", "b"]


def test_a_run_without_others_says_how_to_give_one(run_client: Any) -> None:
    assert "--compare" in run_client.get("/compare").text


def test_a_forgotten_selection_is_an_error(client: Any) -> None:
    answer = client.get("/order", params={"selection": "0123456789ab"})
    assert (answer.status_code, "select them again" in answer.json()["error"]) == (400, True)


def test_two_runs_with_several_labels_are_compared(label_run: sl.Run, other_label_run: sl.Run, tmp_path: Path) -> None:
    from sightline.studio.app import create_app

    (paired,) = label_run.compare(other_label_run.path).paired
    assert paired.comparison is not None
    assert paired.label_sets is not None
    with (
        open_studio(label_run, tmp_path / "fixes.jsonl", compare=[other_label_run]) as studio,
        testclient.TestClient(create_app(studio), "http://127.0.0.1:8000") as client,
    ):
        page = client.get("/compare").text
        assert "Accuracy</th>" not in page
        assert f"Difference in subset accuracy (fraction of images with all labels correct) {100 * paired.comparison.difference:+.1f}" in " ".join(page.split())  # fmt: skip  # noqa: E501
        difference = paired.label_sets.mean_average_precision
        assert difference.interval is not None
        assert f"Mean average precision: {difference.value:+.3f} [{difference.interval.low:+.3f}" in page
        for kind, count in (
            ("only-first", paired.comparison.only_first_correct),
            ("only-second", paired.comparison.only_second_correct),
        ):
            section = page[page.index(f'id="{kind}"') :].partition("</section>")[0]
            assert f": {count}</h2>" in section
            query = re.search(r'href="/\?(selection=[0-9a-f]+)"', section)
            assert (query is not None) == bool(count)
            if query:
                assert len(client.get(f"/order?{query[1]}").content) == 4 * count
