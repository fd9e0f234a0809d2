"""Drawings of networks and of learning rates: complete, legible, in bounds."""
# ruff: noqa: RUF001  # papers print sizes with a multiplication sign

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import Image

from networks import NAMES, SMALL_SETTINGS
from sightline.config import ModelConfig, RunConfig, resolve_config
from sightline.errors import UsageError
from sightline.models.build import ModelSpec, build_shapes_only
from sightline.models.describe import ModelDescription, describe_model
from sightline.models.registry import ENTRIES
from sightline.report import diagram, diagram_blocks, lr_plot

TYPICAL = ("cifar10-deep", "vgg16", "alexnet", "mobilenetv2")
REST = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in TYPICAL]  # a second each


@cache
def description(name: str, classes: int = 1000) -> ModelDescription:
    side = ENTRIES[name].input_size
    return describe_model(
        build_shapes_only(ModelSpec(ModelConfig(name=name), side, side, 3, classes, pixel_stats=(120, 60))).model, name
    )


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matplotlib figures that were rendered, newest last."""
    figures: list[Any] = []
    saved = diagram.save_figure

    def keep(figure: Any, format: str) -> bytes:
        figures.append(figure)
        data = saved(figure, format)
        figure.dpi = 200  # the renderer that measures texts is that of the saving
        return data

    monkeypatch.setattr(diagram, "save_figure", keep)
    monkeypatch.setattr(lr_plot, "save_figure", keep)
    return figures


def words(figure: Any) -> list[Any]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"))


# What is drawn


def test_vgg16_is_five_blocks_and_three_dense_layers() -> None:
    blocks = diagram_blocks.group_layers(description("vgg16"))
    kinds = [(group.last.kind, len(group.units), group.last.output) for group in blocks]
    assert kinds == [
        ("input", 1, (224, 224, 3)),
        ("convolution", 2, (224, 224, 64)),
        ("convolution", 2, (112, 112, 128)),
        ("convolution", 3, (56, 56, 256)),
        ("convolution", 3, (28, 28, 512)),
        ("convolution", 3, (14, 14, 512)),
        ("dense", 1, (4096,)),
        ("dense", 1, (4096,)),
        ("dense", 1, (1000,)),
    ]
    assert blocks[5].last.pools == (("max pooling", (7, 7, 512)),)
    assert blocks[6].last.extras == {"relu": "activation", "dropout": "dropout"}
    assert blocks[8].last.extras == {"softmax": "softmax"}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet50", [3, 4, 6, 3]),  # He et al., table 1
        ("mobilenetv2", [2, 3, 4, 3, 3, 1]),  # Sandler et al., table 2, all but the first
        ("densenet121", [6, 12, 24, 16]),  # Huang et al., table 1
        ("convnext-tiny", [3, 3, 9, 3]),  # Liu et al., section 2.2
        ("squeezenet", [2, 2, 4]),  # fire modules between poolings, version 1.1
        ("inceptionv3", [3, 5, 1, 2]),  # Szegedy et al., table 1; the last grids in Keras' order
    ],
)
def test_repeated_blocks_are_counted_as_in_the_paper(name: str, counts: list[int]) -> None:
    blocks = diagram_blocks.group_layers(description(name))
    assert [len(group.units) for group in blocks if group.last.kind == "block"] == counts


def test_depthwise_and_pointwise_are_one_box() -> None:
    blocks = diagram_blocks.group_layers(description("mobilenet"))
    assert [len(group.units) for group in blocks if group.last.kind == "separable"] == [1, 2, 2, 6, 2]


def test_groups_and_response_normalization_of_alexnet() -> None:
    units = [unit for group in diagram_blocks.group_layers(description("alexnet")) for unit in group.units]
    assert [unit.text for unit in units[1:6]] == [
        "conv 11×11, stride 4", "conv 5×5, 2 groups", "conv 3×3", "conv 3×3, 2 groups", "conv 3×3, 2 groups",
    ]  # fmt: skip
    assert len(diagram_blocks.group_layers(description("alexnet"))) == 9, "a layer in groups is not like one without"
    assert ["local response normalization" in unit.extras for unit in units[1:6]] == [True, True, False, False, False]


# How it is drawn


@pytest.mark.parametrize("name", [*TYPICAL, *REST])
def test_no_words_overlap_and_none_is_cut(name: str, rendered: list[Any]) -> None:
    image = pixels(diagram.plot_architecture(description(name)))
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 255).all()
    (figure,) = rendered
    boxes = [(text.get_text(), text.get_window_extent()) for text in words(figure)]
    for (one, a), (two, b) in combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} lies on {two!r}"
    width, height = figure.get_size_inches()
    assert 4 < width < 14
    assert height < 9


@pytest.mark.parametrize("name", [*TYPICAL, *REST])
def test_every_size_and_kind_is_shown(name: str, rendered: list[Any]) -> None:
    network = description(name, classes=7)
    diagram.plot_architecture(network)
    texts = [text.get_text() for text in words(rendered[0])]
    for group in diagram_blocks.group_layers(network):
        assert "×".join(map(str, group.last.output)).replace("4096", "4,096") in texts
    assert any(f"{network.parameters:,} parameters" in text for text in texts)
    assert "softmax" in texts
    assert any(text.startswith("dense") for text in texts)


def test_boxes_shrink_with_the_maps(rendered: list[Any]) -> None:
    from matplotlib.patches import Polygon

    diagram.plot_architecture(description("vgg16"))
    fronts = [p.get_xy() for p in rendered[0].axes[0].patches if isinstance(p, Polygon)]
    heights = sorted({round(float(np.ptp(f[[0, 3], 1])), 3) for f in fronts if abs(f[0, 0] - f[3, 0]) < 1e-9})
    assert heights[-1] == pytest.approx(diagram.TALLEST, abs=1e-3)
    assert any(height == pytest.approx(diagram.TALLEST / 2, abs=2e-3) for height in heights), "56 is a quarter of 224"


def test_a_long_network_takes_rows(rendered: list[Any]) -> None:
    from sightline import backend

    keras = backend.keras()
    x = inputs = keras.Input((64, 64, 3))
    for number in range(30):
        x = keras.layers.Conv2D(8 + number, 3, padding="same", activation="relu")(x)
    image = pixels(diagram.plot_architecture(describe_model(keras.Model(inputs, x), "long")))
    assert image.shape[1] < 14 * 200
    assert len({round(text.get_position()[1], 1) for text in words(rendered[0])}) > 6


def test_both_formats_and_no_other() -> None:
    network = description("cifar10-deep", 10)
    assert diagram.plot_architecture(network, "svg").startswith(b"<?xml")
    assert diagram.plot_architecture(network, "png").startswith(b"\x89PNG")
    assert diagram.plot_architecture(network, "svg") == diagram.plot_architecture(network, "svg")
    for bad in ("a.gif", "png", "a.png/x"):
        with pytest.raises(UsageError, match=r"\.png or \.svg"):
            diagram.parse_format(bad)


def test_a_name_is_not_read_as_a_formula() -> None:
    network = description("cifar10-deep", 10)
    diagram.plot_architecture(ModelDescription("猫 $x_{$", network.size, network.classes, network.layers))


# Learning rates

SCHEDULES = ("constant", "step", "exponential", "cosine", "one_cycle", "cyclical")


def lines(figure: Any) -> Iterator[tuple[Any, Any]]:
    yield from ((line.get_xdata(), line.get_ydata()) for line in figure.axes[0].lines if len(line.get_xdata()) > 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_drawn_as_it_is_followed(name: str, rendered: list[Any]) -> None:
    from sightline.training.schedules import build_schedule

    config = resolve_config(assignments=[f"train.schedule.name={name}", "train.schedule.step_size=30",
    "train.schedule.warmup_fraction=0.1",
                                  "train.epochs=4", "train.optimizer.learning_rate=0.02"])  # fmt: skip
    png = lr_plot.plot_learning_rates(lr_plot.plan_stages(config, 50), 50, f"{name} 豆")
    ((x, y),) = lines(rendered[0])
    rate = build_schedule(config.train.schedule, 0.02, 200)
    np.testing.assert_array_equal(x, range(200))
    np.testing.assert_allclose(y, [rate(step) for step in range(200)])
    low, high = rendered[0].axes[0].get_ylim()
    assert low == 0
    assert max(y) < high
    image = pixels(png)
    assert all((edge == 255).all() for edge in (image[0], image[-1], image[:, 0], image[:, -1]))


def test_stages_follow_each_other(rendered: list[Any]) -> None:
    from sightline.config import recipes

    config = resolve_config(recipes.load("transfer-mobilenetv2"))
    lr_plot.plot_learning_rates(lr_plot.plan_stages(config, 10), 10)
    (first, low), (second, lower) = lines(rendered[0])
    head, tune = config.train.stages
    assert head.epochs
    assert (first[0], second[0]) == (0, 10 * head.epochs)
    assert (low[0], lower[0]) == (head.learning_rate, tune.learning_rate)
    assert [text.get_text() for text in words(rendered[0])] == ["head", "fine-tune"]


def test_many_steps_are_thinned_but_keep_their_ends(rendered: list[Any]) -> None:
    lr_plot.plot_learning_rates(lr_plot.plan_stages(RunConfig(), 100_000), 100_000)
    ((x, _),) = lines(rendered[0])
    assert (len(x), x[0], x[-1]) == (lr_plot.POINTS, 0, 20 * 100_000 - 1)


@pytest.mark.slow
def test_small_networks_of_the_tests_are_drawn_too() -> None:
    for name, options in SMALL_SETTINGS.items():
        side = ENTRIES[name].min_input_size
        network = build_shapes_only(
            ModelSpec(ModelConfig(name=name, **options), side, side, 1, 2, pixel_stats=(120, 60))
        ).model
        assert len(pixels(diagram.plot_architecture(describe_model(network, name)))) > 100
