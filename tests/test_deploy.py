"""The files of `deploy/`: they parse, agree with the server and with each other, and keep what docs/deploy.md promises.

Behavior that needs a container runtime, systemd or a cluster is tested by hand, as described in docs/deploy.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement

from asgi_client import Request, send
from sightline.cli import app
from sightline.serve.limits import DEFAULT_GRACE
from synthetic_images import encode_png

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
UNIT = (DEPLOY / "sightline.service").read_text(encoding="utf-8")
PROBES = {"/v2/health/live", "/v2/health/ready"}


# Prometheus and Grafana: every query names metrics and labels that the server has.

WORDS_OF_PROMQL = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset"}
LABELS_OF_PROMETHEUS = {"job", "instance"}


def list_metric_names(query: str) -> set[str]:
    """Return the names of the metrics in a PromQL query.

    >>> sorted(list_metric_names('sum by (a) (rate(b_total{c="d"}[5m])) / ignoring(e) group_left up > 0.9'))
    ['b_total', 'up']
    """
    text = re.sub(r'"[^"]*"', "", query)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", text)) - WORDS_OF_PROMQL


def list_label_names(query: str) -> set[str]:
    """Return the names of the labels in a PromQL query.

    >>> sorted(list_label_names('sum by (a, b) (rate(c{d=~"e", f!="g"}[5m]))'))
    ['a', 'b', 'd', 'f']
    """
    matchers = re.findall(r"\{([^}]*)\}", re.sub(r'"[^"]*"', "", query))
    groups = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query)
    return set(re.findall(r"\w+", " ".join([*matchers, *groups])))


def list_queries() -> Iterator[tuple[str, str]]:
    """Yield the location and the text of each query."""
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            function = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert function is not None
            yield variable["name"], f"sum by ({function[2]}) ({function[1]})"
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@cache
def read_served_metrics() -> tuple[set[str], set[str]]:
    """Return the names of the samples and of their labels from a server with a model that has thresholds."""
    *_, answer = send(Request("/predict", encode_png()), Request("/predict", b"no image"), Request("/metrics"))
    samples = [line for line in answer.body.splitlines() if not line.startswith("#")]
    counters = re.findall(r"^# TYPE (\S+_total) counter$", answer.body, re.MULTILINE)  # some have no sample yet
    return {*counters, *(re.split(r"[{ ]", line)[0] for line in samples)}, set(re.findall(r'(\w+)="', answer.body))


def test_queries_name_what_the_server_measures() -> None:
    names, labels = read_served_metrics()
    for where, query in list_queries():
        assert list_metric_names(query), where
        assert list_metric_names(query) <= names | {"up"}, where
        assert list_label_names(query) <= labels | LABELS_OF_PROMETHEUS, where


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_prometheus_reads_the_alerts() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert all((DEPLOY / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "sightline"  # as in the alert on `up`


# How the server is started: each option exists.


def read_kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def list_starts() -> dict[str, list[str]]:
    """Return the arguments of `sightline` in each file."""
    entry, command = (
        json.loads(re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)[0]) for name in ("ENTRYPOINT", "CMD")
    )
    (container,) = read_kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"]
    unit = shlex.split(re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[0])
    assert (entry[0], Path(unit[0]).name) == ("sightline", "sightline")
    return {"Dockerfile": [*entry[1:], *command], "Kubernetes": [*entry[1:], *container["args"]], "systemd": unit[1:]}


@pytest.mark.parametrize("where", ["Dockerfile", "Kubernetes", "systemd"])
def test_the_command_line_takes_what_starts_the_server(where: str) -> None:
    name, *arguments = list_starts()[where]
    command = typer.main.get_group(app).commands[name]
    parameters = command.make_context(name, arguments).params  # exits for an unknown option
    assert (name, parameters["log_format"]) == ("serve", "json")
    assert parameters["host"] == ("127.0.0.1" if where == "systemd" else "0.0.0.0")  # noqa: S104  # in a container
    assert parameters["port"] == 8000


def test_the_paths_of_probes_answer_without_a_token() -> None:
    from sightline.serve.access import Access

    answers = send(*map(Request, sorted(PROBES)), access=Access("token"))
    assert [answer.status for answer in answers] == [200, 200]
    (container,) = read_kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/v2/health/ready", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}
    assert set(re.findall(r"HEALTHCHECK .*\n.*127\.0\.0\.1:8000(/[\w/]+)", DOCKERFILE)) == {"/v2/health/ready"}


# The image.


def test_the_image_takes_only_pinned_packages_and_files_that_exist() -> None:
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    ]
    let_through = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert copied
    assert {name for name in copied if not (REPOSITORY / name).exists() or f"!{name}" not in let_through} == set()
    assert "--require-hashes -r requirements-serve.lock" in DOCKERFILE
    assert not re.search(r"--(extra-)?index-url|https?://(?!127\.0\.0\.1)", DOCKERFILE)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = read_pins("requirements-serve.lock")
    for text in [*project["dependencies"], *extras["serve"], *extras["otel"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins.get(requirement.name, "0")), f"{text}: run `make lock`"
    assert pins.items() <= read_pins("requirements.lock").items()  # what is tested is what is deployed


def read_pins(name: str) -> dict[str, str]:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)", text, re.MULTILINE))


def test_containers_run_as_one_user_who_may_write_nothing_but_tmp() -> None:
    *_, last = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    (user,) = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    spec = read_kubernetes()["Deployment"]["spec"]["template"]["spec"]
    pod, (container,) = spec["securityContext"], spec["containers"]
    assert (str(pod["runAsUser"]), str(pod["runAsGroup"])) == user
    assert user[0] != "0"
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert spec["automountServiceAccountToken"] is False
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp"}  # noqa: S108  # in the container


# What stops the server gives it the time that it needs.


def test_pods_have_limits_and_the_time_to_stop() -> None:
    documents = read_kubernetes()
    spec = documents["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert set(container["resources"]["limits"]) == set(container["resources"]["requests"]) == {"cpu", "memory"}
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > pause + DEFAULT_GRACE
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
        documents["Service"]["spec"]["selector"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    (port,) = documents["Service"]["spec"]["ports"]
    assert port["targetPort"] in {item["name"] for item in container["ports"]}


def test_the_unit_stops_the_server_alone_and_waits_for_it() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    assert settings["KillMode"] == "mixed"
    assert int(settings["TimeoutStopSec"]) > DEFAULT_GRACE
    hardened = {"DynamicUser": "yes", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "CapabilityBoundingSet": ""}
    assert hardened.items() <= settings.items()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "sightline.service"
    unit.write_text(UNIT.replace("/opt/sightline/bin/sightline", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    if "Failed to" in verified.stderr and "sightline" not in verified.stderr:
        pytest.skip(f"systemd does not work here: {verified.stderr}")
    assert (verified.returncode, verified.stderr) == (0, "")


# Third-party tools, which need their own environment.


@pytest.fixture(scope="module")
def tools() -> Path:
    folder = Path(os.environ.get("SIGHTLINE_CLIENTS") or REPOSITORY / ".venv-clients") / "bin"
    if not (folder / "kubernetes-validate").exists():
        pytest.skip("the tools are not installed: make .venv-clients/installed")
    return folder


@pytest.mark.slow
def test_hadolint_finds_nothing_in_the_dockerfile(tools: Path) -> None:
    checked = subprocess.run([tools / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.slow
def test_kubernetes_schemas_accept_the_manifest(tools: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [tools / "kubernetes-validate", "--strict"]
    checked = subprocess.run([*command, DEPLOY / "kubernetes.yaml"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8").replace("replicas: 2", "replicas: two"))
    assert subprocess.run([*command, wrong], capture_output=True, check=False).returncode != 0
