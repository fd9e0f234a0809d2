"""Hostile names of classes, files and folders, in every command that shows them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command import Command, Outcome, draw_classes
from sightline.api import train
from sightline.escaping import printable

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")

CLASSES = {  # folder names, so without slashes
    "\x1b[2J\x1b]0;owned\x07red": (200, 60, 60),
    '"><img src=x onerror=alert(1)>\u202eneerg': (60, 200, 60),
    "=cmd|'calc'!A0\nforged  blue": (60, 60, 200),
    "<script>alert(2)<\\script> [b] [red]\x9b1m": (200, 200, 60),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = draw_classes(tmp_path_factory.mktemp("data") / "ima\x1b[2Jges", CLASSES, 12)
    for number, path in enumerate(sorted(folder.rglob("*.png"))[::5]):
        path.rename(path.with_name(f"=1+1\n\x1b[2J\u202e{number}\udcff[b].png"))
    for path in folder.iterdir():
        (path / "@broken\r.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "r\x1b[2Jun"
    train(data, recipe="quick", set=["model.name=cifar10-simple", "model.hidden_units=[64]", "train.epochs=1"], out=out)
    return out


def check(result: Outcome, *codes: int) -> str:
    """Check that a command succeeded and printed no control characters; return its output."""
    assert result.code in codes, result.err
    text = result.out + result.err
    assert printable(text, keep="\n") == text
    assert "\nforged" not in text
    assert "Traceback" not in text
    return text


class Tags(HTMLParser):
    """Collects tags and attributes that no template writes."""

    def __init__(self) -> None:
        super().__init__()
        self.odd: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.odd += [tag] * (tag in {"script", "iframe", "object", "foreignobject"})
        self.odd += [name for name, _ in attrs if name.startswith("on")]
        self.odd += [
            str(value) for name, value in attrs if name in {"src", "srcset"} and not str(value).startswith("data:")
        ]


def check_page(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert printable(text, keep="\n") == text
    tags = Tags()
    tags.feed(text)
    assert tags.odd == []
    return text


def list_images(folder: Path) -> Iterator[Path]:
    return folder.rglob("*.png")


def test_predict(sightline: Command, run: Path, data: Path) -> None:
    output_text = check(sightline("predict", run, data), 1)
    assert len(output_text.splitlines()) == len(list(list_images(data))), "one row per image, none forged"
    assert "=1+1\\n\\x1b[2J\\u202e" in output_text


def test_predict_csv(
    sightline: Command, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(next(list_images(data)).parent)
    names = sorted(path.name for path in Path().iterdir())
    rows = list(csv.DictReader(io.StringIO(sightline("predict", run, *names, "--format", "csv").out, newline="")))
    raw = list(
        csv.DictReader(io.StringIO(sightline("predict", run, *names, "--format", "csv", "--raw-csv").out, newline=""))
    )
    written = tmp_path / "out.csv"
    assert sightline("predict", run, *names, "--out", written).code == 1
    with written.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert [row["path"] for row in raw] == [name.encode(errors="backslashreplace").decode() for name in names]
    for row, plain in zip(rows, raw, strict=True):
        for key in row:
            assert row[key] == ("'" if plain[key][:1] in {"=", "@"} else "") + plain[key]
    assert any(row["path"].startswith("'=1+1\n") for row in rows)
    assert any(row["path"].startswith("'@broken\r") for row in rows)


def test_json_stays_as_it_is(sightline: Command, run: Path, data: Path) -> None:
    result = sightline("predict", run, data, "--format", "json")
    assert {line["path"] for line in result.lines} == {str(path) for path in list_images(data)}
    assert {c["label"] for line in result.lines if "top" in line for c in line["top"]} == set(CLASSES)


def test_evaluate_and_report(sightline: Command, run: Path) -> None:
    output_text = check(sightline("evaluate", run, "--split", "train"), 0)
    assert "=cmd|'calc'!A0\\nforged  blue" in output_text
    assert "<script>alert(2)<\\script> [b] [red]\\u009b1m" in output_text
    check(sightline("report", run), 0)
    text = check_page(run / "report.html")
    assert "&lt;script&gt;alert(2)" in text


def test_doctor(sightline: Command, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    output_text = check(sightline("doctor", data, "--html", page), 0)
    assert "@broken\\r.png" in output_text
    assert "&lt;img src=x onerror" in check_page(page)


@pytest.mark.parametrize(
    "verb", ["model-card", "compare", "preview", "explain", "resume", "export", "describe", "compress"], ids=str
)
def test_other_commands(verb: str, sightline: Command, run: Path, data: Path, tmp_path: Path) -> None:
    image = next(list_images(data))
    other = tmp_path / "\x1b[2J\nforged"
    shutil.copytree(run, other)
    arguments: dict[str, list[object]] = {
        "model-card": [run], "compare": [run, other], "preview": [data, "--out", tmp_path / "\x1b[2J.png"],
        "explain": [run, image, "--out", tmp_path / "\x1b[2J"], "resume": [run], "export": [run, "--to", "vectors"],
        "describe": [run], "compress": [data],
    }  # fmt: skip
    result = sightline(verb, *arguments[verb])
    check(result, 0, 2 if verb in {"resume", "compress"} else 0)


def test_errors(sightline: Command, tmp_path: Path) -> None:
    for arguments in (
        ["predict", tmp_path / "\x1b[2J\n", "x"],
        ["train", tmp_path / "\x1b[2J\n"],
        ["train", "--\x1b[2J"],
        ["recipes", "\x1b[2J\u202e\n"],
        ["\x1b[2J"],
    ):
        assert "\\x1b[2J" in check(sightline(*arguments), 2)


def test_the_card_is_markdown_without_html(sightline: Command, run: Path) -> None:
    assert sightline("model-card", run).code == 0
    text = (run / "bundle" / "README.md").read_text(encoding="utf-8")
    assert printable(text, keep="\n") == text
    body = text.split("\n---\n")[1]
    assert "<" not in body
    assert "&lt;script>alert(2)" in body.replace("\\", "")


def test_files_that_the_run_holds_are_json_still(run: Path) -> None:
    for path in run.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
