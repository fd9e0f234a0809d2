"""Features that a process of its own computes are those of this process, and it ends with the studio."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from command import COLORS, draw_classes
from sightline.api.pretrained_features import compute_projected_features
from sightline.callbacks import Callback
from sightline.data.indexing import build_index
from sightline.errors import SightlineError
from sightline.studio.feature_process import compute_in_process
from sightline.training.stage_features import FEATURES


class Stopped(Exception):  # not an error
    pass


class Stop(Callback):
    def on_progress(self, task: str, done: int, total: int) -> None:
        raise Stopped(task)


@pytest.mark.slow  # imports TensorFlow twice
def test_another_process_computes_the_same_features(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "colors", COLORS, 4)
    (folder / "red" / "broken.png").write_bytes((folder / "red" / "red-000.png").read_bytes()[:60])
    index = build_index(folder, unlabeled=True)
    tasks: list[str] = []
    callback = Callback()
    callback.on_progress = lambda task, done, total: tasks.append(task)  # type: ignore[method-assign]
    features, decoded = compute_in_process([str(folder)], (), index, callback)
    expected, expected_decoded = compute_projected_features(index, (), None)
    steps = list(dict.fromkeys(tasks))
    assert steps[0] == "indexing"
    assert steps[-4:] == ["decoding", "loading the network", FEATURES, "projecting"]
    np.testing.assert_array_equal(decoded, expected_decoded)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    assert np.isnan(features[~decoded]).all()
    assert np.isfinite(features[decoded]).all()


@pytest.mark.slow
def test_an_image_that_is_gone_has_no_features(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "colors", COLORS, 3)
    index = build_index(folder, unlabeled=True)
    (folder / index.images[2].path).unlink()
    features, decoded = compute_in_process([str(folder)], (), index, Callback())
    assert np.flatnonzero(~decoded).tolist() == [2]
    assert np.isnan(features[2]).all()
    assert np.isfinite(np.delete(features, 2, 0)).all()


def test_errors_of_the_process_are_those_of_the_studio(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "colors", COLORS, 2)
    index = build_index(folder, unlabeled=True)
    shutil.rmtree(folder)
    with pytest.raises(SightlineError, match="There is no folder"):
        compute_in_process([str(folder)], (), index, Callback())


def test_modules_of_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The studio is started where the images are, which may come from anybody."""
    folder, current = draw_classes(tmp_path / "colors", COLORS, 2), tmp_path / "current"
    current.mkdir()
    for name in ("json", "tomllib", "signal", "numpy"):
        (current / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    index = build_index(folder, unlabeled=True)
    shutil.rmtree(folder)
    monkeypatch.chdir(current)
    with pytest.raises(SightlineError, match="There is no folder"):
        compute_in_process([str(folder)], (), index, Callback())
    assert not (tmp_path / "imported").exists()


def test_a_studio_that_ends_does_not_wait_for_it(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "colors", COLORS, 2)
    index = build_index(folder, unlabeled=True)
    with pytest.raises(Stopped, match="indexing"):
        compute_in_process([str(folder)], (), index, Stop())
