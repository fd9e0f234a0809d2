"""`sightline export` as a user sees it, and the faults that exporting and loading must catch."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from command import Command, skip_without
from sightline import _io
from sightline.api import export
from sightline.api.decoding_vectors import write_decoding_vectors
from sightline.api.loading import load
from sightline.callbacks import Callback
from sightline.errors import ModelError, OutputError, UsageError
from sightline.inference import bundle, exported_folder
from sightline.inference.exporters import EXPORTERS
from sightline.inference.manifest import Manifest
from sightline.inference.reference_examples import hash_pixels
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.describe import weights_sha256

FOLDER_FORMATS = [*(name for name in EXPORTERS.registered_names if "" in EXPORTERS[name].suffixes), "vectors"]
INSTALLED = (pytest.mark.installed, pytest.mark.slow)


def join_lines(text: str) -> str:
    """Return `text` on one line."""
    return " ".join(text.split())


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_onnx_is_a_bundle_with_its_parity_inside(sightline: Command, run: Path, colors: Path) -> None:
    result = sightline("export", run)
    assert result.code == 0
    assert "top-1 agreement" in result.out
    loaded_bundle, _ = bundle.load(run / "exports" / "onnx")
    assert loaded_bundle.manifest.parity is not None
    assert loaded_bundle.manifest.parity["max_difference"] <= 1e-4
    assert loaded_bundle.manifest.parity["top1_agreement"] == 1
    assert loaded_bundle.manifest.parity["throughput"] > 0
    assert loaded_bundle.manifest.lineage[-1]["step"] == "export"
    same = sightline("predict", run / "exports" / "onnx", colors / "red", "--format", "json").lines
    assert [s["label"] for s in same] == [
        s["label"] for s in sightline("predict", run, colors / "red", "--format", "json").lines
    ]


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_smaller_precisions(sightline: Command, run: Path, precision: str) -> None:
    limits = ("--tolerance", 1, "--min-agreement", 0.5)  # the network has hardly learned yet
    result = sightline("export", run, "--precision", precision, "--format", "json", *limits)
    assert result.code == 0
    assert result.json["accepted"]
    assert result.json["path"] == str(run / "exports" / f"onnx-{precision}")
    size = (run / "bundle" / "model.onnx").stat().st_size
    assert 0 < result.json["parity"]["bytes"] < 0.6 * size
    assert set(result.json["parity"]) >= {"accuracy_interval", "latency_median", "latency_p99", "mean_difference"}
    loaded_bundle, _ = bundle.load(Path(result.json["path"]))
    assert loaded_bundle.manifest.precision == precision
    assert loaded_bundle.manifest.metrics == {}, "those of the run belong to another file"


def test_layers_stay_in_float_for_the_sake_of_all_images_that_are_compared(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen on the first images, of few classes, they would not help a file that is refused for the others."""
    totals: dict[str, int] = {}

    class Totals(Callback):
        def on_progress(self, task: str, done: int, total: int) -> None:
            totals[task] = total

    monkeypatch.setattr(export, "CALIBRATION_IMAGES", 4)
    export.export_model(run, precision="int8", tolerance=1, agreement=0, callback=Totals())
    assert totals["evaluating int8"] == totals["predicting (onnx)"] > 4


def test_zip_lone_file_and_a_bundle_as_the_model(sightline: Command, run: Path, colors: Path, tmp_path: Path) -> None:
    assert sightline("export", run, "--to", "bundle").code == 0
    packed = run / "exports" / "bundle.zip"
    lone = tmp_path / "lone.onnx"
    assert sightline("export", packed, "--out", lone).code == 2, "a bundle does not know its images"
    assert sightline("export", packed, "--out", lone, "--parity", colors).code == 0
    assert load(lone).classes == ("blue", "green", "red")
    assert sightline("export", lone, "--parity", colors).code == 2, "no place for it"
    again = tmp_path / "again"
    result = sightline("export", lone, "--out", again, "--parity", colors)
    assert result.code == 0, result.err
    assert bundle.read(again).manifest.reference_examples == (), "a lone file has no images"


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_model_in_a_lower_precision_is_exported_in_that_alone(
    sightline: Command, run: Path, colors: Path, tmp_path: Path, precision: str
) -> None:
    lower, again = tmp_path / "lower.zip", tmp_path / "again.onnx"
    limits = ("--tolerance", 1, "--min-agreement", 0)
    assert sightline("export", run, "--precision", precision, "--out", lower, *limits).code == 0
    for other in ("float32", "float16"):
        result = sightline("export", lower, "--precision", other, "--out", again, "--parity", colors, *limits)
        assert result.code == 2
        assert f"{lower} is stored in {precision}: export it with --precision {precision}" in join_lines(result.err)
        assert not again.exists()
    options = ("--out", again, "--parity", colors, "--format", "json")
    result = sightline("export", lower, "--precision", precision, *options)
    assert result.code == 0, result.err
    assert result.json["parity"]["max_difference"] == 0
    assert bundle.read(again).manifest.precision == precision


@pytest.mark.parametrize("of_run", [True, False], ids=["run", "bundle"])
def test_the_bundle_is_opened_once(
    run: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_run: bool
) -> None:
    model = run / "bundle" if of_run else Path(shutil.copytree(run / "bundle", tmp_path / "model"))
    opened: list[Path] = []
    load_bundle = bundle.load

    def count(path: Path, *arguments: Any) -> Any:
        opened.append(path)
        return load_bundle(path, *arguments)

    monkeypatch.setattr(bundle, "load", count)
    export.export_model(run if of_run else model, out=tmp_path / "x.onnx", data=str(colors))
    assert opened.count(model) == 1


def test_beyond_the_tolerance_nothing_is_put_in_place(sightline: Command, run: Path) -> None:
    place = run / "exports" / "onnx-bfloat16"
    result = sightline("export", run, "--precision", "bfloat16", "--tolerance", "0", "--format", "json")
    assert result.code == 1
    assert result.json["path"] is None
    assert not result.json["accepted"]
    assert result.json["parity"]["max_difference"] > 0
    difference = result.json["parity"]["max_difference"]
    assert f"the largest difference in probability is {difference:.4g}, above the limit of 0 (--tol" in join_lines(
        result.err
    )
    assert "(--min-agreement)" not in result.err, "which was met"
    assert "more images with --parity" in join_lines(result.err)
    assert [reason in join_lines(result.err) for reason in result.json["reasons"]] == [True]
    assert not place.exists()
    assert list(place.parent.iterdir()) == [], "nor any temporary file"
    assert sightline("export", run, "--precision", "bfloat16", "--tolerance", "1", "--min-agreement", "0").code == 0
    before = (place / "model.onnx").read_bytes()
    assert sightline("export", run, "--precision", "bfloat16", "--tolerance", "0").code == 1
    assert (place / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "onx"), "Did you mean 'onnx'"),
        (("--precision", "int4"), "float32, bfloat16, float16, int8"),
        (("--to", "litert", "--precision", "int8"), "cannot be written in 'int8': choose float32, or --to onnx."),
        (("--to", "bundle", "--out", "there"), ".zip"),
        (("--to", "saved_model", "--out", "there.onnx"), "folder"),
        (("--to", "vectors", "--precision", "int8"), "--to vectors compares no model, so it takes no --precision"),
        (("--to", "vectors", "--tolerance", "0"), "so it takes no --tolerance: leave it out."),
        (("--to", "vectors", "--set", "data.page=1"), "so it takes no --set: leave it out."),
        (("--tolerance", "nan"), "The tolerance is a difference of probabilities, at least 0, not nan."),
    ],
    ids=range(9),
)
def test_impossible_exports_are_rejected(sightline: Command, run: Path, arguments: tuple[str, ...], text: str) -> None:
    result = sightline("export", run, *arguments)
    assert result.code == 2
    assert text in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"tolerance": -1.0}, "The tolerance is a difference of probabilities, at least 0, not -1.0"),
        ({"min_agreement": 98.0}, "The minimum agreement is a fraction of images, from 0 to 1, not 98.0"),
    ],
)
def test_impossible_limits_are_refused_before_any_work(
    run: Path, limits: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load(run)
    monkeypatch.setattr(export, "load", None)
    with pytest.raises(UsageError, match=text):
        classifier.export(run.parent / "never", **limits)


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (("--to", "openvino"), "openvino", "export"),
        (("--to", "litert"), "ai_edge_litert", "export"),
        (("--to", "saved_model"), "tensorflow", "tensorflow"),
        (("--precision", "int8"), "onnx", "train"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_package_is_named_before_any_work(
    sightline: Command, arguments: tuple[str, ...], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even before the model is loaded: it does not exist."""
    monkeypatch.setitem(sys.modules, package, None)
    result = sightline("export", "nowhere", *arguments)
    assert result.code == 2
    assert f"'{package.replace('_', '-')}', which is not installed" in result.err
    assert f'pip install ".[{extra}]"' in result.err


@pytest.mark.installed
@pytest.mark.parametrize("form", ["litert", "saved_model"])
def test_formats_of_keras_need_a_keras_model_on_tensorflow(
    sightline: Command, run: Path, colors: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reported before the model runs, which takes long."""
    monkeypatch.setattr(type(EXPORTERS[form]), "packages", ())
    monkeypatch.setattr("sightline.api.export._comparison_images", None)
    out = ("--out", tmp_path / "x", "--parity", colors)
    alone = run / "bundle" / "model.onnx"
    result = sightline("export", alone, "--to", form, *out)
    assert result.code == 2
    assert f"{form} requires a Keras model, which {alone} does not contain" in join_lines(result.err)
    assert "requires a Keras model" in join_lines(sightline("export", alone, "--to", form).err), (
        "the place is no matter"
    )
    monkeypatch.setattr("sightline.backend.name", lambda: "jax")
    result = sightline("export", "nowhere", "--to", form, *out)
    assert result.code == 2
    assert "needs the backend TensorFlow, not jax" in join_lines(result.err)
    assert list(tmp_path.glob("x")) == []


@pytest.mark.installed
@pytest.mark.slow
@pytest.mark.parametrize(("form", "package"), [("openvino", "openvino"), ("litert", "ai_edge_litert")])
def test_formats_of_other_packages(sightline: Command, run: Path, form: str, package: str) -> None:
    pytest.importorskip(package)
    result = sightline("export", run, "--to", form, "--format", "json")
    assert result.code == 0
    check_folder(Path(result.json["path"]), run)


def test_safetensors_hold_the_weights_of_the_run(sightline: Command, run: Path, colors: Path) -> None:
    result = sightline("export", run, "--to", "safetensors", "--format", "json")
    assert result.code == 0, result.err
    assert result.json["parity"]["max_difference"] == 0
    folder = run / "exports" / "safetensors"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "layers.json",
        "manifest.json",
        "reference",
    }
    classifier = load(folder)
    assert isinstance(classifier.predictor, KerasPredictor)
    assert classifier.manifest is not None
    assert weights_sha256(classifier.predictor.model) == classifier.manifest.weights_sha256
    (folder / "layers.json").write_bytes((folder / "layers.json").read_bytes() + b" ")
    with pytest.raises(ModelError, match=r"layers\.json was changed"):
        load(folder)


def test_saved_model(sightline: Command, run: Path) -> None:
    result = sightline("export", run, "--to", "saved_model", "--format", "json")
    assert result.code == 0
    check_folder(Path(result.json["path"]), run)


@pytest.mark.parametrize(
    ("form", "package"),
    [
        pytest.param("openvino", "openvino", marks=INSTALLED),
        pytest.param("litert", "ai_edge_litert", marks=INSTALLED),
        ("saved_model", "tensorflow"),
    ],
)
def test_a_program_of_the_guide_agrees_with_the_run(
    sightline: Command, run: Path, form: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    assert sightline("export", run, "--to", form).code == 0
    guide = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (program,) = [code for code in re.findall("```python\n(.*?)```", guide, re.DOTALL) if f'"exports/{form}/' in code]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    monkeypatch.chdir(run)
    names = {"pixels": pixels}
    exec(program, names)  # noqa: S102  # our own text
    np.testing.assert_allclose(names["probabilities"], load(run).predictor.outputs(pixels).probabilities, atol=1e-5)


def test_a_full_disk_is_named_when_a_saved_model_is_opened(
    sightline: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(sightline("export", run, "--to", "saved_model", "--format", "json").json["path"])

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match=r"^The temporary folder .* No space left on device\. .* set TMPDIR to"):
        load(folder)


def check_folder(folder: Path, run: Path) -> None:
    """Check that a folder loads and predicts like the run, and is rejected if any of its files is changed."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    manifest, predictor = exported_folder.load(folder)
    expected = load(run).predictor.outputs(pixels)
    outputs = predictor.outputs(pixels)
    assert manifest.parity is not None
    np.testing.assert_allclose(outputs.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(outputs.features, expected.features, rtol=1e-3, atol=1e-4)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        before = path.read_bytes()
        path.write_bytes(flip_bit(before))
        with pytest.raises(ModelError, match="export"):
            exported_folder.load(folder)
        path.write_bytes(before)
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    for old, new in (('"resize": "stretch"', '"resize": "pad"'), ("green", "red")):
        changed = swap_words(text, old, new) if old == "green" else text.replace(old, new)
        assert changed != text
        (folder / "manifest.json").write_text(changed, encoding="utf-8")
        with pytest.raises(ModelError, match="was changed"):
            exported_folder.load(folder)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    exported_folder.load(folder)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_place_that_is_taken_or_cannot_be_written_is_refused_before_keras_is_loaded(
    sightline: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the Keras model was loaded")

    monkeypatch.setattr(KerasPredictor, "load", fail)
    (tmp_path / "taken").mkdir()
    for place in (tmp_path / "taken" / "file", tmp_path / "taken.onnx"):
        place.write_text("a file of the user's")
    for arguments, words in (
        (("export", run, "--out", tmp_path / "taken.onnx"), "taken.onnx exists and is not a bundle that can be read"),
        (("export", run, "--to", "saved_model", "--out", tmp_path / "taken"), "taken exists and is not an export"),
        (
            ("export", run, "--to", "saved_model", "--out", tmp_path / "a.b"),
            "saved_model is a folder without a suffix: change --out",
        ),
        (
            ("export", run, "--out", tmp_path / "a.tflite"),
            "is a folder without a suffix or a file that ends with .onnx or .zip: change --out",
        ),
        (("export", run, "--to", "bundle", "--out", tmp_path / "a.v2"), "bundle is a file that ends with .zip"),
        (("compress", run, "--out", tmp_path / "taken"), "taken already exists and holds no search"),
        (("export", run, "--out", tmp_path / "taken.onnx" / "a"), "taken.onnx is not writable: Not a directory"),
        (("compress", run, "--out", tmp_path / "taken.onnx" / "a"), "taken.onnx is not writable: Not a directory"),
    ):
        result = sightline(*arguments)
        assert (result.code, result.out) == (2, "")
        assert words in join_lines(result.err)


@pytest.mark.parametrize(
    "form",
    [pytest.param(name, marks=INSTALLED if name in {"openvino", "litert"} else ()) for name in FOLDER_FORMATS],
)
def test_only_its_own_files_are_replaced(sightline: Command, run: Path, tmp_path: Path, form: str) -> None:
    for package in EXPORTERS[form].packages if form != "vectors" else ():
        skip_without(package)
    out = tmp_path / "webapp"
    arguments = ("export", run, "--to", form, "--out", out)
    out.write_text("a file of the user's")
    assert "webapp exists and" in join_lines(sightline(*arguments).err)
    assert out.read_text() == "a file of the user's"
    out.unlink()
    out.mkdir()
    for name in ("manifest.json", "vectors.json"):
        (out / name).write_text('{"name": "My app", "start_url": "index.html", "files": {"index.html": "app"}}')
    (out / "index.html").write_text("my app")
    before = read_files(out)
    result = sightline(*arguments)
    assert result.code == 2
    words = "holds no test vectors" if form == "vectors" else "is not an export"
    assert f"webapp exists and {words}: choose another place with --out." in join_lines(result.err)
    assert read_files(out) == before
    for path in out.iterdir():
        path.unlink()
    assert sightline(*arguments).code == 0, "an empty folder"
    (out / "figures").mkdir()
    (out / "figures" / "notes.md").write_text("mine")
    before = read_files(out)
    result = sightline(*arguments)
    assert result.code == 2
    assert "contains figures/notes.md, which Sightline did not write there: move it elsewhere" in join_lines(result.err)
    assert read_files(out) == before
    (out / "figures" / "notes.md").unlink()
    example = next((out / "reference").iterdir())
    example.write_bytes(b"damaged")
    assert sightline(*arguments).code == 0, "also after a change"
    assert example.read_bytes() != b"damaged"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".part-")] == []


@pytest.mark.parametrize("name", ["photos.zip", "other.onnx"])
def test_a_file_is_replaced_only_if_it_is_a_bundle(sightline: Command, run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    arguments = ("export", run, "--to", "bundle" if out.suffix == ".zip" else "onnx", "--out", out)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("cat/1.jpg", b"a photograph")
    before = out.read_bytes()
    result = sightline(*arguments)
    assert result.code == 2
    assert f"{name} exists and is not a bundle that can be read: choose another place" in join_lines(result.err)
    assert out.read_bytes() == before
    out.unlink()
    (tmp_path / "manifest.json").write_text('{"name": "a web page that uses the model"}')
    assert sightline(*arguments).code == 0
    assert sightline(*arguments).code == 0, "in place of the former bundle"
    if out.suffix == ".zip":
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("notes.md", b"mine")
        before = out.read_bytes()
        assert "contains notes.md, which Sightline did not write there" in join_lines(sightline(*arguments).err)
        assert out.read_bytes() == before


def test_the_bundle_of_a_run_is_answered_with_the_run(sightline: Command, run: Path) -> None:
    refused = sightline("export", run / "bundle")
    assert refused.code == 2
    assert f"give one with --out, or give the run {run.resolve()}." in refused.err


def test_the_bundle_of_a_run_is_not_replaced(sightline: Command, run: Path) -> None:
    before = read_files(run)
    for out in (run / "bundle", run / "bundle" / "model.onnx"):
        result = sightline("export", run, "--precision", "float16", "--out", out)
        assert result.code == 2
        assert f"is part of the model {out.parent}: choose another place with --out." in join_lines(result.err)
    assert read_files(run) == before


@pytest.mark.parametrize(
    ("form", "owner", "method"),
    [
        ("bundle", os, "fsync"), ("onnx", os, "fsync"),
        ("vectors", Path, "write_bytes"), ("safetensors", Path, "write_bytes"),
    ],
)  # fmt: skip
def test_a_full_disk_is_reported_with_the_place_that_was_given(
    run: Path, tmp_path: Path, form: str, owner: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), ".part-0123")

    out = tmp_path / "new" / ("a.zip" if form == "bundle" else "a")
    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(OutputError) as raised:
        write_decoding_vectors(run, out) if form == "vectors" else export.export_model(run, form, out=out)
    assert str(raised.value).startswith(f"{out} cannot be written: No space left on device. Free some space")
    assert ".part-" not in str(raised.value)
    assert not list(out.parent.iterdir())


def test_what_tensorflow_raises_on_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=f"^{re.escape(str(tmp_path))} cannot be written: No space left on device"),
        exported_folder.explain_write_errors(tmp_path),
        exported_folder.explain_converter_errors("The format cannot hold this model"),
    ):
        raise RuntimeError("{{node SaveV2}} /tmp/.part-0/variables; No space left on device")


def test_the_default_folder_may_hold_a_file_of_the_users(sightline: Command, run: Path) -> None:
    notes = run / "exports" / "onnx" / "notes.md"
    assert sightline("export", run).code == 0
    notes.write_text("mine")
    result = sightline("export", run)
    assert result.code == 2
    assert "contains notes.md, which Sightline did not write there: move it elsewhere first." in join_lines(result.err)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("form", ["onnx", "safetensors", "vectors"])
def test_an_interrupted_export_leaves_the_former_one(
    sightline: Command, run: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = run / "exports" / form, Path.rename
    monkeypatch.setattr(_io, "_exchange", lambda _first, _second: False)  # as where folders cannot change places
    assert sightline("export", run, "--to", form).code == 0
    before = read_files(place)

    def interrupt(path: Path, target: Path) -> None:
        if path.name != "old" and target == place:
            raise KeyboardInterrupt
        rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    assert sightline("export", run, "--to", form).code == 130
    assert read_files(place) == before
    assert [path.name for path in place.parent.iterdir()] == [form], "and no temporary file"


@pytest.mark.parametrize("form", ["onnx", "safetensors", "vectors"])
def test_the_current_folder_is_not_replaced(
    sightline: Command, run: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = sightline("export", run, "--to", form, "--out", ".")
    assert result.code == 2
    assert ". is the current folder, which cannot be replaced: name a folder in it." in join_lines(result.err)


def flip_bit(data: bytes, place: float = 0.5) -> bytes:
    at = int(len(data) * place)
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def swap_words(text: str, one: str, other: str) -> str:
    return text.replace(one, "\0").replace(other, one).replace("\0", other)


def in_manifest(change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply_fault(run: Path) -> None:
        path = run / "bundle" / "manifest.json"
        text = path.read_text(encoding="utf-8")
        assert change(text) != text
        path.write_text(change(text), encoding="utf-8")

    return apply_fault


def in_both(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change the manifest, its copy inside the ONNX file, and every hash, like a knowledgeable attacker."""

    def apply_fault(run: Path) -> None:
        loaded_bundle, _ = bundle.load(run / "bundle")
        values = loaded_bundle.manifest.to_dict()
        change(values)
        manifest = Manifest.from_dict(values)
        bundle.write_folder(bundle.make(manifest, loaded_bundle.model, loaded_bundle.files), run / "bundle")

    return apply_fault


def in_model(run: Path) -> None:
    path = run / "bundle" / "model.onnx"
    path.write_bytes(flip_bit(path.read_bytes()))


def swap_channels(run: Path) -> None:
    """Swap the color channels of the model, with all hashes valid."""
    loaded_bundle, _ = bundle.load(run / "bundle")
    model = onnx.load_from_string(loaded_bundle.model)
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if array.ndim == 4 and array.shape[1] == 3:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[:, ::-1]), weight.name))
    values = loaded_bundle.manifest.to_dict() | {"reference_examples": []}  # otherwise loading would detect it
    new_bundle = bundle.make(Manifest.from_dict(values), model.SerializeToString(), {})
    bundle.write_folder(new_bundle, run / "bundle")


FAULTS: dict[str, tuple[Callable[[Path], None], int]] = {
    "preprocessing": (
        in_manifest(lambda text: text.replace('"interpolation": "bilinear"', '"interpolation": "nearest"')),
        2,
    ),
    "preprocessing, everywhere": (in_both(lambda v: v["preprocess"].update(resize="pad", height=31)), 2),
    "classes": (in_manifest(lambda text: swap_words(text, '"green"', '"red"')), 2),
    "classes, everywhere": (in_both(lambda v: v.update(classes=["blue", "red", "green"])), 2),
    "weight": (in_model, 2),
    "channels": (swap_channels, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(sightline: Command, run: Path, fault: str) -> None:
    apply_fault, code = FAULTS[fault]
    apply_fault(run)
    result = sightline("export", run, "--format", "json")
    assert result.code == code, result.out + result.err
    assert not (run / "exports" / "onnx").exists()


@pytest.mark.parametrize("place", np.linspace(0.02, 0.98, 12).round(2).tolist())
def test_one_flipped_bit_anywhere_in_the_file_is_caught(run: Path, place: float) -> None:
    path = run / "bundle" / "model.onnx"
    path.write_bytes(flip_bit(path.read_bytes(), place))
    with pytest.raises(ModelError):
        bundle.load(run / "bundle")
    with pytest.raises(ModelError):
        bundle.load(path)  # without the hashes of the folder


def test_vectors_hold_what_a_decoder_needs(sightline: Command, run: Path) -> None:
    result = sightline("export", run, "--to", "vectors", "--format", "json")
    assert result.code == 0
    folder = Path(result.json["path"])
    content = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
    classifier = load(folder / "model.onnx")
    assert content["classes"] == list(classifier.classes)
    assert content["examples"]
    for example in content["examples"]:
        raw = np.frombuffer((folder / example["pixels"]).read_bytes(), np.uint8).reshape(example["shape"])
        again = classifier.preprocess.decode((folder / example["file"]).read_bytes())
        np.testing.assert_array_equal(raw, again)
        assert hash_pixels(raw) == example["sha256"]
        assert raw.ravel()[:24].tolist() == example["first_values"]
        np.testing.assert_allclose(raw.mean((0, 1)), example["mean"])
        np.testing.assert_allclose(
            classifier.predictor.probabilities(raw[None])[0], example["probabilities"], atol=1e-5
        )
    assert sightline("export", run, "--to", "vectors").code == 0, "made anew"
    assert sightline("export", run / "bundle" / "model.onnx", "--to", "vectors", "--out", folder).code == 2
