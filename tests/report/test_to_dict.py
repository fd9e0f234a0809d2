"""The keys that ``--format json`` and files hold: pinned, plain, complete."""

from __future__ import annotations

import json

import numpy as np

from sightline.data.types import UnreadableImage
from sightline.evaluation.results import ClassMetrics, EvaluationResult, Metric
from sightline.inference.results import ClassProbability, Prediction
from sightline.intervals import Interval
from sightline.training.result import SplitMetrics, TrainingMetrics, TrainResult

EVALUATION = EvaluationResult(
    classes=("ä", "b"),
    accuracy=0.75,
    accuracy_interval=Interval(0.5, 0.9),
    loss=0.5,
    count=4,
    per_class=(
        ClassMetrics("ä", 1.0, 0.5, 2 / 3, 4, Interval(0.2, 1.0), Interval(0.1, 0.9)),
        ClassMetrics("b", None, None, None, 0),
    ),
    confusion=np.array([[1, 1], [0, 2]]),
    unreadable=(UnreadableImage("x.png", "truncated", "b"),),
    paths=("1", "2", "3", "4"),
    labels=np.array([0, 0, 1, 1], np.int32),
    probabilities=np.full((4, 2), 0.5, np.float32),
    seconds=1.5,
    metrics={"auroc": Metric(0.75, Interval(0.5, 1.0)), "macro_f1": Metric(2 / 3, None, "few", 1)},
)

TRAINED = TrainResult(
    run="runs/1",
    model="vgg16",
    parameters=10,
    classes=("a", "b"),
    train=TrainingMetrics(0.9, 0.2, 80),
    validation=SplitMetrics(0.8, 0.3, 20, Interval(0.58, 0.92)),
    test=None,
    epochs=3,
    seconds=2.5,
    images_per_second=96.0,
    weights_sha256="0" * 64,
    recipe="quick",
    notes=("a note",),
    bundle="runs/1/bundle",
    details={"backend": "jax"},
)


def test_evaluation_without_its_arrays() -> None:
    values = EVALUATION.to_dict()
    assert json.loads(json.dumps(values)) == values == {
        "accuracy": 0.75,
        "accuracy_interval": [0.5, 0.9],
        "loss": 0.5,
        "count": 4,
        "classes": ["ä", "b"],
        "per_class": [
            {
                "label": "ä", "precision": 1.0, "precision_interval": [0.2, 1.0], "recall": 0.5,
                "recall_interval": [0.1, 0.9], "f1": 2 / 3, "support": 4,
            },
            {
                "label": "b", "precision": None, "precision_interval": None, "recall": None, "recall_interval": None,
                "f1": None, "support": 0,
            },
        ],
        "untested_classes": ["b"],
        "confusion": [[1, 1], [0, 2]],
        "unreadable": [{"path": "x.png", "reason": "truncated"}],
        "seconds": 1.5,
        "metrics": {
            "auroc": {"value": 0.75, "interval": [0.5, 1.0], "note": ""},
            "macro_f1": {"value": 2 / 3, "interval": None, "note": "few", "classes": 1},
        },
        "most_confused": [{"label": "ä", "predicted": "b", "count": 1}],
        "leaked": None,
        "missing": None,
        "added": 0,
        "training_images": None,
        "groups": None,
    }  # fmt: skip


def test_training_with_its_parts_and_details() -> None:
    values = TRAINED.to_dict()
    assert json.loads(json.dumps(values)) == values == {
        "run": "runs/1",
        "bundle": "runs/1/bundle",
        "no_bundle_reason": None,
        "recipe": "quick",
        "model": "vgg16",
        "parameters": 10,
        "classes": ["a", "b"],
        "train": {"accuracy": 0.9, "loss": 0.2, "count": 80},
        "validation": {"accuracy": 0.8, "loss": 0.3, "count": 20, "accuracy_interval": [0.58, 0.92]},
        "test": None,
        "epochs": 3,
        "seconds": 2.5,
        "images_per_second": 96.0,
        "weights_sha256": "0" * 64,
        "notes": ["a note"],
        "backend": "jax",
    }  # fmt: skip


def test_every_field_of_a_training_is_in_the_dict() -> None:
    keys = set(TRAINED.to_dict())
    assert {f for f in TrainResult.__dataclass_fields__ if f != "details"} <= keys


def test_prediction_answers_or_says_why_not() -> None:
    top = (ClassProbability("cat", 0.75), ClassProbability("dog", 0.25))
    assert Prediction("x.png", "cat", 0.75, top).to_dict() == {
        "path": "x.png",
        "label": "cat",
        "probability": 0.75,
        "top": [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}],
    }
    assert Prediction("x.png", error="truncated").to_dict() == {"path": "x.png", "error": "truncated"}
