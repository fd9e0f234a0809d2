"""How long the trainings of a search are: what `--epochs` says bounds each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from networks import make_plan, random_images
from sightline.api.compression import _choose_epochs
from sightline.callbacks import Callback
from sightline.compress import finetune
from sightline.compress.finetune import MAX_EPOCH_FACTOR, FineTuner
from sightline.config import RunConfig, StageConfig, TrainConfig
from sightline.data.dataset import DecodedDataset
from sightline.data.types import Subset
from sightline.models.build import build_model

SOME = Subset(random_images(6, 8), np.arange(6), np.zeros(6, np.int32), ("",) * 6)


@pytest.mark.parametrize(("epochs", "head"), [(0, 0), (1, 3), (4, 12), (20, 60), (100, 60)])
def test_a_new_head_takes_no_more_than_three_recoveries(
    epochs: int, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few images ask for the most epochs; and no batch is larger than they are."""
    requests: list[TrainConfig] = []
    monkeypatch.setattr(finetune, "fit", lambda *arguments, **_: requests.append(arguments[3].train))
    trainer = FineTuner(RunConfig(train=TrainConfig(batch_size=64)), SOME, SOME, epochs, (), False, None, Callback())
    network = build_model(make_plan("fashion-cnn", classes=3))
    trainer.train_head(network)
    trainer.fine_tune(network)
    assert requests[0].stages[0].epochs == head <= MAX_EPOCH_FACTOR * epochs
    assert requests[0].stages[0].batch_size == 6
    assert [train.epochs for train in requests[1:]] == [epochs] * (epochs > 0)


class Few:
    def __init__(self, count: int) -> None:
        self.count = count

    def counts(self) -> Mapping[str, int]:
        return {"train": self.count}


@pytest.mark.parametrize(
    ("train", "count", "expected"),
    [
        (TrainConfig(epochs=40), 3200, 10),
        (TrainConfig(epochs=40, stages=(StageConfig(epochs=12), StageConfig(epochs=4))), 3200, 4),
        (TrainConfig(epochs=12, stages=(StageConfig(), StageConfig(epochs=4))), 3200, 4),
        (TrainConfig(epochs=1), 320, 10),  # a hundred steps
        (TrainConfig(epochs=1), 32, 20),
    ],
)
def test_without_a_number_it_is_a_quarter_of_all_stages(train: TrainConfig, count: int, expected: int) -> None:
    data: Any = Few(count)
    assert _choose_epochs(RunConfig(train=train), cast("DecodedDataset", data)) == expected
