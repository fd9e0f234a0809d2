"""The demo is a whole training from pretrained weights, and ends with the address of its report."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sightline as sl
from command import Command
from sightline.datasets import coffee_beans


@pytest.mark.slow
def test_the_demo_learns_and_ends_with_the_address_of_its_report(sightline: Command, tmp_path: Path) -> None:
    result = sightline("demo", "--out", tmp_path / "a run")
    assert result.code == 0, result.err
    run = sl.Run(tmp_path / "a run")
    assert run.config.model.name == "efficientnet-lite0"
    assert run.config.model.weights == "imagenet"
    assert run.test is not None
    assert run.test.accuracy is not None
    assert run.test.accuracy > 0.9
    title, address = result.out.splitlines()[-1].split()
    assert title == "Report"
    report = Path(unquote(urlsplit(address).path))
    assert report == (tmp_path / "a run" / "report.html").resolve()
    assert report.is_file()
    for label in coffee_beans.CLASSES:
        assert f"{label.lower()}-" in result.out
