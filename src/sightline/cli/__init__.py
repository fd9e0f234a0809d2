"""The command line: one thin module per command, which parses its options, calls one function and prints the result."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import typer

from sightline import process
from sightline.cli import (
    add_class,
    compare,
    compress,
    demo,
    describe,
    doctor,
    embed,
    env,
    evaluate,
    explain,
    export,
    learning_curve,
    model_card,
    models,
    predict,
    preview,
    pull,
    push,
    recipes,
    report,
    resume,
    serve,
    similar,
    streams,
    studio,
    sweep,
    train,
    verbs,
    watch,
)
from sightline.cli.output import print_error, print_line, print_text
from sightline.errors import ConfigError, HostError, InsufficientMemoryError, OutputError, SightlineError

app = typer.Typer(
    name="sightline",
    help="Turn a folder of labeled images into a classifier that you can trust and ship.",
    invoke_without_command=True,
    cls=verbs.VerbGroup,
    rich_markup_mode=None,  # its tables cut long option names at 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nsightline help COMMAND            help of one command, with an example\n"
    "sightline --install-completion    complete commands and options with Tab, in new shells",
)

for function in (
    demo.demo, train.train, resume.resume, evaluate.evaluate, predict.predict, embed.embed, similar.similar,
    add_class.add_class,
    report.report, explain.explain, doctor.doctor, studio.studio, learning_curve.learning_curve,
    export.export, compress.compress, model_card.model_card, push.push, pull.pull, serve.serve, watch.watch,
    sweep.sweep, compare.compare, describe.describe, preview.preview, models.models, recipes.recipes, env.env,
):  # fmt: skip
    name = function.__name__.replace("_", "-")
    app.command(name, cls=verbs.Verb, short_help=verbs.VERBS[name][0], epilog=verbs.epilog(name))(function)
app.command("help", short_help=verbs.VERBS["help"][0], epilog=verbs.epilog("help"))(verbs.show_help)


def _version(requested: bool) -> None:
    if requested:
        from sightline import __version__

        print_line(f"sightline {__version__}")
        raise typer.Exit


@app.callback()
def _root(  # `version` is printed by its callback
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn a folder of labeled images into a classifier that you can trust and ship."""
    del version
    if context.invoked_subcommand is None:
        print_text(context.get_help() + "\n")


def main() -> None:
    """Run the command line; exit codes are listed in `sightline.errors` (3: an internal error)."""
    process.claim()
    process.treat_sigterm_as_sigint()
    process.treat_sighup_as_sigterm()
    streams.secure_streams()
    warnings.showwarning = _show_warning
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would warn about a read-only home folder
    try:
        code = _run_command()
    except KeyboardInterrupt:  # while building the commands or printing an error
        code = _report_interrupt()
    try:
        sys.stdout.flush()  # report lost output here, before the interpreter exits
    except (OutputError, BrokenPipeError) as error:
        code = code or _report_error(error)
    sys.exit(code)


@functools.cache
def _build_commands() -> Any:
    """Return the commands of `app`, built once per process: reading the options of all of them takes 50 ms."""
    return typer.main.get_command(app)


def _run_command() -> int:
    """Run the command named by the arguments, print its error if it raises one, and return the exit code."""
    try:
        code = _build_commands()(standalone_mode=False, prog_name="sightline")
    except OPTION_ERROR as error:  # an invalid option
        context = error.ctx
        name = None if context is None or context.parent is None else context.info_name
        message = error.format_message()
        if name and (option := getattr(error, "option_name", None)):
            options = [opt for parameter in context.command.params for opt in parameter.opts]
            message = verbs.explain_unknown_option(option, name, options) or message
            if file := next((path for path in sys.argv[1:] if path.startswith(option) and Path(path).exists()), None):
                message = f"{file} begins with a dash, as options do: write ./{file}"
        print_error(
            f"{message}{'' if message.endswith('.') else '.'} See `sightline help{f' {name}' if name else ''}`."
        )
        return int(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # last resort: report an internal error
        return _report_error(error)
    if code == SIGINT_EXIT:
        return _report_interrupt()
    return code if isinstance(code, int) else 0


def _report_interrupt() -> int:
    print_error("Interrupted.")
    return SIGINT_EXIT


def _report_error(error: BaseException) -> int:
    """Print an error and return the exit code."""
    if isinstance(error, streams.ReaderExited | BrokenPipeError):  # quietly, like other tools
        return streams.ReaderExited.exit_code
    if isinstance(error, SightlineError):
        print_error(verbs.name_option(error.message, sys.argv) if isinstance(error, ConfigError) else error.message)
        if isinstance(error, HostError):  # a normal exit waits 100 s for the lost host, then JAX aborts
            os._exit(error.exit_code)
        return error.exit_code
    if isinstance(error, OSError) and (message := _explain_path(error)):
        print_error(message)
        return 2
    if (cause := _find_exit(error)) is not None:  # Ctrl-C, or SIGTERM as handled by `serve`
        return _report_interrupt() if isinstance(cause, KeyboardInterrupt) else 0
    from sightline.backend import is_out_of_memory

    if is_out_of_memory(error):
        print_error("Out of memory: free some, give smaller files, or fewer at a time.")
        return InsufficientMemoryError.exit_code
    print_error(f"Internal error: {type(error).__name__}: {error}. Please report it together with this traceback:")
    for text in traceback.format_exception(error):
        for row in text.splitlines():
            print_line(row, stderr=True, soft_wrap=True)
    return 3


def _explain_path(error: OSError) -> str:
    """Return the message for a path that cannot be used wherever it was given; "" for other errors."""
    if error.errno == errno.ENAMETOOLONG:
        return f"No file can have a name as long as {str(error.filename)[:80]!r}...: check the path."
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"{error.filename} cannot be opened: {error.strerror}. Check its permissions, and its folder's."
    return ""


def _find_exit(error: BaseException | None) -> BaseException | None:
    """Return the signal that caused an error; one raised during the import of a compiled module is an `ImportError`."""
    while error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
        error = error.__cause__ or error.__context__
    return error


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Print a Python warning, with control characters escaped."""
    print_line(f"{filename}:{lineno}: {category.__name__}: {message}", stderr=True, soft_wrap=True)


SIGINT_EXIT = 130
OPTION_ERROR: Any = typer.BadParameter.__mro__[2]
"""The base class of the errors for invalid options; typer exports only its subclasses."""
