"""A search for a smaller model goes on with the images that it began with, and no others."""

from __future__ import annotations

from pathlib import Path

from pictures import png, write
from sightline.config import SplitConfig
from sightline.data.dataset import assemble
from sightline.data.index import index
from sightline.preprocess import Preprocess
from sightline.workflow.compress import _content


def test_another_image_of_the_same_number_is_another_search(tmp_path: Path) -> None:
    def content(seed: int = 0) -> str:
        return _content(assemble(index(tmp_path), Preprocess(8, 8), SplitConfig(), seed))

    write(tmp_path, {f"{c}/{i}.png": png(i, k) for k, c in enumerate("ab") for i in range(8)})
    before = content()
    assert content() == before
    assert content(seed=1) != before  # other splits
    write(tmp_path, {"a/3.png": png(99)})
    assert content() != before
