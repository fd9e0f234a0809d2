"""A callback that records what it receives, and training histories without training."""

from __future__ import annotations

from sightline.callbacks import Callback, EpochRecord


class RecordingCallback(Callback):
    """Records the lines of text, and counts the stages that have begun."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages = 0

    def on_message(self, text: str) -> None:
        self.lines.append(text)

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        self.stages += 1


def make_history(
    epochs: int, stages: tuple[str, ...] = ("training",), *, loss: float = 2.0, validated: bool = True
) -> list[EpochRecord]:
    """Return a history in which the metrics improve with every epoch."""
    return [
        EpochRecord(
            epoch,
            stages[(epoch - 1) * len(stages) // epochs],
            loss=loss / epoch,
            accuracy=1 - 0.8 / epoch,
            val_loss=1.25 * loss / epoch if validated else None,
            val_accuracy=1 - 0.9 / epoch if validated else None,
            learning_rate=1e-3,
            seconds=1.0,
            images_per_second=100.0,
        )
        for epoch in range(1, epochs + 1)
    ]
