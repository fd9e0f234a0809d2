"""Write docs/reference.md from the code: every setting, network, recipe and command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.testing import CliRunner

from sightline.cli import app
from sightline.config import RunConfig, StageConfig, recipes
from sightline.errors import EXTRAS
from sightline.inference.exporters import EXPORTERS
from sightline.models.registry import ENTRIES

TARGET = Path(__file__).with_name("reference.md")


def reference() -> str:
    """Return the whole page."""
    sections = [
        "# Reference",
        "Generated from the code by `make docs`.",
        *_settings(),
        *_models(),
        *_recipes(),
        *_exporters(),
        *_commands(),
    ]
    return "\n\n".join(sections) + "\n"


def _settings() -> list[str]:
    out = ["## Settings", "`--set KEY=VALUE`, or a TOML file with `--config`. The value `unset` removes a setting."]
    for f in dataclasses.fields(RunConfig):
        default = getattr(RunConfig(), f.name)
        if dataclasses.is_dataclass(default):
            out += _table(f.name, default)
        elif f.metadata.get("doc"):
            out[1] += f"\n\n`{f.name}` ({default}): {f.metadata['doc']}."
    out += _table("train.stages.0", StageConfig())
    return out


def _table(path: str, value: Any) -> list[str]:
    rows, inner = [], []
    hints = get_type_hints(type(value))
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if dataclasses.is_dataclass(item):
            inner += _table(f"{path}.{f.name}", item)
        elif f.metadata.get("doc"):
            default = "unset" if item is None else str(list(item) if isinstance(item, tuple) else item)
            rows.append(f"| `{path}.{f.name}` | {default} | {f.metadata['doc']}{_choices(hints[f.name])} |")
    first = str(type(value).__doc__).splitlines()[0]
    head = f"### `{path}`\n\n{first}\n\n| setting | default | meaning |\n|---|---|---|\n"
    return [head + "\n".join(rows), *inner]


def _choices(hint: Any) -> str:
    values = [str(v) for v in get_args(hint) if isinstance(v, str)]
    return f" ({', '.join(values)})" if values else ""


def _models() -> list[str]:
    rows = [
        f"| `{e.name}` | {e.input_size} | {'ImageNet' if e.pretrained else ''} | {e.description} | {e.reference} |"
        for e in ENTRIES.values()
    ]
    return [
        "## Networks",
        "| name | input size | weights | description | source |\n|---|---|---|---|---|\n" + "\n".join(rows),
    ]


def _recipes() -> list[str]:
    return ["## Recipes", *[f"### `{n}`\n\n```toml\n{recipes.text(n).strip()}\n```" for n in recipes.names()]]


def _exporters() -> list[str]:
    rows = [
        f"| `{name}` | {exporter.description} | {', '.join(exporter.precisions)} | "
        f"{', '.join(EXTRAS[package][0] for package in exporter.packages)} |"
        for name, exporter in EXPORTERS.items()
    ]
    head = "| name | description | precisions | required packages |\n|---|---|---|---|\n"
    return ["## Export formats", "`sightline export RUN --to NAME`.", head + "\n".join(rows)]


def _commands() -> list[str]:
    out = ["## Commands"]
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        result = CliRunner().invoke(
            app, [name, "--help"], prog_name="sightline", env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
        )
        text = "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines())
        out.append(f"### `sightline {name}`\n\n```text\n{text}\n```")
    return out


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
