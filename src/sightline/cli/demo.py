"""`sightline demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli import evaluate, train
from sightline.cli.output import Display, say

PICTURES = "beans:600@64"
NEW = 4


def demo(
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/demo-<n>.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of training epochs.")] = None,
) -> None:
    """Train, evaluate and predict on synthetic images of coffee beans, without any download."""
    from sightline import workflow

    say(("1. Train", "bold"), f" on {PICTURES}: 600 synthetic images of coffee beans in four roasts")
    with Display() as display:
        result = workflow.demo_train(PICTURES, out=out, epochs=epochs, watcher=display)
    train.show(result)
    say()
    say(("2. Evaluate", "bold"), " on the held-out test images")
    classifier = workflow.load(result.run)
    evaluate.show(classifier.evaluate(), "test", "sightline evaluate --json prints all")
    say()
    say(("3. Predict", "bold"), " on four new images")
    for path in workflow.draw_new(Path(result.run) / "new", NEW):
        answer = classifier.predict(path)[0]
        say(f"{path}  ", (str(answer.label), "bold"), f" {answer.probability:.3f}")
    say()
    say(f"The run is in {result.run}; see {result.run}/figures/curves.png and confusion.png.")
    say(f"Next: sightline train YOUR_FOLDER, then sightline predict {result.run} IMAGE")
