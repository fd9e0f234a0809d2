"""`sightline demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli import evaluate, train
from sightline.cli.output import ProgressDisplay, print_line
from sightline.evaluation.results import EvaluationResult

# Drawn, since the photographs in installed packages are no data set: two in scikit-learn and one in matplotlib. Larger
# than `auto` takes for icons, so that it starts from ImageNet weights.
SOURCE = "beans:600@96"
NEW_IMAGES = 4


def demo(
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/demo-<n>.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of training epochs.")] = None,
) -> None:
    """Train, evaluate and predict on synthetic images of coffee beans, without any download.

    It trains as `sightline train` does by default: from a network that is pretrained on photographs.
    """
    from sightline import api

    print_line(("1. Train", "bold"), f" on {SOURCE}: 600 synthetic images of coffee beans in four roasts")
    with ProgressDisplay() as display:
        result = api.demo_train(SOURCE, out=out, epochs=epochs, callback=display)
    train.print_result(result)
    print_line()
    print_line(("2. Evaluate", "bold"), " on the held-out test images")
    classifier = api.load(result.run)
    evaluation = classifier.evaluate().result
    assert isinstance(evaluation, EvaluationResult)
    evaluate.print_evaluation(evaluation, "test", "sightline evaluate --format json prints all")
    print_line()
    print_line(("3. Predict", "bold"), " on four new images")
    for path in api.draw_demo_images(Path(result.run) / "new", NEW_IMAGES):
        prediction = classifier.predict(path)[0]
        print_line(f"{path}  ", (str(prediction.label), "bold"), f" {prediction.probability:.3f}")
    print_line()
    print_line(f"Next: sightline train YOUR_FOLDER, then sightline predict {result.run} IMAGE")
    print_line(("Report", "bold"), f" {(Path(result.run) / 'report.html').resolve().as_uri()}", soft_wrap=True)
