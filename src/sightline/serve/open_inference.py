"""The Open Inference Protocol, version 2, over HTTP, used by KServe, Triton, MLServer and their clients.

A model has two inputs, and a request uses one: `pixels` UINT8 [N, H, W, C], images of the model's size, or `image`
BYTES [N], encoded files. The outputs are those of `predict`. For segmentation, `mask` UINT8 [N, H, W] has the size of
the network's input. Triton's binary tensor data extension, including raw requests, and its classification extension are
supported.
Source: https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as get_version
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import jsonio
from sightline.api.classifier import Classifier
from sightline.inference.masks import PixelPrediction
from sightline.inference.results import Prediction
from sightline.serve.admission import MAX_DIGITS, read_body
from sightline.serve.limits import MAX_IMAGES, MAX_MASKS
from sightline.serve.responses import JSONResponse, check_prediction
from sightline.serve.running_models import MODEL_ADDRESSES, RunningModels
from sightline.serve.served_model import ServedModel
from sightline.serve.tensors import (
    BYTES,
    Tensor,
    read_binary_files,
    read_binary_pixels,
    read_json_files,
    read_json_pixels,
    read_shape,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data", "classification")
MAX_JSON = {b"{": (1000, "objects"), b"[": (2_000_000, "lists"), b'"': (50_000, "quotation marks")}
"""How often a character may occur in the JSON of a request, and what it counts: parsed values take many times the
memory of their text. An input and an output have two objects each; nested pixels have a list for each pixel."""
_REFUSED_PARAMETERS = ("sequence_id", "shared_memory_region")  # belong to Triton extensions that are not supported

Images = Sequence[bytes | bytearray] | NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """A requested output; if `classes` is set, it is returned as that many strings ``probability:index:label``."""

    name: str
    is_binary: bool = False
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request to classify `images`: files, or pixels uint8 [N, H, W, C]. Without `outputs`, return all of them."""

    images: Images
    id: str | None = None
    outputs: tuple[OutputRequest, ...] = ()
    is_binary: bool = False


def _list_outputs(classifier: Classifier, *, is_logged: bool) -> dict[str, tuple[str, list[int]]]:
    """Return the datatype and the shape of each output; with `is_logged`, also of the id in the feature log."""
    targets, thresholds = classifier.task.targets, classifier.thresholds
    text, number, marks = (BYTES, [-1]), ("FP64", [-1]), ("BOOL", [-1, len(classifier.classes)])
    outputs: dict[str, tuple[str, list[int]]] = {"probabilities": ("FP32", marks[1]), "label": text}
    if targets.allows_several:
        outputs["labels"] = marks
    if thresholds is not None:
        outputs |= dict.fromkeys(thresholds.set_fields, marks)
    if targets.are_masks:
        outputs |= {"mask": ("UINT8", [-1, *classifier.preprocess.shape[:2]]), "quality": number}
        outputs |= {} if thresholds is None or thresholds.min_iou is None else {"decision": text}
    elif thresholds is not None and thresholds.decides:
        outputs |= {"decision": text, "ood_score": number, "is_ood": ("BOOL", [-1])}
        outputs |= {} if thresholds.conformal_quantile is None else {"set": marks}
    if targets.are_paths:
        outputs |= {"node": text, "node_probability": number}
    if targets.are_ordered:
        outputs["expected_grade"] = number
    if is_logged:
        outputs["log_id"] = text
    return outputs


_FIELDS = {
    "log_id": attrgetter("path"),
    "decision": attrgetter("decision.decision"),
    "ood_score": attrgetter("decision.ood_score"),
    "is_ood": attrgetter("decision.is_ood"),
    "set": attrgetter("decision.set"),
}
"""The field of a prediction for each output that is not named after its field."""


class InferenceModel:
    """A served model as the protocol describes it: `inputs` and `outputs` are datatypes and shapes by name."""

    def __init__(self, served: ServedModel, *, is_logged: bool = False) -> None:
        classifier = served.classifier
        self.served = served
        self.inputs = {"pixels": ("UINT8", [-1, *classifier.preprocess.shape]), "image": (BYTES, [-1])}
        self.outputs = _list_outputs(classifier, is_logged=is_logged)

    def describe(self, versions: Sequence[str]) -> dict[str, Any]:
        """Return the metadata of the model, with these versions."""
        manifest = self.served.classifier.manifest
        return {
            "name": self.served.name,
            "versions": versions,
            "platform": "keras" if manifest is None else "sightline_bundle",
            "inputs": _describe_tensors(self.inputs),
            "outputs": _describe_tensors(self.outputs),
        }

    def parse(self, body: bytes | bytearray, header_length: int | None) -> InferRequest:
        """Parse `body`, whose first `header_length` bytes (None: all) are JSON; raise `HTTPException` if invalid."""
        if header_length == 0:  # a raw binary request: the body is the only element of an input
            return InferRequest([body])
        size = len(body) if header_length is None else header_length
        if size > len(body):
            raise HTTPException(400, f"{HEADER_LENGTH} is {size}, but the body has {len(body)} bytes.")
        for character, (limit, kind) in MAX_JSON.items():
            if body.count(character, 0, size) > limit:
                raise HTTPException(400, f"The request has more than {limit:,} {kind}: send pixels as binary data.")
        try:
            content = jsonio.loads(bytes(memoryview(body)[:size]), sum(limit for limit, _ in MAX_JSON.values()))
        except ValueError as error:
            raise HTTPException(400, f"The request is not JSON: {error}.") from None
        if not isinstance(content, dict):
            raise HTTPException(400, "The request is not a JSON object.")
        request_id, parameters = content.get("id"), _read_parameters(content, "the request")
        if not isinstance(request_id, str | None):
            raise HTTPException(400, "The id of the request is not a string.")
        images = self._parse_images(content.get("inputs"), memoryview(body)[size:])
        is_binary = _read_flag(parameters, "binary_data_output", default=False)
        return InferRequest(images, request_id, self._parse_outputs(content.get("outputs"), is_binary), is_binary)

    def _parse_images(self, inputs: Any, binary: memoryview) -> Images:
        names = " or ".join(map(repr, self.inputs))
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            raise HTTPException(400, f"A request has one input, {names}, in the list 'inputs'.")
        name = inputs[0].get("name")
        if not isinstance(name, str) or name not in self.inputs:
            raise HTTPException(400, f"There is no input {str(name)[:80]!r}: expected {names}.")
        try:
            return self._read_images(name, inputs[0], binary)
        except ValueError as error:
            raise HTTPException(400, f"The input {name!r} is invalid: {error}.") from None

    def _read_images(self, name: str, spec: Mapping[str, Any], binary: memoryview) -> Images:
        datatype, expected = self.inputs[name]
        if spec.get("datatype") != datatype:
            raise ValueError(f"its datatype is {str(spec.get('datatype'))[:80]!r}, expected {datatype!r}")
        shape = read_shape(spec, expected)
        limit = MAX_MASKS if "mask" in self.outputs else MAX_IMAGES
        if shape[0] > limit:
            raise ValueError(f"it has {shape[0]} images, and a request has at most {limit}")
        size = _read_parameters(spec, f"the input {name!r}").get("binary_data_size")
        if size is None:
            if len(binary):
                raise ValueError("there is binary data after the JSON, but no parameter 'binary_data_size'")
            if name == "image":
                return read_json_files(spec.get("data"), shape[0])
            return read_json_pixels(spec.get("data"), shape)
        if type(size) is not int or size != len(binary):
            raise ValueError(
                f"its 'binary_data_size' is {str(size)[:80]}, but {len(binary)} bytes follow the JSON, whose length is "
                f"the header {HEADER_LENGTH}"
            )
        return read_binary_files(binary, shape[0]) if name == "image" else read_binary_pixels(binary, shape)

    def _parse_outputs(self, outputs: Any, is_binary: bool) -> tuple[OutputRequest, ...]:  # noqa: FBT001  # the default
        if not isinstance(outputs, list | None) or not all(isinstance(spec, dict) for spec in outputs or ()):
            raise HTTPException(400, "The field 'outputs' is not a list of objects.")
        requests: list[OutputRequest] = []
        for spec in outputs or ():
            name = spec.get("name")
            if not isinstance(name, str) or name not in self.outputs:
                names = ", ".join(map(repr, self.outputs))
                raise HTTPException(400, f"There is no output {str(name)[:80]!r}: expected one of {names}.")
            if any(request.name == name for request in requests):  # repeats could make the response arbitrarily large
                raise HTTPException(400, f"The output {name!r} is requested twice: name each output once.")
            parameters = _read_parameters(spec, f"the output {name!r}")
            classes = parameters.get("classification")
            if classes is not None and (type(classes) is not int or classes < 1 or name != "probabilities"):
                raise HTTPException(
                    400, "The parameter 'classification' is the number of classes, at least 1, for 'probabilities'."
                )
            requests.append(OutputRequest(name, _read_flag(parameters, "binary_data", default=is_binary), classes))
        return tuple(requests)

    def compute_output(self, request: OutputRequest, predictions: Sequence[Prediction]) -> Tensor:
        """Return one output of N predictions."""
        name, classes = request.name, self.served.classifier.classes
        if name == "probabilities":
            return self._compute_probabilities(request, predictions)
        if name == "mask":
            masks = [prediction.mask for prediction in predictions if isinstance(prediction, PixelPrediction)]
            return Tensor.from_array(name, "UINT8", np.stack([mask for mask in masks if mask is not None]))
        values = list(map(_FIELDS.get(name, attrgetter(name)), predictions))
        datatype = self.outputs[name][0]
        if datatype == BYTES:
            return Tensor(name, BYTES, (len(values),), [str(value or "") for value in values])
        if datatype == "BOOL":  # is_ood, or a set of classes
            marks = [v if isinstance(v, bool) else [label in (v or ()) for label in classes] for v in values]
            return Tensor.from_array(name, datatype, np.array(marks))
        return Tensor.from_array(name, datatype, np.array([value or 0 for value in values], np.float64))

    def _compute_probabilities(self, request: OutputRequest, predictions: Sequence[Prediction]) -> Tensor:
        classes, probabilities = self.served.classifier.classes, self._collect_probabilities(predictions)
        if request.classes is None:
            return Tensor.from_array(request.name, "FP32", probabilities)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : request.classes]
        texts = [
            f"{float(row[k])}:{k}:{classes[k]}"
            for row, indices in zip(probabilities, order, strict=True)
            for k in indices
        ]
        return Tensor(request.name, BYTES, order.shape, texts)

    def _collect_probabilities(self, predictions: Sequence[Prediction]) -> NDArray[np.float32]:
        column = {label: k for k, label in enumerate(self.served.classifier.classes)}
        probabilities = np.zeros((len(predictions), len(column)), np.float32)
        for row, prediction in zip(probabilities, predictions, strict=True):
            for candidate in prediction.top:
                row[column[candidate.label]] = candidate.probability
        return probabilities

    def respond(self, request: InferRequest, predictions: Sequence[Prediction]) -> Response:
        """Return the response with the requested outputs; raise `HTTPException` if there is no prediction."""
        for number, prediction in enumerate(predictions):
            check_prediction(prediction, f"image {number}")
        requested = request.outputs or tuple(OutputRequest(name, request.is_binary) for name in self.outputs)
        outputs, binary = [], bytearray()
        for output in requested:
            tensor = self.compute_output(output, predictions)
            if output.is_binary:
                content = tensor.to_binary()
                outputs.append(tensor.describe() | {"parameters": {"binary_data_size": len(content)}})
                binary += content
            else:
                outputs.append(tensor.describe() | {"data": tensor.to_json()})
        answer = {
            "model_name": self.served.name,
            "model_version": self.served.version,
            **({} if request.id is None else {"id": request.id}),
            "parameters": {"weights_sha256": self.served.weights_sha256},
            "outputs": outputs,
        }
        if not any(output.is_binary for output in requested):
            return JSONResponse(answer)
        head = bytes(JSONResponse(answer).body)
        return Response(head + binary, 200, {HEADER_LENGTH: str(len(head))}, "application/octet-stream")


def make_routes(models: RunningModels, is_stopping: Callable[[], bool]) -> list[Route]:
    """Return the routes below ``/v2``."""
    parsing = asyncio.Semaphore()  # one request at a time: numbers take several times the memory of their text

    async def describe_server(_request: Request) -> JSONResponse:
        return JSONResponse({"name": "sightline", "version": get_version("sightline"), "extensions": EXTENSIONS})

    async def live(_request: Request) -> JSONResponse:
        return JSONResponse({"live": not models.hangs}, 503 if models.hangs else 200)

    async def ready(_request: Request) -> JSONResponse:
        is_up = not is_stopping() and not models.is_stalled
        return JSONResponse({"live": True, "ready": is_up}, 200 if is_up else 503)

    async def model_ready(request: Request) -> JSONResponse:
        running = models.find_requested(request)
        is_up = not is_stopping() and not running.batcher.stalled
        return JSONResponse({"name": running.served.name, "ready": is_up}, 200 if is_up else 503)

    async def describe_model(request: Request) -> JSONResponse:
        running = models.find_requested(request)
        model = InferenceModel(running.served, is_logged=running.is_logged)
        return JSONResponse(model.describe(models.list_versions(running.served.name)))

    async def infer(request: Request) -> Response:
        with models.find_requested(request).use() as running:
            model = InferenceModel(running.served, is_logged=running.is_logged)
            header_length = _parse_header_length(request)
            running.check_free()
            body = await read_body(request)
            async with parsing:
                parsed = await asyncio.to_thread(model.parse, body, header_length)
            del body
            needs_all = not parsed.outputs or any(output.name == "probabilities" for output in parsed.outputs)
            top = len(running.served.classifier.classes) if needs_all else 1
            predictions = await running.batcher.predict_all(parsed.images, top)
            return await asyncio.to_thread(model.respond, parsed, predictions)

    routes = [
        Route("/v2", describe_server),
        Route("/v2/", describe_server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
    ]
    for address in (f"/v2{address}" for address in MODEL_ADDRESSES):
        routes += [
            Route(address, describe_model),
            Route(f"{address}/ready", model_ready),
            Route(f"{address}/infer", infer, methods=["POST"]),
        ]
    return routes


def _describe_tensors(tensors: Mapping[str, tuple[str, list[int]]]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": datatype, "shape": shape} for name, (datatype, shape) in tensors.items()]


def _parse_header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > MAX_DIGITS:
        raise HTTPException(
            400, f"{HEADER_LENGTH} is {text[:MAX_DIGITS]!r}: expected the bytes of the JSON in the body."
        )
    return int(text)


def _read_parameters(spec: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = spec.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise HTTPException(400, f"The parameters of {where} are not a JSON object.")
    for name in _REFUSED_PARAMETERS:
        if name in parameters:
            raise HTTPException(501, f"This server has no {name.replace('_', ' ')}s: leave the parameter {name!r} out.")
    return parameters


def _read_flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise HTTPException(400, f"The parameter {name!r} is {str(value)[:80]!r}, expected true or false.")
    return value
