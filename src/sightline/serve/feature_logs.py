"""The feature logs of a server: a file for its only model, or a folder with one per model and version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sightline.errors import OutputError
from sightline.inference.feature_log import AddImage, FeatureLog
from sightline.serve.served_model import Key, ServedModel

SUFFIX = ".log"


@dataclass(slots=True)
class _OpenLog:
    log: FeatureLog
    users: int = 0  # the current model, and replaced ones that are still finishing requests


class FeatureLogs:
    """Opens a log when the first model with its name and version is used, and closes it after the last one.

    `path` is the file, or a folder of ``NAME.log``, or ``NAME/VERSION.log`` for a model with numbered versions. Each
    log takes at most `max_bytes` bytes, including its older files.
    """

    def __init__(self, path: Path, max_bytes: int, *, is_folder: bool = False) -> None:
        self._path, self._max_bytes, self._is_folder = path, max_bytes, is_folder
        self._open: dict[Key, _OpenLog] = {}

    def use(self, served: ServedModel) -> AddImage:
        """Return the function that logs an image of a model, to `release` later.

        Raises `OutputError` if the log cannot be written.
        """
        model, classes = served.classifier.feature_model_id, served.classifier.classes
        if served.key not in self._open:
            log = FeatureLog(self._locate(served.key), model, classes, self._max_bytes)
            self._open[served.key] = _OpenLog(log)
        entry = self._open[served.key]
        entry.users += 1
        return entry.log.use_model(model, classes)

    def release(self, served: ServedModel) -> FeatureLog | None:
        """Return the log if it can be closed, because the last model that used it has stopped."""
        entry = self._open[served.key]
        entry.users -= 1
        return None if entry.users else self._open.pop(served.key).log

    def count_dropped(self, name: str) -> int:
        """Return the number of images that could not be logged, over all versions of a model."""
        return sum(entry.log.dropped for (other, _), entry in self._open.items() if other == name)

    def _locate(self, key: Key) -> Path:
        if not self._is_folder:
            return self._path
        name, number = key
        path = self._path / (f"{name}{SUFFIX}" if number is None else f"{name}/{number}{SUFFIX}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The folder of the log {path} cannot be created: {error.strerror or error}. With --models, "
                "--log-features names a folder."
            ) from error
        return path
