"""Static int8 quantization of an exported ONNX file, with per-channel weights.

Uses ONNX Runtime's quantizer, which inserts pairs of QuantizeLinear and DequantizeLinear that every runtime supports.
Three parts stay in float: the last dense layer and everything after it, the layers that the caller names, and the pixel
normalization if the first layer cannot read pixels directly. Activations are uint8 with a zero point, weights int8
without one (Jacob et al., 2018, arXiv:1712.05877). `int8_scales` reduces the rounding error.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline._keras import imports
from sightline._keras.process_state import silence_logging
from sightline.callbacks import Progress, no_progress
from sightline.data.batches import iterate_slices
from sightline.errors import DataError
from sightline.export import int8_scales
from sightline.export.keras_to_onnx import import_onnx
from sightline.models.head import LOGITS, PROBABILITIES

WEIGHTED_OPERATIONS = ("Conv", "Gemm", "MatMul")
OPERATIONS = (
    *WEIGHTED_OPERATIONS,
    *("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape", "Split"),
    *("Transpose", "Flatten", "Mul", "Sigmoid"),
)

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class CalibratedGraph:
    """A float graph with the ranges of its values; it can be quantized repeatedly without recalibration.

    `layers` are the names of the layers that can be quantized, in order; `float_nodes` are the nodes that never are;
    `input_means` maps value names to the channel means of the layers' inputs, `weight_scales` weight names to the
    scales of their weights.
    """

    model: Any
    ranges: Any
    layers: tuple[str, ...]
    float_nodes: tuple[str, ...]
    input_means: int8_scales.Arrays
    weight_scales: int8_scales.Arrays

    def quantize(self, float_layers: Sequence[str] = ()) -> bytes:
        """Return the int8 file, with the layers `float_layers` left in float."""
        ort = imports.import_onnx_runtime("onnxruntime.quantization")
        model, int8_layers = copy.deepcopy(self.model), [name for name in self.layers if name not in float_layers]
        int8_scales.correct_biases(model, int8_layers, self.weight_scales, self.input_means)
        scales = int8_scales.make_overrides(model, self.weight_scales)
        pixel_normalization = int8_scales.find_pixel_normalization(model)
        if pixel_normalization is not None and pixel_normalization.layer in int8_layers:
            pixel_normalization.fold_remainder(model)
            scales[pixel_normalization.value] = [
                {
                    "scale": np.array(pixel_normalization.scale, np.float32),
                    "zero_point": np.array(pixel_normalization.zero, np.uint8),
                }
            ]
        else:
            pixel_normalization = None
        with silence_logging(""):
            quantizer = ort.QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=ort.QuantType.QInt8,
                activation_qType=ort.QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=[*self.float_nodes, *float_layers],
                op_types_to_quantize=list(OPERATIONS),
                extra_options={"TensorQuantOverrides": scales},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        int8_model = quantizer.model.model
        if pixel_normalization is not None:
            pixel_normalization.connect_pixels(int8_model)
        _keep_in_float(int8_model, float_layers)
        return _finalize_file(int8_model)

    def measure_sensitivities(self, pixels: NDArray[np.uint8], progress: Progress) -> dict[str, float]:
        """Return the error of the logits with each layer alone in int8, relative to their spread.

        This is the RMS error over `pixels` uint8 [N, H, W, C], divided by the standard deviation of the float logits.
        """
        float_logits = _compute_logits(self.model.SerializeToString(), pixels)
        spread = max(float(float_logits.std()), 1e-12)
        error_by_layer = {}
        for done, name in enumerate(self.layers, 1):
            file = self.quantize([other for other in self.layers if other != name])
            error_by_layer[name] = float(np.sqrt(np.mean((_compute_logits(file, pixels) - float_logits) ** 2))) / spread
            progress("measuring int8 sensitivity (layers)", done, len(self.layers))
        return error_by_layer

    def quantize_until_accepted(
        self, accept: Callable[[bytes], bool], pixels: NDArray[np.uint8], progress: Progress = no_progress
    ) -> tuple[bytes, tuple[str, ...], bool]:
        """Leave the 1, 2, 4, ... most sensitive layers in float, up to half of them, until `accept` returns true.

        The sensitivity is measured on the first batch of uint8 `pixels` [N, H, W, C]. Returns the file, the layers left
        in float, and whether the file was accepted.
        """
        float_layers: tuple[str, ...] = ()
        file = self.quantize()
        if accept(file):
            return file, float_layers, True
        ranking = rank_by_sensitivity(self.measure_sensitivities(pixels[:BATCH_SIZE], progress))
        count = 1
        while count <= max(1, len(ranking) // 2):
            float_layers = ranking[:count]
            file = self.quantize(float_layers)
            if accept(file):
                return file, float_layers, True
            count *= 2
        return file, float_layers, False


def rank_by_sensitivity(error_by_layer: Mapping[str, float]) -> tuple[str, ...]:
    """Return the layers of `measure_sensitivities`, the most sensitive first."""
    return tuple(sorted(error_by_layer, key=lambda name: -error_by_layer[name]))


def calibrate_graph(graph: bytes, pixels: NDArray[np.uint8], progress: Progress = no_progress) -> CalibratedGraph:
    """Prepare the ONNX file `graph` and record the range of each value over uint8 `pixels` [N, H, W, C].

    Layers are nodes of the file, named as in Keras. Raises `DataError` without images, `MissingExtraError` without
    `onnx`.
    """
    onnx = import_onnx()
    ort = imports.import_onnx_runtime("onnxruntime.quantization")
    if not len(pixels):
        raise DataError("Quantization needs images for calibration, and there are none.")
    with silence_logging(""), tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(_fold_constants(graph, Path(folder))))
    _rename_clashing_values(model)
    layers, float_nodes = _find_quantizable(model)

    def iterate() -> Iterator[NDArray[np.uint8]]:
        for row in range(len(pixels)):
            progress("calibrating", row, len(pixels))
            yield pixels[row : row + 1]
        progress("calibrating", len(pixels), len(pixels))

    ranges, input_means = int8_scales.measure_values(model, OPERATIONS, layers, iterate())
    return CalibratedGraph(
        model,
        ort.TensorsData(ort.CalibrationMethod.MinMax, ranges),
        layers,
        float_nodes,
        input_means,
        int8_scales.compute_scales(model, layers),
    )


def _fold_constants(graph: bytes, folder: Path) -> bytes:
    """Return the file with batch normalization and constants folded by ONNX Runtime."""
    level = imports.import_onnx_runtime().GraphOptimizationLevel.ORT_ENABLE_BASIC
    file = folder / "folded.onnx"
    int8_scales.create_session(graph, graph_optimization_level=level, optimized_model_filepath=str(file))
    return file.read_bytes()


def _rename_clashing_values(model: Any) -> None:
    """Rename values that would clash with names that the quantizer adds: AlexNet has "norm1" and "norm1_scale"."""
    ends = ("_scale", "_zero_point", "_quantized")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name.endswith(ends):
                    names[index] = f"{name}:value"
    for weight in (*model.graph.initializer, *model.graph.value_info):
        if weight.name.endswith(ends):
            weight.name += ":value"


def _find_quantizable(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the layers between normalization and the last dense layer, and of the nodes outside."""
    weights = {w.name for w in model.graph.initializer}
    nodes = list(model.graph.node)
    pixel_values = {"pixels"}  # values computed without a layer with weights
    float_nodes = []
    for node in nodes:
        if node.op_type not in WEIGHTED_OPERATIONS and all(
            name in pixel_values or name in weights for name in node.input
        ):
            pixel_values.update(node.output)
            float_nodes.append(node.name)
    from_end: set[str] = {PROBABILITIES, LOGITS}
    for node in reversed(nodes):
        if from_end & set(node.output):
            float_nodes.append(node.name)
            if node.op_type not in WEIGHTED_OPERATIONS:
                from_end.update(node.input)
    quantizable = [
        n.name
        for n in nodes
        if n.op_type in WEIGHTED_OPERATIONS and n.name not in float_nodes and weights & set(n.input)
    ]
    return tuple(quantizable), tuple(dict.fromkeys(float_nodes))


def _keep_in_float(model: Any, float_layers: Sequence[str]) -> None:
    """Make ONNX Runtime compute the layers `float_layers` in float.

    From version 1.21 on, it quantizes any float layer between DequantizeLinear and QuantizeLinear on loading, with one
    scale per tensor (https://github.com/microsoft/onnxruntime/pull/22969), even if Relu or Clip follows the layer. A
    no-op Max before QuantizeLinear prevents that.
    """
    onnx = import_onnx()
    producer = {output: node for node in model.graph.node for output in node.output}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            source = producer.get(node.input[0])
            while source is not None and source.op_type in {"Relu", "Clip"}:
                source = producer.get(source.input[0])
            if source is not None and source.name in float_layers:
                barrier = f"{node.input[0]}:held"
                nodes.append(onnx.helper.make_node("Max", [node.input[0], "lowest"], [barrier], name=barrier))
                node.input[0] = barrier
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.finfo(np.float32).min, "lowest"))
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _finalize_file(model: Any) -> bytes:
    """Return the serialized model without unused weights and domains."""
    onnx = import_onnx()
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


def _compute_logits(onnx_bytes: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    session = int8_scales.create_session(onnx_bytes)
    batches = (pixels[rows] for rows in iterate_slices(len(pixels), BATCH_SIZE))
    return np.concatenate([session.run([LOGITS], {"pixels": batch})[0] for batch in batches]).astype(np.float64)
