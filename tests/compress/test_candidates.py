"""Candidates are measured once: what a search predicts to decide is what it records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from networks import make_plan, random_images
from sightline.callbacks import Callback
from sightline.compress import candidates
from sightline.compress.candidates import ORIGINAL, CandidateFactory, CompressionTask
from sightline.compress.search_dir import SearchDir
from sightline.config import ModelConfig
from sightline.data.dataset import DecodedDataset
from sightline.data.types import ImageRecord, Split
from sightline.inference import bundle, runner
from sightline.inference.manifest import Manifest
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models.build import build_model
from sightline.models.head import TEMPERATURE_LAYER
from sightline.preprocessing import PreprocessingSpec

CLASSES = ("a", "b", "c")
SPEC = PreprocessingSpec(8, 8, 3)


def build(seed: int) -> Any:
    return build_model(make_plan("cifar10-simple", side=8, classes=3, seed=seed, hidden_units=())).model


def make_data(count: int) -> DecodedDataset:
    splits: tuple[Split, ...] = ("train", "validation")
    images = tuple(ImageRecord(str(i), str(i), CLASSES[i % 3], None, 8, 8) for i in range(count))
    return DecodedDataset(
        "x", CLASSES, images, tuple(splits[i % 2] for i in range(count)), (np.arange(count) % 3).astype(np.int32),
        random_images(count, 8), np.arange(count), (), 0, (), cache_hit=False,
    )  # fmt: skip


def test_each_candidate_predicts_the_validation_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(model: Any, graph: bytes, predictor: OnnxPredictor, fields: Mapping[str, Any]) -> bundle.Bundle:
        manifest = Manifest("x", CLASSES, SPEC, precision=fields["precision"], metrics=fields["metrics"])
        return bundle.make(manifest, graph, {})

    def calibrate(model: Any, logits: Any, labels: Any) -> None:
        np.testing.assert_allclose(logits, raw_logits[int(model.name[-1])], atol=1e-5)
        model.get_layer(TEMPERATURE_LAYER).scale = 0.25

    def make(_: Path) -> Any:
        """Return a model as pruning does: it has the temperature of the original, and was evaluated last."""
        factory.evaluate(other)
        return other

    monkeypatch.setattr(candidates, "LATENCY_SECONDS", 0.0)
    data, model, other = make_data(24), build(0), build(1)
    validation = data.subset("validation")
    pixels = validation.take(slice(None))
    other.name = "model1"
    raw_logits = {1: np.asarray(other(pixels, training=False)["logits"])}
    other.get_layer(TEMPERATURE_LAYER).scale = 3.0
    tasks: list[str] = []
    run_subset = runner.run_subset

    def count_subset(*args: Any, **named: Any) -> Any:
        tasks.append(named["task"])
        return run_subset(*args, **named)

    monkeypatch.setattr(runner, "run_subset", count_subset)
    task = CompressionTask(model, ModelConfig(), 0, CLASSES, SPEC, data, 1, {"step": "train"}, pack, calibrate)
    factory = CandidateFactory(task, SearchDir(tmp_path / "search", {"a": 1}, 24), 0.0, Callback())
    original = factory.create(ORIGINAL, None, task.lineage, lambda _: model)
    assert len(tasks) == 1
    candidate = factory.create("prune-1", original, {"step": "prune"}, make)
    assert len(tasks) == 2
    assert other.get_layer(TEMPERATURE_LAYER).scale == 0.25
    factory.create_float16(candidate)
    assert len(tasks) == 3
    assert candidate.accuracy == np.mean(raw_logits[1].argmax(1) == validation.labels)
    assert candidate.accuracy - original.accuracy == pytest.approx(
        (candidate.only_this_correct - candidate.only_original_correct) / candidate.count
    )
