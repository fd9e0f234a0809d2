"""What a bundle takes along: reference examples that any machine can decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pictures import encode, picture, write
from sightline.config import SplitConfig
from sightline.data.dataset import assemble
from sightline.data.index import index
from sightline.prediction.base import FakePredictor
from sightline.preprocess import Preprocess, inspect
from sightline.workflow import ship


@pytest.mark.parametrize("kind", ["PNG", "HEIF"])
def test_reference_examples_decode_to_the_same_pixels_without_optional_packages(tmp_path: Path, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="the extra heif is not installed").register_heif_opener()
    suffix = {"PNG": "png", "HEIF": "heic"}[kind]
    files = {f"{c}/{i}.{suffix}": encode(picture(i, k, 40), kind) for k, c in enumerate("ab") for i in range(6)}
    found, spec = index(write(tmp_path, files)), Preprocess(16, 16)
    data = assemble(found, spec, SplitConfig(), 0)
    predictor: Any = FakePredictor(data.classes, spec)
    examples, contents = ship._examples(data, found, predictor, 4)
    assert len(examples) == len(contents) == 2  # the validation images
    decoded = {data.pixels[data.rows[i]].tobytes() for i in range(len(data.pictures))}
    for name, content in contents.items():
        assert name.endswith(".png")
        assert inspect(content).format == "PNG"
        assert spec.decode(content).tobytes() in decoded
