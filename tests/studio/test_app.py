"""The studio's addresses: what they return, and whom they refuse."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import COLORS, draw_classes
from sightline import Dataset
from sightline.evaluation.label_pairs import PAIR_KINDS
from sightline.studio import label_results, mask_results, messages
from sightline.studio.contents import Studio, open_studio
from sightline.sweeps import SweepResult
from studio_client import connect, load_page, read_token

pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")
testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")

FINISHED = ("complete", "interrupted", "failed")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def client(studio: Studio) -> Iterator[Any]:
    """A page that has loaded: its client sends the token."""
    with load_page(studio) as opened:
        yield opened


def test_the_page_loads_only_from_itself(client: Any) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "style=" not in response.text
    assert not re.search(r"<script(?![^>]*(src=|application/json))", response.text), "no script in the page"
    places = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert not [place for place in places if "//" in place]
    for place in places:
        if place.startswith("/"):
            assert client.get(place).status_code == 200, place


@pytest.mark.parametrize("language", messages.LANGUAGES)
def test_every_text_of_the_page_exists_in_both_languages(client: Any, language: str) -> None:
    texts = messages.select(language)
    page = client.get("/", params={"lang": language}).text
    assert f'<html lang="{"zh-CN" if language == "zh" else "en"}"' in page
    assert texts["check"] in page
    assert set(texts) == set(messages.select("en"))
    scripts = "".join(path.read_text() for path in (Path(messages.__file__).parent / "static").glob("*.js"))
    used = set(re.findall(r'texts(?:\.([a-z]+)|\["([a-z-]+)"\])', scripts))
    assert {a or b for a, b in used} <= set(texts)
    templates = "".join(path.read_text() for path in (Path(messages.__file__).parent / "templates").glob("*.j2"))
    of_several = set(re.findall(r'textOf\("([a-z-]+)"\)', scripts))  # each has another text, too
    used |= {("", key) for name in of_several for key in (name, f"{name}-several")}
    assert {a or b for a, b in used} <= set(texts)
    named = {a or b for a, b in used} | set(re.findall(r't\[["\']([a-z-]+)["\']\]', templates))
    chosen_by_value = {"wrong", "right", "corrected", "dropped", "kept", "to-review", "train", "validation", "test"}
    chosen_by_value |= {"held-out"}  # of a comparison
    chosen_by_value |= {"one-image", "images", "one-correction", "corrections"}
    chosen_by_value |= {"list", "label-page", "results", "trial", "compare", "map"}  # of pages
    chosen_by_value |= {"hard-links", "symbolic-links", "copies", "left-out"}  # of folders
    chosen_by_value |= {f"decision-{decision}" for decision in ("class", "set", "ancestor", "abstain", "ood")}
    chosen_by_value |= {"phone"}  # of a page of the network
    chosen_by_value |= {"precision", "recall", "abstention"}  # of metrics
    chosen_by_value |= {"train-page", "fast", "balanced", "best"}
    chosen_by_value |= {f"run-{status}" for status in ("starting", "running", "stopping", *FINISHED)}
    chosen_by_value |= {"only-first", "only-second", "both-wrong", "better", "worse", "no-difference", "not-predicted"}
    chosen_by_value |= {f"images-{kind}" for kind in label_results.KINDS}
    chosen_by_value |= {"difference", "difference-sets", "mean-average-precision", "micro-f1", "macro-f1"}
    chosen_by_value |= {key for key in texts if key.startswith("finding-")}  # see test_findings.py
    chosen_by_value |= {key for key in texts if key.startswith("error-")}  # see test_error_texts.py
    chosen_by_value |= {key for key in texts if key.startswith(("why-", "note-"))}  # see the same
    columns = SweepResult("", "", "metric", (), None).to_table()[0]
    chosen_by_value |= {f"sweep-{column}" for column in columns if column != "metric"}
    chosen_by_value |= {f"sweep-{state}" for state in ("complete", "pruned", "failed", "running", "waiting")}
    chosen_by_value |= {"quadratic-weighted-kappa", "mean-absolute-error", "within-one-grade"}
    chosen_by_value |= {f"{text}pair-{kind}" for text in ("", "images-") for kind in PAIR_KINDS}
    chosen_by_value |= {"slice-below", "slice-above", "slice-low", "slice-unset"}
    chosen_by_value |= {f"property-{name}" for name in ("size", "aspect-ratio", "brightness", "sharpness")}
    chosen_by_value |= {"decision-mask", "label-masks", "better-first", "better-second"}
    chosen_by_value |= {name.replace("_", "-") for name in mask_results.HEADLINES}
    chosen_by_value |= set(re.findall(r'"(reason-[a-z-]+)"', scripts))
    assert set(texts) == named | chosen_by_value, "each text is used"


def test_scripts_are_asked_for_again_since_another_version_may_be_installed(client: Any) -> None:
    script = client.get("/static/studio.js")
    assert script.headers["cache-control"] == "no-cache"
    again = client.get("/static/studio.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


def test_images_are_listed_described_and_shown(client: Any) -> None:
    ids = np.frombuffer(client.get("/order", params={"label": "green"}).content, "<u4")
    assert ids.tolist() == list(range(8, 16))
    (row,) = client.get("/images", params={"ids": "8"}).json()
    assert (row["path"], row["label"], row["width"]) == ("green/green-000.png", "green", 32)
    for kind in ("thumbnails", "large"):
        response = client.get(f"/{kind}/{row['sha256']}.webp")
        assert "immutable" in response.headers["cache-control"]
        pixels = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))
        assert pixels.shape == (32, 32, 3)
        assert pixels.mean((0, 1)).argmax() == 1, "green"


def test_a_correction_is_saved_shown_and_undone(client: Any, patch: Path) -> None:
    response = client.post("/corrections", json={"ids": [0, 1], "edit": "relabel", "to": "purple"}).json()
    assert (response["corrections"], response["counts"]["label"]["purple"]) == (2, 2)
    assert [(row["id"], row["label"], row["source_label"]) for row in response["rows"]] == [
        (0, "purple", "blue"), (1, "purple", "blue"),
    ]  # fmt: skip
    assert patch.read_text(encoding="utf-8").count("\n") == 2
    other = client.get("/state", params={"since": "0"}).json()
    assert [row["id"] for row in other["rows"]] == [0, 1], "another page learns of it"
    assert client.get("/state", params={"since": other["revision"]}).json()["rows"] == []
    undone = client.post("/undo", json={"click": response["click"]}).json()
    assert (undone["corrections"], undone["rows"][0]["label"]) == (0, "blue")
    again = client.post("/undo", json={"click": response["click"]})
    assert (again.status_code, again.json()) == (400, {"error": "There is nothing to undo."})


def test_a_change_that_is_sent_again_is_made_once(client: Any, patch: Path) -> None:
    content = {"ids": [0], "edit": "relabel", "to": "red", "request": "a1"}
    first, again = (client.post("/corrections", json=content).json() for _ in range(2))
    assert (again["click"], again["corrections"]) == (first["click"], 1)
    undos = [client.post("/undo", json={"click": first["click"], "request": "a2"}) for _ in range(2)]
    assert [(undo.status_code, undo.json()["corrections"]) for undo in undos] == [(200, 0), (200, 0)]
    assert patch.read_text(encoding="utf-8") == ""
    for request in (7, "x" * 65):
        refused = client.post("/corrections", json=content | {"request": request})
        assert (refused.status_code, "64 characters" in refused.json()["error"]) == (400, True)


def test_a_page_learns_of_other_pages_after_a_click_of_its_own(client: Any, patch: Path) -> None:
    since = client.get("/state").json()["revision"]
    client.post("/corrections", json={"ids": [0], "edit": "drop"})  # another page
    assert "revision" not in client.post("/corrections", json={"ids": [1], "edit": "drop"}).json()
    assert [row["id"] for row in client.get("/state", params={"since": since}).json()["rows"]] == [0, 1]
    patch.write_text(patch.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert client.get("/images.csv").text.count("\n") == 24, "the header and 23 images: a line was deleted by hand"


def test_a_check_is_given_up_at_the_end(colors: Path, patch: Path) -> None:
    with open_studio(Dataset(colors), patch) as studio:
        studio.check.stop()
        studio.check.start()
        studio.check.wait()
        assert studio.check.state["status"] == "new"
    assert studio.check.state["status"] == "new"


def test_a_check_finds_an_image_that_has_vanished_and_goes_on(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "colors", COLORS, 4)
    with open_studio(Dataset(folder), tmp_path / "fixes.jsonl") as studio, load_page(studio) as client:
        (folder / "red" / "red-001.png").unlink()
        client.post("/check")
        studio.check.wait()
        state = client.get("/state").json()
        assert (state["check"]["status"], state["counts"]["finding"]["unreadable"]) == ("complete", 1)
        (position,) = np.frombuffer(client.get("/order", params={"finding": "unreadable"}).content, "<u4").tolist()
        (row,) = client.get("/images", params={"ids": position}).json()
        assert row["path"] == "red/red-001.png"
        reasons = {f["reason"] for f in row["findings"] if f["kind"] == "unreadable"}
        assert reasons == {"changed or deleted since the studio started"}


def test_a_check_fails_while_all_images_are_gone_and_can_be_repeated(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "colors", COLORS, 4)
    with open_studio(Dataset(folder), tmp_path / "fixes.jsonl") as studio, load_page(studio) as client:
        folder.rename(tmp_path / "away")
        client.post("/check")
        studio.check.wait()
        state = client.get("/state").json()["check"]
        assert state["status"] == "failed"
        assert "changed while the images were being read" in state["error"]
        (tmp_path / "away").rename(folder)
        client.post("/check")
        studio.check.wait()
        assert client.get("/state").json()["check"]["status"] == "complete"


def test_the_corrected_list_is_a_table_that_train_reads(client: Any, colors: Path, tmp_path: Path) -> None:
    client.post("/corrections", json={"ids": [0], "edit": "relabel", "to": "=purple"})
    client.post("/corrections", json={"ids": [1], "edit": "drop"})
    response = client.get("/images.csv")
    assert 'filename="images.csv"' in response.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert rows[0] == {"path": "blue/blue-000.png", "label": "'=purple"}, "no spreadsheet runs it"
    assert len(rows) == 23
    table = tmp_path / "images.csv"
    table.write_bytes(response.content)
    assert len(Dataset.from_csv(table, set={"data.root": str(colors)})) == 23


def test_the_corrected_list_may_have_text_as_it_is(colors: Path, tmp_path: Path) -> None:
    with (
        open_studio(Dataset(colors), tmp_path / "fixes.jsonl", raw_csv=True) as studio,
        connect(studio) as client,
    ):
        studio.corrections.apply([0], "relabel", "=purple")
        assert "blue/blue-000.png,=purple" in client.get("/images.csv").text.splitlines()


def test_the_checks_of_doctor_become_filters(colors: Path, tmp_path: Path) -> None:
    for label in ("blue", "red"):
        (tmp_path / "twins" / label).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "twins" / label / f"{i}.png").write_bytes((colors / "blue" / f"blue-00{i}.png").read_bytes())
    with open_studio(Dataset(tmp_path / "twins"), tmp_path / "fixes.jsonl") as studio, connect(studio) as client:
        page = client.get("/").text
        headers = {"X-CSRF-Token": read_token(page)}
        assert client.get("/state").json()["check"]["status"] == "new"
        assert client.post("/check", headers=headers).status_code == 200
        studio.check.wait()
        state = client.post("/check", headers=headers).json()
        assert state["check"]["status"] == "complete"
        assert state["counts"]["finding"]["conflicting-duplicates"] == 4
        query = {"finding": "conflicting-duplicates", "sort": "group"}
        ids = np.frombuffer(client.get("/order", params=query).content, "<u4").tolist()
        rows = client.get("/images", params={"ids": ",".join(map(str, ids))}).json()
        assert [row["path"] for row in rows] == ["blue/0.png", "red/0.png", "blue/1.png", "red/1.png"]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Host": "evil.example"}, "this machine's own names"),
        ({"Host": "127.0.0.1.evil.example:8000"}, "this machine's own names"),
        ({"Origin": "http://evil.example"}, "from another page"),
        ({"Origin": "null"}, "from another page"),
        ({"Origin": "http://127.0.0.1:9999"}, "from another page"),
        ({"X-CSRF-Token": ""}, "started again"),
        ({"X-CSRF-Token": "\u00e9"}, "started again"),
    ],
)
def test_other_pages_change_nothing(client: Any, patch: Path, headers: dict[str, str], words: str) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/corrections", "/undo", "/check"):
        response = client.post(path, json={"ids": [0], "edit": "drop"}, headers=encoded)
        assert response.status_code == 403
        assert words in response.json()["error"]
    assert not patch.exists()
    if "Host" in headers:
        assert client.get("/images?ids=0", headers=encoded).status_code == 403, "nothing is read under another name"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/images?ids=x", 400),
        ("/images?ids=" + ",".join(["1"] * 501), 400),
        ("/images?ids=99999999999999999999", 400),
        ("/order?sort=nothing", 400),
        ("/order?below=-1", 400),
        ("/thumbnails/0.webp", 404),
        ("/thumbnails/..%2F..%2Fetc%2Fpasswd.webp", 404),
        ("/static/..%2Fapp.py", 404),
        ("/static/../app.py", 404),
        ("/state?since=-1", 200),
        ("/images?ids=", 200),
        ("/images?ids=1000", 200),
    ],
)
def test_odd_addresses(client: Any, path: str, status: int) -> None:
    assert client.get(path).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"ids": "0", "edit": "drop"}', b'{"ids": [true], "edit": "drop"}', b'{"ids": [0]}',
        b'{"ids": [0.5], "edit": "drop"}', b'{"ids": [0], "edit": "relabel", "to": 3}',
        b'{"ids": [1e400], "edit": "drop"}',
        b'{"ids": [' + b"0," * 10 + b'99], "edit": "drop"}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_odd_body_is_refused_in_a_sentence(client: Any, patch: Path, body: bytes) -> None:
    response = client.post("/corrections", content=body)
    assert response.status_code == 400
    assert response.json()["error"].endswith((".", "again."))
    assert not patch.exists()


def test_a_body_has_a_limit(client: Any) -> None:
    assert client.post("/corrections", content=b" " * (1 << 20) + b"{}").status_code == 413


def test_hostile_names_are_text(tmp_path: Path) -> None:
    label = "<img src=x onerror=alert(1)>"
    (tmp_path / "data" / label).mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    for i, folder in enumerate((label, "b")):
        Image.new("RGB", (8, 8), (90 * i, 0, 0)).save(tmp_path / "data" / folder / "\x1b[2J\u202e.png")
    with open_studio(Dataset(tmp_path / "data"), tmp_path / "</script><b>.jsonl") as studio, connect(studio) as client:
        assert "</script><b>" not in client.get("/").text
        rows = client.get("/images", params={"ids": "0,1"})
        assert rows.headers["content-type"] == "application/json"
        assert label in {row["label"] for row in json.loads(rows.text)}


def test_an_image_that_cannot_be_decoded_is_missing_alone(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "data" / label / f"{label}.png")
    whole = (tmp_path / "data" / "a" / "a.png").read_bytes()
    (tmp_path / "data" / "a" / "a.png").write_bytes(whole[: len(whole) // 2])
    with open_studio(Dataset(tmp_path / "data"), tmp_path / "fixes.jsonl") as studio, connect(studio) as client:
        rows = client.get("/images", params={"ids": "0,1"}).json()
        codes = [client.get(f"/thumbnails/{row['sha256']}.webp").status_code for row in rows]
        assert codes == [404, 200]
