"""The page of a server as its user sees it, in headless Chromium."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import NO_BROWSER, Browser, Page, find_browser
from drawn_scenes import draw_scenes
from server_process import Server
from sightline import Run, load, train
from sightline.inference.masks import overlay_mask
from sightline.inference.results import Thresholds
from task_images import write_task

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER),
    pytest.mark.usefixtures("plain_figures"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 24, 8)


@pytest.fixture(scope="module")
def mask_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model of masks; the tests that change its run copy it."""
    out = tmp_path_factory.mktemp("masks") / "run"
    return train(str(scenes), recipe="fcn", epochs=1, out=out, set={"model.task": "segmentation"})


@pytest.fixture(scope="module")
def server(trained: tuple[Path, Any]) -> Iterator[Server]:
    with Server(trained[0]) as running:
        yield running


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "light"),
        (1280, "dark"),
        pytest.param(390, "dark", marks=pytest.mark.exhaustive),
        pytest.param(1280, "light", marks=pytest.mark.exhaustive),
    ],
)
def test_an_image_gets_its_prediction_and_its_heat_map(
    server: Server, browser: Browser, trained: tuple[Path, Any], colors: Path, width: int, scheme: str
) -> None:
    classifier = load(trained[0])
    images = sorted(colors.rglob("*.png"))[::10]
    image = next(Path(one.path) for one in classifier.explain(images) if one.region is not None)
    (expected,) = classifier.predict(image)
    with Page(browser, width, media={"prefers-color-scheme": scheme}) as page:
        page.open(f"{server.address}/")
        page.wait_for("document.title !== 'Sightline'")
        assert page.evaluate("document.getElementById('name').textContent") == "run"
        page.choose_file("#file", image)
        page.wait_for("document.querySelectorAll('#top li').length > 0")
        label, probability = page.evaluate("document.getElementById('label').textContent").split(" · ")
        assert label == expected.label
        assert float(probability.rstrip("%")) == pytest.approx(100 * (expected.probability or 0), abs=0.051)
        percentages = page.evaluate(
            "[...document.querySelectorAll('#top li')].map((row) => row.children[2].textContent)"
        )
        assert [re.fullmatch(r"\d+\.\d%", value) is not None for value in percentages] == [True] * 3
        assert trained[1]["weights_sha256"] in page.evaluate("document.getElementById('identity').textContent")
        page.wait_for("!document.getElementById('heat-switch').hidden")
        assert "its probability goes from" in page.evaluate("document.getElementById('evidence').textContent")
        assert page.evaluate("document.getElementById('view').width") >= 256, "a small image is enlarged"
        canvas = "document.getElementById('view').toDataURL()"
        with_heat = page.evaluate(canvas)
        page.evaluate("document.getElementById('heat').click()")
        assert page.evaluate(canvas) != with_heat
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", background)[0]) < 128) is (scheme == "dark")
        page.evaluate("document.getElementById('language').click()")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert "热力图" in page.evaluate("document.body.textContent")
        assert page.problems == []


def test_a_file_may_be_dropped_and_must_be_an_image(server: Server, browser: Browser, colors: Path) -> None:
    image = base64.b64encode(next((colors / "green").iterdir()).read_bytes()).decode()
    drop = """(content) => {
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], "a.png"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    with Page(browser, 1280) as page:
        page.open(f"{server.address}/")
        page.wait_for("document.title !== 'Sightline'")
        page.evaluate(f"({drop})({json.dumps(image)})")
        page.wait_for("document.querySelectorAll('#top li').length > 0")
        page.evaluate(f"({drop})({json.dumps(base64.b64encode(b'no image').decode())})")
        page.wait_for("!document.getElementById('error').hidden")
        message = "The image cannot be read: not an image."
        assert page.evaluate("document.getElementById('error').textContent") == message
        page.evaluate("document.getElementById('language').click()")
        assert page.evaluate("document.getElementById('error').textContent").endswith("不是图片。")
        page.evaluate(f"({drop})('')")
        page.wait_for("document.getElementById('error').textContent.endsWith('文件为空。')")
        assert page.evaluate("document.getElementById('result').hidden")
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
        assert page.evaluate("window.ran") is None
        assert "Content Security Policy" in page.problems[-1]


def test_an_image_may_be_chosen_before_the_models_are_listed(server: Server, browser: Browser, colors: Path) -> None:
    late = """
        const ask = window.fetch;
        const go = new Promise((resolve) => (window.answer = resolve));
        window.fetch = async (address, options) => {
            if (address === "models") await go;
            return ask(address, options);
        };
    """
    with Page(browser, 1280) as page:
        page.send("Page.addScriptToEvaluateOnNewDocument", source=late)
        page.open(f"{server.address}/")
        page.choose_file("#file", next((colors / "blue").iterdir()))
        page.wait_for("!document.getElementById('result').hidden")
        page.evaluate("window.answer()")
        page.wait_for("document.querySelectorAll('#top li').length > 0")
        assert page.evaluate("document.getElementById('error').hidden")
        assert page.problems == []


def test_a_token_is_asked_for(trained: tuple[Path, Any], browser: Browser, colors: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse\n")
    submit = """(token) => {
        document.getElementById("token").value = token;
        document.getElementById("login").requestSubmit();
    }"""
    with (
        Server(trained[0], "--token-file", tmp_path / "token") as server,
        Page(browser, 390) as page,
    ):
        page.open(f"{server.address}/")
        for token in ("wrong", "correct-horse"):
            page.wait_for("!document.getElementById('login').hidden && !document.getElementById('error').hidden")
            page.evaluate(f"({submit})({json.dumps(token)})")
        page.wait_for("document.getElementById('login').hidden")
        page.choose_file("#file", next((colors / "blue").iterdir()))
        page.wait_for("document.querySelectorAll('#top li').length > 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_newest_version_is_chosen_among_several_below_the_name(
    trained: tuple[Path, Any], browser: Browser, tmp_path: Path
) -> None:
    for version in ("9", "10"):
        shutil.copytree(trained[0] / "bundle", tmp_path / "colors" / version)
    with Server("--models", tmp_path) as running, Page(browser, 540) as page:
        page.open(f"{running.address}/")
        page.wait_for("!document.getElementById('models').hidden")
        assert page.evaluate("document.getElementById('model').value") == "colors/versions/10"
        assert "/models/colors/versions/10/predict" in page.evaluate("document.getElementById('curl').textContent")
        bottoms = (
            "['name', 'language', 'models'].map((id) => document.getElementById(id).getBoundingClientRect().bottom)"
        )
        name, language, models = page.evaluate(bottoms)
        assert abs(name - language) < models - language, "the button is beside the name"


def test_a_model_of_masks_shows_their_colors_and_areas(mask_run: Run, browser: Browser, scenes: Path) -> None:
    image = next((scenes / "val" / "images").iterdir())
    (expected,) = mask_run.classifier.predict_masks(image)
    assert expected.mask is not None
    with Server(mask_run.path) as running, Page(browser, 1280) as page:
        page.open(f"{running.address}/")
        page.wait_for("document.title !== 'Sightline'")
        page.choose_file("#file", image)
        page.wait_for("!document.getElementById('mask-switch').hidden")
        names = page.evaluate("[...document.querySelectorAll('#top li')].map((row) => row.children[1].textContent)")
        assert names == [label for label, _ in expected.areas]
        assert page.evaluate("document.getElementById('label').textContent") == "Area of each class"
        words = page.evaluate("document.getElementById('view').getAttribute('aria-label')")
        assert words == f"The image with its mask: {', '.join(names)}"
        canvas = "document.getElementById('view').toDataURL()"
        with_mask = page.evaluate(canvas)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(with_mask.partition(",")[2]))).convert("RGB"))
        colors = overlay_mask(np.asarray(Image.open(image)), expected.mask, len(mask_run.classifier.classes))
        times = len(pixels) // len(colors)
        assert len(pixels) >= 256, "a small image is enlarged, pixel by pixel"
        assert np.abs(pixels.astype(int) - colors.repeat(times, 0).repeat(times, 1)).max() <= 2
        page.evaluate("document.getElementById('mask').click()")
        assert page.evaluate(canvas) != with_mask
        assert page.evaluate("document.getElementById('heat-switch').hidden")
        decision = "document.getElementById('decision').textContent"
        assert (
            page.evaluate(decision)
            == f"Quality {expected.quality:.3f}: the IoU estimated from the probabilities of the pixels."
        )
        assert "fraction of the pixels" in page.evaluate("document.getElementById('evidence').textContent")
        assert page.problems == []


@pytest.mark.parametrize(
    ("target", "sentence", "chinese"),
    [
        (0.9, "It is too low: the model abstains.", "模型弃权。"),
        (0.01, "It is high enough: the mask is accepted.", "接受该掩码。"),
    ],
)
def test_a_mask_is_accepted_or_the_model_abstains(
    target: float, sentence: str, chinese: str, mask_run: Run, browser: Browser, scenes: Path, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(mask_run.path, tmp_path / "run"))
    iou = 0.99 if target > 0.5 else 0.01
    run.classifier.evaluate(split="validation", target_precision=target, conservative=False, min_iou=iou)
    with Server(tmp_path / "run") as running, Page(browser, 390) as page:
        page.open(f"{running.address}/")
        page.wait_for("document.title !== 'Sightline'")
        page.choose_file("#file", next((scenes / "val" / "images").iterdir()))
        page.wait_for("!document.getElementById('mask-switch').hidden")
        decision = "document.getElementById('decision').hidden || document.getElementById('decision').textContent"
        assert page.evaluate(decision).endswith(f"pixels. {sentence}")
        page.evaluate("document.getElementById('language').click()")
        assert page.evaluate(decision).endswith(chinese)


@pytest.mark.parametrize(
    ("thresholds", "sentence", "chinese"),
    [
        (Thresholds(12, target_precision=0.9, confidence=1.0), "it is too uncertain.", "把握不足。"),
        (
            Thresholds(12, ood_limit=-1000.0),
            "the image is unlike those that it was trained on.",
            "图片与训练图片差别太大。",
        ),
    ],
)
def test_the_page_says_why_the_model_abstains(
    thresholds: Thresholds,
    sentence: str,
    chinese: str,
    trained: tuple[Path, Any],
    browser: Browser,
    colors: Path,
    tmp_path: Path,
) -> None:
    run = Run(shutil.copytree(trained[0], tmp_path / "run"))
    run.directory.write_thresholds(thresholds)
    with Server(run.path) as running, Page(browser, 390) as page:
        page.open(f"{running.address}/")
        page.wait_for("document.title !== 'Sightline'")
        page.choose_file("#file", next((colors / "blue").iterdir()))
        page.wait_for("!document.getElementById('decision').hidden")
        decision = "document.getElementById('decision').textContent"
        assert page.evaluate(decision) == f"The model abstains: {sentence}"
        page.evaluate("document.getElementById('language').click()")
        assert page.evaluate(decision).endswith(chinese)


def test_a_model_of_grades_shows_the_expected_one(browser: Browser, tmp_path: Path) -> None:
    data, settings = write_task("ordinal", tmp_path / "data", 60)
    run = train(data, recipe="quick", epochs=1, set=settings, out=tmp_path / "run", progress=False)
    image = min(data.rglob("*.png"))
    grade = run.classifier.predict(image)[0].to_dict()["expected_grade"]
    with Server(tmp_path / "run") as running, Page(browser, 390) as page:
        page.open(f"{running.address}/")
        page.wait_for("document.title !== 'Sightline'")
        page.choose_file("#file", image)
        page.wait_for("!document.getElementById('decision').hidden")
        assert page.evaluate("document.getElementById('decision').textContent") == f"Expected grade: {grade:.2f}."
        assert page.problems == []
