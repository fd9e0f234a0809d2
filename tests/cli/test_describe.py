"""`sightline describe` as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import Command
from sightline.models.registry import ENTRIES


def test_vgg16_in_numbers(sightline: Command) -> None:
    result = sightline("describe", "vgg16", "--size", "224x224x3", "--classes", "1000", "--format", "json")
    assert result.code == 0, result.err
    payload = result.json
    assert (payload["name"], payload["size"], payload["classes"]) == ("vgg16", [224, 224, 3], 1000)
    assert payload["parameters"] == sum(row["parameters"] for row in payload["layers"]) == 138_357_544
    assert payload["multiply_adds"] == sum(row["multiply_adds"] for row in payload["layers"]) == 15_470_264_320
    by_name = {row["name"]: row for row in payload["layers"]}
    first = by_name["block1_conv1"]
    assert first["output"] == [224, 224, 64]
    assert first["output_formula"] == "(224 - 3 + 2·1) / 1 + 1 = 224"
    assert first["parameters_formula"] == "3·3·3·64 + 64 = 1,792"
    assert by_name["block5_pool"]["receptive_field"] == [212, 212]
    assert by_name["block1_pool"]["inputs"] == ["block1_conv2"]


def test_vgg16_with_four_classes(sightline: Command) -> None:
    assert sightline("describe", "vgg16", "--classes", 4, "--format", "json").json["parameters"] == 134_276_932


def test_the_table_shows_each_layer_and_its_sums(sightline: Command) -> None:
    result = sightline("describe", "cifar10-deep")
    assert result.code == 0, result.err
    (row,) = [line for line in result.out.splitlines() if line.startswith("conv4 ")]
    for split in ("14x14x64", "(16 - 3 + 2·0) / 1 + 1 = 14", "3·3·64·64 + 64 = 36,928", "7,225,344", "14", "49.0 KiB"):
        assert split in row
    assert "1,676,842 parameters" in result.out


def test_a_narrow_terminal_gets_two_tables(sightline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from sightline.cli import output

    monkeypatch.setattr(output, "make_console", lambda **_: Console(width=100))
    result = sightline("describe", "vgg16")
    assert result.code == 0, result.err
    assert all(len(line.rstrip()) <= 100 for line in result.out.splitlines())
    assert result.out.count("fc1 ") == 2
    assert "25088·4096 + 4096 = 102,764,544" in result.out


def test_a_recipe_gives_its_settings(sightline: Command) -> None:
    payload = sightline(
        "describe", "transfer-mobilenetv2", "--set", "model.alpha=0.35", "--classes", 2, "--format", "json"
    ).json
    assert payload["name"] == "transfer-mobilenetv2"
    assert payload["size"] == [224, 224, 3]
    assert payload["parameters"] == 410_208 + 2 * 1280 + 2
    gray_payload = sightline("describe", "fashion-cnn", "--size", "28x28x1", "--format", "json").json
    assert (gray_payload["parameters"], gray_payload["classes"]) == (435_306, 10)


def test_fcn_undoes_each_pooling_by_a_transposed_convolution() -> None:
    import sightline as sl

    layers = sl.describe("fcn", size="64x96", classes=3).layers
    poolings = [layer for layer in layers if layer.kind == "max pooling"]
    transposed = [layer for layer in layers if layer.kind == "transposed convolution"]
    assert [layer.output[:2] for layer in poolings] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    assert [layer.output[:2] for layer in transposed] == [(8, 12), (16, 24), (32, 48), (64, 96)]
    assert {layer.strides for layer in (*poolings, *transposed)} == {(2, 2)}
    assert layers[-1].output == (64, 96, 3)


def test_the_recipe_for_masks_ends_in_the_classes_of_each_pixel(sightline: Command) -> None:
    result = sightline("describe", "segmentation", "--size", "96x128x3", "--classes", 5, "--format", "json")
    assert result.code == 0, result.err
    payload = result.json
    assert (payload["name"], payload["size"], payload["classes"]) == ("segmentation", [96, 128, 3], 5)
    assert payload["layers"][-1]["output"] == [96, 128, 5]
    assert sum(layer["kind"] == "upsampling" for layer in payload["layers"]) == 5
    table = sightline("describe", "segmentation")
    assert table.code == 0, table.err
    assert "decoder1_up" in table.out


def test_a_run_is_described_as_it_is(sightline: Command, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, result = trained
    curve = tmp_path / "rate.png"
    outcome = sightline("describe", path, "--format", "json", "--schedule", curve, "--steps", 3)
    assert outcome.code == 0, outcome.err
    assert outcome.json["parameters"] == result["parameters"]
    assert (outcome.json["classes"], outcome.json["size"]) == (3, [32, 32, 3])
    assert curve.stat().st_size
    refused = sightline("describe", path, "--classes", 5)
    assert refused.code == 2
    assert "--classes" in refused.err


@pytest.mark.parametrize("suffix", ["png", "svg", "PNG"])
def test_drawings_are_written(sightline: Command, tmp_path: Path, suffix: str) -> None:
    network, rate = tmp_path / f"net.{suffix}", tmp_path / f"rate.{suffix}"
    result = sightline("describe", "quick", "--diagram", network, "--schedule", rate, "--format", "json")
    assert result.code == 0, result.err
    assert len(result.lines) == 1
    json.loads(result.out)
    for path in (network, rate):
        if suffix == "svg":
            assert path.read_bytes().startswith(b"<?xml")
        else:
            with Image.open(path) as image:
                assert image.format == "PNG"
                assert min(image.size) > 300
    again = sightline("describe", "quick", "--diagram", network, "--schedule", rate, "--format", "json")
    assert again.code == 0, "a drawing of its own is replaced"


@pytest.mark.parametrize("option", ["--diagram", "--schedule"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_only_drawings_of_its_own_are_replaced(sightline: Command, tmp_path: Path, option: str, suffix: str) -> None:
    path, folder = tmp_path / f"photo.{suffix}", tmp_path / f"folder.{suffix}"
    if suffix == "png":
        Image.new("RGB", (8, 8)).save(path)
    else:
        path.write_text("<svg/>", encoding="utf-8")
    folder.mkdir()
    content = path.read_bytes()
    for place in (path, folder):
        result = sightline("describe", "quick", option, place)
        assert (result.code, result.out) == (2, "")
        expected = f"{place} exists and was not written by Sightline: move it, or choose another with {option}."
        assert expected in " ".join(result.err.split())
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet5",), "Did you mean 'resnet50'"),
        (("auto",), "from the images"),
        (("quick", "--size", "big"), "224x224x3"),
        (("quick", "--size", "32x32x2"), "224x224x3"),
        (("quick", "--size", "0x32"), "224x224x3"),
        (("quick", "--size", "4x4"), "at least 8x8"),
        (("quick", "--classes", "1"), "two classes"),
        (("quick", "--diagram", "net.pdf"), ".png or .svg"),
        (("quick", "--schedule", "rate"), ".png or .svg"),
        (("quick", "--diagram", "no/such/folder/net.png"), "There is no folder"),
        (("transfer", "--set", "train.effort=fast", "--schedule", "rate.png"), "is solved"),
        (("quick", "--set", "model.nam=vgg16"), "model.nam"),
        (("mobilenetv2", "--schedule", "rate.png"), "no learning rate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_reported(
    sightline: Command, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = sightline("describe", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


def test_every_model_can_be_named(sightline: Command) -> None:
    for name in ("alexnet", "convnext-tiny", "nasnetmobile"):
        if name in ENTRIES:
            result = sightline("describe", name, "--format", "json")
            assert result.code == 0, result.err
            assert result.json["layers"][-1]["name"] == "probabilities"


def test_a_new_process_says_nothing_but_the_description() -> None:
    """TensorFlow's C++ code writes to standard error on import, which the backend's own import hides."""
    completed = subprocess.run(
        [sys.executable, "-m", "sightline", "describe", "cifar10-simple"], capture_output=True, text=True, check=True
    )
    assert "conv1" in completed.stdout
    assert completed.stderr == ""
