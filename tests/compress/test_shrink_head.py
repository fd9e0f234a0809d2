"""A smaller head on the same backbone."""

from __future__ import annotations

import numpy as np

from networks import STATISTICS, build_network, make_plan
from sightline.compress import shrink_head
from sightline.config import ModelConfig
from sightline.models.build import build_model
from sightline.models.describe import count_parameters


def test_only_networks_with_large_heads_get_smaller_ones() -> None:
    assert [(c.pooling, c.hidden_units) for c in shrink_head.list_smaller_heads(ModelConfig("vgg16"))] == [
        ("average", ()), ("average", (512,)),
    ]  # fmt: skip
    assert [(c.pooling, c.hidden_units) for c in shrink_head.list_smaller_heads(ModelConfig("vgg16-bn"))] == [
        ("average", ()), ("average", (64,)),
    ]  # fmt: skip
    assert [c.pooling for c in shrink_head.list_smaller_heads(ModelConfig("vgg16", hidden_units=()))] == ["average"]
    assert shrink_head.list_smaller_heads(ModelConfig("mobilenetv2")) == []
    assert shrink_head.list_smaller_heads(ModelConfig("cifar10-deep", pooling="average", hidden_units=())) == []


def test_the_backbone_keeps_its_weights_and_its_normalization() -> None:
    old = build_model(make_plan("fashion-cnn", side=16, classes=3, seed=5))
    config = shrink_head.list_smaller_heads(make_plan("fashion-cnn").config)[0]
    new = shrink_head.rebuild_with_head(old.model, config, seed=1)
    for name in old.backbone:
        for before, after in zip(
            old.model.get_layer(name).get_weights(), new.model.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(before, after)
    scaling = new.model.get_layer("normalize")
    assert np.isclose(scaling.scale, 1 / STATISTICS[1])
    assert np.isclose(scaling.offset, -STATISTICS[0] / STATISTICS[1])
    assert new.model.output["probabilities"].shape[-1] == 3
    assert count_parameters(new.model) < count_parameters(old.model)
    assert shrink_head.rebuild_with_head(build_network("squeezenet").model, make_plan("squeezenet").config, 0).backbone
