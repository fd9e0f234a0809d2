"""The examples of docs/extending.md run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sightline import api, backend
from sightline.config import load_config
from sightline.models import registry
from sightline.training.augment import pipeline

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = {name: code for name, code in re.findall(r'```\w+ title="([\w ]+)"\n(.*?)```', PAGE, re.DOTALL)}  # noqa: C416


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    assert len(EXAMPLES[name].splitlines()) < 40


def test_the_model_trains_exports_and_predicts(tmp_path: Path) -> None:
    exec(compile(EXAMPLES["model"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    assert "three strided convolutions" in registry.get_entry("tiny-net").description.lower()
    settings = ["model.name=tiny-net", "train.epochs=2", "train.tensorboard=false"]
    api.train("beans:40@32", recipe="quick", set=settings, out=tmp_path / "run")
    classifier = api.load(tmp_path / "run" / "bundle")
    assert classifier.evaluate("beans:40@32", include_training=True).count == 40


def test_the_augmentation_inverts_half_of_the_images(tmp_path: Path) -> None:
    exec(compile(EXAMPLES["augmentation"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    file = tmp_path / "settings.toml"
    file.write_text(EXAMPLES["augmentation settings"], encoding="utf-8")
    config = load_config(file).augment
    pixels = np.full((64, 4, 4, 3), 10, np.uint8)
    params = pipeline.sample_params(config, 64, (4, 4), 0, 1)
    out = np.asarray(backend.keras().ops.convert_to_numpy(pipeline.apply(config, pixels, params)))
    assert set(np.unique(out)) == {10, 245}
    assert 0.3 < (out == 245).mean() < 0.7
