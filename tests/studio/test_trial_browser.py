"""The model in the browser: the same pixels and, but for rounding, the same probabilities as in the studio."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from browser import NO_BROWSER, find_browser
from held_requests import Held
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec
from sightline.studio import messages
from sightline.studio.contents import Studio, open_studio
from studio_server import expect_text, serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

SHOWN = "#here-state[data-difference]"
DECODE = """async ([content, spec]) => {
  const { decodePixels } = await import("/static/pixels.js");
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  return Array.from(await decodePixels(new Blob([bytes]), spec));
}"""
SPECS = [
    PreprocessingSpec(48, 40, 3, "crop", "bilinear"),
    PreprocessingSpec(48, 40, 3, "pad", "bicubic"),
    PreprocessingSpec(31, 64, 1, "stretch", "lanczos"),
    PreprocessingSpec(50, 50, 3, "crop", "box"),
    PreprocessingSpec(33, 47, 3, "pad", "nearest"),
    PreprocessingSpec(200, 150, 1, "pad", "bilinear"),
]


@pytest.fixture(scope="module")
def address(run_studio: Studio) -> Iterator[str]:
    with serve(run_studio) as opened:
        yield opened


def make_photo(width: int, height: int) -> Image.Image:
    """Return smooth shapes with fine grain."""
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(x * a + y * b) for a, b in ((1, 0.3), (0.2, 1.1), (2.3, 1.7))]
    grain = np.random.default_rng(3).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, -1) * 90 + 128 + grain, 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def decode_here(page: Any, content: bytes, spec: PreprocessingSpec) -> Any:
    values = page.evaluate(DECODE, [base64.b64encode(content).decode(), spec.to_dict()])
    return np.array(values, np.uint8).reshape(spec.shape)


def test_pixels_of_lossless_files_are_those_of_the_studio(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#drop")
    for size in ((300, 220), (61, 150), (40, 48)):
        content = encode(make_photo(*size), format="PNG")
        for spec in SPECS:
            difference = decode_here(page, content, spec).astype(int) - spec.decode(content)
            assert np.abs(difference).max() <= 1, (size, spec)  # Pillow 13 resizes some images by their columns first
            assert np.abs(difference).mean() < 0.3, (size, spec)


def test_a_crop_without_resizing_keeps_the_pixels_of_the_studio(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#drop")
    for size in ((37, 24), (36, 25), (38, 24), (39, 24), (36, 27)):
        content = encode(make_photo(*size), format="PNG")
        for interpolation in ("bilinear", "nearest"):
            spec = PreprocessingSpec(24, 36, 3, "crop", interpolation)
            np.testing.assert_array_equal(decode_here(page, content, spec), spec.decode(content), str(size))


def test_pixels_of_a_large_jpeg_are_close(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#drop")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for size, options in (((1300, 900), {}), ((1296, 896), {"exif": rotated})):
        content = encode(make_photo(*size), format="JPEG", quality=90, **options)
        for spec in SPECS:
            difference = decode_here(page, content, spec).astype(int) - spec.decode(content)
            assert np.abs(difference).mean() < 1, (spec, options)


def test_what_is_transparent_is_white(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#drop")
    image = make_photo(90, 70)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    content = encode(image, format="PNG")
    difference = decode_here(page, content, SPECS[0]).astype(int) - SPECS[0].decode(content)
    assert np.abs(difference).max() <= 1


def test_until_the_model_has_predicted_an_image_the_page_says_so(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#camera:not([hidden])")
    photo = {"name": "a.png", "mimeType": "image/png", "buffer": encode(make_photo(64, 64), format="PNG")}
    requests = Held(page, "**/try?nearest=1", count=2)
    for number, is_busy in enumerate((False, True)):  # a second image, beside what is predicted for the first
        page.set_input_files("#file", photo)
        requests.wait(number + 1)
        expect_text(page, "#busy", "The model is predicting …")
        assert page.locator("#result").is_visible() == is_busy
        playwright.expect(page.locator("#result")).to_have_attribute("aria-busy", "true")
        requests.routes[number].continue_()
        expect_text(page, "#busy", "")
        playwright.expect(page.locator("#result")).to_have_attribute("aria-busy", "false")
        playwright.expect(page.locator("#result")).to_be_visible()


def test_both_answers_agree_and_nothing_is_loaded_before_it_is_asked_for(
    open_page: Any, address: str, run: sl.Run, tmp_path: Path
) -> None:
    page = open_page(f"{address}/try", ready="#drop")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    photo = next(Path(run.config.data.sources[0]).glob("green/*.png"))
    page.set_input_files("#file", str(photo))
    playwright.expect(page.locator("#top li")).to_have_count(3)
    assert not [url for url in requested if "vendor" in url or "onnx" in url]
    page.focus("#run-here")
    page.keyboard.press("Enter")
    page.wait_for_selector(SHOWN)
    first = str(page.get_attribute("#here-state", "data-difference"))
    assert float(first) < 1e-4
    label = str(page.text_content("#label"))
    playwright.expect(page.locator("#here-state")).to_contain_text(f"In this browser: {label}. Largest difference")
    assert len([url for url in requested if url.endswith("/try/model.onnx")]) == 1
    make_photo(640, 480).save(tmp_path / "photo.jpg", quality=92)
    page.set_input_files("#file", str(tmp_path / "photo.jpg"))
    page.wait_for_selector(f"{SHOWN}:not([data-difference='{first}'])")
    assert float(page.get_attribute("#here-state", "data-difference")) < 0.02, "another decoder"
    assert len([url for url in requested if url.endswith("/try/model.onnx")]) == 1, "it is kept"
    page.click("#run-here")
    playwright.expect(page.locator("#here-state")).to_be_empty()


@pytest.mark.parametrize("kind", ["class", "set", "abstain", "ood"])
def test_the_decision_about_a_chosen_photo_is_that_of_the_thresholds(
    kind: str, open_page: Any, run: sl.Run, tmp_path: Path
) -> None:
    photos = sorted(Path(run.config.data.sources[0]).glob("*/*.png"))
    least = min(run.classifier.predict(photos), key=lambda prediction: prediction.probability or 0.0)
    first, second, third = (one.probability for one in least.top)
    confidence = first + (-0.001 if kind == "class" else 0.001)
    quantile = 1 - (second + third) / 2 if kind == "set" else None
    shutil.copytree(run.path, tmp_path / "a")
    copy = sl.Run(tmp_path / "a")
    copy.directory.write_thresholds(
        Thresholds(
            12,
            target_precision=0.9,
            confidence=confidence,
            coverage=0.9,
            conformal_quantile=quantile,
            ood_limit=-1000.0 if kind == "ood" else None,
        )
    )
    names = ", ".join(one.label for one in least.top[:2])
    with open_studio(copy, tmp_path / "fixes.jsonl") as studio, serve(studio) as address:
        for language in messages.LANGUAGES:
            page = open_page(f"{address}/try?lang={language}", ready="#drop")
            with page.expect_file_chooser() as chooser:
                page.click("#drop")
            chooser.value.set_files(least.path)
            playwright.expect(page.locator("#label")).to_contain_text(least.label)
            sentence = messages.select(language)[f"decision-{kind}"].replace("LABELS", names)
            playwright.expect(page.locator("#decision")).to_have_text(sentence)
            playwright.expect(page.locator("#decision")).to_have_class("abstain" if kind == "ood" else kind)


def test_the_page_says_it_in_chinese_on_a_phone(open_page: Any, address: str, run: sl.Run) -> None:
    page = open_page(f"{address}/try", 390, ready="#drop", locale="zh-CN", color_scheme="dark")
    page.set_input_files("#file", str(next(Path(run.config.data.sources[0]).glob("red/*.png"))))
    page.click("#run-here")
    page.wait_for_selector(SHOWN)
    playwright.expect(page.locator("#here-state")).to_contain_text("浏览器中")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
