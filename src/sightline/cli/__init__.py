"""The command line: one thin file per verb, each parsing, calling one plain function and printing."""

from __future__ import annotations

import io
import os
import sys
import traceback

import typer

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
    sweep,
    train,
)
from sightline.cli.output import complain
from sightline.errors import HostError, SightlineError

app = typer.Typer(
    name="sightline",
    help="From a folder of labelled pictures to a classifier that can be trusted and shipped.",
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

        typer.echo(f"sightline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """From a folder of labelled pictures to a classifier that can be trusted and shipped."""


def main() -> None:
    """Run the command line; exit codes are listed in `sightline.errors` (3: a fault of Sightline's own)."""
    process.claim()
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SightlineError as error:
        complain(str(error))
        if isinstance(error, HostError):  # at exit JAX would wait 100 s for the lost host, then abort
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == SIGINT_EXIT:
            complain("Interrupted.")
        raise
    except Exception as error:  # noqa: BLE001  # the last line of defence: say whose fault it is
        complain(f"A fault of Sightline's own: {type(error).__name__}: {error}. Please report it with what follows.")
        traceback.print_exc()
        sys.exit(3)


SIGINT_EXIT = 130
