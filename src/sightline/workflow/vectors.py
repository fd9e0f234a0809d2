"""Test vectors: reference examples with decoded pixels, to test decoders in other languages."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sightline import jsonio
from sightline.errors import ModelError, OutputError, UsageError
from sightline.prediction import bundle, exported
from sightline.workflow.classifier import load
from sightline.workflow.ending import no_bundle


def vectors(model: str | Path, out: str | Path | None = None) -> Path:
    """Write ``vectors.json``, the reference images, ``pixels/`` and ``model.onnx`` into a folder, and return it.

    `model` is a run or a bundle with reference examples; `out` defaults to ``RUN/exports/vectors``. Raises
    `ModelError`, `UsageError` and `OutputError`.
    """
    classifier = load(model)
    run = classifier.run
    if exported.find(Path(model)) is not None:
        raise UsageError(f"{model} is an export in a format other than ONNX: give its run.")
    place = Path(model)
    if run is not None:
        if run.bundle is None:
            raise ModelError(f"The run {model} has no bundle to take examples from: {no_bundle(run)}.")
        place = run.bundle
    if run is None and out is None:
        raise UsageError("A bundle has no default folder for exports: give one with --out.")
    target = Path(out) if out is not None else Path(model) / "exports" / "vectors"
    if target.exists() and not (target / "vectors.json").is_file():
        raise OutputError(f"{target} contains something else: choose another folder with --out.")
    found, _ = bundle.load(place)
    if not found.files:
        raise ModelError(f"{place} contains no reference examples: give the run, the folder of its bundle or its .zip.")
    manifest, files, examples = found.manifest, {bundle.MODEL: found.model}, []
    for golden in manifest.golden:
        pixels = manifest.preprocess.decode(found.files[golden.file])
        name = f"pixels/{Path(golden.file).stem}.bin"
        files |= {golden.file: found.files[golden.file], name: pixels.tobytes()}
        examples.append(_example(golden, pixels) | {"pixels": name})
    content = {"classes": list(manifest.classes), "preprocess": manifest.preprocess.to_dict(), "examples": examples}
    files["vectors.json"] = (jsonio.dumps(content, indent=1) + "\n").encode()
    with tempfile.TemporaryDirectory(prefix="sightline-") as aside:
        made = Path(aside, "vectors")
        for name, data in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(data)
        exported.place(made, target)
    return target


def _example(golden: Any, pixels: Any) -> dict[str, Any]:
    return {
        "file": golden.file,
        "label": golden.label,
        "shape": list(pixels.shape),
        "sha256": golden.pixels_sha256,
        "first": pixels.ravel()[:24].tolist(),
        "mean": [float(m) for m in pixels.mean((0, 1), dtype=np.float64)],
        "probabilities": list(golden.probabilities),
    }
