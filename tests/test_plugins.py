"""Registries: their own entries, decorators, entry points of installed packages, and messages."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from sightline import backend
from sightline.data.sources.named import SOURCES
from sightline.errors import PluginError, UsageError
from sightline.evaluation.scoring import METRICS, compute_metrics
from sightline.plugins import Registry
from sightline.runs.train_request import TrainRequest


def install(folder: Path, name: str, group: str, source: str) -> None:
    """Make `folder` look like site-packages with a package that has an entry point in `group`."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n", encoding="utf-8")


def test_entries_keep_their_order_and_names_are_unique() -> None:
    registry: Registry[int] = Registry("fruit")
    assert registry.add("pear", 1) == 1
    registry.add("apple", 2)
    assert dict(registry) == {"pear": 1, "apple": 2}
    with pytest.raises(UsageError, match="There is already a fruit 'pear': choose another name"):
        registry.add("pear", 3)


def test_the_names_of_sightline_itself_are_taken() -> None:
    registry: Registry[int] = Registry("fruit", reserved=("fig",))
    with pytest.raises(UsageError, match="There is already a fruit 'fig': choose another name"):
        registry.add("fig", 1)


@pytest.mark.parametrize(
    ("register", "name"),
    [(sl.register_metric, "macro_f1"), (sl.register_metric, "accuracy"), (sl.register_source, "digits")],
)
def test_what_is_built_in_is_not_replaced(register: Any, name: str) -> None:
    with pytest.raises(UsageError, match=f"There is already a .* '{name}'"):
        register(name)(len)


@pytest.mark.parametrize(
    "register",
    [
        sl.register_augmentation, sl.register_exporter, sl.register_layer, sl.register_metric, sl.register_source,
        sl.register_task,
    ],
)  # fmt: skip
def test_a_decorator_without_parentheses_is_refused(register: Any) -> None:
    with pytest.raises(UsageError, match=rf'takes the name of an? .*, as in @{register.__name__}\("name"\), not <'):
        register(Registry)


@pytest.mark.parametrize(
    ("register", "base"),
    [
        (sl.register_augmentation, "Augmentation"), (sl.register_exporter, "Exporter"),
        (sl.register_layer, "LayerType"), (sl.register_task, "Task"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("decorated", [lambda: None, Path])
def test_a_decorator_for_subclasses_refuses_anything_else(register: Any, base: str, decorated: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{register.__name__} decorates a subclass of sightline\..*\.{base}, not <"):
        register("another")(decorated)


def test_an_unknown_name_gets_a_suggestion() -> None:
    registry: Registry[int] = Registry("ornament")
    registry.add("garland", 1)
    with pytest.raises(UsageError, match=r"There is no ornament 'garlad'\. Did you mean 'garland'\?"):
        registry.find("garlad")


def test_an_installed_package_adds_an_entry_when_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "orchard_plugin", "sightline.orchards", "import orchard\norchard.REGISTRY.add('plum', 7)\n")
    (tmp_path / "orchard.py").write_text("from sightline.plugins import Registry\nREGISTRY = Registry('orchard')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import orchard  # type: ignore[import-not-found]

    orchard.REGISTRY.add("cherry", 1)
    assert orchard.REGISTRY["cherry"] == 1
    assert orchard.REGISTRY._entries.keys() == {"cherry"}, "nothing is imported for a name that is known"
    assert orchard.REGISTRY.find("plum") == 7
    assert list(orchard.REGISTRY) == ["cherry", "plum"]


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "broken_plugin", "sightline.gadgets", "import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[int] = Registry("gadget")
    with pytest.raises(PluginError, match=r"broken_plugin.*adds a gadget, cannot be imported: No module named"):
        len(registry)


def test_a_package_that_cannot_be_imported_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "a_broken_widget", "sightline.widgets", "import no_such_module_anywhere\n")
    install(tmp_path, "b_widget", "sightline.widgets", "import widget_registry\nwidget_registry.REGISTRY.add('b', 7)\n")
    (tmp_path / "widget_registry.py").write_text(
        "from sightline.plugins import Registry\nREGISTRY = Registry('widget')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import widget_registry  # type: ignore[import-not-found]

    assert widget_registry.REGISTRY.find("b") == 7
    for _ in range(2):
        with pytest.raises(PluginError, match="a_broken_widget"):
            widget_registry.REGISTRY.find("c")


def test_a_thread_waits_for_the_packages_that_another_one_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path, "slow_gear", "sightline.gears",
        "import gear_registry as g\ng.STARTED.set()\ng.GO.wait(0.5)\ng.REGISTRY.add('cog', 7)\n",
    )  # fmt: skip
    (tmp_path / "gear_registry.py").write_text(
        "import threading\nfrom sightline.plugins import Registry\nREGISTRY = Registry('gear')\n"
        "STARTED, GO = threading.Event(), threading.Event()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import gear_registry  # type: ignore[import-not-found]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(gear_registry.REGISTRY.find, "cog")
        assert gear_registry.STARTED.wait(60)
        assert gear_registry.REGISTRY.find("cog") == first.result() == 7


def test_a_package_imports_keras_on_the_backend_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `train --model NAME_OF_THE_PACKAGE --set device.backend=jax`, which looks for the name first."""
    install(
        tmp_path, "mill_plugin", "sightline.mills",
        "import os, mill_registry\nmill_registry.REGISTRY.add('mill', os.environ.get('KERAS_BACKEND'))\n",
    )  # fmt: skip
    (tmp_path / "mill_registry.py").write_text("from sightline.plugins import Registry\nREGISTRY = Registry('mill')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mill_registry  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setattr(backend, "list_installed", lambda: ("tensorflow", "jax"))
    for name, value in (("_preferred", "auto"), ("_pending", None), ("_reasons", {})):
        monkeypatch.setattr(backend, name, value)
    before = os.environ.get("KERAS_BACKEND")
    TrainRequest.create("photos", "quick", None, ["device.backend=jax"]).merge_layers()
    assert mill_registry.REGISTRY.find("mill") == "jax"
    assert os.environ.get("KERAS_BACKEND") == before


def test_what_a_framework_writes_while_a_package_imports_it_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorFlow's C++ code writes to the descriptor itself, whatever its log level."""
    install(
        tmp_path, "loud_plugin", "sightline.louds",
        "import os, loud_registry\nos.write(2, b'Rebuild TensorFlow')\nloud_registry.REGISTRY.add('loud', 1)\n",
    )  # fmt: skip
    (tmp_path / "loud_registry.py").write_text("from sightline.plugins import Registry\nREGISTRY = Registry('loud')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import loud_registry  # type: ignore[import-not-found]

    assert loud_registry.REGISTRY.find("loud") == 1
    assert capfd.readouterr().err == ""


def test_a_metric_and_a_source_that_return_something_else_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", {**METRICS._entries})
    monkeypatch.setattr(SOURCES, "_entries", {**SOURCES._entries})
    untyped: Any = sl
    untyped.register_metric("wordy")(lambda probabilities, labels: "high")
    with pytest.raises(PluginError, match="The metric 'wordy' returned 'high', but expected a number"):
        compute_metrics(np.full((2, 2), 0.5, np.float32), np.array([0, 1], np.int32))
    untyped.register_source("listed")(lambda argument: ["a.png"])
    with pytest.raises(PluginError, match="The source 'listed' returned list, but expected a SourceListing"):
        len(sl.Dataset.from_source("listed"))
