"""`sightline serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import print_line


def serve(
    model: Annotated[str, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 picks a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; default: that of its run.")] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, metavar="MB", help="Maximum size of an uploaded image.")] = 32,
) -> None:
    """Serve predictions over HTTP until Ctrl-C or SIGTERM."""
    from sightline.serve.server import serve as run

    run(model, host, port, max_bytes=max_upload_mb * 10**6, say=print_line, name=name)
