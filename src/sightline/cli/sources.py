"""Options of every command that reads labeled images: what they are, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sightline import jsonio
from sightline.errors import UsageError, suggest

if TYPE_CHECKING:  # annotations only
    from sightline.config import RunConfig
    from sightline.data.sources.listing import Listing

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Folders of class folders, .zip or .tar of them, manifests, idx files, or names such as beans."
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(metavar="ROLE=NAME", help="A manifest's column for path, label or split, as label=breed; repeatable."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND", help="An error in the data, as doctor calls it, that does not stop; repeatable."),
]
Read = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="How images are read, as data.class_level=2, picture.page=2; repeatable."
    ),
]
FileLimit = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="data.limits.file_mb, the largest image file, in MiB; default 256."
    ),
]

ROLES = ("path", "label", "split")


def data_assignments(column: Sequence[str] | None = None, allow: Sequence[str] | None = None) -> list[str]:
    """Return the ``KEY=VALUE`` settings that ``--column`` and ``--allow`` stand for; raises `UsageError`."""
    assignments = []
    for text in column or ():
        role, equals, name = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--column expects ROLE=NAME such as label=breed, not {text!r}.")
        if role not in ROLES:
            raise UsageError(f"--column: there is no role {role!r}.{suggest(role, ROLES)}")
        assignments.append(f"data.columns.{role}={jsonio.dumps(name)}")  # quoted, lest column 2 were a number
    if allow:
        assignments.append(f"data.allow={jsonio.dumps(list(allow))}")
    return assignments


def listed(
    data: Sequence[str] | None, column: Sequence[str] | None, settings: Sequence[str] | None
) -> list[str] | list[Listing] | None:
    """Return sources, listed as ``--column`` and ``--set`` say where there are any; raises `UsageError`."""
    if not (column or settings):
        return list(data) if data else None
    if not data:
        raise UsageError("--column and --set say how the named images are read: name some, or leave these out.")
    from sightline.data.index import list_sources

    return list_sources(list(data), reading(column, None, settings).data)


def reading(
    column: Sequence[str] | None,
    allow: Sequence[str] | None = None,
    settings: Sequence[str] | None = None,
    tables: tuple[str, ...] = ("data.",),
) -> RunConfig:
    """Return the settings for a command that takes those of `tables` alone; raises `UsageError`."""
    from sightline.config import resolve

    for text in settings or ():
        if not text.startswith(tables):
            raise UsageError(f"--set says only how the images are read here, as data.class_level=2, not {text!r}.")
    return resolve(assignments=[*(settings or ()), *data_assignments(column, allow)])
