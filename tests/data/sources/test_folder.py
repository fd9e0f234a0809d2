"""Classes and splits from folders, and what is said where they cannot be told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.sources.filenames import is_hidden
from sightline.data.sources.folder import class_folders
from sightline.data.sources.listing import Listing
from sightline.errors import DataError


class Names:
    """A store of nothing but names."""

    name = "archive.zip"

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = sorted(keys)

    def keys(self) -> Sequence[str]:
        return self._keys

    def read(self, key: str) -> bytes:
        raise AssertionError(f"{key} was opened only to list it")


def told(listing: Listing) -> dict[str, tuple[str, str | None]]:
    return {e.path: (e.label, e.part) for e in listing.entries}


def fault(*keys: str) -> str:
    with pytest.raises(DataError) as caught:
        class_folders(Names(keys))
    return str(caught.value)


@pytest.mark.parametrize(
    "wrapper", ["", "dataset/", "archive/My Data/", "archive/v1.0/data/"], ids=["bare", "one", "two", "three"]
)
def test_classes_are_the_folders_whatever_wraps_them(wrapper: str) -> None:
    listing = class_folders(Names([f"{wrapper}{p}" for p in ("cat/1.jpg", "dog/2.jpg", "dog/pups/3.jpg")]))
    assert told(listing) == {
        f"{wrapper}cat/1.jpg": ("cat", None),
        f"{wrapper}dog/2.jpg": ("dog", None),
        f"{wrapper}dog/pups/3.jpg": ("dog", None),
    }
    assert (listing.stray, listing.skipped) == ([], 0)


@pytest.mark.parametrize("wrapper", ["", "dataset/"], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("validation", "validation"),
        ("VALID", "validation"),
        ("Val", "validation"),
        ("test", "test"),
        ("TEST", "test"),
        ("testing", "test"),
    ],
)
def test_parts_are_known_by_every_spelling(folder: str, part: str, wrapper: str) -> None:
    names = Names([f"{wrapper}{folder}/cat/1.jpg", f"{wrapper}{folder}/dog/in here/2.jpg"])
    assert told(class_folders(names)) == {
        f"{wrapper}{folder}/cat/1.jpg": ("cat", part),
        f"{wrapper}{folder}/dog/in here/2.jpg": ("dog", part),
    }


def test_two_spellings_of_one_part_join() -> None:
    listing = class_folders(Names(["train/cat/1.jpg", "val/cat/2.jpg", "validation/cat/3.jpg"]))
    assert [e.part for e in listing.entries] == ["train", "validation", "validation"]


@pytest.mark.parametrize("name", ["train", "test", "Validation"])
def test_a_class_may_be_called_as_a_part_is(name: str) -> None:
    assert told(class_folders(Names([f"{name}/1.jpg", "bus/2.jpg"]))) == {
        f"{name}/1.jpg": (name, None),
        "bus/2.jpg": ("bus", None),
    }


def test_a_class_below_a_part_may_be_called_as_a_part_is() -> None:
    assert told(class_folders(Names(["train/test/1.jpg", "train/bus/2.jpg", "test/train/3.jpg"]))) == {
        "train/test/1.jpg": ("test", "train"),
        "train/bus/2.jpg": ("bus", "train"),
        "test/train/3.jpg": ("train", "test"),
    }


def test_a_single_class_is_no_wrapper() -> None:
    assert told(class_folders(Names(["cat/1.jpg", "cat/indoors/2.jpg"]))) == {
        "cat/1.jpg": ("cat", None),
        "cat/indoors/2.jpg": ("cat", None),
    }
    assert told(class_folders(Names(["data/cat/1.jpg"]))) == {"data/cat/1.jpg": ("cat", None)}


@pytest.mark.parametrize("wrapper", ["", "flower_photos/"], ids=["bare", "wrapped"])
@pytest.mark.parametrize("part", ["", "train/"], ids=["whole", "part"])
def test_papers_beside_the_classes_change_nothing(wrapper: str, part: str) -> None:
    papers = [f"{wrapper}LICENSE.txt", f"{wrapper}docs/en/README.md", f"{wrapper}docs/labels.csv", ".git/HEAD"]
    names = [f"{wrapper}{part}daisy/1.jpg", f"{wrapper}{part}rose/2.jpg"]
    listing = class_folders(Names([*papers, *names]))
    pictures = {path: label for path, (label, _) in told(listing).items() if path.endswith(".jpg")}
    assert pictures == {names[0]: "daisy", names[1]: "rose"}
    assert listing.stray == []
    assert all(e.part == (part.strip("/") or None) for e in listing.entries)
    assert {e.path for e in listing.entries} - set(names) <= set(papers)  # to be tried, then passed over
    assert len(listing.entries) + listing.skipped == 6


def test_pictures_beside_the_class_folders_are_stray() -> None:
    listing = class_folders(Names(["cover.jpg", "cat/1.jpg", "dog/2.jpg", "notes.txt", "Thumbs.db"]), prefix="a/")
    assert [(r.path, r.reason, r.label) for r in listing.stray] == [("a/cover.jpg", "lies in no class folder", "")]
    assert listing.skipped == 2
    inside = class_folders(Names(["train/cover.jpg", "train/cat/1.jpg", "train/dog/2.jpg"]))
    assert [r.path for r in inside.stray] == ["train/cover.jpg"]


def test_pictures_need_no_extension() -> None:
    assert told(class_folders(Names(["data/cat/0001", "data/dog/0002"]))) == {
        "data/cat/0001": ("cat", None),
        "data/dog/0002": ("dog", None),
    }


def test_the_prefix_stands_before_paths_only() -> None:
    (entry,) = class_folders(Names(["data/cat/1.jpg"]), prefix="a.zip/").entries
    assert (entry.key, entry.path, entry.label) == ("data/cat/1.jpg", "a.zip/data/cat/1.jpg", "cat")


def test_parts_beside_other_folders_are_refused() -> None:
    message = fault("train/cat/1.jpg", "test/cat/2.jpg", "extra/cat/3.jpg")
    assert message.startswith("archive.zip holds test, train beside extra: ")
    assert "Rename or move 'extra'." in message
    message = fault("train/cat/1.jpg", "test/2.jpg")  # a test without labels, as competitions give
    assert "holds the part 'train' beside 'test', which has no class folders" in message


SEGMENTS = st.sampled_from(["train", "Test", "val", "cat", "dog", "猫", ".git", "__MACOSX", "a b"])
FILE_NAMES = st.sampled_from(["1.jpg", "2.PNG", "README.md", "Thumbs.db", "3"])
PATHS = st.tuples(st.lists(SEGMENTS, max_size=4), FILE_NAMES).map(lambda t: "/".join([*t[0], t[1]]))


@settings(deadline=None)
@given(st.lists(PATHS, unique=True, max_size=8))
def test_every_file_is_accounted_for(keys: list[str]) -> None:
    try:
        listing = class_folders(Names(keys))
    except DataError:
        return
    assert len(listing.entries) + len(listing.stray) + listing.skipped == len(keys)
    assert all(e.label in e.path.split("/")[:-1] for e in listing.entries)
    assert not any(is_hidden(e.path) for e in listing.entries)
