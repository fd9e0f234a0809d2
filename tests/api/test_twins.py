"""Every command has a twin in Python that takes its options by the same names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from typer.models import OptionInfo

from sightline import Classifier, Dataset, Run, cli, describe, learning_curve, pull, push, sweep, train

TWINS: dict[str, Callable[..., Any]] = {
    "train": train,
    "resume": Run.resume,
    "report": Run.report,
    "compare": Run.compare,
    "evaluate": Classifier.evaluate,
    "predict": Classifier.predict,
    "embed": Classifier.embed,
    "similar": Classifier.similar,
    "add_class": Classifier.add_class,
    "explain": Classifier.explain,
    "export": Classifier.export,
    "compress": Classifier.compress,
    "watch": Classifier.watch,
    "model_card": Classifier.model_card,
    "push": push,
    "pull": pull,
    "doctor": Dataset.check,
    "preview": Dataset.preview,
    "learning_curve": learning_curve,
    "sweep": sweep,
    "describe": describe,
}
WITHOUT_TWIN = {
    "demo": "a tour of the other commands",
    "serve": "a process of its own, see sightline.serve",
    "studio": "a page in the browser, see sightline.studio",
    "models": "prints the registry",
    "recipes": "prints files of the package",
    "env": "prints facts for a bug report",
}
OBJECTS = {
    "self",
    "data",
    "model",
    "run",
    "runs",
    "image",
    "images",
    "name",
    "space",
}  # what a command and its twin work on
OF_A_COMMAND = {"output_format", "raw_csv"}  # how a result is printed
OF_A_CALL = {"progress", "callback"}
NOT_SHARED = {  # and why
    "predict": {
        "probabilities",
        "out",
        "shard",
        "rows_per_part",
        "engine",
        "ray_address",
        "masks",
        "tile",
        "device",
    },  # predict_proba, to_frame().to_csv, write_predictions, predict_masks, load
    "embed": {"out", "device"},  # Embeddings.save, load
    "evaluate": {"device"},  # load
    "doctor": {"strict"},  # the exit code: DoctorReport.errors
}


def list_commands() -> dict[str, Callable[..., Any]]:
    return {
        str(command.callback.__name__): command.callback for command in cli.app.registered_commands if command.callback
    }


def python_name(name: str, annotation: Any) -> str:
    """Return the name that an option has in Python: that of its flag, without a leading ``no``."""
    option = next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, OptionInfo)), None)
    flags = [] if option is None else [text for text in option.param_decls or () if text.startswith("--")]
    flag = flags[0].split("/")[0][2:].replace("-", "_") if flags else name
    return {"class": "label"}.get(flag, flag.removeprefix("no_"))  # `class` is a word of Python


def test_every_command_is_known() -> None:
    assert set(list_commands()) - {"show_help"} == {*TWINS, *WITHOUT_TWIN}


@pytest.mark.parametrize("verb", TWINS)
def test_the_options_have_the_same_names(verb: str) -> None:
    command = list_commands()[verb]
    hints = inspect.get_annotations(command, eval_str=True, locals=vars(importlib.import_module(command.__module__)))
    ignored = OF_A_COMMAND | NOT_SHARED.get(verb, set()) | OBJECTS
    options = {python_name(n, hints[n]) for n in inspect.signature(command).parameters if n not in ignored}
    twin = set(inspect.signature(TWINS[verb]).parameters) - OF_A_CALL - OBJECTS
    assert options - NOT_SHARED.get(verb, set()) == twin
