"""Write TensorBoard event files without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.callbacks import EpochRecord
from sightline.errors import OutputError, require


class TensorBoardWriter:
    """Writes the metrics of each epoch: ``loss/``, ``accuracy/``, ``learning_rate`` and ``images_per_second``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = require("tensorboard.summary", "train.tensorboard").Writer(str(folder))

    def write_epoch(self, record: EpochRecord) -> None:
        """Write the metrics of one epoch; those that are None are left out."""
        values = {
            "loss/train": record.loss,
            "loss/validation": record.val_loss,
            "accuracy/train": record.accuracy,
            "accuracy/validation": record.val_accuracy,
            "learning_rate": record.learning_rate,
            "images_per_second": record.images_per_second,
        }
        try:
            for tag, value in values.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, record.epoch)
            self._writer.flush()
        except OSError as error:
            raise OutputError(
                f"The TensorBoard file in {self._folder} cannot be written: {error.strerror or error}. Free some space."
            ) from error

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
