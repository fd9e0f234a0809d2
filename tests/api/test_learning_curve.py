"""`sl.learning_curve` on images: its features, its held-out images, and how often its predictions are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from hidden_labels import check_coverage
from sightline.api.learning_curve import LearningCurveReport, compute_features, prepare_images
from sightline.callbacks import Callback
from sightline.runs.train_request import TrainRequest

SMALL = {"input.height": 32, "split.group": "pattern:(?P<group>scene[0-9]+)"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noisy colors that overlap, 96 images in all, three of each scene."""
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    rng = np.random.default_rng(0)
    for label, red in (("dusk", 118), ("noon", 138)):
        (root / label).mkdir(parents=True)
        for scene in range(16):
            for number in range(3):
                pixels = np.clip(rng.normal([red + rng.normal(0, 12), 128, 128], 40, (32, 32, 3)), 0, 255)
                name = f"scene{scene if label == 'dusk' else 100 + scene}-{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(root / label / name)
    return root


@pytest.fixture(scope="module")
def report(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> LearningCurveReport:
    return sl.learning_curve(scenes, more=[20], set=SMALL, figure=tmp_path_factory.mktemp("figures") / "curve.png")


def test_images_become_a_curve_with_a_figure(report: LearningCurveReport) -> None:
    assert (report.name, report.network, report.curve.held_out) == ("scenes", "efficientnet-lite0", 96)
    assert report.rows[0]["labels_per_class"] == report.rows[0]["labels"] / 2
    assert Path(report.figure or "").read_bytes().startswith(b"\x89PNG")
    assert "labels" in repr(report)
    assert "<table>" in report._repr_html_()
    assert list(report.to_frame()["kind"]).count("measured") == len(report.curve.points)
    (gain,) = report.curve.gains
    low, high = (100 * end for end in gain.interval)
    sentences = "\n".join(report.list_sentences())
    assert f"20 more labels would bring about {100 * gain.gain:+.1f} points ({low:.1f} to {high:.1f})" in sentences
    assert any("about 32 pixels" in note for note in report.notes)


def test_features_are_computed_once(scenes: Path, report: LearningCurveReport) -> None:
    tasks: list[tuple[str, int]] = []

    class Steps(Callback):
        def on_progress(self, task: str, done: int, total: int) -> None:
            tasks.append((task, done))

    again = sl.learning_curve(scenes, more=[20], set=SMALL, callback=Steps())
    assert again.to_dict() == report.to_dict() | {"figure": None}
    assert [done for task, done in tasks if task.startswith("features")] == [96], "all from the cache, at once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "quick"}, r"from random weights.*--recipe transfer"),
        ({"more": [0]}, "at least 1, not 0"),
        ({"figure": "curve.jpg"}, r"give --figure a name that ends with \.png"),
    ],
)
def test_what_makes_no_curve_is_an_error(scenes: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(sl.UsageError, match=message):
        sl.learning_curve(scenes, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_predictions_from_half_of_a_set_hold_for_the_other_half(shared: Path) -> None:
    data = shared / "data"
    covered: list[bool] = []
    for source, settings, visible in (
        ("digits", ["input.height=64"], 300),
        (str(data / "flowers5"), ['data.allow_findings=["conflicting-duplicates"]'], 600),
        (str(data / "cats_vs_dogs"), ["input.height=64"], 200),
        (str(data / "fashion_mnist_3615"), ["input.height=64"], 400),
        ("beans:1500@64", ["input.height=96"], 250),
    ):
        request = TrainRequest.create([source], "transfer", None, settings)
        prepared, _ = prepare_images(request, [source], Callback())
        features = compute_features(prepared, Callback())
        outcomes = [check_coverage(features, visible, seed) for seed in range(5)]
        print(source, outcomes)  # noqa: T201  # with -s
        covered += [outcome for outcome in outcomes if outcome is not None]
    assert len(covered) >= 12
    assert np.mean(covered) >= 0.8
