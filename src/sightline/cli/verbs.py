"""The commands: their order, summaries and examples, and other tools' names for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise, takewhile
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sightline.cli.output import print_text
from sightline.config import RunConfig
from sightline.config.parse import find_settings
from sightline.errors import DataError, ModelError, UsageError, suggest

VERBS = {
    "demo": ("Train, evaluate and predict on synthetic images.", "demo"),
    "train": ("Train a classifier on labeled images.", "train photos/ --recipe transfer --out runs/cats"),
    "resume": ("Resume an interrupted run, or train a run for more epochs.", "resume runs/cats"),
    "evaluate": ("Evaluate a classifier.", "evaluate runs/cats --target-precision 0.95"),
    "predict": ("Classify images.", "predict runs/cats new/ --format csv > predictions.csv"),
    "embed": ("Compute the embeddings of images.", "embed imagenet photos/ --out photos.parquet"),
    "similar": ("Find the most similar images.", "similar imagenet new/1.jpg photos/"),
    "add-class": ("Add a class from a few images, without training.", "add-class runs/cats fox foxes/"),
    "report": ("Write the HTML report of a run again.", "report runs/cats"),
    "explain": ("Show which regions of images support a class.", "explain runs/cats new/1.jpg --class dog"),
    "doctor": ("Check a data set for problems before training.", "doctor photos/ --write-fixes fixes.jsonl"),
    "studio": ("Look at images and correct their labels in the browser.", "studio photos/ --patch fixes.jsonl"),
    "learning-curve": ("Predict the gain from more labels.", "learning-curve photos/ --more 200"),
    "export": ("Export a model to another format, and compare the two.", "export runs/cats --to onnx --precision int8"),
    "compress": ("Compress a model without losing accuracy.", "compress runs/cats --max-size 2MB"),
    "model-card": ("Write a model card into a run's bundle.", "model-card runs/cats"),
    "push": ("Upload a bundle to the Hugging Face Hub.", "push runs/cats hf:me/cats --license apache-2.0 --dry-run"),
    "pull": ("Download a bundle from the Hugging Face Hub, and verify it.", "pull hf:me/cats cats"),
    "serve": ("Serve predictions over HTTP.", "serve runs/cats --port 8000"),
    "watch": ("Check whether a server's images have drifted.", "watch cats.log runs/cats"),
    "sweep": ("Search hyperparameters.", "sweep photos/ transfer-table --trials 8"),
    "compare": ("Compare runs side by side.", "compare runs/cats runs/cats-2 --figure curves.png"),
    "describe": ("Describe a network layer by layer.", "describe vgg16 --size 224x224x3 --classes 10"),
    "preview": ("Draw a labeled grid of images.", "preview photos/ --augment --recipe quick --out grid.png"),
    "models": ("List the available networks.", "models"),
    "recipes": ("List the recipes, or print one of them.", "recipes transfer > my-recipe.toml"),
    "env": ("Show versions, devices, memory and the backend.", "env --format json"),
    "help": ("Print the help of a command.", "help train"),
}
"""A summary of each command, and an example of its arguments."""

OTHER_NAMES = {
    **dict.fromkeys(("fit", "folds", "learn"), "train"),
    **dict.fromkeys(("test", "eval", "score", "validate"), "evaluate"),
    **dict.fromkeys(("classify", "infer", "inference"), "predict"),
    **dict.fromkeys(("check", "clean", "fix", "lint", "audit"), "doctor"),
    **dict.fromkeys(("embeddings", "features", "encode"), "embed"),
    **dict.fromkeys(("nearest", "neighbors", "retrieve"), "similar"),
    **dict.fromkeys(("show", "view"), "preview"),
    **dict.fromkeys(("prune", "quantize", "distill"), "compress"),
    **dict.fromkeys(("tune", "search"), "sweep"),
    **dict.fromkeys(("upload", "publish", "share"), "push"),
    **dict.fromkeys(("label", "annotate", "ui"), "studio"),
    "download": "pull",
    **dict.fromkeys(("drift", "monitor"), "watch"),
    **dict.fromkeys(("summary", "inspect"), "describe"),
    "card": "model-card", "continue": "resume", "convert": "export", "deploy": "serve", "diff": "compare",
    "gradcam": "explain", "info": "env", "list": "models",
}  # fmt: skip
"""Other tools' names for a command; used only in messages, none of them works."""

OTHER_OPTIONS = {
    "--lr": "--learning-rate",
    "--epoch": "--epochs",
    **dict.fromkeys(
        ("--image-size", "--img-size", "--imgsz", "--size"), "--set input.height=... --set input.width=..."
    ),
    **dict.fromkeys(("--val-split", "--validation-split"), "--set split.validation=..."),
    **dict.fromkeys(("--name", "--output", "--output-dir", "--project"), "--out"),
    **dict.fromkeys(("--device", "--gpu"), "--set device.gpus=..."),
    "--optimizer": "--set train.optimizer.name=...",
    "--pretrained": "--weights imagenet",
    **dict.fromkeys(("--arch", "--backbone", "--network"), "--model"),
}
"""Other tools' names for an option of `train`, or for a setting; used only in messages, as above."""

ARGUMENTS = ("--data", "--data-dir", "--dataset", "--image", "--images", "--input", "--model", "--path", "--source")
"""Other tools' options for things that are arguments here; used only in messages, as above."""


def epilog(name: str) -> str:
    """Return the example at the end of a command's help."""
    return f"\b\nExample:\n  sightline {VERBS[name][1]}"


@contextmanager
def state_order(name: str, *, swapped: bool, example: str | None = None) -> Iterator[None]:
    """Add an example, by default that of the command `name`, to errors in the block if its arguments seem `swapped`."""
    try:
        yield
    except (DataError, ModelError, UsageError) as error:
        if not swapped:
            raise
        order = f"The arguments come in this order: `sightline {example or VERBS[name][1]}`."
        raise UsageError(f"{error.message.rstrip('.')}. {order}") from error


def explain_unknown_verb(name: str) -> str:
    """Return the message for an unknown command, with the one that was probably meant."""
    hint = f" Did you mean {OTHER_NAMES[name]!r}?" if name in OTHER_NAMES else suggest(name, tuple(VERBS))
    return f"There is no command {name!r}.{hint} `sightline help` lists all commands."


def explain_unknown_option(name: str, verb: str, known: Collection[str]) -> str | None:
    """Return the message for an option that is not among the `known` ones of `verb` but has another name here, or None.

    >>> explain_unknown_option("--task", "train", ["--recipe", "--set"])
    'There is no option --task: use `--set model.task=...`.'
    >>> explain_unknown_option("--data", "train", ["--recipe", "--set"])
    'There is no option --data: give its value alone, as in `sightline train photos/`.'
    """
    example = VERBS[verb][1].split()
    if name in ARGUMENTS and not "".join(example[1:2]).startswith("-"):
        arguments = " ".join(takewhile(lambda word: not word.startswith("-"), example))
        return f"There is no option {name}: give its value alone, as in `sightline {arguments}`."
    if not {"--set", "--recipe"} <= set(known):  # other commands have few settings, such as the limits of `predict`
        return None
    settings = find_settings(RunConfig, name.lstrip("-").replace("-", "_"))
    other = OTHER_OPTIONS.get(name) or (f"--set {settings[0]}=..." if len(settings) == 1 else None)
    return f"There is no option {name}: use `{other}`." if other and other.split()[0] in known else None


def name_option(message: str, arguments: Collection[str]) -> str:
    """Return a message that begins with a setting, replaced by the option if `arguments` contain only the latter.

    >>> name_option("train.effort cannot be 'fats'.", ["train", "photos", "--effort=fats"])
    "--effort cannot be 'fats'."
    >>> name_option("train.effort cannot be 'fats'.", ["train", "photos", "--set", "train.effort=fats"])
    "train.effort cannot be 'fats'."
    """
    setting, space, rest = message.partition(" ")
    option = "--" + setting.rpartition(".")[2].replace("_", "-")
    typed = {argument.removeprefix("--set=").partition("=")[0].strip() for argument in arguments}
    return f"{option if option in typed and setting not in typed else setting}{space}{rest}"


class VerbGroup(TyperGroup):
    """The commands, with our own messages for unknown commands and empty arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; raise `UsageError` for an empty argument, which as a path is the current folder."""
        for before, argument in () if ctx.resilient_parsing else pairwise(["", *args]):
            if not argument or (argument.startswith("--") and argument.find("=") == len(argument) - 1):
                place = f"The argument after {before or 'sightline'}" if not argument else argument.removesuffix("=")
                raise UsageError(f"{place} is empty: give a value, or check the shell variable that it comes from.")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command named by the first argument; raise `UsageError` if it does not exist."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise UsageError(explain_unknown_verb(args[0]))
        return super().resolve_command(ctx, args)


class Verb(TyperCommand):
    """A command that refuses options that would have no effect."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; raise `UsageError` for ``--raw-csv`` if no CSV is written."""
        options = ctx.params
        writes_csv = (
            not {"output_format", "out"} & set(options)  # the studio: its pages export tables
            or options.get("output_format") == "csv"
            or (options.get("output_format") is None and str(options.get("out")).lower().endswith(".csv"))
        )
        if options.get("raw_csv") and not writes_csv:
            how = "--format csv" if "output_format" in options else "--out FILE.csv"
            raise UsageError(f"--raw-csv is for CSV, which is not written here: give {how} as well, or leave it out.")
        return super().invoke(ctx)


def show_help(
    context: typer.Context,
    command: Annotated[str | None, typer.Argument(help="The command; default: list all commands.")] = None,
) -> None:
    """Print the help of a command, with an example; without a command, list all commands."""
    root: Any = context.parent
    if command is None:
        print_text(root.get_help() + "\n")
        return
    chosen = root.command.get_command(root, command)
    if chosen is None:
        raise UsageError(explain_unknown_verb(command))
    print_text(chosen.get_help(type(context)(chosen, parent=root, info_name=command)) + "\n")
