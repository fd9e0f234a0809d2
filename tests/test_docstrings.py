"""The public docstrings: each parameter is explained, and the page of the API shows all of them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from sightline.api.doctor import DoctorReport
from sightline.api.embedding_model import EmbeddingModel
from sightline.api.image_model import ImageModel

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
NAMES = [name for name in sl.__all__ if name != "__version__"]
BASES = (ImageModel, EmbeddingModel)  # base classes of Classifier
OBJECTS = (sl.Dataset, sl.Run, sl.Classifier, *BASES, sl.Evaluation, sl.Callback)


def list_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public functions and the methods of the public classes, with their names."""
    for name in NAMES:
        if inspect.isfunction(value := getattr(sl, name)):
            yield name, value
    for kind in OBJECTS:
        for name, value in vars(kind).items():
            function = getattr(value, "__func__", value)
            if inspect.isfunction(function) and not name.startswith("_"):
                yield f"{kind.__name__}.{name}", function


FUNCTIONS = dict(list_functions())


def test_the_page_shows_every_public_name() -> None:
    documented = re.findall(r"^::: sightline\.(\w+)$", PAGE, re.MULTILINE)
    assert sorted(documented) == sorted(NAMES)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "Dataset.wrap"])  # not in the reference
def test_every_parameter_is_explained(name: str) -> None:
    function = FUNCTIONS[name]
    doc = inspect.cleandoc(function.__doc__ or "")
    section = re.search(r"^Args:\n((?:    .*\n?)+)", doc, re.MULTILINE)
    explained = re.findall(r"^    \**(\w+): \S", section[1], re.MULTILINE) if section else []
    parameters = [p for p in inspect.signature(function).parameters if p not in {"self", "cls"}]
    assert explained == parameters


def test_the_check_can_fail() -> None:
    assert len(FUNCTIONS) > 30
    assert {"Classifier.evaluate", "ImageModel.predict"} <= FUNCTIONS.keys()


def test_the_page_shows_the_methods_that_a_classifier_inherits() -> None:
    names = [name for kind in BASES for name in vars(kind) if not name.startswith("_")]
    (listing,) = re.findall(r"^::: sightline\.Classifier\n.*\n +inherited_members: \[(.*)\]$", PAGE, re.MULTILINE)
    assert listing.split(", ") == names


# Values of settings, files and networks: described in the guide, or relevant only to packages that extend Sightline.
INTERNAL = {
    "Audit", "ClassFolders", "Index", "LabeledImages", "Predictor", "PreprocessingSpec", "RunConfig", "RunDirectory",
    "SourceListing", "Sources", "Task", "TaskReport", "TaskResult",
}  # fmt: skip
FOREIGN = {"Any", "Callable", "Iterator", "Mapping", "NDArray", "None", "Path", "Self"}


def list_returned_types(kind: type) -> Iterator[str]:
    """Yield the names of the types that the public methods and properties of a class return."""
    for name, value in vars(kind).items():
        function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
        if not name.startswith("_"):
            annotation = getattr(function, "__annotations__", {}).get("return", "")
            yield from re.findall(r"\b[A-Z]\w*[a-z]\w*", str(annotation))


ENTRIES = set(re.findall(r"^::: sightline\.(?:[\w.]+\.)?([A-Z]\w+)$", PAGE, re.MULTILINE))


def test_the_page_shows_the_types_that_are_returned() -> None:
    returned = {name for kind in (*OBJECTS, DoctorReport) for name in list_returned_types(kind)}
    assert {"Finding", "Metric", "MaskPrediction", "WatchReport"} <= returned
    assert sorted(returned - ENTRIES - INTERNAL - FOREIGN) == []


@pytest.mark.parametrize("path", re.findall(r"^::: (sightline\.\w+\.[\w.]+)$", PAGE, re.MULTILINE))
def test_the_page_shows_the_types_of_the_fields_of_results(path: str) -> None:
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    names = re.findall(r"[A-Z]\w*[a-z]\w*", " ".join(str(field.type) for field in fields))
    own = {name for name in names if "sightline" in getattr(vars(sys.modules[module]).get(name), "__module__", "")}
    assert sorted(own - ENTRIES - INTERNAL) == []


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda kind: kind.__name__)
def test_every_property_is_one_sentence_or_more(kind: type) -> None:
    for name, value in vars(kind).items():
        if not name.startswith("_") and not inspect.isroutine(value):
            assert (inspect.getdoc(value) or "").partition("\n")[0].endswith("."), f"{kind.__name__}.{name}"
