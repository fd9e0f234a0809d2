"""`sightline push`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line, print_table
from sightline.progress import ProgressDisplay


def push(
    model: Annotated[str, typer.Argument(help="A run that has a bundle, or a bundle.")],
    target: Annotated[str, typer.Argument(metavar="hf:USER/NAME", help="The model on the Hub; created if missing.")],
    license: Annotated[  # noqa: A002  # the option's own name
        str | None, typer.Option(metavar="ID", help="License for the model card, e.g. apache-2.0; default other.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the model public; required if it already is.")] = False,
    include_images: Annotated[
        bool,
        typer.Option("--include-images", help="Also upload reference examples, and features of validation images."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and send nothing.")] = False,
    output_format: FormatOption = "text",
) -> None:
    """Upload a bundle to the Hugging Face Hub, with a model card; private and without images by default.

    Log in as for huggingface_hub: with `hf auth login`, or by the variable HF_TOKEN.
    """
    from sightline.api.hub import push as run

    with ProgressDisplay(quiet=output_format == "json") as display:
        result = run(
            model, target, license=license, public=public, include_images=include_images, dry_run=dry_run,
            callback=display,
        )  # fmt: skip
    if output_format == "json":
        print_json(result.to_dict())
        return
    print_table(["file", "bytes"], [[name, f"{size:,}"] for name, size in result.files.items()], right=["bytes"])
    if result.license == "other":
        print_line("license    other: state one with --license, so that people know what they may do")
    if result.commit is None:
        print_line(f"dry run    nothing was sent to {result.url}")
    else:
        print_line(f"uploaded   {result.url} ({'public' if result.public else 'private'}), commit {result.commit}")
