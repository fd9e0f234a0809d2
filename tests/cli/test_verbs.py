"""Help, completion, and messages that name the command that is meant."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from command import Command
from sightline.cli import app, verbs
from sightline.config import DeviceConfig, InputConfig, RunConfig, flatten_config


def test_every_command_has_a_summary_and_an_example(sightline: Command) -> None:
    group: Any = get_command(app)
    assert list(group.commands) == list(verbs.VERBS)
    listing = sightline("help")
    assert (listing.code, listing.err) == (0, "")
    assert listing.out == sightline("--help").out == sightline().out
    for name, (summary, _) in verbs.VERBS.items():
        assert f"  {name} " in listing.out
        assert summary in listing.out


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_the_help_of_a_command_holds_an_example_that_parses(sightline: Command, verb: str) -> None:
    result = sightline("help", verb)
    assert (result.code, result.err) == (0, "")
    assert result.out == sightline(verb, "--help").out
    (example,) = re.findall(r"Example:\n +sightline (.*)", result.out)
    name, *arguments = shlex.split(example.partition(" > ")[0])
    assert name == verb
    group: Any = get_command(app)
    group.commands[verb].make_context(verb, arguments)  # raises for an unknown option or a missing argument


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_shows_long_option_names_at_any_width(
    sightline: Command, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = sightline("help", "evaluate").out
    for name in ("--find-label-issues", "--target-sensitivity", "--no-conservative"):
        assert name in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), "Did you mean 'train'"),
        (("fit", "photos"), "Did you mean 'train'"),
        (("card", "run"), "Did you mean 'model-card'"),
        (("help", "show"), "Did you mean 'preview'"),
        (("predict",), "See `sightline help predict`"),
        (("predict", "{run}", "{data}", "--fomat", "csv"), "--format"),
        (("predict", "{data}", "{data}"), "is a folder of images, not a model: `sightline train {data}`"),
        (("evaluate", "digits"), "is a data set, not a model: `sightline train digits`"),
        (("train", "{run}"), "is a model, not labeled images: `sightline evaluate {run}`"),
        (("doctor", "{run}/bundle"), "is a model, not labeled images"),
        (("report", "{run}/bundle"), "is a bundle, not a run: use the run {run}"),
        (("compress", "{run}/bundle/model.onnx"), "is a bundle, not a run: use the run {run}"),
        (("resume", "{run}/.."), "contains some: use {run}/../run"),
        (
            ("train", "{data}", "--out", ""),
            "The argument after --out is empty: give a value, or check the shell variable",
        ),
        (("train", "{data}", "--config="), "--config is empty"),
        (("evaluate", ""), "The argument after evaluate is empty"),
        (("predict", "{run}", "{data}", ""), "The argument after {data} is empty"),
        (("",), "The argument after sightline is empty"),
        (("train", "{data}", "--config", "{data}"), "{data} is not a readable TOML file: not a regular file."),
        (("train", "{data}", "--config", "{run}/model.keras"), "is not a readable TOML file: it is not UTF-8 text"),
        (("train", "{data}", "--patch", "{data}"), "The patch {data} cannot be read: not a regular file."),
        (("train", "{data}", "--patch", "{run}/model.keras"), "model.keras is not UTF-8 text: expected what"),
        (("train", "{data}", "--recipe", "quick", "--weights", "{run}"), "of the run are in {run}/model.keras."),
        (("resume", "{data}"), "Folders of images are for `sightline train`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_command_is_answered_with_the_right_one(
    sightline: Command, trained: tuple[Path, dict[str, Any]], colors: Path, arguments: tuple[str, ...], words: str
) -> None:
    places = {"run": trained[0], "data": colors}
    result = sightline(*(a.format(**places) for a in arguments))
    assert (result.code, result.out) == (2, "")
    assert words.format(**places) in result.err
    assert "Traceback" not in result.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize(
    ("arguments", "closed", "words"),
    [
        (("doctor", "photos"), "photos", "Cannot list the folder photos: Permission denied"),
        (("train", "photos"), "photos/cat", "Cannot list the folder photos/cat: Permission denied"),
        (("predict", "model", "photos"), "model", "model/manifest.json cannot be opened: Permission denied. Check"),
    ],
)
def test_a_folder_that_may_not_be_read_is_named(
    sightline: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    closed: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("model", "photos/cat", "photos/dog"):
        Path(place).mkdir(parents=True)
    Path("photos/dog/1.png").touch()
    Path(closed).chmod(0)
    result = sightline(*arguments)
    Path(closed).chmod(0o700)
    assert (result.code, result.out) == (2, "")
    assert words in result.err


@pytest.mark.parametrize(
    ("option", "use"),
    [
        ("--task", "--set model.task=..."),
        ("--horizontal-flip", "--set augment.horizontal_flip=..."),
        ("--lr", "--learning-rate"),
        ("--epoch", "--epochs"),
        ("--backbone", "--model"),
        ("--imgsz", "--set input.height=... --set input.width=..."),
    ],
)
def test_an_option_of_another_tool_is_answered_with_ours(sightline: Command, option: str, use: str) -> None:
    result = sightline("train", "photos", option, "1")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: There is no option {option}: use `{use}`. See `sightline help train`.\n"
    assert f"No such option: {option}" in sightline("evaluate", "photos", option, "1").err


@pytest.mark.parametrize("path", ["-x/1.png", "--1.png"])
def test_a_file_whose_name_begins_as_an_option_is_answered_with_a_name_that_does_not(
    sightline: Command, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "No such option" in sightline("predict", "model.onnx", path).err
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    result = sightline("predict", "model.onnx", path)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: {path} begins with a dash, as options do: write ./{path}. See `sightline help predict`.\n"
    )


@pytest.mark.parametrize("option", verbs.OTHER_OPTIONS)
def test_what_is_offered_for_another_option_exists(option: str) -> None:
    group: Any = get_command(app)
    options = [name for parameter in group.commands["train"].params for name in parameter.opts]
    assert option not in options
    offered = verbs.OTHER_OPTIONS[option]
    assert offered.split()[0] in options
    settings = flatten_config(RunConfig(input=InputConfig(height=1, width=1), device=DeviceConfig(gpus=(0,))))
    assert set(re.findall(r"--set ([\w.]+)=", offered)) <= set(settings)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [("sightline mod", {"model-card", "models"}), ("sightline predict --form", {"--format"}),
     ("sightline models --format ", {"text", "json", "csv"})],
)  # fmt: skip
def test_the_shell_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    """By the script that `--show-completion` prints, run by bash as the Tab key does."""
    program = tmp_path / "sightline"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sightline "$@"\n')
    program.chmod(0o755)
    words = line.split(" ")
    quoted = " ".join(map(shlex.quote, words))
    script = (
        f'eval "$(_SIGHTLINE_COMPLETE=source_bash sightline)"; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; '
        "_sightline_completion sightline; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    completed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert set(completed.stdout.split()) == expected, completed.stderr
