"""What operators of a server rely on: metrics, ids and logs of requests, and who is let in."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from asgi_client import MODEL_ID, Answer, FailingPredictor, Request, call, send
from sightline.api.classifier import Classifier
from sightline.errors import UsageError
from sightline.inference.logged_images import read_log
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sightline.serve.app import create_app
from sightline.serve.feature_logs import FeatureLogs
from sightline.serve.limits import Limits
from sightline.serve.metrics import SHARED_FOLDER
from sightline.serve.observing import format_entry

TOKEN = "correct-horse"  # noqa: S105  # of this test alone


def read_metric(text: str, name: str, **labels: str) -> float:
    """Return the sample of a metric whose labels include `labels`."""
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            return float(match[2])
    pytest.fail(f"{name} {labels} is not among the metrics")


def test_metrics_count_what_happened() -> None:
    images = [encode_png(0, 0), encode_png(1, 3), b"not an image"]
    requests = [Request("/predict", image) for image in images]
    *_, answer = send(*requests, Request("/v2/models/shades/infer", b"{}"), Request("/nowhere"), Request("/metrics"))
    text = answer.body
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert read_metric(text, "sightline_requests_total", model="shades", endpoint="predict", code="200") == 2
    assert read_metric(text, "sightline_requests_total", endpoint="predict", code="400") == 1
    assert read_metric(text, "sightline_requests_total", endpoint="infer", code="400") == 1
    assert read_metric(text, "sightline_requests_total", endpoint="other", code="404") == 1
    assert read_metric(text, "sightline_request_seconds_count", endpoint="predict") == 3
    assert read_metric(text, "sightline_images_total", outcome="predicted") == 2
    assert read_metric(text, "sightline_images_total", outcome="unreadable") == 1
    assert (
        sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("sightline_decisions_total")) == 2
    )
    assert read_metric(text, "sightline_batch_size_sum", model="shades") == 2
    for name in ("queue_seconds", "model_seconds", "ood_score"):
        assert read_metric(text, f"sightline_{name}_count", model="shades") == 2
    assert read_metric(text, "sightline_decode_seconds_count", model="shades") == 3
    assert read_metric(text, "sightline_requests_in_flight") == 0
    assert read_metric(text, "sightline_model_info", model="shades", version="1") == 1
    assert read_metric(text, "sightline_ood_limit", model="shades") == 1.5
    assert 'endpoint="/nowhere"' not in text


def test_metrics_are_answered_while_another_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has just created its file of counts, which is still empty."""
    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    (tmp_path / "counter_1.db").touch()
    (answer,) = send(Request("/metrics"))
    assert answer.status == 200
    assert read_metric(answer.body, "sightline_model_info", model="shades", version="1") == 1


@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_metrics_are_text_for_a_version_that_is_not_a_number(kind: str) -> None:
    (answer,) = send(Request("/metrics", headers={"Accept": f"{kind}; version=x"}))
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")


def test_openmetrics_have_no_sum_of_scores_below_zero() -> None:
    (answer,) = send(Request("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}))
    read: Any = text_string_to_metric_families  # strictly
    families = {family.name: family for family in read(answer.body)}
    assert {sample.name.rpartition("_")[2] for sample in families["sightline_ood_score"].samples} == {
        "bucket", "created",
    }  # fmt: skip
    assert any(sample.name.endswith("_sum") for sample in families["sightline_decode_seconds"].samples)


def test_a_request_that_fails_is_observed_as_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    request = Request("/predict", encode_png(), {"X-Request-ID": "7"})
    failed, metrics = send(request, Request("/metrics"), model=FailingPredictor, log_format="json")
    assert (failed.status, json.loads(failed.body)) == (500, {"error": "out of memory"})
    assert failed.headers["x-request-id"] == "7"
    assert json.loads(capsys.readouterr().err.splitlines()[0])["status"] == 500
    assert read_metric(metrics.body, "sightline_requests_total", endpoint="predict", code="500") == 1
    assert read_metric(metrics.body, "sightline_images_total", outcome="failed") == 1


def test_a_request_keeps_its_id_or_gets_one() -> None:
    ids = ["trace-7.a_B", "x" * 129, "a b", ""]
    answers = send(*(Request("/health", headers={"X-Request-ID": text}) for text in ids), Request("/nowhere"))
    assert answers[0].headers["x-request-id"] == "trace-7.a_B"
    others = [answer.headers["x-request-id"] for answer in answers[1:]]
    assert all(re.fullmatch("[0-9a-f]{32}", text) for text in others)
    assert len(set(others)) == len(others)


def test_requests_are_logged_without_what_clients_must_not_forge(capsys: pytest.CaptureFixture[str]) -> None:
    forged = '/x\n10.0.0.9 "GET /admin"'
    requests = Request("/predict", encode_png(), query="top=1"), Request(forged, query="key=secret")
    (answer, _) = send(*requests, log_format="json")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["request_id"] == answer.headers["x-request-id"]
    assert {name: first[name] for name in ("client", "method", "path", "status", "bytes")} == {
        "client": "10.0.0.7", "method": "POST", "path": "/predict", "status": 200, "bytes": len(answer.body)
    }  # fmt: skip
    assert first["seconds"] > 0
    assert (second["path"], second["status"]) == (forged, 404)
    send(Request(forged), log_format="text")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r'\S+ 10\.0\.0\.7 "GET /x\\n10\.0\.0\.9 \\"GET /admin\\"" 404 ', line)
    send(Request("/health"))
    assert capsys.readouterr().err == ""


def test_what_a_proxy_passes_on_as_the_client_cannot_forge_a_line() -> None:
    entry = {"time": "12:00", "request_id": "7", "method": "GET", "path": "/", "status": 200, "seconds": 0.5}
    line = format_entry(entry | {"bytes": 3, "client": '::1 "GET /admin" 200\x9b2J'}, "text")
    assert line == r'12:00 "::1 \"GET /admin\" 200\u009b2J" "GET /" 200 3 0.500 s 7'


def test_a_token_is_needed_where_there_is_one() -> None:
    from sightline.serve.access import Access

    access = Access(TOKEN)
    assert TOKEN not in repr(access)
    headers = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}]
    refused = send(
        *(Request("/predict", encode_png(), header) for header in headers),
        Request("/metrics"), Request("/model"), Request("/v2"), access=access,
    )  # fmt: skip
    assert [answer.status for answer in refused] == [401] * 7
    assert {answer.headers["www-authenticate"] for answer in refused} == {"Bearer"}
    assert "Authorization: Bearer TOKEN" in json.loads(refused[0].body)["error"]
    right = {"Authorization": f"bearer {TOKEN}"}
    accepted = send(
        Request("/predict", encode_png(), right), Request("/metrics", headers=right), Request("/health"),
        Request("/v2/health/live"), Request("/v2/health/ready"), access=access,
    )  # fmt: skip
    assert [answer.status for answer in accepted] == [200] * 5
    description = json.loads(send(Request("/openapi.json", headers=right), access=access)[0].body)
    assert "401" in description["paths"]["/predict"]["post"]["responses"]
    assert "security" not in description["paths"]["/health"]["get"]


@pytest.mark.parametrize("prefix", ["/cats", "/page"])
def test_it_can_be_mounted_below_a_prefix(prefix: str) -> None:
    from sightline.serve.access import Access

    right = {"Authorization": f"Bearer {TOKEN}"}
    requests = [Request("/health"), Request("/v2/health/ready"), Request("/"), Request("/page/page.css")]
    requests += [Request("/model"), Request("/predict", encode_png(), right), Request("/metrics", headers=right)]
    answers = send(*(request._replace(prefix=prefix) for request in requests), access=Access(TOKEN))
    assert [answer.status for answer in answers] == [200] * 4 + [401] + [200] * 2
    assert read_metric(answers[-1].body, "sightline_requests_total", endpoint="predict", code="200") == 1


def test_other_hosts_are_refused() -> None:
    from sightline.serve.access import Access

    hosts = [
        "classify.example.org",
        "CLASSIFY.example.org:8000",
        "[::1]:80",
        "evil.example.org",
        "",
        "x:classify.example.org",
    ]
    *answers, described = send(
        *(Request("/model", headers={"Host": host}) for host in hosts),
        Request("/openapi.json", headers={"Host": hosts[0]}),
        access=Access(hosts=("classify.example.org", "[::1]")),
    )
    assert [answer.status for answer in answers] == [200, 200, 200, 400, 400, 400]
    operations = [each for path in json.loads(described.body)["paths"].values() for each in path.values()]
    assert all("400" in operation["responses"] for operation in operations)


def test_a_slash_at_the_end_leads_nowhere() -> None:
    """Not to an address without it, which would be one of http behind a proxy that encrypts."""
    answers = send(Request("/predict/", b"image"), Request("/models/"))
    assert [answer.status for answer in answers] == [404] * 2
    assert json.loads(answers[0].body)["error"] == (
        "There is nothing at /predict/: /openapi.json describes the requests."
    )


@pytest.mark.parametrize(("host", "status"), [("Classify.example.org:80", 200), ("evil.example.org", 400)])
def test_the_host_of_a_whole_address_counts_not_the_header(host: str, status: int) -> None:
    from sightline.serve.access import Access

    headers = {"Host": "classify.example.org"}
    (answer,) = send(Request(f"HTTP://{host}/model", headers=headers), access=Access(hosts=("classify.example.org",)))
    assert answer.status == status


@pytest.mark.parametrize("host", ["http://cats.example.org", "cats.example.org:8000", "*.example.org", "::1", ""])
def test_a_host_that_no_request_states_is_refused(host: str) -> None:
    from sightline.serve.access import Access

    with pytest.raises(UsageError, match=r"--allowed-host .* expected a name or an address alone"):
        Access(hosts=("cats.example.org", host))


@pytest.mark.parametrize("origin", ["https://app.example.org/", "app.example.org", "https://App.example.org", ""])
def test_an_origin_that_no_browser_states_is_refused(origin: str) -> None:
    from sightline.serve.access import Access

    Access(origins=("*", "https://app.example.org:8443", "http://localhost"))
    with pytest.raises(UsageError, match=r"--cors-origin .* expected its scheme and its host"):
        Access(origins=(origin,))


def test_pages_of_the_stated_origins_may_call() -> None:
    from sightline.serve.access import Access

    access = Access(TOKEN, origins=("https://app.example.org",))
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}
    good, bad = {"Origin": "https://app.example.org"}, {"Origin": "https://evil.example.org"}
    answers = send(
        Request("/predict", headers=preflight | good, method="OPTIONS"),
        Request("/predict", headers=preflight | bad, method="OPTIONS"),
        Request("/model", headers={"Authorization": f"Bearer {TOKEN}"} | good),
        Request("/model", headers={"Authorization": f"Bearer {TOKEN}"} | bad),
        access=access,
    )
    allowed = [answer.headers.get("access-control-allow-origin") for answer in answers]
    assert allowed == ["https://app.example.org", None, "https://app.example.org", None]
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    assert "x-request-id" in answers[2].headers["access-control-expose-headers"].lower()


def test_pages_may_read_why_they_were_refused() -> None:
    from sightline.serve.access import Access

    page, token = {"Origin": "https://app.example.org"}, {"Authorization": f"Bearer {TOKEN}"}
    answers = send(
        Request("/predict", b"x", page | token | {"Content-Length": str(2 << 20)}),
        Request("/predict", b"x", page),
        Request("/predict", encode_png(), page | token),
        access=Access(TOKEN, origins=("https://app.example.org",)), model=FailingPredictor,
    )  # fmt: skip
    assert [answer.status for answer in answers] == [413, 401, 500]
    assert {answer.headers.get("access-control-allow-origin") for answer in answers} == {"https://app.example.org"}


def test_tokens_are_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.serve.access import read_token

    monkeypatch.delenv("SIGHTLINE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("SIGHTLINE_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    for content in ("", "  \n", "two words", "ünprintable", "x" * 5000):
        path.write_text(content)
        with pytest.raises(UsageError, match="has no token"):
            read_token(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "none")
    monkeypatch.setenv("SIGHTLINE_TOKEN", "")
    with pytest.raises(UsageError, match="SIGHTLINE_TOKEN has no token"):
        read_token(None)


class WaitingPredictor(FakePredictor):
    """Computes nothing until `go` is set."""

    def __init__(self) -> None:
        super().__init__(("dark", "light"), PreprocessingSpec(8, 8))
        self.go = threading.Event()

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.go.wait(30)
        return super().probabilities(pixels)


def test_a_model_is_not_ready_while_it_takes_too_long_or_the_server_stops() -> None:
    predictor = WaitingPredictor()
    app = create_app(Classifier(predictor), max_bytes=1 << 20, name="shades", limits=Limits(model=0.1))
    infer = Request("/v2/models/shades/infer", encode_png(), {"Inference-Header-Content-Length": "0"})
    ready, server_ready = Request("/v2/models/shades/ready"), Request("/v2/health/ready")

    async def ask(*requests: Request) -> list[tuple[int, str | None]]:
        answers: list[Answer] = [await call(app, request) for request in requests]
        return [(answer.status, answer.headers.get("retry-after")) for answer in answers]

    async def use() -> None:
        async with app.router.lifespan_context(app):
            assert await ask(ready) == [(200, None)]
            assert await ask(infer, infer, ready, server_ready) == [(503, "1")] * 2 + [(503, None)] * 2
            predictor.go.set()
            async with asyncio.timeout(30):
                while await ask(ready) != [(200, None)]:  # noqa: ASYNC110  # as a probe sees it
                    await asyncio.sleep(0.001)
            assert await ask(infer) == [(200, None)]
            app.state.admission.draining = True
            assert await ask(infer, ready, server_ready) == [(503, "1"), (503, None), (503, None)]
            answer = await call(app, ready)
            assert json.loads(answer.body) == {"name": "shades", "ready": False}

    asyncio.run(use())


def test_the_features_of_each_image_are_logged_with_the_id_of_its_answer(tmp_path: Path) -> None:
    logs = FeatureLogs(tmp_path / "shades.log", 1 << 20)
    files = [encode_png(seed) for seed in range(2)]
    raw = Request("/v2/models/shades/infer", files[1], {"Inference-Header-Content-Length": "0"})
    first, second, _unreadable, metadata, scrape = send(
        Request("/predict", files[0]), raw, Request("/predict", b"nothing"), Request("/v2/models/shades"),
        Request("/metrics"), feature_logs=logs,
    )  # fmt: skip
    (images,) = read_log(tmp_path / "shades.log", MODEL_ID, ("dark", "light"), lambda _: None)
    tensors = {output["name"]: output for output in json.loads(second.body)["outputs"]}
    assert tensors["log_id"] == {"name": "log_id", "datatype": "BYTES", "shape": [1], "data": [images.ids[1]]}
    assert tensors["log_id"].keys() - {"data"} == json.loads(metadata.body)["outputs"][-1].keys()
    assert json.loads(first.body)["log_id"] == images.ids[0]
    spec = PreprocessingSpec(8, 8)
    outputs = FakePredictor(("dark", "light"), spec).outputs(np.stack([spec.decode(file) for file in files]))
    np.testing.assert_allclose(images.features, outputs.features, rtol=1e-3)
    assert np.array_equal(images.probabilities, outputs.probabilities)
    assert 'sightline_feature_log_dropped_images{model="shades"} 0.0' in scrape.body


def test_what_warms_up_is_not_logged(tmp_path: Path) -> None:
    send(feature_logs=FeatureLogs(tmp_path / "shades.log", 1 << 20), warm_up=True)
    assert (tmp_path / "shades.log").read_text().count("\n") == 1  # its header
