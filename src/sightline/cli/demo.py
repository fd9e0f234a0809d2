"""`sightline demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli import evaluate, train
from sightline.cli.output import Display, console, escape

PICTURES = "beans:600@64"
NEW = 4


def demo(
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/demo-<n>.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
) -> None:
    """Draw coffee beans in four roasts, train on them, judge the result, name four new pictures; no download."""
    from sightline import workflow

    say = console()
    say.print(f"[bold]1. Train[/] on {PICTURES}: 600 drawn pictures of coffee beans, four roasts")
    with Display() as display:
        result = workflow.demo_train(PICTURES, out=out, epochs=epochs, watcher=display)
    train.show(result)
    say.print("\n[bold]2. Evaluate[/] on the pictures held back for the test")
    classifier = workflow.load(result.run)
    evaluate.show(classifier.evaluate(), "test", "sightline evaluate --json prints all")
    say.print("\n[bold]3. Predict[/] four new pictures")
    for path in workflow.draw_new(Path(result.run) / "new", NEW):
        answer = classifier.predict(path)[0]
        say.print(f"{escape(str(path))}  [bold]{answer.label}[/] {answer.probability:.3f}")
    say.print(
        f"\nThe run is in {escape(result.run)}; look at {escape(result.run)}/figures/curves.png and confusion.png."
    )
    say.print(f"Next: sightline train YOUR_FOLDER, then sightline predict {escape(result.run)} PICTURE")
