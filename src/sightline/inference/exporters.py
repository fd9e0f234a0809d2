"""The formats that `export` writes: their requirements, and how they are written and opened.

Every file is opened in its own runtime and compared with the model; a file that differs by more than `TOLERANCES` is
discarded. `inference.bundle` writes and loads bundles; an exporter writes and loads the files of its format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from sightline.errors import UsageError, check_installed
from sightline.plugins import Registry

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.inference.manifest import Manifest
    from sightline.inference.predictor import Predictor
    from sightline.preprocessing import PreprocessingSpec

PRECISIONS = ("float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True, slots=True)
class ExportInput:
    """The input of an exporter: the model in the form named by `Exporter.source`, and the `precision` to write.

    For the source "onnx", `onnx_file` is an ONNX file in the precision that `Exporter.get_graph_precision` returns; for
    "keras", `keras_model` is a Keras model. Both take uint8 pixels [N, H, W, C], named ``pixels``, and return
    ``probabilities``, ``logits`` and ``features``.
    """

    precision: str
    manifest: Manifest
    onnx_file: bytes = b""
    keras_model: Any = None


class Exporter(ABC):
    """One format: a subclass states what it needs, writes the model's files into a folder, and opens them again.

    The first line of its docstring describes it in listings.
    """

    name: str
    files: ClassVar[tuple[str, ...]]
    """The files that `write` creates, or their folder; the path of the first one also identifies the whole export."""
    source: ClassVar[Literal["onnx", "keras"]] = "onnx"
    """What the model is written from. "keras" requires a run, or a bundle next to its Keras model."""
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    """The `PRECISIONS` that the format supports."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The import names of the packages that writing and opening need."""
    is_bundle: ClassVar[bool] = False
    """Whether the format is Sightline's bundle; not for other packages. `export` writes and loads it without `write`
    and `open`, and its manifest is in the graph. All other formats get a manifest file next to their own files."""
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    """The suffixes that `out` may have, "" for a folder."""

    @property
    def description(self) -> str:
        """The first line of the docstring, without its period."""
        return (type(self).__doc__ or self.name).strip().partition("\n")[0].rstrip(".")

    def check_requirements(self) -> None:
        """Raise an error of one sentence if the format cannot be written here; called before any work is done."""
        check_installed(*self.packages, purpose=f"The format {self.name}")

    def get_graph_precision(self, precision: str) -> str:
        """Return the precision of the ONNX file that `write` receives: "float32" if `write` itself lowers it."""
        return precision

    @abstractmethod
    def write(self, model: ExportInput, folder: Path) -> None:
        """Write the `files` of the model into an empty folder."""

    @abstractmethod
    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        """Return a predictor for the contents of a written folder, by file name, in the format's own runtime.

        `threads` is the number of compute threads; 0 lets the runtime choose.
        """


EXPORTERS: Registry[Exporter] = Registry("exporter", noun="export format")
E = TypeVar("E", bound=type[Exporter])


def register_exporter(name: str) -> Callable[[E], E]:
    """Register the decorated subclass of `Exporter` as a format that ``sightline export --to`` writes.

    See [Extending](extending.md).

    Args:
        name: The name of the format.

    Returns:
        A decorator, which returns the class unchanged.

    Raises:
        UsageError: If another format has this name, or the class states a precision that does not exist.
    """

    def make_exporter(exporter: E) -> Exporter:
        EXPORTERS.check_subclass(exporter, Exporter)
        if unknown := [precision for precision in exporter.precisions if precision not in PRECISIONS]:
            raise UsageError(
                f"The export format {name} states the precision {unknown[0]!r}: expected some of "
                f"{', '.join(PRECISIONS)}."
            )
        exporter.name = name
        return exporter()

    return EXPORTERS.make_decorator(name, make_exporter)


@register_exporter("onnx")
class OnnxExporter(Exporter):
    """ONNX: a bundle of its own, as a folder, a .zip or a single .onnx file."""

    files = ("model.onnx",)
    precisions = PRECISIONS
    is_bundle = True
    suffixes: ClassVar[tuple[str, ...]] = ("", ".onnx", ".zip")

    def write(self, model: ExportInput, folder: Path) -> None:
        """Write the `files` into the folder."""
        (folder / self.files[0]).write_bytes(model.onnx_file)

    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        """Return a predictor for the `files`."""
        from sightline.inference.runtimes.onnx import OnnxPredictor

        return OnnxPredictor(files[self.files[0]], classes, preprocess, threads)


@register_exporter("bundle")
class BundleExporter(OnnxExporter):
    """The same as a single .zip file, to hand to others."""

    suffixes: ClassVar[tuple[str, ...]] = (".zip",)


@register_exporter("openvino")
class OpenVinoExporter(Exporter):
    """OpenVINO IR: model.xml and model.bin."""

    files = ("model.xml", "model.bin")
    precisions = ("float32", "float16", "int8")
    packages = ("openvino",)

    def get_graph_precision(self, precision: str) -> str:
        """Return "float32" for float16, because OpenVINO's own writer converts to it."""
        return "float32" if precision == "float16" else precision

    def write(self, model: ExportInput, folder: Path) -> None:
        """Write the `files` into the folder."""
        from sightline.export.openvino import export_openvino

        export_openvino(
            model.onnx_file, folder, float16=model.precision == "float16", manifest=model.manifest.to_json()
        )

    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        """Return a predictor for the `files`."""
        from sightline.inference.runtimes.openvino import OpenVinoPredictor

        return OpenVinoPredictor(files, classes, preprocess, threads)


class _TensorFlowExporter(Exporter):
    """A format that Keras' own exporter writes, on TensorFlow."""

    source = "keras"
    packages: ClassVar[tuple[str, ...]] = ("tensorflow",)

    def check_requirements(self) -> None:
        """Raise an error if a package is missing or the backend is not TensorFlow."""
        from sightline.export.tensorflow import check_backend

        super().check_requirements()
        check_backend(self.name)


@register_exporter("litert")
class LiteRtExporter(_TensorFlowExporter):
    """LiteRT (TensorFlow Lite): model.tflite."""

    files = ("model.tflite",)
    packages = ("ai_edge_litert", "tensorflow")

    def write(self, model: ExportInput, folder: Path) -> None:
        """Write the `files` into the folder."""
        from sightline.export.tensorflow import export_litert

        export_litert(model.keras_model, folder)

    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        """Return a predictor for the `files`."""
        from sightline.inference.runtimes.litert import LiteRtPredictor

        return LiteRtPredictor(files, classes, preprocess, threads)


@register_exporter("saved_model")
class SavedModelExporter(_TensorFlowExporter):
    """A TensorFlow SavedModel, which is a program: load only your own."""

    files = ("saved_model",)

    def write(self, model: ExportInput, folder: Path) -> None:
        """Write the `files` into the folder."""
        from sightline.export.tensorflow import export_saved_model

        export_saved_model(model.keras_model, folder)

    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        """Return a predictor for the `files`."""
        from sightline.inference.runtimes.saved_model import SavedModelPredictor

        return SavedModelPredictor(files, classes, preprocess, threads)


@register_exporter("safetensors")
class SafetensorsExporter(Exporter):
    """Weights as model.safetensors and layers as layers.json, for other programs; opens in Keras."""

    files = ("model.safetensors", "layers.json")
    source = "keras"
    packages = ("safetensors", "keras")

    def write(self, model: ExportInput, folder: Path) -> None:
        """Write the `files` into the folder."""
        from sightline.models.safetensors_file import encode_model

        for name, content in encode_model(model.keras_model).items():
            (folder / name).write_bytes(content)

    def open(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> Predictor:
        """Return a predictor for the `files`."""
        from sightline.inference.runtimes.keras import KerasPredictor

        del threads  # Keras chooses
        return KerasPredictor.decode(files[self.files[0]], files[self.files[1]], classes, preprocess)
