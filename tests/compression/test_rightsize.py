"""A smaller head on the same backbone."""

from __future__ import annotations

import numpy as np

from networks import STANDARD, network, plan
from sightline.compression import rightsize
from sightline.config import ModelConfig
from sightline.models.build import build
from sightline.models.describe import parameters


def test_heads_are_smaller_and_only_where_there_is_something_to_gain() -> None:
    assert [(c.pooling, c.hidden) for c in rightsize.heads(ModelConfig("vgg16"))] == [
        ("average", ()), ("average", (512,)),
    ]  # fmt: skip
    assert [(c.pooling, c.hidden) for c in rightsize.heads(ModelConfig("vgg16-bn"))] == [
        ("average", ()), ("average", (64,)),
    ]  # fmt: skip
    assert [c.pooling for c in rightsize.heads(ModelConfig("vgg16", hidden=()))] == ["average"]
    assert rightsize.heads(ModelConfig("mobilenetv2")) == []
    assert rightsize.heads(ModelConfig("cifar10-deep", pooling="average", hidden=())) == []


def test_the_backbone_keeps_its_weights_and_its_normalisation() -> None:
    old = build(plan("fashion-cnn", side=16, classes=3, seed=5))
    config = rightsize.heads(plan("fashion-cnn").config)[0]
    new = rightsize.rebuilt(old.model, config, seed=1)
    for name in old.backbone:
        for before, after in zip(
            old.model.get_layer(name).get_weights(), new.model.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(before, after)
    scaling = new.model.get_layer("normalize")
    assert np.isclose(scaling.scale, 1 / STANDARD[1])
    assert np.isclose(scaling.offset, -STANDARD[0] / STANDARD[1])
    assert new.model.output["probabilities"].shape[-1] == 3
    assert parameters(new.model) < parameters(old.model)
    assert rightsize.rebuilt(network("squeezenet").model, plan("squeezenet").config, 0).backbone
