"""`sightline demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline import _io
from sightline.cli import evaluate, train
from sightline.cli.output import print_line
from sightline.evaluation.results import EvaluationResult
from sightline.progress import ProgressDisplay

# Synthetic, since installed packages have too few photographs: two in scikit-learn and one in matplotlib. The images
# are too large for `auto` to treat them as icons, so it starts from ImageNet weights.
SOURCE = "beans:400@96"
NEW_IMAGES, NEW_SEED = 4, 1  # training images are drawn with seed 0


def demo(
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/demo-<n>.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of training epochs.")] = None,
) -> None:
    """Train, evaluate and predict on synthetic images of coffee beans, without downloads.

    Like `sightline train` by default, it starts from a network that was pretrained on photographs.
    """
    from sightline.api.loading import load
    from sightline.api.training import train_run
    from sightline.runs.paths import next_path

    print_line(("1. Train", "bold"), f" on {SOURCE}: 400 synthetic images of coffee beans in four roasts")
    with ProgressDisplay() as display:
        result = train_run(SOURCE, out=out or next_path(Path("runs"), "demo"), epochs=epochs, callback=display)
    train.print_result(result)
    print_line()
    print_line(("2. Evaluate", "bold"), " on the held-out test images")
    classifier = load(result.run)
    evaluation = classifier.evaluate().result
    assert isinstance(evaluation, EvaluationResult)
    evaluate.print_evaluation(evaluation, "test", "sightline evaluate --format json prints all")
    print_line()
    print_line(("3. Predict", "bold"), " on four new images")
    for path in draw_images(Path(result.run) / "new", NEW_IMAGES):
        prediction = classifier.predict(path)[0]
        print_line(f"{path}  ", (str(prediction.label), "bold"), f" {prediction.probability:.3f}")
    print_line()
    print_line(f"Next: sightline train YOUR_FOLDER, then sightline predict {result.run} IMAGE")
    print_line(("Report", "bold"), f" {(Path(result.run) / 'report.html').resolve().as_uri()}", soft_wrap=True)


def draw_images(folder: Path, count: int, size: int = 224) -> list[Path]:
    """Draw images that are not in the training data, and save them as ``<true roast>-<n>.png``."""
    from sightline.datasets import coffee_beans
    from sightline.preprocessing import encode_png

    paths = []
    for i in range(count):
        path = folder / f"{coffee_beans.CLASSES[i % len(coffee_beans.CLASSES)].lower()}-{i + 1}.png"
        paths.append(_io.write_atomic(path, encode_png(coffee_beans.draw(i, size, NEW_SEED))))
    return paths
