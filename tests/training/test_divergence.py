"""A huge finite loss stops training just as NaN does."""

from __future__ import annotations

import dataclasses
import math

import pytest

from networks import make_plan, make_subset
from sightline.callbacks import Callback
from sightline.config import OptimizerConfig, RunConfig, TrainConfig
from sightline.errors import DivergedError
from sightline.models.build import build_model
from sightline.training.divergence import MAX_LOSS_RATIO, LossLimit
from sightline.training.loop import fit

TRAIN, VALIDATION = make_subset(24), make_subset(9, 1)


def make_config(rate: float, batch_size: int, l2: float = 0.0) -> RunConfig:
    return RunConfig(train=TrainConfig(1, batch_size, l2=l2, optimizer=OptimizerConfig("sgd", rate, momentum=0.0)))


@pytest.mark.parametrize(
    ("batch_size", "where"), [(12, r"step 2 of epoch 1"), (24, "the end of epoch 1, on validation")]
)
def test_a_huge_finite_loss_is_divergence(batch_size: int, where: str) -> None:
    """One step at such a learning rate ruins the weights, and the next loss shows it, in training or validation."""
    with pytest.raises(DivergedError) as caught:
        fit(
            build_model(make_plan("fashion-cnn", classes=3)),
            TRAIN,
            VALIDATION,
            make_config(300.0, batch_size),
            Callback(),
        )
    message = str(caught.value)
    assert message.startswith("Training diverged: the loss is ")
    loss = float(message.removeprefix("Training diverged: the loss is ").split()[0])
    assert math.isfinite(loss)
    assert loss > 1e6 * math.log(3)
    assert f"(above 1e+06) at {where}, learning rate 300, in the batch of" in message
    assert "lower train.optimizer.learning_rate" in message
    assert len(caught.value.batch) == batch_size


def test_a_large_l2_penalty_is_not_divergence() -> None:
    """With the penalty, the loss starts above the limit of a model without one."""
    network = build_model(dataclasses.replace(make_plan("fashion-cnn", classes=3), l2=1e5))
    (record,) = fit(network, TRAIN, VALIDATION, make_config(1e-12, 24, l2=1e5), Callback()).history
    assert record.loss > MAX_LOSS_RATIO * math.log(3)
    assert LossLimit.from_network(network).value > 100 * record.loss


def test_the_limit_is_inclusive_and_nan_exceeds_it() -> None:
    limit = LossLimit(10.0)
    assert [limit.is_exceeded(loss) for loss in (9.9, 10.0, 10.1, math.inf, math.nan)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert str(limit.make_error(math.nan, "the end of epoch 1", None)).endswith("nan at the end of epoch 1.")
    assert "diverged: the loss is nan at step 1, learning rate 0.1. Use" in str(
        limit.make_error(math.nan, "step 1", 0.1)
    )
