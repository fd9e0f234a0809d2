"""Test vectors: reference examples with decoded pixels, to test decoders in other languages."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from sightline import _io, jsonio
from sightline.api.loading import load
from sightline.errors import ModelError, OutputError, UsageError
from sightline.inference import bundle, exported_folder
from sightline.runs.failures import require_bundle


def write_decoding_vectors(model: str | Path, out: str | Path | None) -> Path:
    """Write ``vectors.json``, the reference images, ``pixels/`` and ``model.onnx`` into a folder, and return it.

    `model` is a run or a bundle with reference examples; `out` defaults to ``RUN/exports/vectors``. Raises
    `ModelError`, `UsageError` and `OutputError`.
    """
    model = _io.expand_home(model)
    classifier = load(model)
    run = classifier.run
    if exported_folder.find(model) is not None:
        raise UsageError(f"{model} is an export in a format other than ONNX: give its run.")
    bundle_path = model if run is None else require_bundle(run, "to take examples from")
    default = classifier.require_run().path / "exports" / "vectors" if out is None else out
    target = _io.output_path(default)
    _check_replaceable(target)
    loaded_bundle = bundle.read(bundle_path)
    if not loaded_bundle.files:
        raise ModelError(
            f"{bundle_path} contains no reference examples: give the run, the folder of its bundle or its .zip."
        )
    manifest, files, examples = loaded_bundle.manifest, {bundle.MODEL_FILE: loaded_bundle.model}, []
    for example in manifest.reference_examples:
        pixels = manifest.preprocess.decode(loaded_bundle.files[example.file])
        name = f"pixels/{Path(example.file).stem}.bin"
        files |= {example.file: loaded_bundle.files[example.file], name: pixels.tobytes()}
        examples.append(_example_to_dict(example, pixels) | {"pixels": name})
    content = {"classes": list(manifest.classes), "preprocess": manifest.preprocess.to_dict(), "examples": examples}
    files["vectors.json"] = (jsonio.dumps(content, indent=1) + "\n").encode()
    _io.refuse_links_in_run(target.parent)
    with exported_folder.explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as temp_dir:
            staging = Path(temp_dir, "vectors")
            for name, data in files.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).write_bytes(data)
            exported_folder.move_into_place(staging, target)
    return target


class _ExampleFiles(TypedDict):
    file: str
    pixels: str


class _Vectors(TypedDict):
    """What distinguishes our ``vectors.json`` from another file of this name."""

    classes: Sequence[str]
    preprocess: Mapping[str, Any]
    examples: Sequence[_ExampleFiles]


def _check_replaceable(folder: Path) -> None:
    """Raise `OutputError` if a folder contains anything but test vectors."""
    if _io.is_free(folder):
        return
    try:
        vectors = jsonio.build(_Vectors, jsonio.read_object(folder / "vectors.json"), "vectors.json")
    except ModelError as error:
        raise OutputError(f"{folder} exists and holds no test vectors: choose another place with --out.") from error
    example_files = (example[key] for example in vectors["examples"] for key in ("file", "pixels"))
    bundle.refuse_foreign_files(folder, {"vectors.json", bundle.MODEL_FILE, *example_files})


def _example_to_dict(example: Any, pixels: Any) -> dict[str, Any]:
    return {
        "file": example.file,
        "label": example.label,
        "shape": list(pixels.shape),
        "sha256": example.pixels_sha256,
        "first_values": pixels.ravel()[:24].tolist(),
        "mean": [float(m) for m in pixels.mean((0, 1), dtype=np.float64)],
        "probabilities": list(example.probabilities),
    }
