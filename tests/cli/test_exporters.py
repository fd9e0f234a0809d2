"""Exporters of other packages: the same comparison, the same refusals, one sentence for each mistake."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import Command
from sightline import load, register_exporter
from sightline.errors import MissingExtraError, ModelError, UsageError
from sightline.inference.exporters import EXPORTERS, PRECISIONS, Exporter, ExportInput
from sightline.inference.parity import TOLERANCES
from sightline.inference.predictor import Predictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.preprocessing import PreprocessingSpec


class CopyExporter(Exporter):
    """The ONNX file under another name."""

    files = ("copy.bin",)

    def write(self, model: ExportInput, folder: Path) -> None:
        (folder / "copy.bin").write_bytes(model.onnx_file)

    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        return OnnxPredictor(files["copy.bin"], classes, preprocess, threads)


class SwappedPredictor(OnnxPredictor):
    """A runtime that takes BGR, as a careless port would."""

    def outputs(self, pixels: Any) -> Any:
        return super().outputs(pixels[..., ::-1])

    def probabilities(self, pixels: Any) -> Any:
        return super().probabilities(np.ascontiguousarray(pixels[..., ::-1]))


class SwappedExporter(CopyExporter):
    """A faulty one."""

    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        return SwappedPredictor(files["copy.bin"], classes, preprocess, threads)


class FailingExporter(CopyExporter):
    """One whose converter gives up."""

    def write(self, model: ExportInput, folder: Path) -> None:
        raise RuntimeError("no kernel for Conv\nat line 3")


class NeedyExporter(CopyExporter):
    """One whose package is not installed."""

    packages = ("no_such_converter",)


@pytest.fixture(autouse=True)
def _forget_exporters() -> Iterator[None]:
    before = dict(EXPORTERS._entries)
    yield
    EXPORTERS._entries.clear()
    EXPORTERS._entries.update(before)


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_a_precision_has_a_tolerance_and_every_exporter_states_known_ones() -> None:
    assert set(PRECISIONS) == set(TOLERANCES)
    assert all({*exporter.precisions} <= {*PRECISIONS} for exporter in EXPORTERS.values())
    with pytest.raises(UsageError, match="The export format small states the precision 'int4': expected some of"):
        register_exporter("small")(type("Small", (CopyExporter,), {"precisions": ("int4",)}))
    assert "small" not in EXPORTERS


def test_a_file_of_another_package_is_kept_if_its_predictions_agree(sightline: Command, run: Path) -> None:
    register_exporter("copy")(CopyExporter)
    result = sightline("export", run, "--to", "copy", "--format", "json")
    assert result.code == 0
    assert result.json["parity"]["max_difference"] <= 1e-4
    again = load(run / "exports" / "copy")
    assert again.manifest is not None
    assert again.manifest.lineage[-1]["format"] == "copy"
    assert load(run / "exports" / "copy" / "copy.bin").classes == again.classes


def test_a_format_whose_package_is_not_installed_is_named(sightline: Command, run: Path) -> None:
    register_exporter("copy")(CopyExporter)
    assert sightline("export", run, "--to", "copy").code == 0
    del EXPORTERS._entries["copy"]
    with pytest.raises(ModelError, match=r"states the format 'copy', which no installed package .*Install the package"):
        load(run / "exports" / "copy")


def test_a_file_that_predicts_something_else_is_not_put_in_place(sightline: Command, run: Path) -> None:
    register_exporter("swapped")(SwappedExporter)
    result = sightline("export", run, "--to", "swapped")
    assert result.code == 1
    assert "The swapped file in float32 was not written" in " ".join(result.err.split())
    assert list((run / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("exporter", "words"),
    [
        (FailingExporter, "The format other cannot hold this model: no kernel for Conv"),
        (NeedyExporter, "needs the package 'no-such-converter', which is not installed: pip install no-such-converter"),
    ],
)
def test_a_failure_is_one_sentence(sightline: Command, run: Path, exporter: type[Exporter], words: str) -> None:
    register_exporter("other")(exporter)
    result = sightline("export", run, "--to", "other")
    assert result.code == 2
    assert words in " ".join(result.err.split())
    assert "Traceback" not in result.err
    with pytest.raises((ModelError, MissingExtraError)):
        load(run).export(to="other")


def test_an_unknown_format_gets_a_suggestion(run: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no export format 'onx'\. Did you mean 'onnx'\?"):
        load(run).export(to="onx")
