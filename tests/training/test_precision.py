"""``train.precision = "auto"`` measures once, caches the result, and does not measure where it cannot matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from networks import compute_outputs, make_plan, random_images
from sightline import backend
from sightline.config import RunConfig, StageConfig, TrainConfig
from sightline.export import keras_to_onnx
from sightline.models.build import build_model
from sightline.training import precision

SPEC = make_plan("cifar10-simple", side=8)
CONFIG = RunConfig(train=TrainConfig(epochs=300, batch_size=4))


def test_it_is_measured_once_and_cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = precision.choose_precision(SPEC, CONFIG, 4)
    assert "(measured)" in first.reason

    def never(*_: object) -> float:
        pytest.fail("it was already measured")

    monkeypatch.setattr(precision, "_measure_gain", never)
    again = precision.choose_precision(replace(SPEC, seed=5), CONFIG, 4)
    assert again.precision == first.precision
    assert "measured before" in again.reason


@pytest.mark.parametrize(("gain", "expected"), [(2.0, "mixed_bfloat16"), (1.05, "float32"), (0.4, "float32")])
def test_bfloat16_must_be_clearly_faster(
    gain: float, expected: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_measure_gain", lambda *_: gain)
    assert precision.choose_precision(SPEC, CONFIG, 4).precision == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "mixed_bfloat16"), ((8, 0), "mixed_bfloat16"), ((7, 5), "float32")]
)
def test_a_table_decides_for_gpus(
    capability: tuple[int, int], expected: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling two networks to measure them would take longer than many trainings."""
    monkeypatch.setattr(backend, "find_compute_capability", lambda: capability)
    monkeypatch.setattr(precision, "_measure_gain", lambda *_: pytest.fail("it was measured"))
    choice = precision.choose_precision(SPEC, CONFIG, 4)
    assert (choice.precision, "{}.{}".format(*capability) in choice.reason) == (expected, True)
    frozen, unfrozen = StageConfig(unfreeze=0), StageConfig(unfreeze=2)
    for stages, of_stages in (((frozen,), "float32"), ((frozen, unfrozen), expected), ((StageConfig(),), expected)):
        for requested in ("auto", "device"):
            config = RunConfig(train=TrainConfig(stages=stages, precision=requested))
            assert precision.choose_precision(SPEC, config, 4).precision == of_stages


def test_nothing_is_measured_for_the_precision_of_the_device(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_compute_capability", lambda: None)
    monkeypatch.setattr(precision, "_measure_gain", lambda *_: pytest.fail("it was measured"))
    config = replace(CONFIG, train=replace(CONFIG.train, precision="device"))
    assert precision.choose_precision(SPEC, config, 4) == precision.PrecisionChoice("float32", "")


@pytest.mark.parametrize("content", ["", "{}", '{"gain": null}', "[1]"])
def test_a_damaged_record_is_measured_again(content: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measure_gain", lambda *_: 2.0)
    precision.choose_precision(SPEC, CONFIG, 4)
    (record,) = own_cache.glob("precision-*.json")
    record.write_text(content)
    assert "(measured)" in precision.choose_precision(SPEC, CONFIG, 4).reason


def test_another_network_is_measured_by_itself(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measure_gain", lambda *_: 2.0)
    precision.choose_precision(SPEC, CONFIG, 4)
    assert "(measured)" in precision.choose_precision(replace(SPEC, height=16), CONFIG, 4).reason


@pytest.mark.parametrize(
    "train", [TrainConfig(epochs=2, batch_size=4), TrainConfig(epochs=300, stages=(StageConfig(unfreeze=0),))]
)
def test_nothing_is_measured_where_it_hardly_matters(train: TrainConfig, own_cache: Path) -> None:
    assert precision.choose_precision(SPEC, RunConfig(train=train), 4).precision == "float32"
    assert not own_cache.exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fast-small", marks=pytest.mark.backends),
        pytest.param("mobilenetv2", marks=[pytest.mark.backends, pytest.mark.slow]),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_float32_network_computes_in_bfloat16_within_the_context(name: str) -> None:
    """Within the context it equals a model built for bfloat16; afterwards it is unchanged."""
    spec = make_plan(name)
    model, other = build_model(spec).model, build_model(replace(spec, precision="mixed_bfloat16")).model
    backend.assign_all(other.weights, model.weights)
    pixels = random_images(4, spec.height)
    before, file = compute_outputs(model, pixels)["logits"], keras_to_onnx.convert_model(model)
    with precision.mixed_precision(model, "mixed_bfloat16"):
        bfloat16_logits = compute_outputs(model, pixels)["logits"]
        assert {layer.name: layer.compute_dtype for layer in model.layers} == {
            layer.name: layer.compute_dtype for layer in other.layers
        }
    np.testing.assert_allclose(bfloat16_logits, compute_outputs(other, pixels)["logits"], atol=0.05)
    assert np.abs(bfloat16_logits - before).max() > 0
    np.testing.assert_array_equal(compute_outputs(model, pixels)["logits"], before)
    assert keras_to_onnx.convert_model(model) == file
    assert not any(layer.dtype_policy.name != "float32" for layer in model.layers)
