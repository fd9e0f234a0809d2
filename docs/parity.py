"""Write the table of benchmarks/results/export.md: each network in each format; needs the extra `export`.

    python docs/parity.py [NAME...] [--images FOLDER] [--dry]

Random weights prove nothing: a deep network hardly answers to the image then. `lively` draws weights that keep the
signal, fits the statistics of normalization to real images and scales the last layer, so that logits vary over the
images. Each format is then compared with Keras on those images, and once more with red and blue swapped in the
pixels that it gets: a check that does not fail then is worth nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import ModelConfig
from sightline.errors import SightlineError
from sightline.export import keras_to_onnx
from sightline.inference import exported_folder, parity
from sightline.inference.exporters import EXPORTERS, ExportInput
from sightline.inference.manifest import Manifest
from sightline.inference.parity import Parity, Tolerance
from sightline.inference.predictor import Predictor
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models import registry
from sightline.models.build import ModelSpec, build_model
from sightline.preprocessing import PreprocessingSpec

PAGE = Path(__file__).parents[1] / "benchmarks" / "results" / "export.md"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
SPREAD = 2.0  # the range over the images of the logit that varies least; what float32 rounds away grows with it
COUNT = 40  # images
HIDDEN = {"alexnet": 64, "vgg16": 64, "vgg19": 64}  # 4096 in the papers; 500 MB prove no more


@dataclass(frozen=True)
class Row:
    """One network in one format; `spread` is the least range of a logit, `swapped` with red and blue swapped."""

    name: str
    side: int
    format: str
    spread: float
    difference: Parity
    swapped: Parity


def images(folder: Path, side: int, count: int = COUNT) -> NDArray[np.uint8]:
    """Return uint8 [count, side, side, 3]: images spread over all below `folder`."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]
    preprocess = PreprocessingSpec(side, side, resize="crop")
    return np.stack([preprocess.decode(path.read_bytes()) for path in chosen])


def lively(name: str, pixels: NDArray[np.uint8], spread: float = SPREAD) -> Any:
    """Return the network `name` as a Keras model whose logits each vary by at least `spread` over `pixels`.

    Kernels after He et al. (2015, arXiv:1502.01852), batch normalization with the statistics of the images.
    """
    options: dict[str, Any] = {"hidden_units": (HIDDEN[name],)} if name in HIDDEN else {}
    side = pixels.shape[1]
    plan = ModelSpec(
        ModelConfig(name=name, initializer="he", **options), side, side, 3, len(CLASSES), 1, pixel_stats=(110.0, 65.0)
    )
    model = build_model(plan).model
    keras = backend.keras()
    for layer in model.layers:
        if isinstance(layer, keras.layers.EinsumDense):  # scales of residual branches, which start at next to nothing
            layer.kernel.assign(np.full(layer.kernel.shape, 0.5, np.float32))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(8):
        model(pixels, training=True)
    last = model.get_layer("predictions")
    logits = KerasPredictor(model, CLASSES, PreprocessingSpec(side, side)).outputs(pixels).logits
    last.kernel.assign(np.asarray(last.kernel) * (spread * 1.05 / np.ptp(logits, axis=0)))
    middle = KerasPredictor(model, CLASSES, PreprocessingSpec(side, side)).outputs(pixels).logits.mean(0)
    last.bias.assign(np.asarray(last.bias) - middle)  # else one class may win everywhere
    return model


def forms(model: Any, preprocess: PreprocessingSpec) -> Iterator[tuple[str, Predictor]]:
    """Yield the predictor of each format; raises `MissingExtraError` where a package is not here."""
    manifest = Manifest("", CLASSES, preprocess)
    source = ExportInput("float32", manifest, keras_to_onnx.convert_model(model), model)
    for name, exporter in EXPORTERS.items():
        if exporter.suffixes == (".zip",):  # the files of onnx in a zip
            continue
        exporter.check_requirements()
        with tempfile.TemporaryDirectory() as folder:
            exporter.write(source, Path(folder))
            yield name, exported_folder.load_unverified(Path(folder), exporter, manifest)


def rows(name: str, folder: Path) -> Iterator[Row]:
    """Yield a row for each format of one network, on images of the smallest sensible side."""
    side = max(registry.get_entry(name).min_input_size, 64 if registry.get_entry(name).input_size > 64 else 32)
    pixels = images(folder, side)
    model = lively(name, pixels)
    preprocess = PreprocessingSpec(side, side)
    truth = KerasPredictor(model, CLASSES, preprocess).outputs(pixels)
    spread = float(np.ptp(truth.logits, axis=0).min())
    for form, predictor in forms(model, preprocess):
        difference = parity.compare_probabilities(truth.probabilities, predictor.probabilities(pixels))
        swapped = parity.compare_probabilities(truth.probabilities, predictor.probabilities(pixels[..., ::-1]))
        yield Row(name, side, form, spread, difference, swapped)


def faults(row: Row) -> list[str]:
    """Return what is wrong with a row: too great a difference, dull logits, or a swap that nothing noticed."""
    problems = []
    if not row.difference.is_within(Tolerance()):
        problems.append(f"differs by {row.difference.max_difference:.2g}")
    if row.spread < 1:
        problems.append(f"logits vary by {row.spread:.2g} only")
    if row.swapped.is_within(Tolerance()):
        problems.append("red and blue swapped was not noticed")
    return [f"{row.name} as {row.format}: {text}" for text in problems]


def line(row: Row) -> str:
    """Return a row as Markdown."""
    return (
        f"| `{row.name}` | {row.side} | {row.spread:.1f} | {row.format} | {row.difference.max_difference:.1e} | "
        f"{row.difference.top1_agreement:.3f} | {row.swapped.max_difference:.1e} |"
    )


def table(new_rows: list[Row], old: str = "") -> str:
    """Return the rows as Markdown, in the registry's order; those of the table `old` stay where there are no new."""
    lines = [
        "| network | side | range of a logit | format | greatest difference | top-1 agreement | red and blue swapped |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in registry.ENTRIES:
        new = [line(row) for row in new_rows if row.name == name]
        lines += new or [text for text in old.splitlines() if text.startswith(f"| `{name}` |")]
    return "\n".join(lines)


def main() -> None:
    """Compute the table and write it between the page's markers; exits with 1 if a row is at fault.

    Of networks that are not named, the rows that stand there stay.
    """
    shared = Path(os.environ.get("SIGHTLINE_SHARED") or Path(__file__).parents[2] / "shared")
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(registry.ENTRIES), metavar="NAME")
    parser.add_argument("--images", type=Path, default=shared / "data" / "flowers5")
    parser.add_argument("--dry", action="store_true", help="print the table and leave the page as it is")
    arguments = parser.parse_args()
    new_rows: list[Row] = []
    for name in arguments.names:
        try:
            for row in rows(name, arguments.images):
                new_rows.append(row)
                print(line(row), *faults(row), flush=True)  # noqa: T201  # progress
        except SightlineError as error:
            raise SystemExit(f"{error} Nothing was written.") from error
        backend.keras().utils.clear_session()
    if not arguments.dry:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        old, after = rest.split(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table(new_rows, old)}\n{END}{after}", encoding="utf-8")
    wrong = [text for row in new_rows for text in faults(row)]
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
