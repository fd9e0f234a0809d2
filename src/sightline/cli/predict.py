"""`sightline predict`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer

from sightline import _io
from sightline.cli import output, segmentation_view
from sightline.cli.output import RawCsv, TableFormat, measure_text, print_line, results_stream
from sightline.cli.sources import Device, DeviceOption, FileLimit, TileOption, list_images, load_model
from sightline.errors import OutputError, UsageError, plural
from sightline.escaping import TextFile, printable
from sightline.inference.results import Decision, Prediction
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.api.classifier import Classifier
    from sightline.inference.inputs import InputItem
    from sightline.inference.masks import MaskPrediction
    from sightline.inference.prediction_files import PredictionFiles
    from sightline.report.prediction_writer import RowLayout

Model = Annotated[
    str,
    typer.Argument(
        help="A run, a bundle, its .zip or .onnx file, an exported folder, or imagenet, a pretrained classifier."
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(help="Files, folders, globs, archives, Parquet files, s3:// and other addresses, or - for stdin."),
]
MIN_WIDTH = 12  # of the path column in text output
MAX_ALIGNED = 1000  # images listed before predicting the first, to align the columns
TOP = 5  # classes shown in text and in JSON; CSV defaults to one
Inputs: TypeAlias = "Sequence[str | InputItem] | Iterator[str | InputItem]"
_Row = TypeVar("_Row", bound="Prediction | MaskPrediction")


def predict(
    model: Model,
    images: Images,
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of most probable classes per image; default: 5, or 1 for CSV.")
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Include the probabilities of all classes; in CSV, one column per class."),
    ] = False,
    output_format: Annotated[
        TableFormat | None,
        typer.Option(
            "--format", help="Output format; json is one object per line; default: from the suffix of --out, else text."
        ),
    ] = None,
    raw_csv: RawCsv = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Write to this .csv or .jsonl file instead of standard output, or to this .parquet folder, which the "
            "same command resumes; a folder may be at an address such as s3://bucket/labels.parquet.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Predict one of N shards into a .parquet folder, from 0/N to N-1/N."),
    ] = None,
    rows_per_part: Annotated[
        int | None,
        typer.Option(min=1, help="Images per file of a .parquet folder, rounded up to whole batches; default 1024."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            help="Predict into a .parquet folder in this process, or with the workers of a Ray cluster.",
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="With --engine ray: the cluster; default: RAY_ADDRESS, else one is started on this machine.",
        ),
    ] = None,
    knn: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Classify by the K nearest images of --reference, without training."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labeled images for --knn, as for train, or a file that `sightline embed --labeled` wrote.",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write each mask as a PNG file, and an overlay on its image; the results, also in --out, list the "
            "area of each class.",
        ),
    ] = None,
    tile: TileOption = None,
    device: DeviceOption = None,
    set: FileLimit = None,  # noqa: A002  # the option's own name
) -> None:
    """Classify images. Exits with 1 if an image could not be read; its row says why."""
    if (knn is None) != (reference is None):
        raise UsageError("--knn and --reference go together: give the number of neighbors and the reference images.")
    if tile is not None and masks is None:
        raise UsageError("--tile is for masks: give the folder to write them to with --masks as well.")
    if masks is not None and (probabilities or top is not None):
        raise UsageError("--masks lists the area of each class: leave out --probabilities and --top.")
    from sightline.api.ray_options import resolve_engine

    resolve_engine(engine, ray_address=ray_address)
    to_folder = _check_folder(out, output_format, shard, rows_per_part, engine, masks)
    if engine == "ray" and device not in (None, "cpu"):
        raise UsageError(f"--device {device} is for this process, and the workers of --engine ray use CPUs.")
    file = None if out is None or to_folder else _io.output_path(out)
    chosen_format = "json" if to_folder else _choose_format(output_format, file)
    if file is not None:
        _check_output(file)
    items = list_images("predict", images, set)
    classifier = _load(model, knn, reference, device, set)
    inputs: Inputs = items if "-" in images else images  # standard input can be listed only once
    with ProgressDisplay(messages_only=out is None and output.is_terminal()) as display:  # the rows show the progress
        if masks is not None:
            predicted = classifier.iter_masks(inputs, out=masks, tile=tile, set=set or (), callback=display)
            failed = _write_mask_rows(predicted, classifier.classes, chosen_format, file, raw_csv=raw_csv)
        elif out is not None and to_folder:
            result = classifier.write_predictions(
                inputs, out, top=top or TOP, probabilities=probabilities, shard=shard, rows_per_part=rows_per_part,
                engine=engine, ray_address=ray_address, set=set or (), callback=display,
            )  # fmt: skip
            failed = _print_files(result, shard)
        else:
            if chosen_format == "text":
                width, inputs = _measure_paths(items, inputs)
            else:
                width = MIN_WIDTH
            failed = _write_rows(
                classifier, inputs, chosen_format, file, display, width=width, top=top, probabilities=probabilities,
                settings=set or (), raw_csv=raw_csv,
            )  # fmt: skip
    if failed:
        raise typer.Exit(1)


def _write_rows(
    classifier: Classifier,
    inputs: Inputs,
    chosen_format: TableFormat,
    out: Path | None,
    display: ProgressDisplay,
    *,
    width: int,
    settings: Sequence[str],
    top: int | None,
    probabilities: bool,
    raw_csv: bool,
) -> int:
    """Predict all `inputs`, and print the rows or write them to `out`; return the number of errors."""
    from sightline.report.prediction_writer import RowFormat

    count = len(classifier.classes)
    shown_count = min(count, top or (1 if chosen_format == "csv" else TOP))
    has_several = classifier.task.targets.allows_several
    if has_several and chosen_format == "csv":
        shown_count = 1  # the label column lists all predicted classes
    are_masks = classifier.task.targets.are_masks
    layout = RowFormat(
        shown_count, classifier.classes if probabilities else (),
        classifier.thresholds is not None and classifier.thresholds.decides,
        raw_csv, () if classifier.thresholds is None else classifier.thresholds.set_fields, are_masks,
        classifier.task.targets.are_paths,
        classifier.task.targets.are_ordered,
    )  # fmt: skip
    requested_count = count if probabilities or has_several else shown_count
    predictions = classifier.iter_predictions(inputs, top=requested_count, set=settings, callback=display)
    if chosen_format == "text":
        return _count_errors(_print_rows(predictions, width, count if probabilities else shown_count))[1]
    return _write_table(predictions, layout, chosen_format, out)


def _write_mask_rows(
    predictions: Iterator[MaskPrediction],
    classes: tuple[str, ...],
    chosen_format: TableFormat,
    out: Path | None,
    *,
    raw_csv: bool,
) -> int:
    """Print the areas in all masks, or write them to `out`; return the number of errors."""
    from sightline.report.prediction_writer import MaskRowFormat

    if chosen_format == "text":
        return _count_errors(segmentation_view.print_masks(predictions))[1]
    return _write_table(predictions, MaskRowFormat(classes, raw_csv), chosen_format, out)


def _check_folder(
    out: str | None,
    output_format: TableFormat | None,
    shard: str | None,
    rows_per_part: int | None,
    engine: str,
    masks: Path | None,
) -> bool:
    """Return whether `out` is a folder of Parquet files; raise if it cannot be written, or for wrong options."""
    from sightline.data.remote import is_url
    from sightline.inference import prediction_files

    if out is None or Path(out).suffix.lower() != prediction_files.SUFFIX:
        if out is not None and is_url(out):
            raise UsageError(
                f"--out {out} should end with .parquet: only a folder of Parquet files can be written to an address."
            )
        options = {"--shard": shard, "--rows-per-part": rows_per_part, "--engine ray": engine == "ray" or None}
        if wrong := [name for name, value in options.items() if value is not None]:
            raise UsageError(f"{' and '.join(wrong)}: only for a folder of Parquet files; give --out NAME.parquet.")
        return False
    if masks is not None:
        raise UsageError(f"With --masks, --out is a table of areas: name a .csv or .jsonl file instead of {out}.")
    if output_format is not None:
        raise UsageError(f"--out {out} is a folder of Parquet files, so --format does not apply: leave it out.")
    prediction_files.Shard.parse(shard)
    prediction_files.check_output(out)
    return True


def _load(
    model: str, knn: int | None, reference: str | None, device: Device | None, settings: Sequence[str] | None
) -> Classifier:
    """Return the classifier, or a nearest-neighbor classifier if the options ask for it."""
    classifier = load_model(model, device)
    if knn is None or reference is None:
        return classifier
    classifier = classifier.with_neighbors(reference, knn=knn, set=settings or ())
    _print_unreadable(getattr(classifier.predictor, "unreadable", ()))
    return classifier


def _print_files(result: PredictionFiles, shard: str | None) -> int:
    """Print a summary of a folder of Parquet files; return the number of errors."""
    whole = "" if shard is None else f" of {result.total:,}, shard {shard}"
    unread = f", {result.failed} of them failed" if result.failed else ""
    rest = "" if result.is_complete else "; other shards are not complete yet"
    print_line(f"{plural(result.images, 'image')}{whole}{unread}: {result.path}{rest}", stderr=True)
    return result.failed


def _print_unreadable(files: Sequence[tuple[str, str]]) -> None:
    """Print how many images of ``--reference`` were left out."""
    if files:
        path, reason = files[0]
        text = f"{plural(len(files), 'reference image')} cannot be read, e.g. {path}: {reason}"
        print_line(printable(text), stderr=True)


def _choose_format(output_format: TableFormat | None, out: Path | None) -> TableFormat:
    """Return the requested format; raise `UsageError` if the options contradict each other."""
    if out is None:
        return output_format or "text"
    if output_format == "text":
        raise UsageError("--out writes CSV or JSON lines: give --format csv or json, or redirect the text with `>`.")
    if output_format is not None:
        return output_format
    by_suffix: dict[str, TableFormat] = {".csv": "csv", ".jsonl": "json", ".ndjson": "json"}
    if out.suffix.lower() not in by_suffix:
        raise UsageError(f"--out {out} should end with .csv, .jsonl or .parquet, or give --format csv or json as well.")
    return by_suffix[out.suffix.lower()]


def _check_output(out: Path) -> None:
    """Raise `OutputError` if `out` exists and was not written by `predict`."""
    from sightline.report import prediction_writer

    if out.is_dir():
        raise OutputError(f"{out} is a folder: name a file in it with --out.")
    try:
        with _io.open_regular(out) as file:
            ours = prediction_writer.is_prediction_file(file.read(100))
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{out} cannot be read: {error.strerror}. Name another file with --out.") from error
    if not ours:
        raise OutputError(f"{out} exists and is not a result of predict: name another file with --out.")


def _count_errors(predictions: Iterable[Prediction | MaskPrediction]) -> tuple[int, int, str]:
    """Return the number of predictions and of errors, with the path and the reason of the first error."""
    total = errors = 0
    first = ""
    for prediction in predictions:
        total += 1
        errors += prediction.error is not None
        first = first or (f"{prediction.path}: {prediction.error}" if prediction.error is not None else "")
    return total, errors, first


def _write_table(
    predictions: Iterable[_Row], layout: RowLayout[_Row], output_format: TableFormat, out: Path | None
) -> int:
    """Print all predictions, or write them to `out` atomically; return the number of errors."""
    from sightline.report.prediction_writer import write_csv, write_jsonl

    def write(file: TextFile) -> Iterator[_Row]:
        return (write_csv if output_format == "csv" else write_jsonl)(predictions, layout, file)

    if out is None:
        return _count_errors(write(results_stream()))[1]
    counted: tuple[int, int, str] = (0, 0, "")

    def fill(file: IO[bytes]) -> None:
        nonlocal counted
        with _io.as_text(file) as text:
            counted = _count_errors(write(text))

    _io.write_atomic(out, fill)
    output.print_written(out, *counted)
    return counted[1]


def _measure_paths(items: Iterator[InputItem], inputs: Inputs) -> tuple[int, Inputs]:
    """Return the width of the path column, and all images; only the first `MAX_ALIGNED` are measured."""
    first: list[str | InputItem] = [*islice(items, MAX_ALIGNED)]
    if len(first) == MAX_ALIGNED:
        return _measure(first), chain(first, items) if inputs is items else inputs
    return _measure(first), first


def _measure(items: Sequence[str | InputItem]) -> int:
    return max([MIN_WIDTH, *(measure_text(str(getattr(item, "path", item))) for item in items)])


def _print_rows(predictions: Iterator[Prediction], width: int, shown_count: int) -> Iterator[Prediction]:
    """Print each row as soon as it is known; the path column has `width`, or that of the longest path so far.

    Multi-label rows show all predicted labels, and any others among the `shown_count` most probable ones.
    """
    for p in predictions:
        name = printable(p.path)
        width = max(width, measure_text(name))
        name += " " * (width - measure_text(name) + 2)
        if p.error is not None:
            print_line(name, (p.error, "red"))
        elif p.labels is not None:
            chosen = [f"{c.label} {c.probability:.3f}" for c in p.top if c.label in p.labels]
            others = ", ".join(f"{c.label} {c.probability:.3f}" for c in p.top[:shown_count] if c.label not in p.labels)
            undecided = f"  undecided: {', '.join(p.undecided)}" if p.undecided else ""
            label_set = "" if p.label_set is None else f"  set: {', '.join(p.label_set) or 'empty'}"
            quality = "" if p.quality is None else f"  quality {p.quality:.3f}"
            abstains = "" if p.decision is None else f"  {_format_decision(p.decision)}".rstrip()
            rest = f"{undecided}{label_set}{quality}{abstains}"
            print_line(name, (", ".join(chosen) or "no label", "bold"), "  ", (others, "dim"), rest)
        elif p.levels is not None:
            others = ", ".join(f"{c.label} {c.probability:.3f}" for c in p.top if c.label != p.node)
            probability = "" if p.node_probability is None else f" {p.node_probability:.3f}"
            print_line(name, (p.node or _format_decision(p.decision), "bold"), f"{probability}  ", (others, "dim"))
        else:
            others = ", ".join(f"{c.label} {c.probability:.3f}" for c in p.top[1:])
            decision = "" if p.decision is None else f"  {_format_decision(p.decision)}".rstrip()
            grade = "" if p.expected_grade is None else f"  expected grade {p.expected_grade:.2f}"
            print_line(name, (str(p.label), "bold"), f" {p.probability:.3f}  ", (others, "dim"), grade, decision)
        yield p


def _format_decision(decision: Decision | None) -> str:
    """Return the set of classes, or why the model abstains; empty for a predicted class."""
    if decision is None:
        return "abstain"
    if decision.decision == "set":
        return f"one of {', '.join(decision.set or ())}"
    if decision.decision != "abstain":
        return ""
    return f"abstain: {'unlike the training images' if decision.is_ood else 'too uncertain'}"
