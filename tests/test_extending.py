"""The examples in docs/extending.md run as printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from sightline import backend
from sightline.api.loading import load
from sightline.api.training import train_run
from sightline.callbacks import Callback
from sightline.compress import candidates
from sightline.config import RunConfig, load_config
from sightline.data.indexing import build_index
from sightline.data.sources.named import SOURCES
from sightline.data.types import Subset
from sightline.errors import ModelError, UsageError
from sightline.evaluation import scoring
from sightline.export import keras_to_onnx
from sightline.inference.exporters import EXPORTERS
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models import registry
from sightline.models.layers import LAYER_TYPES
from sightline.plugins import Registry
from sightline.report.diagram_blocks import group_layers
from sightline.tasks.protocol import TASKS, Task, find_task
from sightline.training.augment import pipeline
from sightline.training.augment.augmentation import AUGMENTATIONS

pytestmark = pytest.mark.usefixtures("plain_figures")

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = {name: code for name, code in re.findall(r'```\w+ title="([\w ]+)"\n(.*?)```', PAGE, re.DOTALL)}  # noqa: C416


@pytest.fixture(scope="module", autouse=True)
def _own_registries() -> Iterator[None]:
    """Forget what the examples register, so that other test modules do not see it."""
    changed: list[Registry[Any]] = [registry.ENTRIES, AUGMENTATIONS, SOURCES]
    known = [(entries, set(entries.registered_names)) for entries in changed]
    yield
    for entries, names in known:
        for name in set(entries.registered_names) - names:
            del entries._entries[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    assert len(EXAMPLES[name].splitlines()) < 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the page's own model."""
    exec(compile(EXAMPLES["model"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    path = tmp_path_factory.mktemp("runs") / "run"
    settings = ["model.name=tiny-net", "train.epochs=2", "train.track=[]"]
    train_run("beans:40@32", recipe="quick", set=settings, out=path)
    return path


@pytest.mark.slow
def test_compress_goes_on_where_a_network_cannot_be_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is used twice; asking for pruning alone is an error."""

    @sl.register_model("recurrent-net", input_size=32, min_input_size=8)
    def recurrent_net(x: Any) -> Any:
        """One convolution, twice."""
        layers = backend.keras().layers
        x = layers.Conv2D(8, 3, strides=4, padding="same", activation="relu")(x)
        shared = layers.Conv2D(8, 3, padding="same", activation="relu")
        return shared(shared(x))

    monkeypatch.setattr(candidates, "LATENCY_SECONDS", 0.0)
    messages: list[str] = []

    class Messages(Callback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    settings = ["model.name=recurrent-net", "train.epochs=1", "train.track=[]"]
    train_run("beans:40@32", recipe="quick", set=settings, out=tmp_path / "run")
    classifier = load(tmp_path / "run")
    result = classifier.compress(methods="prune,float16", max_drop=100, callback=Messages())
    assert [candidate.name for candidate in result.candidates] == ["original", "original-float16"]
    reason = "is used more than once: it cannot be pruned."
    assert [text.endswith(reason) for text in messages if text.startswith("prune is left out: The layer ")] == [True]
    with pytest.raises(ModelError, match=reason):
        classifier.compress(methods="prune", out=tmp_path / "other", progress=False)


def test_the_model_trains_exports_and_predicts(run: Path) -> None:
    assert "three strided convolutions" in registry.get_entry("tiny-net").description.lower()
    classifier = load(run / "bundle")
    assert classifier.evaluate("beans:40@32", include_training=True).result.count == 40


def test_the_layer_trains_and_is_exported_described_drawn_and_left_alone_by_pruning(tmp_path: Path) -> None:
    exec(compile(EXAMPLES["layer"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    settings = ["model.name=rms-net", "train.epochs=2", "train.track=[]"]
    train_run("beans:40@32", recipe="quick", set=settings, out=tmp_path / "run")
    classifier = load(tmp_path / "run")
    try:
        exported = classifier.export(tmp_path / "model.onnx", tolerance=1e-5)
        assert exported.accepted
        description = sl.describe("rms-net", size="32x32x3", classes=3)
        norms = [layer for layer in description.layers if layer.kind == "rms normalization"]
        assert [(layer.output, layer.parameters) for layer in norms] == [((16, 16, 16), 16), ((8, 8, 32), 32)]
        extras = [unit.extras for group in group_layers(description) for unit in group.units]
        assert sum("normalization" in roles.values() for roles in extras) == 2
        with pytest.raises(ModelError, match=r"No channels .* can be pruned: .*RMSNormalization"):
            classifier.compress(methods="prune", out=tmp_path / "compressed", epochs=1)
    finally:
        del LAYER_TYPES._entries["RMSNormalization"]
    predictor = load(tmp_path / "run", engine="keras").predictor
    assert isinstance(predictor, KerasPredictor)
    with pytest.raises(ModelError, match=r"\(RMSNormalization\) cannot be exported to ONNX"):
        keras_to_onnx.convert_model(predictor.model)


def test_the_exporter_writes_what_its_own_runtime_reads(run: Path) -> None:
    exec(compile(EXAMPLES["exporter"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    try:
        exported = load(run).export(to="ort")
        folder = run / "exports" / "ort"
        assert exported.path == str(folder)
        assert exported.parity.max_difference < 1e-4
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
        loaded, expected = load(folder), load(run)
        assert type(loaded.predictor).__name__ == "OrtPredictor"
        np.testing.assert_allclose(
            loaded.predictor.probabilities(pixels), expected.predictor.probabilities(pixels), atol=1e-5
        )
        file = folder / "model.ort"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ModelError, match=r"model\.ort was changed"):
            load(folder)
    finally:
        del EXPORTERS._entries["ort"]
    with pytest.raises(ModelError, match="cannot be used"):
        load(folder)


def test_the_augmentation_inverts_half_of_the_images(tmp_path: Path) -> None:
    exec(compile(EXAMPLES["augmentation"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    file = tmp_path / "settings.toml"
    file.write_text(EXAMPLES["augmentation settings"], encoding="utf-8")
    config = load_config(file).augment
    pixels = np.full((64, 4, 4, 3), 10, np.uint8)
    params = pipeline.sample_params(config, 64, (4, 4), 0, 1)
    out = np.asarray(backend.keras().ops.convert_to_numpy(pipeline.apply(config, pixels, params)))
    assert set(np.unique(out)) == {10, 245}
    assert 0.3 < (out == 245).mean() < 0.7


def test_the_metric_is_that_of_scikit_learn() -> None:
    exec(compile(EXAMPLES["metric"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    probabilities = rng.dirichlet([1, 1, 1], 60).astype(np.float32)
    probabilities[np.arange(60), labels] += 0.3
    probabilities /= probabilities.sum(1, keepdims=True)
    try:
        metric = scoring.compute_metrics(probabilities, labels)["cohen_kappa"]
    finally:
        del scoring.METRICS._entries["cohen_kappa"]
    assert metric.value == pytest.approx(cohen_kappa_score(labels, probabilities.argmax(1)))
    assert metric.value is not None
    assert metric.interval is not None
    assert metric.interval.low < metric.value <= metric.interval.high


def test_the_source_is_listed_by_its_name() -> None:
    exec(compile(EXAMPLES["source"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    index = build_index("squares:40")
    assert [image.label for image in index.images[:3]] == ["left", "right", "left"]
    assert len(index.images) == 40


@pytest.fixture
def graded() -> Iterator[Task]:
    exec(compile(EXAMPLES["task"], "docs/extending.md", "exec"), {})  # noqa: S102  # the page's own code
    yield find_task("graded")
    TASKS._entries.pop("graded", None)


def test_the_task_spreads_labels_over_neighboring_grades(graded: Task) -> None:
    train = Subset(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), np.array([0, 2], np.int32), ("", ""))
    targets = graded.make_objective(RunConfig(), train, 4, None).compute_targets(np.arange(2), 1, None)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    assert targets.argmax(1).tolist() == [0, 2]
    assert targets[1, 1] == pytest.approx(targets[1, 3])
    assert targets[1, 1] > targets[1, 0] > 0


@pytest.mark.slow
def test_a_bundle_of_the_task_needs_its_package(graded: Task, tmp_path: Path) -> None:
    settings = [
        "model.task=graded",
        "model.name=cifar10-simple",
        "model.hidden_units=[64]",
        "train.epochs=1",
        "train.track=[]",
    ]
    train_run("beans:24@32", recipe="quick", set=settings, out=tmp_path / "run")
    assert load(tmp_path / "run" / "bundle").task is graded
    del TASKS._entries["graded"]
    with pytest.raises(UsageError, match="'graded'"):
        _ = load(tmp_path / "run" / "bundle").task


@pytest.mark.parametrize(
    "settings",
    [["augment.custom=[{name='invrt'}]"], {"augment.custom": [{"name": "invrt", "strength": np.float32(0.5)}]}],
    ids=["text", "values"],
)
def test_an_unknown_augmentation_is_refused_before_any_image_is_read(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(UsageError, match=r"There is no augmentation 'invrt'\."):
        sl.train(tmp_path / "missing", set=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
