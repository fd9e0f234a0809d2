"""What a bundle takes along: reference examples that any machine can decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sightline.config import SplitConfig
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec, inspect_image
from sightline.runs import finalize
from synthetic_images import draw_image, encode, write_files


@pytest.mark.parametrize("kind", ["PNG", pytest.param("HEIF", marks=pytest.mark.installed)])
def test_reference_examples_decode_to_the_same_pixels_without_optional_packages(tmp_path: Path, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="the extra heif is not installed").register_heif_opener()
    suffix = {"PNG": "png", "HEIF": "heic"}[kind]
    files = {f"{c}/{i}.{suffix}": encode(draw_image(i, k, 40), kind) for k, c in enumerate("ab") for i in range(6)}
    index, spec = build_index(write_files(tmp_path, files)), PreprocessingSpec(16, 16)
    data = build_dataset(index, spec, SplitConfig(), 0)
    predictor: Any = FakePredictor(data.classes, spec)
    examples, contents = finalize._choose_reference_examples(data, index, predictor, 4)
    assert len(examples) == len(contents) == 2  # the validation images
    decoded = {data.pixels[data.rows[i]].tobytes() for i in range(len(data.images))}
    for name, content in contents.items():
        assert name.endswith(".png")
        assert inspect_image(content).format == "PNG"
        assert spec.decode(content).tobytes() in decoded
