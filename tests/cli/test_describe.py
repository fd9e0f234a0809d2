"""`sightline describe` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import Command
from sightline.models.registry import ENTRIES


def test_vgg16_in_numbers(sightline: Command) -> None:
    done = sightline("describe", "vgg16", "--size", "224x224x3", "--classes", "1000", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert (found["name"], found["size"], found["classes"]) == ("vgg16", [224, 224, 3], 1000)
    assert found["parameters"] == sum(row["parameters"] for row in found["layers"]) == 138_357_544
    assert found["multiply_adds"] == sum(row["multiply_adds"] for row in found["layers"]) == 15_470_264_320
    by_name = {row["name"]: row for row in found["layers"]}
    first = by_name["block1_conv1"]
    assert first["output"] == [224, 224, 64]
    assert first["output_sum"] == "(224 - 3 + 2·1) / 1 + 1 = 224"
    assert first["parameters_sum"] == "3·3·3·64 + 64 = 1,792"
    assert by_name["block5_pool"]["receptive_field"] == [212, 212]
    assert by_name["block1_pool"]["inputs"] == ["block1_conv2"]


def test_vgg16_with_four_classes(sightline: Command) -> None:
    assert sightline("describe", "vgg16", "--classes", 4, "--json").json["parameters"] == 134_276_932


def test_the_table_shows_each_layer_and_its_sums(sightline: Command) -> None:
    done = sightline("describe", "cifar10-deep")
    assert done.code == 0, done.err
    (row,) = [line for line in done.out.splitlines() if line.startswith("conv4 ")]
    for part in ("14x14x64", "(16 - 3 + 2·0) / 1 + 1 = 14", "3·3·64·64 + 64 = 36,928", "7,225,344", "14", "49.0 KiB"):
        assert part in row
    assert "1,676,842 parameters" in done.out


def test_a_narrow_terminal_gets_two_tables(sightline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from sightline.cli import output

    monkeypatch.setattr(output, "_console", lambda **_: Console(width=100))
    done = sightline("describe", "vgg16")
    assert done.code == 0, done.err
    assert all(len(line.rstrip()) <= 100 for line in done.out.splitlines())
    assert done.out.count("fc1 ") == 2
    assert "25088·4096 + 4096 = 102,764,544" in done.out


def test_a_recipe_gives_its_settings(sightline: Command) -> None:
    found = sightline("describe", "transfer", "--set", "model.alpha=0.35", "--classes", 2, "--json").json
    assert found["name"] == "transfer"
    assert found["size"] == [224, 224, 3]
    assert found["parameters"] == 410_208 + 2 * 1280 + 2
    grey = sightline("describe", "fashion-cnn", "--size", "28x28x1", "--json").json
    assert (grey["parameters"], grey["classes"]) == (435_306, 10)


def test_a_run_is_described_as_it_is(sightline: Command, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, result = trained
    curve = tmp_path / "rate.png"
    done = sightline("describe", path, "--json", "--schedule", curve, "--steps", 3)
    assert done.code == 0, done.err
    assert done.json["parameters"] == result["parameters"]
    assert (done.json["classes"], done.json["size"]) == (3, [32, 32, 3])
    assert curve.stat().st_size
    refused = sightline("describe", path, "--classes", 5)
    assert refused.code == 2
    assert "--classes" in refused.err


@pytest.mark.parametrize("suffix", ["png", "svg", "PNG"])
def test_drawings_are_written(sightline: Command, tmp_path: Path, suffix: str) -> None:
    network, rate = tmp_path / f"net.{suffix}", tmp_path / f"rate.{suffix}"
    done = sightline("describe", "quick", "--diagram", network, "--schedule", rate, "--json")
    assert done.code == 0, done.err
    assert len(done.lines) == 1
    json.loads(done.out)
    for path in (network, rate):
        if suffix == "svg":
            assert path.read_bytes().startswith(b"<?xml")
        else:
            with Image.open(path) as picture:
                assert picture.format == "PNG"
                assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("arguments", "said"),
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
        (("quick", "--diagram", "no/such/folder/net.png"), "cannot be written"),
        (("quick", "--set", "train.epochs=0", "--schedule", "rate.png"), "0 epochs"),
        (("quick", "--set", "model.nam=vgg16"), "model.nam"),
        (("mobilenetv2", "--schedule", "rate.png"), "no learning rate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_told(
    sightline: Command, arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sightline("describe", *arguments)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_every_model_can_be_named(sightline: Command) -> None:
    for name in ("alexnet", "convnext-tiny", "nasnetmobile"):
        if name in ENTRIES:
            done = sightline("describe", name, "--json")
            assert done.code == 0, done.err
            assert done.json["layers"][-1]["name"] == "probabilities"
