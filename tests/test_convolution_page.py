"""The numbers in docs/convolution.md are computed by its script and match Keras."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sightline import backend

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convolution", DOCS / "convolution.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_what_the_script_computes(script: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    page = tmp_path / "convolution.md"
    before = (DOCS / "convolution.md").read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    script.write(script.numbers())
    assert page.read_text(encoding="utf-8") == before, "run `python docs/convolution.py`"
    assert len(script.numbers()) == 3


@pytest.mark.parametrize(("strides", "padding"), [((1, 1), 0), ((2, 1), 0), ((1, 1), 1), ((1, 2), 0)])
def test_the_result_is_that_of_keras(script: ModuleType, strides: tuple[int, int], padding: int) -> None:
    keras = backend.keras()
    pixels, kernel = (np.asarray(grid, np.float32) for grid in (script.image(), script.KERNEL))
    kind = "same" if padding else "valid"
    expected = keras.ops.conv(pixels[None, :, :, None], kernel[:, :, None, None], strides, padding=kind)
    result = script.convolve(script.image(), script.KERNEL, strides, padding)
    np.testing.assert_array_equal(result, keras.ops.convert_to_numpy(expected)[0, :, :, 0])


@pytest.mark.parametrize("method", ["max", "average"])
def test_pooling_is_that_of_keras(script: ModuleType, method: str) -> None:
    keras = backend.keras()
    function = keras.ops.max_pool if method == "max" else keras.ops.average_pool
    expected = function(np.asarray(script.image(), np.float32)[None, :, :, None], 3, 3)
    result = script.pool(script.image(), 3, "max" if method == "max" else "mean")
    np.testing.assert_allclose(result, keras.ops.convert_to_numpy(expected)[0, :, :, 0], rtol=1e-6)


def test_the_worked_sum_holds(script: ModuleType) -> None:
    products, _, total = script.worked().rpartition(" = ")
    assert products.count("·") == 9
    assert sum(int(p) * int(w.strip("()")) for p, w in (term.split("·") for term in products.split(" + "))) == int(
        total
    )


def test_plots_are_small_enough() -> None:
    plots = list((DOCS / "images").glob("convolution-*.png"))
    assert len(plots) == 4
    assert sum(path.stat().st_size for path in plots) < 400_000
