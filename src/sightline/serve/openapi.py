"""The description of the HTTP API in OpenAPI 3.1, which ``GET /openapi.json`` returns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.metadata import version as get_version
from typing import Any

from sightline.serve.access import OPEN_PATHS
from sightline.serve.explanation import METHODS, list_methods
from sightline.serve.limits import MAX_IMAGES
from sightline.serve.served_model import ServedModel

_STRING = {"type": "string"}
_NUMBER = {"type": "number"}
_HASH = {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"}
_BOOLEAN = {"type": "boolean"}
_METRIC_KINDS = ("text/plain", "application/openmetrics-text")
_DATATYPES = ("BOOL", "UINT8", "FP32", "FP64")


def build_openapi(
    models: Sequence[ServedModel], *, is_secured: bool = False, limits_hosts: bool = False
) -> dict[str, Any]:
    """Return the description for `models`; paths may name no others.

    With `is_secured`, all paths except probes need a bearer token; with `limits_hosts`, all need an allowed Host.
    """
    model = [_path_parameter("model", [served.name for served in models])]
    version = [*model, _path_parameter("version", [served.version for served in models])]
    several = (404,) if len({served.name for served in models}) > 1 else ()
    ranked = [served for served in models if not served.classifier.task.targets.are_masks]
    classes = max((len(served.classifier.classes) for served in ranked), default=0)
    kinds = {served.classifier.task.targets.are_masks for served in models}
    labels = list(dict.fromkeys(label for served in models for label in served.classifier.classes))
    methods = [name for name in METHODS if all(name in list_methods(served.classifier.predictor) for served in models)]
    paths: dict[str, Any] = {
        "/health": {"get": _operation("Whether the server is ready.", _HEALTH, not_ready=_HEALTH)},
        "/models": {"get": _operation("The models and their versions.", _MODELS)},
        "/model": {"get": _operation(_MODEL_SUMMARY, _MODEL, errors=several)},
        "/": {"get": _text("A page to try the model in a browser.", "The page.", "text/html")},
        "/predict": {"post": _predict(classes, kinds, errors=several)},
        "/explain": {"post": _explain(labels, methods, errors=several)},
        "/metrics": {"get": _text("The metrics of the server, for Prometheus.", "The metrics.", *_METRIC_KINDS)},
        "/openapi.json": {"get": _operation("This description.", {"type": "object"})},
        "/v2": {"get": _operation("The server and its extensions.", _SERVER)},
        "/v2/health/live": {"get": _operation("Whether the server runs.", _LIVE, not_ready=_LIVE)},
        "/v2/health/ready": {"get": _operation("Whether the server is ready.", _READY, not_ready=_READY)},
    }
    for suffix, parameters in (("", model), ("/versions/{version}", version)):
        options: dict[str, Any] = {"parameters": parameters, "errors": (404,)}
        address = f"/models/{{model}}{suffix}"
        paths[address] = {"get": _operation(_MODEL_SUMMARY, _MODEL, **options)}
        paths[f"{address}/predict"] = {"post": _predict(classes, kinds, **options)}
        paths[f"{address}/explain"] = {"post": _explain(labels, methods, **options)}
        address = f"/v2{address}"
        ready = _object(name=_STRING, ready=_BOOLEAN)
        paths[address] = {"get": _operation("The inputs and outputs of the model.", _METADATA, **options)}
        paths[f"{address}/ready"] = {"get": _operation("Whether it is ready.", ready, not_ready=ready, **options)}
        paths[f"{address}/infer"] = {"post": _infer(parameters)}
    for path, operations in paths.items():
        for operation in operations.values():
            if limits_hosts:
                operation["responses"] |= _errors(400)
            if is_secured and path not in OPEN_PATHS:
                operation["security"] = [{"token": []}]
                operation["responses"] |= _errors(401)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sightline",
            "version": get_version("sightline"),
            "description": "Predictions of an image classifier.",
        },
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}} if is_secured else {}},
    }


def _object(required: tuple[str, ...] | None = None, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object; by default all of its `properties` are required."""
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, "required": names}


def _list(items: Any, **limits: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def _several(one: Any, error: Any) -> dict[str, Any]:
    """Return the schema of a response for a list of images, with a prediction or an error for each."""
    return _object(predictions=_list({"oneOf": [one, error]}, minItems=1), model=_IDENTITY)


_ERROR = _object(error=_STRING)
_ERRORS = {
    400: "The request is invalid, names another host, or has an image that cannot be read.",
    401: "The request needs the token of this server.",
    404: "There is no such model or version.",
    408: "The body did not arrive in time.",
    413: "The body is larger than the server accepts.",
    415: "The content type or encoding is not supported.",
    500: "The model failed.",
    501: "An extension of the protocol that the server does not have.",
    503: "Too many requests are in flight, the response takes too long, or the server is stopping.",
}
_MODEL_SUMMARY = "The classes, the preprocessing and the metrics of the model."
_IDENTITY = _object(name=_STRING, version=_STRING, weights_sha256=_HASH)
_MODELS = _object(models=_list(_IDENTITY))
_MODEL = _object(classes=_list(_STRING), preprocess={"type": "object"})
_SERVER = _object(name=_STRING, version=_STRING, extensions=_list(_STRING))
_HEALTH = _object(status={"enum": ["ok", "stalled", "stopping"]})
_LIVE = _object(live=_BOOLEAN)
_READY = _object(live=_BOOLEAN, ready=_BOOLEAN)
_SHAPE = _list({"type": "integer"})
_TENSOR = _object(name=_STRING, datatype=_STRING, shape=_SHAPE)
_METADATA = _object(
    name=_STRING, versions=_list(_STRING), platform=_STRING, inputs=_list(_TENSOR), outputs=_list(_TENSOR)
)
_PREDICTION: dict[str, Any] = {
    "label": _STRING,
    "probability": {"type": ["number", "null"]},
    "labels": _list(_STRING),
    "undecided": _list(_STRING),
    "label_set": _list(_STRING),
    "top": _list(_object(label=_STRING, probability=_NUMBER), minItems=1),
    "decision": {"enum": ["class", "ancestor", "set", "labels", "mask", "abstain"]},
    "node": {"type": ["string", "null"]},
    "node_probability": {"type": ["number", "null"]},
    "levels": _list(_object(label=_STRING, probability=_NUMBER), minItems=1),
    "set": {"type": ["array", "null"], "items": _STRING},
    "ood_score": _NUMBER,
    "is_ood": _BOOLEAN,
    "expected_grade": _NUMBER,
    "log_id": _STRING,
}
_PREDICTED = ("label", "probability", "top")
_ONE_PREDICTION = _object((*_PREDICTED, "model"), **_PREDICTION, model=_IDENTITY)
_PREDICTIONS = _several(
    _object(_PREDICTED, path=_STRING, **_PREDICTION),
    _object(("error",), path=_STRING, error=_STRING, log_id=_STRING),
)
_MASK_FIELDS: dict[str, Any] = {
    "areas": {"type": "object", "additionalProperties": _NUMBER},
    "quality": _NUMBER,
    "decision": {"enum": ["mask", "abstain"]},
    "log_id": _STRING,
    "masks": _list(
        _object(
            label=_STRING,
            value={"type": "integer"},
            color=_STRING,
            rle=_object(size=_list({"type": "integer"}, minItems=2, maxItems=2), counts=_list({"type": "integer"})),
        )
    ),
}
_ONE_MASK = _object(("areas", "quality", "masks", "model"), **_MASK_FIELDS, model=_IDENTITY)
_MASKS = _several(
    _object(("areas", "quality", "masks"), path=_STRING, **_MASK_FIELDS),
    _object(("error",), path=_STRING, error=_STRING),
)
_BOX: dict[str, Any] = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4}
_EVIDENCE = ("label", "probability", "method", "region", "heat_fraction", "faithfulness")
_EXPLANATION = _object(
    (*_EVIDENCE, "image_size", "box", "heat_map", "model"),
    label=_STRING,
    probability=_NUMBER,
    method=_STRING,
    region=_BOX | {"type": ["array", "null"]},
    heat_fraction={"type": ["number", "null"]},
    faithfulness={"type": ["object", "null"]},
    pixel_fraction=_NUMBER,
    image_size=_list({"type": "integer"}, minItems=2, maxItems=2),
    box=_BOX,
    heat_map={"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
    model=_IDENTITY,
)
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_JSON_IMAGES = {
    "oneOf": [
        _object(image=_BASE64) | {"additionalProperties": False},
        _object(images=_list(_BASE64, minItems=1, maxItems=MAX_IMAGES)) | {"additionalProperties": False},
    ]
}
_FILES = _list({"type": "string", "contentMediaType": "application/octet-stream"}, minItems=1, maxItems=MAX_IMAGES)
_FORM = _object(image=_FILES)
_INPUT_PARAMETERS = _object((), binary_data_size={"type": "integer", "minimum": 0})
_INFER_REQUEST = _object(
    ("inputs",),
    id=_STRING,
    parameters=_object((), binary_data_output=_BOOLEAN),
    inputs=_list(
        _object(
            ("name", "datatype", "shape"),
            name={"enum": ["pixels", "image"]},
            datatype={"enum": ["UINT8", "BYTES"]},
            shape=_list({"type": "integer", "minimum": 1}, minItems=1, maxItems=4),
            parameters=_INPUT_PARAMETERS,
            data={"type": "array", "description": "Integers from 0 to 255, flat or nested; or base64 of image files."},
        ),
        minItems=1,
        maxItems=1,
    ),
    outputs=_list(
        _object(
            ("name",),
            name={
                "enum": [
                    *("probabilities", "label", "labels", "undecided", "label_set", "decision", "ood_score", "is_ood"),
                    *("set", "mask", "quality", "node", "node_probability", "expected_grade", "log_id"),
                ]
            },
            parameters=_object((), binary_data=_BOOLEAN, classification={"type": "integer", "minimum": 1}),
        )
    ),
)
_INFER_RESPONSE = _object(
    ("model_name", "model_version", "outputs"),
    model_name=_STRING,
    model_version=_STRING,
    id=_STRING,
    parameters={"type": "object"},
    outputs=_list(
        _object(
            ("name", "datatype", "shape"),
            name=_STRING,
            datatype={"enum": [*_DATATYPES, "BYTES"]},
            shape=_SHAPE,
            data={"type": "array"},
        )
    ),
)
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _response(description: str, content: Any) -> dict[str, Any]:
    return {"description": description, "content": content}


def _text(summary: str, description: str, *kinds: str) -> dict[str, Any]:
    """Return a GET operation that returns text in one of several content types."""
    content = {kind: {"schema": _STRING} for kind in kinds}
    return {"summary": summary, "responses": {"200": _response(description, content)}}


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): _response(_ERRORS[status], _json(_ERROR)) for status in statuses}


def _path_parameter(name: str, values: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"enum": list(dict.fromkeys(values))}}


def _operation(
    summary: str, schema: Any, *, parameters: Any = (), errors: tuple[int, ...] = (), not_ready: Any = None
) -> dict[str, Any]:
    """Return a GET operation that returns JSON of `schema`, or of `not_ready` with status 503."""
    unready = {} if not_ready is None else {"503": _response("It is not ready.", _json(not_ready))}
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {"200": _response("Success.", _json(schema)), **_errors(*errors), **unready},
    }


def _predict(
    classes: int, kinds: Collection[bool], *, parameters: Sequence[Any] = (), errors: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Return the operation for models that predict masks (True in `kinds`), classes (False), or both."""
    top = {"type": "integer", "minimum": 1, "default": 5}
    ignored = " Models of {} ignore it." if len(set(kinds)) > 1 else ""
    text = f"Classes to return, up to {classes}.{ignored.format('masks')}"
    query = {"name": "top", "in": "query", "schema": top, "description": text}
    summary = "The predictions for one or more images; for a form or a list of images, as a list."
    queries: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    schemas = [] if True not in kinds else [_ONE_MASK, _MASKS]
    if False in kinds:
        queries.append(query)
        schemas = [_ONE_PREDICTION, _PREDICTIONS, *schemas]
    if True in kinds:
        text = f"Answer with one PNG file: the colors of the mask over the image.{ignored.format('classes')}"
        queries.append({"name": "overlay", "in": "query", "schema": _BOOLEAN | {"default": False}, "description": text})
        content = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    answer = _response("The predictions.", _json({"oneOf" if len(set(kinds)) == 1 else "anyOf": schemas}) | content)
    return _take_images(summary, answer, [*parameters, *queries], errors)


def _explain(
    labels: Sequence[str], methods: Sequence[str], *, parameters: Sequence[Any] = (), errors: tuple[int, ...] = ()
) -> dict[str, Any]:
    description = "The class to explain, by default the predicted one."
    query = {"name": "class", "in": "query", "schema": {"enum": labels}, "description": description}
    of_method = "How it is computed, by default by Grad-CAM if the head of the model is one dense layer behind pooling."
    method = {"name": "method", "in": "query", "schema": {"enum": methods}, "description": of_method}
    summary = "The heat map of one image: where the evidence for a class is, and whether masking it matters."
    return _take_images(summary, _response("The heat map.", _json(_EXPLANATION)), [*parameters, query, method], errors)


def _take_images(
    summary: str, answer: dict[str, Any], parameters: Sequence[Any], errors: tuple[int, ...]
) -> dict[str, Any]:
    """Return a POST operation that accepts images in any form."""
    return {
        "summary": summary,
        "parameters": list(parameters),
        "requestBody": {
            "required": True,
            "content": _BINARY | {"multipart/form-data": {"schema": _FORM}} | _json(_JSON_IMAGES),
            "description": "The bytes of an image file, a form with files, or JSON with base64.",
        },
        "responses": {"200": answer, **_errors(400, *errors, 408, 413, 415, 500, 503)},
    }


def _infer(parameters: list[Any]) -> dict[str, Any]:
    length = {"type": "integer", "minimum": 0}
    header = {"name": "Inference-Header-Content-Length", "in": "header", "schema": length}
    description = "The bytes of the JSON, which binary data follows; 0 for a body that is one image file."
    return {
        "summary": "The outputs for one or more images.",
        "parameters": [*parameters, header | {"description": description}],
        "requestBody": {"required": True, "content": _json(_INFER_REQUEST) | _BINARY},
        "responses": {
            "200": _response("The outputs.", _json(_INFER_RESPONSE) | _BINARY),
            **_errors(400, 404, 408, 413, 415, 500, 501, 503),
        },
    }
