"""Early stopping: the choice of the best epoch, of the last epoch, and of stages to leave out."""

from __future__ import annotations

from typing import NamedTuple

from sightline.callbacks import EpochRecord
from sightline.config import RunConfig

PERFECTIBLE = ("val_accuracy", "val_calibrated_loss")  # uninformative once no validation image is wrong


class Obstacle(NamedTuple):
    """Why a stage is left out, and the setting that trains it anyway."""

    reason: str
    setting: str


def find_obstacle(best: EpochRecord | None, config: RunConfig, num_images: int) -> Obstacle | None:
    """Return why the `num_images` validation images cannot show if a stage after the `best` epoch improves on it."""
    early_stop = config.train.early_stopping
    is_decisive = early_stop.restore_best_weights and early_stop.monitor in PERFECTIBLE and early_stop.epoch is None
    if not is_decisive or best is None or best.val_accuracy is None:
        return None
    if best.val_accuracy == 1:
        reason, setting = "every validation image is classified correctly already", "monitor=val_loss"
    elif num_images < (least := early_stop.min_validation_images):
        reason = f"fewer than {least} validation images ({num_images}) cannot tell whether it helps"
        setting = "min_validation_images=0"
    else:
        return None
    return Obstacle(reason, f"--set train.early_stopping.{setting}")


def is_last_epoch(config: RunConfig, record: EpochRecord) -> bool:
    """Return whether the settings select the weights of this epoch."""
    return config.train.early_stopping.epoch is not None and record.epoch >= config.train.early_stopping.epoch


def is_better(record: EpochRecord, best: EpochRecord | None, monitor: str, min_delta: float) -> bool:
    """Return whether an epoch improves the monitored metric over the `best` one by more than `min_delta`."""
    if best is None:
        return True
    new, old = getattr(record, monitor), getattr(best, monitor)
    if new is None or old is None:  # no validation split: use the training loss
        new, old = record.loss, best.loss
        monitor = "loss"
    return bool(new < old - min_delta if monitor.endswith("loss") else new > old + min_delta)
