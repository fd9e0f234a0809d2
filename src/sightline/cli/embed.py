"""`sightline embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import RawCsv, print_written
from sightline.cli.predict import Images, Model
from sightline.cli.sources import DeviceOption, FileLimit, list_images, load_model
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:
    from sightline.inference.embeddings import Embeddings


def embed(
    model: Model,
    images: Images,
    out: Annotated[
        Path, typer.Option(help="The .parquet, .npy or .csv file to write; .npy has its paths in FILE.npy.jsonl.")
    ],
    labeled: Annotated[
        bool, typer.Option("--labeled", help="Read IMAGES as labeled images, as train does, and store their labels.")
    ] = False,
    raw_csv: RawCsv = False,
    device: DeviceOption = None,
    set: FileLimit = None,  # noqa: A002  # the option's own name
) -> None:
    """Compute the embeddings of images: the features that the last layer of the network classifies.

    Exits with 1 if an image could not be read; its row says why.
    """
    from sightline.inference import embedding_files

    out = embedding_files.check_output(out)
    items = None if labeled else list_images("embed", images, set)
    classifier = load_model(model, device)
    inputs = items if items is not None and "-" in images else images  # standard input can be listed only once
    first_failed = ""

    def note_failed(batch: Embeddings) -> Embeddings:
        nonlocal first_failed
        failed = (f"{path}: {error}" for path, error in zip(batch.paths, batch.errors, strict=True) if error)
        first_failed = first_failed or next(failed, "")
        return batch

    with ProgressDisplay() as display:
        batches = classifier.iter_embeddings(inputs, labeled=labeled, set=set or (), callback=display)
        count, failed = embedding_files.write(out, map(note_failed, batches), raw_csv=raw_csv)
    print_written(out, count, failed, first_failed)
    if failed:
        raise typer.Exit(1)
