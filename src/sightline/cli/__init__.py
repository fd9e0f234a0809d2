"""The command line: one thin module per command, which parses its options, calls one function and prints the result."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Any

import typer
from typer import rich_utils

from sightline import process
from sightline.cli import (
    card,
    compare,
    compress,
    demo,
    describe,
    doctor,
    env,
    evaluate,
    explain,
    export,
    models,
    predict,
    recipes,
    report,
    resume,
    serve,
    show,
    streams,
    sweep,
    train,
)
from sightline.cli.output import complain, say
from sightline.errors import HostError, OutputError, SightlineError
from sightline.escaping import printable

app = typer.Typer(
    name="sightline",
    help="Turn a folder of labeled images into a classifier that you can trust and ship.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verb in (
    demo.demo, train.train, resume.resume, evaluate.evaluate, predict.predict, report.report, explain.explain,
    doctor.doctor, export.export, compress.compress, card.card, serve.serve, sweep.sweep, compare.compare,
    describe.describe, show.show, models.models, recipes.recipes, env.env,
):  # fmt: skip
    app.command()(verb)


def _version(wanted: bool) -> None:
    if wanted:
        from sightline import __version__

        say(f"sightline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn a folder of labeled images into a classifier that you can trust and ship."""


def main() -> None:
    """Run the command line; exit codes are listed in `sightline.errors` (3: an internal error)."""
    process.claim()
    process.hang_up_as_terminate()
    streams.secure()
    warnings.showwarning = _show_warning
    code = _run()
    try:
        sys.stdout.flush()  # report output that is lost here, before the interpreter exits
    except (OutputError, BrokenPipeError) as error:
        code = code or _explain(error)
    sys.exit(code)


def _run() -> int:
    """Run the command that the arguments name, print its error if it raises one, and return the exit code."""
    try:
        code = app(standalone_mode=False)
    except WRONG_USE as error:  # an invalid option
        error.message = printable(error.message)
        rich_utils.rich_format_error(error)
        return int(error.exit_code)
    except Exception as error:  # noqa: BLE001  # the last resort: report an internal error
        return _explain(error)
    if code == SIGINT_EXIT:
        complain("Interrupted.")
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """Print an error and return the exit code."""
    if isinstance(error, SightlineError):
        complain(str(error))
        if isinstance(error, HostError):  # a normal exit waits 100 s for the lost host, then JAX aborts
            os._exit(error.exit_code)
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of our output has exited, as `| head` does
        return 1
    complain(f"Internal error: {type(error).__name__}: {error}. Please report it together with this traceback:")
    for text in traceback.format_exception(error):
        for row in text.splitlines():
            say(row, stderr=True, soft_wrap=True)
    return 3


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Print a Python warning, with control characters escaped."""
    say(f"{filename}:{lineno}: {category.__name__}: {message}", stderr=True, soft_wrap=True)


SIGINT_EXIT = 130
WRONG_USE: Any = typer.BadParameter.__mro__[2]
"""The base class of the errors for invalid options; typer exports only its subclasses."""
