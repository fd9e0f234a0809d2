"""Hidden files are recognized by name."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.sources.filenames import IMAGE_SUFFIXES, is_hidden, is_image_name, split_path


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
        ("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", True),
        ("$RECYCLE.BIN/1.jpg", True),
    ],
)
def test_hidden_files(path: str, hidden: bool) -> None:
    assert is_hidden(path) is hidden


@given(
    st.lists(st.sampled_from(["", ".", "..", "a", "b.png", ".DS_Store", "__MACOSX", "Thumbs.db", "c.", "d.tar.PNG"]))
)
def test_names_are_split_as_pathlib_splits_them(parts: list[str]) -> None:
    path = "/".join(parts)
    expected = PurePosixPath(path)
    assert split_path(path) == expected.parts
    assert is_image_name(path) == (expected.suffix.lower() in IMAGE_SUFFIXES)
    hidden = any(name.startswith(".") or name == "__MACOSX" for name in expected.parts)
    assert is_hidden(path) == (not expected.parts or hidden or expected.name == "Thumbs.db")
