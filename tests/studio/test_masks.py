"""Images with masks in a studio without a browser: layers, filters, results, predictions and comparisons."""

from __future__ import annotations

import base64
import csv
import html
import inspect
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from drawn_scenes import BAR, DISK, draw_scene
from sightline import Dataset, UsageError
from sightline.api import common_images, comparison
from sightline.data.indexing import build_index
from sightline.data.label_patch import load_and_apply_patch
from sightline.evaluation.segmentation import SegmentationResult
from sightline.evaluation.segmentation_metrics import compute_image_iou
from sightline.inference.mask_colors import make_palette
from sightline.runs.metrics_info import read_metrics
from sightline.studio import messages
from sightline.studio.contents import Studio, open_studio
from sightline.studio.query import Query
from studio_client import load_page

testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")

CLASSES = (DISK, BAR, "ground")  # in the order of their names
DASH = "\u2013"
VALUES = {"ground": 0, DISK: 1, BAR: 2}


def open_client(studio: Studio) -> Any:
    from sightline.studio.app import create_app

    client = testclient.TestClient(create_app(studio), "http://127.0.0.1:8000", follow_redirects=False)
    token = re.search(r'name="csrf-token" content="([^"]+)"', client.get("/").text)
    assert token
    client.headers["X-CSRF-Token"] = token[1]
    return client


@pytest.fixture
def data_studio(mask_data: Path, patch: Path) -> Iterator[Studio]:
    with open_studio(Dataset(mask_data), patch) as opened:
        yield opened


@pytest.fixture
def data_client(data_studio: Studio) -> Any:
    return open_client(data_studio)


@pytest.fixture(scope="module")
def client(mask_studio: Studio) -> Any:
    return open_client(mask_studio)


@pytest.fixture(scope="module")
def result(mask_run: sl.Run) -> SegmentationResult:
    """What `evaluate` says of the validation images now."""
    evaluated = mask_run.classifier.evaluate(split="validation", progress=False).result
    assert isinstance(evaluated, SegmentationResult)
    return evaluated


def list_paths(client: Any, **query: str) -> list[str]:
    ids = np.frombuffer(client.get("/order", params=query).content, "<u4").tolist()
    return [row["path"] for row in client.get("/images", params={"ids": ",".join(map(str, ids))}).json()]


def read_layer(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGBA"))


def test_masks_are_layers_in_the_colors_of_predict(data_client: Any, data_studio: Studio) -> None:
    assert data_studio.masks is not None
    assert data_studio.masks.classes == CLASSES
    (row,) = data_client.get("/images", params={"ids": "3"}).json()
    mask = draw_scene(int(Path(row["path"]).stem))[1]
    palette = make_palette(len(CLASSES))
    for size in ("masks", "large-masks"):
        answer = data_client.get(f"/{size}/{data_studio.masks.key}/{row['mask']}.png")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert "immutable" in answer.headers["cache-control"]
        layer = read_layer(answer.content)
        np.testing.assert_array_equal(layer[..., 3] > 0, mask != 9)
        for position, name in enumerate(CLASSES):
            of_class = layer[mask == VALUES[name]]
            assert (of_class == [*palette[position].tolist(), 255]).all()


def test_addresses_of_other_classes_and_of_unknown_masks_have_nothing(data_client: Any, data_studio: Studio) -> None:
    assert data_studio.masks is not None
    sha256 = data_studio.library.describe([0])[0]["mask"]
    for address in (f"/masks/{'0' * 12}/{sha256}.png", f"/masks/{data_studio.masks.key}/{'0' * 64}.png"):
        assert data_client.get(address).status_code == 404


def test_images_are_filtered_by_the_classes_in_their_masks(data_client: Any, mask_data: Path) -> None:
    index = build_index(mask_data)
    for name in CLASSES:
        expected = [image.path for image in index.images if name in image.label.split(";")]
        assert list_paths(data_client, label=name) == expected
    assert list_paths(data_client, split="validation", text="1003") == ["val/images/1003.png"]
    counts = data_client.get("/state").json()["counts"]["label"]
    assert counts["ground"] == len(index.images)
    assert {*counts} == {*CLASSES}


def test_names_of_classes_are_text(data_client: Any, client: Any) -> None:
    for page in (data_client.get("/").text, client.get("/").text, client.get("/results").text):
        assert DISK not in page
        assert html.escape(DISK, quote=False).replace('"', "&#34;").replace("'", "&#39;") in page
    colors = re.search(r'data-colors="([^"]*)"', data_client.get("/").text)
    assert colors
    assert [*json.loads(html.unescape(colors[1]))] == [*CLASSES]


def test_an_image_is_left_out_but_its_mask_is_not_edited(
    data_client: Any, data_studio: Studio, mask_data: Path, patch: Path
) -> None:
    page = data_client.get("/").text
    assert 'id="classes"' not in page
    assert messages.select("en")["masks-note"] in page
    for edit in ("relabel", "add", "remove"):
        answer = data_client.post("/corrections", json={"ids": [0], "edit": edit, "to": "ground"})
        assert (answer.status_code, "correct the mask file" in answer.json()["error"]) == (400, True)
        with pytest.raises(UsageError, match="in a mask"):
            data_studio.corrections.apply([0], edit, "ground")
    assert not patch.exists()
    assert data_client.post("/corrections", json={"ids": [0], "edit": "drop", "to": None}).status_code == 200
    index = build_index(mask_data)
    corrected = load_and_apply_patch(index, patch)
    assert [image.path for image in corrected.images] == [image.path for image in index.images][1:]
    assert corrected.labels_are_masks


def test_the_list_is_a_table_that_train_reads(data_client: Any, mask_data: Path) -> None:
    data_client.post("/corrections", json={"ids": [0, 2], "edit": "drop", "to": None})
    content = data_client.get("/images.csv").content
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert len(rows) == 38
    assert rows[0] == {"path": "train/images/1.png", "mask": "train/masks/1.png", "split": "train"}
    table = mask_data / "images.csv"
    table.write_bytes(content)
    try:
        index = Dataset.from_csv(table).index
    finally:
        table.unlink()
    assert index.labels_are_masks
    assert [image.label for image in index.images] == [
        image.label for i, image in enumerate(build_index(mask_data).images) if i not in (0, 2)
    ]


@pytest.mark.parametrize("language", messages.LANGUAGES)
def test_the_page_to_label_says_that_masks_are_drawn_elsewhere(data_client: Any, client: Any, language: str) -> None:
    for opened in (data_client, client):
        assert messages.select(language)["label-masks"] in opened.get("/label", params={"lang": language}).text


def test_training_is_of_masks(data_studio: Studio, mask_studio: Studio) -> None:
    for studio in (data_studio, mask_studio):
        assert studio.training is not None
        assert studio.training.own is not None
        assert "model.task=segmentation" in studio.training.own.settings


def test_images_are_sorted_by_the_iou_that_evaluate_states(
    client: Any, mask_studio: Studio, result: SegmentationResult
) -> None:
    ious = dict(zip(result.paths, compute_image_iou(result.confusions).tolist(), strict=True))
    quality = dict(zip(result.paths, result.quality.tolist(), strict=True))
    paths = list_paths(client, sort="iou", split="validation")
    assert [ious[path] for path in paths] == sorted(ious.values())
    rows = mask_studio.library.describe(mask_studio.library.list_ids(Query(sort="confidence")))
    assert [row["path"] for row in rows[: len(quality)]] == sorted(quality, key=lambda path: quality[path])
    for row in rows:
        if row["split"] == "validation":
            assert (row["iou"], row["confidence"]) == (ious[row["path"]], pytest.approx(quality[row["path"]]))
        else:
            assert row["iou"] is row["predicted"] is None
    page = client.get("/").text
    assert 'value="iou"' in page
    assert 'value="disagreement"' not in page


def test_results_are_those_of_the_files(client: Any, mask_run: sl.Run, result: SegmentationResult) -> None:
    metrics = read_metrics(mask_run.path / "eval" / "validation" / "metrics.json")
    page = client.get("/results").text
    for name in ("mean_iou", "mean_dice", "pixel_accuracy"):
        cell = page.partition(f'data-metric="{name}"')[2].partition("</dd>")[0]
        value, interval = metrics["metrics"][name]["value"], metrics["metrics"][name]["interval"]
        assert f"<b>{value:.3f}</b>" in cell
        assert f"{interval[0]:.3f} {DASH} {interval[1]:.3f}" in cell
    rows = page.partition('id="per-class"')[2].partition("</table>")[0].split("<tr data-label")[1:]
    for row, of_class in zip(rows, metrics["per_class"], strict=True):
        value = of_class["iou"]["value"]
        assert f"<b>{DASH if value is None else format(value, '.3f')}</b>" in row
        assert f"<td>{of_class['support']}</td>" in row
    ious = compute_image_iou(result.confusions)
    worst = page.partition('id="worst"')[2].partition("</ul>")[0]
    assert re.findall(r'<li title="([^"]+)"', worst) == [result.paths[i] for i in np.argsort(ious, kind="stable")[:12]]


def test_the_worst_images_of_a_run_with_folds_open(folded_mask_run: sl.Run, tmp_path: Path) -> None:
    with open_studio(folded_mask_run, tmp_path / "fixes.jsonl") as studio, load_page(studio) as client:
        page = client.get("/results").text
        assert 'aria-current="true">out-of-fold</a>' in page
        links = [html.unescape(link) for link in re.findall(r'href="(/\?split=[^"]+)"', page)]
        assert sum("text=" in link for link in links) == 10
        assert sum("label=" in link for link in links) == 3
        for link in links:
            assert client.get(f"/order{link[1:]}").content, link


def test_a_cell_opens_the_images_with_most_of_its_pixels_first(client: Any, result: SegmentationResult) -> None:
    page = client.get("/results").text
    links = [html.unescape(link) for link in re.findall(r'href="(/results/images\?[^"]+)"', page)]
    assert len(links) == int((result.confusions.sum(0) > 0).sum())
    for link in links:
        query = {name: value[0] for name, value in parse_qs(urlsplit(link).query).items()}
        cell = CLASSES.index(query["label"]), CLASSES.index(query["predicted"])
        pixels = dict(zip(result.paths, result.confusions[:, *cell].tolist(), strict=True))
        answer = client.get(link + "&lang=zh")
        assert answer.status_code == 303
        target = urlsplit(answer.headers["location"])
        assert "lang=zh" in target.query
        listed = list_paths(client, **{name: value[0] for name, value in parse_qs(target.query).items()})
        assert sorted(listed) == sorted(path for path, count in pixels.items() if count)
        assert [pixels[path] for path in listed] == sorted((pixels[path] for path in listed), reverse=True)


@pytest.mark.parametrize("query", [{}, {"label": "zebra", "predicted": "ground"}, {"label": "ground", "split": "dev"}])
def test_cells_that_there_are_not_are_refused(client: Any, query: dict[str, str]) -> None:
    answer = client.get("/results/images", params=query)
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_a_run_of_an_earlier_version_is_evaluated_again(mask_run: sl.Run, tmp_path: Path) -> None:
    path = tmp_path / "an old run"
    shutil.copytree(mask_run.path, path)
    file = path / "eval" / "validation" / "predictions.npz"
    with np.load(file) as saved:
        arrays = {name: values for name, values in saved.items() if not name.startswith("mask_")}
    np.savez(file, **arrays)
    with open_studio(sl.Run(path), tmp_path / "fixes.jsonl") as studio:
        client = open_client(studio)
        page = client.get("/results").text
        assert "evaluate it again" in page
        assert f"sightline evaluate '{path}' --split validation" in html.unescape(page)
        assert 'data-metric="mean_iou"' in page
        assert 'id="confusion"' not in page
        assert 'value="iou"' not in client.get("/").text
        assert client.get("/results/images", params={"label": "ground", "predicted": "ground"}).status_code == 404
    sl.load(path).evaluate(split="validation", progress=False)
    with open_studio(sl.Run(path), tmp_path / "fixes.jsonl") as studio:
        assert 'id="confusion"' in open_client(studio).get("/results").text


def test_a_new_image_gets_the_mask_that_predict_gives_it(client: Any, mask_run: sl.Run) -> None:
    pixels = np.kron(draw_scene(5000)[0], np.ones((3, 2, 1), np.uint8))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    answer = client.post("/try", content=file.getvalue()).json()
    expected = mask_run.classifier.predict_masks([file.getvalue()], progress=False)[0]
    assert expected.mask is not None
    layer = read_layer(base64.b64decode(answer["mask"]))
    palette = make_palette(len(CLASSES))
    np.testing.assert_array_equal(layer[..., :3], palette[expected.mask])
    assert [(area["label"], area["fraction"]) for area in answer["areas"]] == [*map(tuple, expected.areas)]
    assert {area["color"] for area in answer["areas"]} <= {f"#{bytes(color).hex()}" for color in palette[:3]}
    assert answer["quality"] == expected.quality
    assert Image.open(io.BytesIO(base64.b64decode(answer["image"]))).size == (pixels.shape[1], pixels.shape[0])
    answer = client.post("/try", content=b"no image")
    assert (answer.status_code, "cannot be predicted" in answer.json()["error"]) == (400, True)


def test_the_predicted_mask_of_an_image_of_the_run(client: Any, mask_run: sl.Run, mask_data: Path) -> None:
    (row,) = client.get("/images", params={"ids": "32"}).json()
    answer = client.post("/images/32/mask").json()
    expected = mask_run.classifier.predict_masks([mask_data / row["path"]], progress=False)[0]
    layer = read_layer(base64.b64decode(answer["mask"]))
    np.testing.assert_array_equal(layer[..., :3], make_palette(len(CLASSES))[expected.mask])
    assert client.post("/images/40/mask").status_code == 404


def test_the_map_has_the_images_of_a_model_of_masks(client: Any, mask_studio: Studio) -> None:
    assert mask_studio.model is not None
    mask_studio.model.features.start()
    mask_studio.model.features.wait()
    assert client.get("/map/points").json()["count"] == 40
    assert 'value="state"' not in client.get("/map").text
    assert len(client.get("/images/0/nearest").json()["images"]) == 8


def test_two_runs_are_compared_by_the_iou_of_each_image(
    mask_run: sl.Run, other_mask_run: sl.Run, tmp_path: Path
) -> None:
    (paired,) = mask_run.compare(other_mask_run).paired
    assert paired.masks is not None
    assert paired.masks.verdict == "worse"
    assert "worse in mean IoU of an image" in paired.describe()
    assert paired.to_dict()["masks"]["count"] == 10
    with open_studio(mask_run, tmp_path / "fixes.jsonl", compare=[other_mask_run]) as studio:
        client = open_client(studio)
        page = client.get("/compare").text
        assert f"{paired.masks.difference:+.3f}" in page.partition('id="verdict"')[2].partition("</p>")[0]
        verdicts = [
            client.get(f"/compare?lang={language}").text.partition('id="verdict"')[2] for language in ("en", "zh")
        ]
        assert f"10 images ({paired.split})." in verdicts[0]
        assert "worse.</b> Difference in" in verdicts[0]
        assert "更差。</b>单张图片" in verdicts[1]
        assert re.search(r"10 张图片\uff08.{3}\uff09。", verdicts[1]), "in parentheses of Chinese"
        section = page.partition('id="better-first"')[2].partition("</section>")[0]
        selection = html.unescape(re.findall(r'href="/\?([^"]+)"', section)[0])
        listed = list_paths(client, **{name: value[0] for name, value in parse_qs(selection).items()})
        assert listed == re.findall(r'<li title="([^"]+)"', section)
        assert len(listed) == 8
        assert 'better-second">SECOND' not in page


def test_runs_that_cannot_be_compared_say_why(mask_run: sl.Run, run: sl.Run, tmp_path: Path) -> None:
    (paired,) = mask_run.compare(run).paired
    assert paired.note == "only one of them predicts masks"
    with open_studio(mask_run, tmp_path / "fixes.jsonl", compare=[run]) as studio:
        page = open_client(studio).get("/compare", params={"lang": "zh"}).text
        assert messages.select("zh")["not-paired-masks"] in page
        assert messages.select("zh")["note-one-has-masks"] in page
    with open_studio(run, tmp_path / "others.jsonl", compare=[mask_run]) as studio:
        page = open_client(studio).get("/compare").text
        assert "The two runs cannot be compared: only one of them predicts masks." in page
        assert 'class="group"' not in page, "no images of a comparison that there is not"


@pytest.mark.parametrize(
    "note",
    [
        "they were not evaluated on the same split: evaluate both first",
        "they have no test image in common",
        "they have no image with a class in common",
        "they lack the pixels of each test image: evaluate both again with --split test",
        "their classes differ",
        "only one of them predicts masks",
    ],
)
def test_every_reason_not_to_compare_is_in_the_language_of_the_page(note: str) -> None:
    source = inspect.getsource(comparison) + inspect.getsource(common_images)
    assert f'"{note.replace("test", "{split}")}"' in source, "the studio knows the sentences by heart"
    translated = messages.translate_note(note, messages.select("zh"))
    assert not translated.isascii()
    assert "SPLIT" not in translated
    assert messages.translate_note(note, messages.select("en")) == note


def test_a_classifier_of_the_classes_in_masks_shows_them(mask_data: Path, tmp_path: Path) -> None:
    settings = {"model.task": "multi_label", "device.threads": 1, "model.pooling": "average"}
    run = sl.train(
        mask_data, recipe="quick", model="cifar10-simple", epochs=1, set=settings, out=tmp_path / "run", progress=False
    )
    with open_studio(run, tmp_path / "fixes.jsonl") as studio:
        client = open_client(studio)
        assert 'id="show-masks"' in client.get("/").text
        assert 'id="labels"' in client.get("/results").text
