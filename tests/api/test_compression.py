"""A search for a smaller model goes on with the images that it began with, and no others."""

from __future__ import annotations

from pathlib import Path

from sightline.api.compression import _hash_data
from sightline.config import SplitConfig
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png, write_files


def test_another_image_of_the_same_number_is_another_search(tmp_path: Path) -> None:
    def content(seed: int = 0) -> str:
        return _hash_data(build_dataset(build_index(tmp_path), PreprocessingSpec(8, 8), SplitConfig(), seed))

    write_files(tmp_path, {f"{c}/{i}.png": encode_png(i, k) for k, c in enumerate("ab") for i in range(8)})
    before = content()
    assert content() == before
    assert content(seed=1) != before  # other splits
    write_files(tmp_path, {"a/3.png": encode_png(99)})
    assert content() != before
