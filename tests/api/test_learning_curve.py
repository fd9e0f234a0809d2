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
from sightline.evaluation.learning_curve import CurvePoint, LearningCurve, PowerLaw
from sightline.intervals import Interval
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
    assert not any("from scratch" in note for note in report.notes)


def test_a_flat_curve_is_called_flat() -> None:
    points = (CurvePoint(200, 0.529, Interval(0.46, 0.6)),)
    flat = LearningCurve(2, 96, 45, points, law=PowerLaw(0.471, 0.0, 0.1))
    sentences = LearningCurveReport("scenes", "efficientnet-lite0", flat).list_sentences()
    assert list(sentences) == ["error = 0.471 whatever the number of labels: the curve is flat"]


def test_small_gray_images_are_trained_in_another_way_and_a_note_says_so(scenes: Path, tmp_path: Path) -> None:
    for path in scenes.rglob("*.png"):
        gray = tmp_path / path.relative_to(scenes)
        gray.parent.mkdir(exist_ok=True)
        Image.open(path).convert("L").save(gray)
    notes = sl.learning_curve(tmp_path, set=SMALL).notes
    assert any("about 32 pixels: `sightline train` trains a small network from scratch" in note for note in notes)


def test_features_are_computed_once(scenes: Path, report: LearningCurveReport) -> None:
    tasks: list[tuple[str, int]] = []

    class Steps(Callback):
        def on_progress(self, task: str, done: int, total: int) -> None:
            tasks.append((task, done))

    again = sl.learning_curve(scenes, more=[20], set=SMALL, callback=Steps())
    assert again.to_dict() == report.to_dict() | {"figure": None}
    assert [done for task, done in tasks if task.startswith("features")] == [96], "all from the cache, at once"


def test_images_with_several_labels_have_a_curve_of_mean_average_precision(scenes: Path) -> None:
    rows = [
        f"{path.relative_to(scenes.parent)},{path.parent.name if number % 4 else 'dusk;noon'}"
        for number, path in enumerate(sorted(scenes.rglob("*.png")))
    ]
    manifest = scenes.parent / "labels.csv"
    manifest.write_text("\n".join(["path,labels", *rows]))
    report = sl.learning_curve(manifest, more=[20], set={"model.task": "multi_label", **SMALL})
    curve = report.curve
    assert (curve.metric, curve.held_out, curve.labels) == ("mean_average_precision", 96, curve.points[-1].labels)
    assert set(curve.to_dict()["points"][0]) == {"labels", "mean_average_precision", "interval"}
    assert report.rows[0]["mean_average_precision"] == curve.points[0].value
    assert "labels_per_class" not in report.rows[0]
    assert any("20 more labeled images would bring" in sentence for sentence in report.list_sentences())
    assert any("points of mean average precision" in sentence for sentence in report.list_sentences())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "quick"}, r"from random weights.*`recipe` transfer"),
        ({"more": [0]}, "at least 1 each, not"),
        ({"figure": "curve.jpg"}, r"give `figure` a name that ends with \.png"),
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
        (str(data / "camvid" / "labels.csv"), ["model.task=multi_label"], 150),
        ("digits", ["input.height=64"], 300),
        (str(data / "flowers5"), ['data.allow_findings=["conflicting-duplicates"]'], 600),
        (str(data / "cats_vs_dogs"), ["input.height=64"], 200),
        (str(data / "fashion_mnist_3615"), ["input.height=64"], 400),
        ("beans:1500@64", ["input.height=96"], 250),
    ):
        request = TrainRequest.create([source], "transfer", None, settings)
        prepared, _ = prepare_images(request, [source], Callback())
        features = compute_features(prepared, Callback())
        outcomes = [check_coverage(features, visible, seed, prepared.config.model.task) for seed in range(5)]
        print(source, outcomes)  # noqa: T201  # with -s
        covered += [outcome for outcome in outcomes if outcome is not None]
    assert len(covered) >= 12
    assert np.mean(covered) >= 0.8
