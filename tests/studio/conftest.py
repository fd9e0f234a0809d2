"""Drawn images in a studio without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from command import COLORS, draw_classes
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, with 8 images of 32x32 each."""
    return draw_classes(tmp_path_factory.mktemp("data") / "colors", COLORS, 8)


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    return tmp_path / "fixes.jsonl"


@pytest.fixture
def studio(colors: Path, patch: Path) -> Iterator[Studio]:
    with open_studio(Dataset(colors), patch) as opened:
        yield opened
