"""`sightline learning-curve` as a user sees it."""

from __future__ import annotations

import csv
import errno
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from command import Command

SMALL = ("--set", "input.height=32")


@pytest.mark.slow
def test_without_enough_errors_no_gain_is_predicted(sightline: Command, colors: Path) -> None:
    result = sightline("learning-curve", colors, *SMALL)
    assert result.code == 0
    header, first, *_ = result.out.splitlines()
    assert header.split() == ["labels", "per", "class", "accuracy", "95%", "interval"]
    assert first.split()[:2] == ["13", "4"]
    assert re.search(r"cannot be predicted from \d errors? on 120 held-out images", result.out)
    table = sightline("learning-curve", colors, *SMALL, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(table.out)))
    assert [row["kind"] for row in rows] == ["measured"] * len(rows)
    assert (rows[-1]["labels"], rows[-1]["gain"]) == ("108", "")
    assert float(rows[-1]["low"]) < float(rows[-1]["accuracy"])
    assert table.err == ""


@pytest.mark.parametrize("options", [("--more", "0"), ("--recipe", "nothing"), ("--figure", "curve.svg")])
def test_bad_options_end_with_2(sightline: Command, colors: Path, options: tuple[str, str]) -> None:
    result = sightline("learning-curve", colors, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")


def test_a_figure_that_cannot_be_written_is_refused_before_any_work(
    sightline: Command, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        assert options["dir"] == tmp_path
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    result = sightline("learning-curve", colors, "--figure", tmp_path / "curve.png")
    assert (result.code, result.out) == (2, "")
    expected = f"error: {tmp_path} is not writable: Permission denied. Choose another folder with --figure."
    assert " ".join(result.err.split()) == expected
