"""What is said of a classifier, from what it says of validation and test images: values by hand, no training."""

from __future__ import annotations

from typing import Any

import numpy as np

from sightline import metrics
from sightline.evaluation.judgement import Judgement, Said
from sightline.prediction.base import Outputs
from sightline.records import Labelled, Picture, Samples
from sightline.report import judgement as report
from sightline.report import page, summary
from sightline.workflow.judging import judged

OK = ("defect", "ok")


def answers(
    labels: list[int], wrong: list[int], classes: tuple[str, ...] = OK, sure: tuple[float, float] = (8, 1)
) -> Said:
    """What a network says: the class of each image, the next one for those at `wrong`, from very to less sure."""
    count, truth = len(labels), np.array(labels, np.int32)
    given = truth.copy()
    given[wrong] = (given[wrong] + 1) % len(classes)
    logits = np.zeros((count, len(classes)), np.float32)
    logits[np.arange(count), given] = np.linspace(*sure, count)
    return Said(Outputs(metrics.softmax(logits), logits, np.zeros((count, 3), np.float32)), truth)


def concluded(test: Said, validation: Said | None, classes: tuple[str, ...] = OK, **options: Any) -> Judgement:
    """Judge a network by what it says of test and validation images."""
    count = len(test.labels)
    paths = tuple(f"{i}.png" for i in range(count))
    pixels = np.zeros((count, 2, 2, 3), np.uint8)
    pictures = tuple(
        Picture(path, path, classes[k], "test", 9, 9) for path, k in zip(paths, test.labels, strict=True)
    )  # fmt: skip
    found = Labelled(Samples(pixels, np.arange(count), test.labels, paths), pictures, ())
    return judged(classes, test, found, "test", validation, **options)


def told(value: Judgement) -> dict[str, Any]:
    """Return all that `metrics.json` holds."""
    return summary.evaluation(value.evaluation) | report.judgement(value)


def headline(value: Judgement) -> str:
    return " ".join(page.headline(told(value), value.part))


def test_the_headline_promises_nothing_that_was_chosen_on_the_test_images_themselves() -> None:
    """A tenth of the test images are wrong, the least sure ones: the surest 90% look perfect, by hindsight."""
    labels = [0, 1] * 100
    test = answers(labels, list(range(180, 200)))
    assert test.outputs.probabilities.max(1)[:180].min() > test.outputs.probabilities.max(1)[180:].max()
    few = headline(concluded(test, answers([0, 1] * 10, [])))
    assert "99% precision" not in few
    assert (
        "The 20 validation images are too few, or too often misclassified, to choose a confidence above which 90%"
        in few
    )
    assert "precision" not in headline(concluded(test, None))
    assert "precision" not in headline(concluded(test, test)), "validation judged on itself says nothing"


def test_the_headline_states_what_a_threshold_of_validation_reached_on_test() -> None:
    labels = [0, 1] * 200
    validation, test = answers(labels, []), answers(labels, [10, 50, 100, 150])
    found = told(concluded(test, validation))["selective"]
    assert (found["threshold"]["target"], found["threshold"]["count"]) == (0.99, 400)
    assert (found["reached"]["answered"], found["reached"]["precision"], found["reached"]["met"]) == (400, 0.99, False)
    line = headline(concluded(test, validation))
    assert (
        "it answers 100.0% of these images, 99.0% of them correctly (95% interval 97.5% to 99.6%; at least 97.7%"
        in line
    )
    assert "these images do not show 99% for certain" in line
    assert "the target is met" in headline(concluded(answers(labels, []), validation))
