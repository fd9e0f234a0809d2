"""`sightline studio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline import _io
from sightline.cli.output import RawCsv, print_line, print_text
from sightline.cli.sources import Column, ReadSettings
from sightline.errors import UsageError
from sightline.progress import ProgressDisplay


def studio(
    data: Annotated[
        list[str],
        typer.Argument(help="A run, or labeled images: folders, archives, manifests, or names such as beans."),
    ],
    patch: Annotated[
        Path | None,
        typer.Option(
            metavar="PATCH.jsonl", help="The file of corrections, for train --patch. [default: NAME-fixes.jsonl]"
        ),
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Another run to compare the run with; repeatable.")
    ] = None,
    classes: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Classes to label images with, such as cat,dog; the page adds others."),
    ] = "",
    runs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The runs to train and watch. [default: runs, or the folder of the run]"),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; 0.0.0.0: also for phones on the same network, with a token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 picks a free one.")] = 0,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Another name of this machine on the network; repeatable.")
    ] = None,
    ssl_certfile: Annotated[
        Path | None,
        typer.Option(help="PEM file of the certificate chain, for HTTPS, which phones require for a live camera."),
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="The private key of the certificate, if in another file.")
    ] = None,
    raw_csv: RawCsv = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
    column: Column = None,
    set: ReadSettings = None,  # noqa: A002  # the option's own name
) -> None:
    """Look at labeled images in the browser, and correct their labels; the images are never changed."""
    from sightline.api.dataset import Dataset
    from sightline.api.run import Run
    from sightline.runs.paths import is_run
    from sightline.studio.server import Addresses, run_studio

    from_run = len(data) == 1 and is_run(_io.expand_home(data[0]))
    if from_run and (column or set):
        raise UsageError("--column and --set say how to read images, which a run already records: leave them out.")
    if compare and not from_run:
        raise UsageError("--compare compares a run with another: give a run, as in sightline studio RUN --compare RUN.")
    if from_run and classes:
        raise UsageError("--classes is for images to label: a run has its classes. Leave it out.")
    names = [name.strip() for name in classes.split(",") if name.strip()]

    def show(addresses: Addresses) -> None:
        print_line(addresses.local)
        if addresses.network is not None:
            from sightline.studio.network import draw_code

            if addresses.network != addresses.local:
                print_line(addresses.network, soft_wrap=True)
            print_text(draw_code(addresses.network))
        if browser:
            import webbrowser

            webbrowser.open(addresses.local)

    with ProgressDisplay() as display:
        chosen = Run(data[0]) if from_run else Dataset(data, column=column, set=set or ())
        others = [Run(path) for path in compare or ()]
        run_studio(
            chosen, patch=patch, classes=names, compare=others, runs=runs, host=host, port=port,
            allowed_hosts=allowed_host or (), ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile,
            raw_csv=raw_csv, show=show, callback=display,
        )  # fmt: skip
