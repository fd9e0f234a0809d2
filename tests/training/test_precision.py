"""``train.precision = "auto"`` measures once, caches the result, and does not measure where it cannot matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from networks import outputs, pictures, plan
from sightline import backend
from sightline.config import RunConfig, StageConfig, TrainConfig
from sightline.export import onnx
from sightline.models.build import build
from sightline.training import precision

PLAN = plan("cifar10-simple", side=8)
CONFIG = RunConfig(train=TrainConfig(epochs=300, batch_size=4))


def test_it_is_measured_once_and_remembered(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = precision.decide(PLAN, CONFIG, 4)
    assert "(measured)" in first.why

    def never(*_: object) -> float:
        pytest.fail("it was already measured")

    monkeypatch.setattr(precision, "_measure", never)
    again = precision.decide(replace(PLAN, seed=5), CONFIG, 4)
    assert again.precision == first.precision
    assert "measured before" in again.why


@pytest.mark.parametrize(("gain", "expected"), [(2.0, "mixed_bfloat16"), (1.05, "float32"), (0.4, "float32")])
def test_bfloat16_must_be_clearly_faster(
    gain: float, expected: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_measure", lambda *_: gain)
    assert precision.decide(PLAN, CONFIG, 4).precision == expected


@pytest.mark.parametrize("content", ["", "{}", '{"gain": null}', "[1]"])
def test_a_damaged_record_is_measured_again(content: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measure", lambda *_: 2.0)
    precision.decide(PLAN, CONFIG, 4)
    (record,) = own_cache.glob("precision-*.json")
    record.write_text(content)
    assert "(measured)" in precision.decide(PLAN, CONFIG, 4).why


def test_another_network_is_measured_by_itself(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measure", lambda *_: 2.0)
    precision.decide(PLAN, CONFIG, 4)
    assert "(measured)" in precision.decide(replace(PLAN, height=16), CONFIG, 4).why


@pytest.mark.parametrize(
    "train", [TrainConfig(epochs=2, batch_size=4), TrainConfig(epochs=300, stages=(StageConfig(thaw=0),))]
)
def test_nothing_is_measured_where_it_hardly_matters(train: TrainConfig, own_cache: Path) -> None:
    assert precision.decide(PLAN, RunConfig(train=train), 4).precision == "float32"
    assert not own_cache.exists()


@pytest.mark.parametrize("name", ["cifar10-deep", pytest.param("mobilenetv2", marks=pytest.mark.backends), "resnet50"])
def test_a_float32_network_computes_in_bfloat16_for_a_while(name: str) -> None:
    """Within the context it equals a model built for bfloat16; afterwards it is unchanged."""
    made = plan(name)
    model, other = build(made).model, build(replace(made, precision="mixed_bfloat16")).model
    backend.assign_all(other.weights, model.weights)
    pixels = pictures(4, made.height)
    before, file = outputs(model, pixels)["logits"], onnx.convert(model)
    with precision.lowered(model, "mixed_bfloat16"):
        low = outputs(model, pixels)["logits"]
        assert {layer.name: layer.compute_dtype for layer in model.layers} == {
            layer.name: layer.compute_dtype for layer in other.layers
        }
    np.testing.assert_allclose(low, outputs(other, pixels)["logits"], atol=0.05)
    assert np.abs(low - before).max() > 0
    np.testing.assert_array_equal(outputs(model, pixels)["logits"], before)
    assert onnx.convert(model) == file
    assert not any(layer.dtype_policy.name != "float32" for layer in model.layers)
