"""Hidden files are recognized by name."""

from __future__ import annotations

import pytest

from sightline.data.sources.filenames import is_hidden


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("cat/1.jpg", False),
        ("cat/thumbs.db.jpg", False),
        ("a cat/.1.jpg", True),
        (".cat/1.jpg", True),
        ("cat/.DS_Store", True),
        ("cat/Thumbs.db", True),
        ("cat/THUMBS.DB", True),
        ("desktop.ini", True),
        ("__MACOSX/cat/._1.jpg", True),
        ("data/__MACOSX/1.jpg", True),
        ("MACOSX/1.jpg", False),
    ],
)
def test_hidden_files(path: str, hidden: bool) -> None:
    assert is_hidden(path) is hidden
