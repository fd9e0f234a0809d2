"""Static int8 quantization of an exported ONNX file, with per-channel weights.

Uses ONNX Runtime's quantizer, which inserts pairs of QuantizeLinear and DequantizeLinear that every runtime supports.
These stay in float: the last dense layer and everything after it, the layers that the caller names, and the pixel
normalization if the first layer cannot read pixels directly. Activations are uint8 with a zero point, weights int8
without one (Jacob et al., 2018, arXiv:1712.05877). `integers` reduces the rounding error.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import runtimes
from sightline.errors import DataError
from sightline.export import integers
from sightline.export.onnx import package
from sightline.records import Progress, no_progress

LAYERS = ("Conv", "Gemm", "MatMul")  # those with weights
OPERATIONS = (
    *LAYERS,
    *("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape", "Split"),
    *("Transpose", "Flatten", "Mul", "Sigmoid"),
)


def quantized(graph: bytes, pixels: Iterable[NDArray[np.uint8]], *, keep: Sequence[str] = ()) -> bytes:
    """Quantize the ONNX file `graph` to int8, calibrated on batches of uint8 `pixels` [N, H, W, C].

    `keep` names the layers (nodes of the file, named as in Keras) to leave in float. Raises `DataError` without images,
    `MissingExtraError` without `onnx`.
    """
    return calibrate(graph, pixels).quantized(keep)


def sensitivities(
    graph: bytes, pixels: Sequence[NDArray[np.uint8]], progress: Progress = no_progress
) -> dict[str, float]:
    """Return the quantization error caused by each layer; see `Calibration.sensitivities`."""
    return calibrate(graph, pixels).sensitivities(np.concatenate(pixels), progress)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A float graph with the range of each of its values, which can be quantized repeatedly without recalibration.

    `layers` are the names of the layers that can be quantized, in order; `outer` the nodes that never are; `means` the
    channel means of the layers' inputs by value name, `steps` the scales of their weights by weight name.
    """

    model: Any
    ranges: Any
    layers: tuple[str, ...]
    outer: tuple[str, ...]
    means: integers.Arrays
    steps: integers.Arrays

    def quantized(self, keep: Sequence[str] = ()) -> bytes:
        """Return the int8 file, with the layers `keep` left in float."""
        ort = runtimes.onnx_runtime("onnxruntime.quantization")
        model, small = copy.deepcopy(self.model), [name for name in self.layers if name not in keep]
        integers.correct(model, small, self.steps, self.means)
        scales = integers.overrides(model, self.steps)
        direct = integers.pixels(model)
        if direct is not None and direct.layer in small:
            direct.prepare(model)
            scales[direct.value] = [
                {"scale": np.array(direct.scale, np.float32), "zero_point": np.array(direct.zero, np.uint8)}
            ]
        else:
            direct = None
        with _quiet():
            quantizer = ort.QDQQuantizer(
                model, True, False, ort.QuantType.QInt8, ort.QuantType.QUInt8, self.ranges, [],  # noqa: FBT003
                [*self.outer, *keep], list(OPERATIONS), {"TensorQuantOverrides": scales},
            )  # fmt: skip
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        found = quantizer.model.model
        if direct is not None:
            direct.connect(found)
        _hold(found, keep)
        return _finished(found)

    def sensitivities(self, pixels: NDArray[np.uint8], progress: Progress = no_progress) -> dict[str, float]:
        """Return the error of the logits with each layer alone in int8, relative to their spread.

        This is the RMS error over `pixels` uint8 [N, H, W, C], divided by the standard deviation of the float logits.
        """
        truth = _logits(self.model.SerializeToString(), pixels)
        spread = max(float(truth.std()), 1e-12)
        found = {}
        for done, name in enumerate(self.layers, 1):
            file = self.quantized([other for other in self.layers if other != name])
            found[name] = float(np.sqrt(np.mean((_logits(file, pixels) - truth) ** 2))) / spread
            progress("measuring int8 sensitivity", done, len(self.layers))
        return found

    def until(
        self, accept: Callable[[bytes], bool], pixels: NDArray[np.uint8], progress: Progress = no_progress
    ) -> tuple[bytes, tuple[str, ...], bool]:
        """Leave the 1, 2, 4, ... most sensitive layers in float, up to half of them, until `accept` returns true.

        Return the file, the layers left in float, and whether the file was accepted.
        """
        keep: tuple[str, ...] = ()
        file = self.quantized()
        if accept(file):
            return file, keep, True
        ranking = worst(self.sensitivities(pixels, progress))
        count = 1
        while count <= max(1, len(ranking) // 2):
            keep = ranking[:count]
            file = self.quantized(keep)
            if accept(file):
                return file, keep, True
            count *= 2
        return file, keep, False


def worst(found: Mapping[str, float]) -> tuple[str, ...]:
    """Return the layers of `sensitivities`, the most sensitive first."""
    return tuple(sorted(found, key=lambda name: -found[name]))


def calibrate(graph: bytes, pixels: Iterable[NDArray[np.uint8]], progress: Progress = no_progress) -> Calibration:
    """Prepare the ONNX file `graph` and record the range of each value over batches of uint8 `pixels` [N, H, W, C]."""
    onnx = package()
    ort = runtimes.onnx_runtime("onnxruntime.quantization")
    batches = list(pixels)
    if not batches:
        raise DataError("Quantization needs images for calibration, got none.")

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc,name-defined]  # has no types
        def __init__(self) -> None:
            self.done = 0

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            progress("calibrating", self.done, len(batches))
            self.done += 1
            return {"pixels": batches[self.done - 1]} if self.done <= len(batches) else None

    with _quiet(), tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(_folded(graph, Path(folder))))
        _rename(model)
        layers, outer = _inner(model)
        prepared = Path(folder, "prepared.onnx")
        onnx.save_model(model, prepared)
        calibrator = ort.create_calibrator(prepared, list(OPERATIONS), Path(folder, "augmented.onnx").as_posix())
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data()
        del calibrator
    return Calibration(
        model, ranges, layers, outer, integers.means(model, layers, batches), integers.scales(model, layers)
    )


def _folded(graph: bytes, folder: Path) -> bytes:
    """Return the file with batch normalization and constants folded by ONNX Runtime."""
    onnxruntime = runtimes.onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return (folder / "folded.onnx").read_bytes()


def _rename(model: Any) -> None:
    """Rename values that would clash with names that the quantizer adds: AlexNet has "norm1" and "norm1_scale"."""
    ends = ("_scale", "_zero_point", "_quantized")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name.endswith(ends):
                    names[at] = f"{name}:value"
    for weight in (*model.graph.initializer, *model.graph.value_info):
        if weight.name.endswith(ends):
            weight.name += ":value"


def _inner(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the layers between normalization and the last dense layer, and of the nodes outside."""
    weights = {w.name for w in model.graph.initializer}
    nodes = list(model.graph.node)
    after = {"pixels"}  # values computed without a layer with weights
    outer = []
    for node in nodes:
        if node.op_type not in LAYERS and all(name in after or name in weights for name in node.input):
            after.update(node.output)
            outer.append(node.name)
    from_end: set[str] = {"probabilities", "logits"}
    for node in reversed(nodes):
        if from_end & set(node.output):
            outer.append(node.name)
            if node.op_type not in LAYERS:
                from_end.update(node.input)
    inside = [n.name for n in nodes if n.op_type in LAYERS and n.name not in outer and weights & set(n.input)]
    return tuple(inside), tuple(dict.fromkeys(outer))


def _hold(model: Any, keep: Sequence[str]) -> None:
    """Make ONNX Runtime compute the layers `keep` in float.

    From version 1.21 on, it quantizes any float layer between DequantizeLinear and QuantizeLinear on loading, with one
    scale per tensor (https://github.com/microsoft/onnxruntime/pull/22969), even if Relu or Clip follows the layer. A
    no-op Max before QuantizeLinear prevents that.
    """
    onnx = package()
    maker = {output: node for node in model.graph.node for output in node.output}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            before = maker.get(node.input[0])
            while before is not None and before.op_type in {"Relu", "Clip"}:
                before = maker.get(before.input[0])
            if before is not None and before.name in keep:
                held = f"{node.input[0]}:held"
                nodes.append(onnx.helper.make_node("Max", [node.input[0], "lowest"], [held], name=held))
                node.input[0] = held
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.finfo(np.float32).min, "lowest"))
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _finished(model: Any) -> bytes:
    """Return the serialized model without unused weights and domains."""
    onnx = package()
    read = {name for node in model.graph.node for name in node.input}
    weights = [w for w in model.graph.initializer if w.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    used = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:], model.metadata_props[:]
    model.opset_import.extend(opsets)
    model.producer_name, model.producer_version = "sightline", ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _logits(file: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    onnxruntime = runtimes.onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    parts = [pixels[start : start + 32] for start in range(0, len(pixels), 32)]
    return np.concatenate([session.run(["logits"], {"pixels": part})[0] for part in parts]).astype(np.float64)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log messages of ONNX Runtime's quantizer."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
