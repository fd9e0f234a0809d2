"""The Open Inference Protocol, over ASGI: its tensors in both forms, its addresses and its errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from asgi_client import exchange, make_scope
from sightline.api.classifier import Classifier
from sightline.errors import UsageError
from sightline.inference.predictor import FakePredictor
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png

pytest.importorskip("starlette")

INFER = "/v2/models/animals/infer"
HEADER = "Inference-Header-Content-Length"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outputs(self) -> dict[str, Any]:
        return {output["name"]: output for output in self.json["outputs"]}


def make_classifier(*, thresholds: bool = True) -> Classifier:
    classifier = Classifier(FakePredictor(("cat", "dog", "owl"), PreprocessingSpec(4, 6)))
    classifier.thresholds = Thresholds(9, coverage=0.95, conformal_quantile=0.96) if thresholds else None
    return classifier


def send(
    *requests: tuple[str, bytes | None, dict[str, str]], classifier: Classifier | None = None, max_bytes: int = 1 << 20
) -> list[Answer]:
    """Send each request, its path, body (None: GET) and headers, to a server, and return the answers."""
    from sightline.serve.app import create_app

    async def run() -> list[Answer]:
        app = create_app(classifier or make_classifier(), max_bytes=max_bytes, name="animals")
        async with app.router.lifespan_context(app):
            return [await call(app, *request) for request in requests]

    return asyncio.run(run())


async def call(app: Any, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    scope = make_scope(path, headers=headers, method="GET" if body is None else "POST")
    return Answer(*await exchange(app, scope, body or b""))


def infer(
    content: Any, binary: bytes = b"", *, classifier: Classifier | None = None, header: str | None = None
) -> Answer:
    head = content if isinstance(content, bytes) else json.dumps(content).encode()
    length = str(len(head)) if header is None and binary else header
    return send((INFER, head + binary, {} if length is None else {HEADER: length}), classifier=classifier)[0]


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
PIXEL_INPUT = {"name": "pixels", "datatype": "UINT8", "shape": [3, 4, 6, 3]}
FILES = [encode_png(0, 0), encode_png(1, 3), encode_png(2, 1)]
FILE_INPUT = {"name": "image", "datatype": "BYTES", "shape": [3]}
JSON_FILES = [base64.b64encode(file).decode() for file in FILES]
BINARY_FILES = b"".join(struct.pack("<I", len(file)) + file for file in FILES)


def test_every_form_of_an_image_gets_the_answer_of_predict() -> None:
    classifier = make_classifier()
    for images, answers in (
        (
            PIXELS,
            [
                infer({"inputs": [PIXEL_INPUT | {"data": PIXELS.tolist()}]}),
                infer({"inputs": [PIXEL_INPUT | {"data": PIXELS.ravel().tolist()}]}),
                infer({"inputs": [PIXEL_INPUT | {"parameters": {"binary_data_size": PIXELS.size}}]}, PIXELS.tobytes()),
            ],
        ),
        (
            FILES,
            [
                infer({"inputs": [FILE_INPUT | {"data": JSON_FILES}]}),
                infer({"inputs": [FILE_INPUT | {"parameters": {"binary_data_size": len(BINARY_FILES)}}]}, BINARY_FILES),
            ],
        ),
    ):
        expected = classifier.predict(list(images), top=3)
        for answer in answers:
            assert answer.status == 200, answer.body
            outputs = answer.outputs
            assert list(outputs) == ["probabilities", "label", "decision", "ood_score", "is_ood", "set"]
            assert outputs["label"] == {
                "name": "label", "datatype": "BYTES", "shape": [3], "data": [one.label for one in expected]
            }  # fmt: skip
            decisions = [one.decision for one in expected]
            assert outputs["decision"]["data"] == [decision.decision for decision in decisions if decision]
            assert outputs["ood_score"]["data"] == [decision.ood_score for decision in decisions if decision]
            in_sets = [
                [label in (decision.set or ()) for label in classifier.classes] for decision in decisions if decision
            ]
            assert np.array(outputs["set"]["data"]).reshape(outputs["set"]["shape"]).tolist() == in_sets
            probabilities = np.array(outputs["probabilities"]["data"]).reshape(outputs["probabilities"]["shape"])
            np.testing.assert_array_equal(probabilities, classifier.predict_proba(list(images)))


def test_a_raw_binary_request_is_one_image() -> None:
    (answer,) = send((INFER, FILES[1], {HEADER: "0"}))
    assert answer.status == 200
    assert answer.outputs["label"]["data"] == [make_classifier().predict(FILES[1])[0].label]
    assert send((INFER, b"no image", {HEADER: "0"}))[0].json == {"error": "Image 0 cannot be read: not an image."}


def test_outputs_are_chosen_and_may_be_binary() -> None:
    outputs: list[dict[str, Any]] = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "probabilities", "parameters": {"binary_data": True}},
        {"name": "decision"},
        {"name": "set", "parameters": {"binary_data": True}},
        {"name": "ood_score", "parameters": {"binary_data": True}},
    ]
    answer = infer({"id": "7", "inputs": [FILE_INPUT | {"data": JSON_FILES}], "outputs": outputs})
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers[HEADER.lower()])
    content, binary = json.loads(answer.body[:size]), answer.body[size:]
    assert (content["id"], content["model_name"]) == ("7", "animals")
    assert [output["name"] for output in content["outputs"]] == [output["name"] for output in outputs]
    assert "binary_data_size" not in content["outputs"][2].get("parameters", {})
    sizes = [output.get("parameters", {}).get("binary_data_size", 0) for output in content["outputs"]]
    ends = np.cumsum([0, *sizes])
    parts = [binary[start:end] for start, end in itertools.pairwise(ends)]
    assert ends[-1] == len(binary)
    expected = make_classifier().predict(FILES)
    labels = [str(one.label).encode() for one in expected]
    assert parts[0] == b"".join(struct.pack("<I", len(label)) + label for label in labels)
    assert parts[1] == make_classifier().predict_proba(FILES).astype("<f4").tobytes()
    assert set(parts[3]) <= {0, 1}
    assert np.frombuffer(parts[4], "<f8").tolist() == [one.decision.ood_score for one in expected if one.decision]


def test_binary_output_is_the_default_where_asked_for() -> None:
    outputs = [{"name": "label"}, {"name": "decision", "parameters": {"binary_data": False}}]
    content = {
        "inputs": [FILE_INPUT | {"data": JSON_FILES}], "outputs": outputs, "parameters": {"binary_data_output": True}
    }  # fmt: skip
    answer = infer(content)
    head = json.loads(answer.body[: int(answer.headers[HEADER.lower()])])
    assert ["data" in output for output in head["outputs"]] == [False, True]
    del content["outputs"]
    answer = infer(content)
    head = json.loads(answer.body[: int(answer.headers[HEADER.lower()])])
    assert len(head["outputs"]) == 6
    assert not any("data" in output for output in head["outputs"])


def test_classification_returns_the_most_probable_classes() -> None:
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}]
    answer = infer({"inputs": [PIXEL_INPUT | {"shape": [1, 4, 6, 3], "data": [200] * 72}], "outputs": outputs})
    (output,) = answer.json["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    first, second = (text.split(":") for text in output["data"])
    assert (np.float32(first[0]), first[1:]) == (np.float32(0.9), ["2", "owl"])
    assert (np.float32(second[0]), second[1:]) == (np.float32(0.05), ["0", "cat"])
    outputs[0]["parameters"] = {"classification": 99}  # as Triton does: all that there are
    answer = infer({"inputs": [PIXEL_INPUT | {"shape": [1, 4, 6, 3], "data": [200] * 72}], "outputs": outputs})
    assert answer.json["outputs"][0]["shape"] == [1, 3]


def test_a_model_without_thresholds_makes_no_decisions() -> None:
    answer = infer({"inputs": [FILE_INPUT | {"data": JSON_FILES}]}, classifier=make_classifier(thresholds=False))
    assert list(answer.outputs) == ["probabilities", "label"]


@pytest.mark.parametrize("least", [0.4, 0.99])
def test_several_labels_are_an_output_and_a_decision_only_with_a_limit(least: float) -> None:
    classifier = make_classifier(thresholds=False)
    classifier.task_name = "multi_label"
    thresholds = Thresholds(9, labels=dict.fromkeys(classifier.classes, least), label_target="f1")
    classifier.thresholds = thresholds
    expected = classifier.predict(FILES)
    answer = infer({"inputs": [FILE_INPUT | {"data": JSON_FILES}]}, classifier=classifier)
    assert list(answer.outputs) == ["probabilities", "label", "labels"]
    assert answer.outputs["label"]["data"] == [one.label for one in expected]
    assert (answer.outputs["labels"]["datatype"], answer.outputs["labels"]["shape"]) == ("BOOL", [3, 3])
    assert answer.outputs["labels"]["data"] == [
        label in (one.labels or ()) for one in expected for label in classifier.classes
    ]
    assert any(answer.outputs["labels"]["data"]) == (least < 0.9)
    (answer,) = send(("/predict", FILES[0], {}), classifier=classifier)
    assert answer.json["labels"] == list(expected[0].labels or ())
    never = dict.fromkeys(classifier.classes)
    classifier.thresholds = replace(thresholds, absent=never, target_precision=0.9, target_fnr=0.1, set_threshold=0.2)
    expected = classifier.predict(FILES)
    answer = infer({"inputs": [FILE_INPUT | {"data": JSON_FILES}]}, classifier=classifier)
    assert list(answer.outputs) == ["probabilities", "label", "labels", "undecided", "label_set"]
    for name in ("undecided", "label_set"):
        sets = [getattr(one, name) for one in expected]
        assert any(sets)
        assert answer.outputs[name]["data"] == [label in chosen for chosen in sets for label in classifier.classes]
    classifier.thresholds = replace(thresholds, ood="joint_energy", ood_limit=-100.0)
    decisions = [one.decision for one in classifier.predict(FILES)]
    answer = infer({"inputs": [FILE_INPUT | {"data": JSON_FILES}]}, classifier=classifier)
    assert list(answer.outputs) == ["probabilities", "label", "labels", "decision", "ood_score", "is_ood"]
    assert answer.outputs["decision"]["data"] == ["abstain"] * 3
    assert (answer.outputs["is_ood"]["shape"], answer.outputs["is_ood"]["data"]) == ([3], [True] * 3)
    assert answer.outputs["ood_score"]["data"] == [decision.ood_score for decision in decisions if decision]
    (answer,) = send(("/predict", FILES[0], {}), classifier=classifier)
    assert (answer.json["decision"], answer.json["is_ood"]) == ("abstain", True)


def test_a_tree_of_classes_has_its_answer_as_outputs() -> None:
    classifier = Classifier(FakePredictor(("owl", "pet/cat", "pet/dog"), PreprocessingSpec(4, 6)))
    classifier.task_name = "hierarchical"
    classifier.thresholds = Thresholds(9, target_precision=0.9, confidence=0.92)
    expected = classifier.predict(FILES)
    assert {one.node for one in expected} == {"pet"}
    answer = infer({"inputs": [FILE_INPUT | {"data": JSON_FILES}]}, classifier=classifier)
    assert list(answer.outputs) == [
        "probabilities",
        "label",
        "decision",
        "ood_score",
        "is_ood",
        "node",
        "node_probability",
    ]
    assert answer.outputs["node"]["data"] == [one.node or "" for one in expected]
    assert answer.outputs["node_probability"]["data"] == [one.node_probability or 0 for one in expected]
    (answer,) = send(("/predict", FILES[0], {}), classifier=classifier)
    values = expected[0].to_dict()
    assert {name: answer.json[name] for name in ("node", "node_probability", "levels", "decision")} == {
        name: values[name] for name in ("node", "node_probability", "levels", "decision")
    }


def test_a_model_has_a_name_that_an_address_can_hold(tmp_path: Path) -> None:
    from sightline.serve.served_model import ServedModel

    classifier = make_classifier()
    for name in ("", "a/b", "caf\udce9", "two\nlines"):
        with pytest.raises(UsageError, match="expected printable characters"):
            ServedModel.from_classifier(classifier, name)
    classifier.path = tmp_path / "caf\udce9" / "bundle"  # a name that is no UTF-8
    assert ServedModel.from_classifier(classifier).name == r"caf\udce9"


def test_servers_and_models_are_described() -> None:
    version = send(("/v2/models/animals", None, {}))[0].json["versions"][0]
    paths = [
        "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/animals/ready",
        f"/v2/models/animals/versions/{version}", f"/v2/models/animals/versions/{version}/ready",
    ]  # fmt: skip
    answers = send(*((path, None, {}) for path in paths))
    assert [answer.status for answer in answers] == [200] * len(paths)
    assert answers[0].json == answers[1].json
    assert answers[0].json["extensions"] == ["binary_tensor_data", "classification"]
    assert answers[2].json["live"] is True
    assert answers[3].json["ready"] is True
    assert answers[4].json == {"name": "animals", "ready": True}
    assert answers[5].json["inputs"] == [
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, 4, 6, 3]},
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
    ]
    assert answers[5].json["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    infer_path = f"/v2/models/animals/versions/{version}/infer"
    assert send((infer_path, FILES[0], {HEADER: "0"}))[0].json["model_version"] == version


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}


def change(**fields: Any) -> dict[str, Any]:
    return {"inputs": [IMAGE | fields]}


def test_lists_without_end_are_refused_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.serve import open_inference

    monkeypatch.setitem(open_inference.MAX_JSON, b"[", (1000, "lists"))
    answer = infer(PIXEL_INPUT | {"data": [[]] * 1000})
    assert answer.status == 400
    assert b"more than 1,000 lists: send pixels as binary data" in answer.body


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"{", 400, "is not JSON"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b"[]", 400, "not a JSON object"),
        ({"inputs": [{}] * 1000}, 400, "more than 1,000 objects"),
        ({"inputs": [""] * 50_000}, 400, "more than 50,000 quotation marks"),
        ({}, 400, "one input"),
        ({"inputs": [IMAGE, IMAGE]}, 400, "one input"),
        ({"inputs": [IMAGE], "id": 1}, 400, "not a string"),
        ({"inputs": [IMAGE], "parameters": []}, 400, "cannot be read"),
        ({"inputs": [IMAGE], "parameters": [1]}, 400, "not a JSON object"),
        ({"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}, 400, "expected true or false"),
        ({"inputs": [IMAGE], "parameters": {"sequence_id": 3}}, 501, "sequence_id"),
        (change(parameters={"shared_memory_region": "x"}), 501, "shared memory region"),
        (change(name="images"), 400, "'pixels' or 'image'"),
        (change(datatype="UINT8"), 400, "expected 'BYTES'"),
        (change(shape=[2]), 400, "as many strings"),
        (change(shape=[0]), 400, "above 0"),
        (change(shape=[True]), 400, "above 0"),
        (change(shape=[1, 1]), 400, "expected [-1]"),
        (change(shape=[2000]), 400, "at most 1024"),
        (change(data=["not base64!"]), 400, "element 0 of its data is not base64"),
        (change(data=["aGk="]), 400, "Image 0 cannot be read: not an image."),
        (change(data=[3]), 400, "as many strings"),
        (change(parameters={"binary_data_size": 6}), 400, "0 bytes follow the JSON"),
        ({"inputs": [PIXEL_INPUT | {"data": [1] * 3}]}, 400, "has 3 elements, but its shape has 216"),
        ({"inputs": [PIXEL_INPUT | {"data": [256] * 216}]}, 400, "outside 0 to 255"),
        ({"inputs": [PIXEL_INPUT | {"data": [1.5] * 216}]}, 400, "not integers"),
        ({"inputs": [PIXEL_INPUT | {"data": [True] * 216}]}, 400, "not integers"),
        ({"inputs": [PIXEL_INPUT | {"data": [[1], 2]}]}, 400, "mixes lists and numbers"),
        ({"inputs": [PIXEL_INPUT | {"data": np.ones((3, 3, 4, 6), int).tolist()}]}, 400, "nested in a shape other"),
        ({"inputs": [PIXEL_INPUT | {"data": np.ones((3, 6, 4, 3), int).tolist()}]}, 400, "nested in a shape other"),
        ({"inputs": [PIXEL_INPUT | {"data": [[1] * 200, [1] * 16]}]}, 400, "nested in a shape other than [3, 4, 6, 3]"),
        ({"inputs": [PIXEL_INPUT]}, 400, "not a list"),
        ({"inputs": [PIXEL_INPUT | {"shape": [1, 6, 4, 3], "data": [1] * 72}]}, 400, "expected [-1, 4, 6, 3]"),
        ({"inputs": [IMAGE], "outputs": {}}, 400, "not a list"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits"}]}, 400, "'probabilities', 'label'"),
        ({"inputs": [IMAGE], "outputs": [{"name": "label"}] * 2}, 400, "'label' is requested twice"),
        ({"inputs": [IMAGE], "outputs": [{"name": "label", "parameters": {"classification": 2}}]}, 400, "for 'prob"),
        ({"inputs": [IMAGE], "outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]}, 400, "at l"),
    ],
)  # fmt: skip
def test_bad_requests_are_explained(content: Any, status: int, words: str) -> None:
    answer = infer(content)
    assert answer.status == status, answer.body
    assert list(answer.json) == ["error"]
    assert words in answer.json["error"]


@pytest.mark.parametrize(
    ("binary", "words"),
    [
        (b"\x05\0\0\0hell", "element 0 of its binary data is cut off"),
        (b"\x05\0", "ends before the length of element 0 of 1"),
        (b"\x01\0\0\0xyz", "2 bytes after the last of 1"),
        (b"\xff\xff\xff\xffxyz", "cut off"),
    ],
)
def test_damaged_binary_data_is_explained(binary: bytes, words: str) -> None:
    answer = infer(change(parameters={"binary_data_size": len(binary)}), binary)
    assert answer.status == 400
    assert words in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("/v2/models/plants/infer", {}, 404, "There is no model 'plants': this server has 'animals'."),
        ("/v2/models/animals/versions/9/infer", {}, 404, "There is no version '9' of 'animals'"),
        (INFER, {HEADER: "-1"}, 400, "expected the bytes of the JSON"),
        (INFER, {HEADER: "9" * 5000}, 400, "expected the bytes of the JSON"),
        (INFER, {HEADER: "3"}, 400, "but the body has 2 bytes"),
        (INFER, {"Content-Encoding": "br"}, 415, "Content-Encoding is 'br': send gzip, deflate or"),
        ("/predict", {"Content-Encoding": "gzip, gzip"}, 415, "Content-Encoding is 'gzip, gzip'"),
        (INFER, {"Content-Encoding": "gzip"}, 400, "its gzip data is damaged, or has another encoding"),
        ("/predict", {"Content-Encoding": "Identity"}, 400, "not an image"),
    ],
)
def test_bad_addresses_and_headers_are_explained(path: str, headers: dict[str, str], status: int, words: str) -> None:
    (answer,) = send((path, b"{}", headers))
    assert answer.status == status
    assert words in answer.json["error"]


def test_an_id_comes_back_even_with_a_lone_surrogate() -> None:
    for outputs in ([{"name": "label"}], [{"name": "label", "parameters": {"binary_data": True}}]):
        answer = infer({"id": "\ud800", "inputs": [FILE_INPUT | {"data": JSON_FILES}], "outputs": outputs})
        assert answer.status == 200
        assert json.JSONDecoder().raw_decode(answer.body.decode(errors="replace"))[0]["id"] == "\ud800"


def test_the_limit_of_bytes_is_that_of_predict() -> None:
    assert send((INFER, bytes(2000), {}), max_bytes=1000)[0].status == 413


def test_a_request_of_many_images_takes_several_batches() -> None:
    class Recorder(FakePredictor):
        sizes: list[int] = []  # noqa: RUF012

        def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.sizes.append(len(pixels))
            return super().probabilities(pixels)

    pixels = np.random.default_rng(1).integers(0, 256, (300, 4, 6, 3), np.uint8)
    spec = PIXEL_INPUT | {"shape": [300, 4, 6, 3], "parameters": {"binary_data_size": pixels.size}}
    classifier = Classifier(Recorder(("cat", "dog", "owl"), PreprocessingSpec(4, 6)))
    answer = infer({"inputs": [spec]}, pixels.tobytes(), classifier=classifier)
    assert answer.outputs["label"]["data"] == [one.label for one in classifier.predict(pixels)]
    assert max(Recorder.sizes) <= 128


@given(st.binary(max_size=80), st.one_of(st.none(), st.integers(0, 100)))
def test_no_body_ends_in_another_error(body: bytes, header_length: int | None) -> None:
    from starlette.exceptions import HTTPException

    from sightline.serve.open_inference import InferenceModel
    from sightline.serve.served_model import ServedModel

    model = InferenceModel(ServedModel.from_classifier(make_classifier(), "animals"))
    with pytest.raises(HTTPException) if header_length != 0 else contextlib.nullcontext():
        model.parse(body, header_length)
