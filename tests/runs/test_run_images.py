"""The images of a run: found again from anywhere, compared with what was recorded."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from new_runs import create_run
from sightline import jsonio
from sightline.api import compression
from sightline.callbacks import Callback, no_progress
from sightline.config import DataConfig, DeviceConfig, RunConfig, SplitConfig
from sightline.data import label_patch
from sightline.data.dataset import DecodedDataset, build_dataset
from sightline.data.indexing import build_index
from sightline.data.sources.manifest import read_rows
from sightline.data.targets import LABEL_SETS
from sightline.data.types import SPLITS, Index, Split
from sightline.errors import DataError, MissingImagesError
from sightline.inference.manifest import Manifest
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import run_images
from sightline.runs.directory import RunDirectory
from sightline.runs.labeled_images import LabeledImages
from sightline.runs.train_request import TrainRequest
from synthetic_images import encode_png, write_files

FILES = {f"{split}/{label}/{i}.png": encode_png(i, c) for split, i in (("train", 0), ("train", 1), ("test", 2))
         for c, label in enumerate(("cat", "dog"))}  # fmt: skip


def record_run(folder: Path, source: str, *, corrections: str = "") -> RunDirectory:
    """A run on `source`, a path below `folder`, as training there leaves it before its first epoch."""
    run = create_run(folder / "run", request=TrainRequest((source,), False, str(folder), "quick", (), ()).to_dict())
    config = replace(RunConfig(), data=replace(RunConfig().data, sources=(source,)))
    run.write_config(config)
    run.write_patch(corrections)
    run.write_data(build_small_dataset(folder / source, run.patch))
    return run


def build_small_dataset(source: Path, corrections: Path | None = None) -> DecodedDataset:
    index = label_patch.load_and_apply_patch(build_index(source), corrections)
    return build_dataset(index, PreprocessingSpec(8, 8), SplitConfig(validation=0.0), 0, keep=False)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Four training images and four test images, of which two are training images too."""
    copies = {f"test/{label}/copy.png": FILES[f"train/{label}/0.png"] for label in ("cat", "dog")}
    write_files(tmp_path / "data", FILES | copies)
    return record_run(tmp_path, "data")


def test_relative_sources_are_found_from_anywhere(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_images.resolve_sources(run) == [str(tmp_path / "data")]
    assert run_images.match_run_images(run).complete
    monkeypatch.chdir(tmp_path)
    assert run_images.resolve_sources(run) == ["data"], "as it was called there"


def test_the_recorded_images_are_read_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_regular = jsonio.open_regular  # type: ignore[attr-defined]  # imported there

    def count(path: Path) -> Any:
        opened.append(path.name)
        return open_regular(path)

    monkeypatch.setattr(jsonio, "open_regular", count)
    assert run_images.match_run_images(run).complete
    assert opened.count("data.jsonl") == 1


def test_they_are_indexed_by_as_many_threads_as_the_run_has(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[int | None] = []

    def counted(many: Any, progress: Any, threads: int | None, **options: Any) -> Index:
        requests.append(threads)
        return build_index(many, progress, threads, **options)

    monkeypatch.setattr(run_images, "build_index", counted)
    run.write_config(replace(run.config, device=DeviceConfig(threads=3)))
    assert (run_images.match_run_images(run).complete, requests) == (True, [3])


def test_sources_that_are_gone_are_named(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"The images of the run .*run are no longer at .*data: restore them, or give"):
        run_images.match_run_images(run)


def test_arrays_are_not_kept(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", request=TrainRequest((), True, str(tmp_path), "quick", (), ()).to_dict())
    run.write_config(RunConfig())
    with pytest.raises(DataError, match="trained on images in memory"):
        run_images.resolve_sources(run)


@pytest.mark.parametrize("file", ["none", "imagenet", "weights.h5"])
def test_files_in_settings_are_reached_from_elsewhere(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (file, "patch.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "elsewhere").mkdir()
    request = TrainRequest((), False, str(tmp_path), "quick", (), (f"model.weights={file}", "data.patch=patch.jsonl"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = request.with_relative_paths(request.merge_layers())
    assert settings.data.patch == str(tmp_path / "patch.jsonl")
    assert settings.model.weights == (str(tmp_path / file) if "." in file else file)
    monkeypatch.chdir(tmp_path)
    assert request.with_relative_paths(request.merge_layers()) == request.merge_layers()


def test_each_split_is_what_it_was(run: RunDirectory) -> None:
    images = run_images.match_run_images(run)
    assert [row.split for row in images.rows].count("test") == 4
    assert sorted(p.path for p in images.select_split("test").index.images) == [
        "test/cat/2.png", "test/cat/copy.png", "test/dog/2.png", "test/dog/copy.png",
    ]  # fmt: skip


def test_a_search_for_smaller_models_has_the_run_s_own_splits(run: RunDirectory, tmp_path: Path) -> None:
    own = compression._index_images(run, None, Callback())
    assert sum(p.split == "test" for p in own.images) == 4
    (tmp_path / "data" / "train" / "cat" / "0.png").unlink()
    with pytest.raises(MissingImagesError, match=r"Of the 8 images .* 1 is missing, such as train/cat/0\.png: restore"):
        compression._index_images(run, None, Callback())


def test_other_images_keep_their_splits_and_what_was_trained_on_stays_in_training(
    run: RunDirectory, tmp_path: Path
) -> None:
    other = write_files(tmp_path / "other", {f"{i}/{Path(n).parts[1]}-{Path(n).name}": c for i, (n, c) in
                  enumerate(FILES.items())} | {"0/new.png": encode_png(9)})  # fmt: skip
    messages: list[str] = []

    class Listener(Callback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    images = compression._index_images(run, str(other), Listener())
    split = {p.sha256: p.split for p in images.images}
    by_content: dict[str, set[Split]] = {}
    for row in run.read_data() or ():
        by_content.setdefault(row.sha256, set()).add(row.split)
    for sha, splits in by_content.items():
        assert split[sha] == ("train" if "train" in splits else "test")
    assert messages == ["6 of 7 images of other belong to the run and keep their splits"]


def test_corrections_of_the_run_hold(tmp_path: Path) -> None:
    write_files(tmp_path / "data", FILES)
    sha = {p.path: p.sha256 for p in build_index(tmp_path / "data").images}
    fixes = [
        {"action": "relabel", "path": "train/cat/0.png", "to": "dog"},
        {"action": "drop", "path": "train/dog/1.png"},
        {"action": "move", "path": "train/cat/1.png", "to": "test"},
    ]
    lines = [f | {"sha256": sha[f["path"]], "label": f["path"].split("/")[1], "reason": ""} for f in fixes]
    (tmp_path / "fix.jsonl").write_text("\n".join(map(json.dumps, lines)))
    # One of each class is left in training, which the relabeled image sees to.
    write_files(tmp_path / "data", {"train/cat/3.png": encode_png(3)})
    run = record_run(tmp_path, "data", corrections=str(tmp_path / "fix.jsonl"))
    images = run_images.match_run_images(run)
    assert images.complete
    assert images.unmatched == (), "what was dropped is not new"
    assert {p.path: p.label for p in images.index.images}["train/cat/0.png"] == "dog"
    assert {p.path: p.split for p in images.index.images}["train/cat/1.png"] == "test"
    (tmp_path / "data" / "train" / "cat" / "0.png").unlink()
    assert [row.path for row in run_images.match_run_images(run).missing] == ["train/cat/0.png"], (
        "not a complaint about the patch"
    )


def test_files_that_could_not_be_read_are_not_new(tmp_path: Path) -> None:
    write_files(tmp_path / "data", FILES | {"train/cat/broken.png": encode_png(5)[:200]})
    run = record_run(tmp_path, "data")
    assert [file.path for file in run.read_unreadable()] == ["train/cat/broken.png"]
    images = run_images.match_run_images(run)
    assert (images.complete, images.unmatched) == (True, ())
    for split in SPLITS[::2]:  # as many as training stated, though its pixels are not read again for the test split
        unreadable = LabeledImages(run, run, ("cat", "dog"), PreprocessingSpec(8, 8)).load(split).unreadable
        assert [file.path for file in unreadable] == ["train/cat/broken.png"]


@pytest.mark.parametrize("classes", [("1", "2"), ("n00000001", "n00000002")])
def test_classes_that_are_numbers_keep_them_where_a_file_names_them(tmp_path: Path, classes: tuple[str, str]) -> None:
    images = {f"{label}/{i}.png": encode_png(i) for i, label in enumerate(classes)}
    lines = f"{classes[0]} cat\n{classes[1]} dog\n"
    folder = write_files(tmp_path / "new", {**images, "classes.txt": lines.encode()})
    labeled = LabeledImages(None, None, classes, PreprocessingSpec(8, 8), [folder]).load()
    assert labeled.subset.labels.tolist() == [0, 1]


def test_arrays_in_idx_files_are_found_by_their_number(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    pixels[5] = pixels[0]  # the same image, under another number
    for split, count in (("train", 4), ("t10k", 2)):
        some = pixels[:4] if split == "train" else pixels[4:]
        header = struct.pack(">4I", 0x803, count, 8, 8), struct.pack(">2I", 0x801, count)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(header[0] + some.tobytes())
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(header[1] + bytes(i % 2 for i in range(count)))
    folder = tmp_path / "idx"
    folder.mkdir()
    for path in tmp_path.glob("*ubyte"):
        path.rename(folder / path.name)
    run = record_run(tmp_path, "idx")
    images = run_images.match_run_images(run)
    assert images.complete
    assert [row.path for row in images.select_split("test").rows] == [
        "t10k-images-idx3-ubyte[0]",
        "t10k-images-idx3-ubyte[1]",
    ]
    assert np.array_equal(images.select_split("test").index.read(1), pixels[5])


def test_labels_in_memory_are_read_as_the_run_reads_its_own(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i}.png": encode_png(i, i) for i in range(3)})
    rows = [{"path": f"{i}.png", "label": label} for i, label in enumerate(("tree|car", "owl", None))]
    listing = read_rows(rows, "the frame", DataConfig(root=str(tmp_path)))
    run = create_run(tmp_path / "run", request=TrainRequest((), True, str(tmp_path), "quick", (), ()).to_dict())
    config = RunConfig()
    run.write_config(replace(config, model=replace(config.model, task="multi_label")))
    run.write_patch("")
    index = build_index(listing, targets=LABEL_SETS)
    split = SplitConfig(validation=0.0, test=0.0)
    run.write_data(build_dataset(index, PreprocessingSpec(8, 8), split, 0, targets=LABEL_SETS, keep=False))
    again = run_images.find_in_memory(run, listing, no_progress)
    assert again is not None
    assert [image.label for image in again.images] == ["car;tree", "owl", ""]


def test_going_on_counts_copies_too(run: RunDirectory, tmp_path: Path) -> None:
    data = build_small_dataset(tmp_path / "data")
    run_images.check_unchanged(run, data)
    (tmp_path / "data" / "test" / "cat" / "copy.png").unlink()
    with pytest.raises(DataError, match=r"1 of 8 are missing or changed and 0 are new, such as test/cat/copy\.png"):
        run_images.check_unchanged(run, build_small_dataset(tmp_path / "data"))
    turned = replace(data, images=data.images[::-1], splits=data.splits[::-1])
    with pytest.raises(DataError, match=r"files were renamed, which changes their order"):
        run_images.check_unchanged(run, turned)


def test_images_in_other_splits_are_not_called_new(run: RunDirectory, tmp_path: Path) -> None:
    data = build_small_dataset(tmp_path / "data")
    (first, split), *_ = zip(data.images, data.splits, strict=True)
    moved = replace(data, splits=("validation", *data.splits[1:]))
    with pytest.raises(
        DataError, match=rf"but 1 of 8 are in another split now, such as {first.path}, which was in {split}: .*--force"
    ):
        run_images.check_unchanged(run, moved)


def test_splits_are_kept_where_the_source_states_none(run: RunDirectory, tmp_path: Path) -> None:
    index = build_index(tmp_path / "data")
    assert run_images.keep_splits(run, index) is index
    free = replace(index, images=tuple(replace(image, split=None) for image in index.images))
    assert {image.split for image in run_images.keep_splits(run, free).images} == {"train", "test"}
    fewer = replace(free, images=free.images[1:])
    assert run_images.keep_splits(run, fewer) is fewer, "which `check_unchanged` refuses"


def test_a_bundle_knows_the_run_in_whose_folder_it_lies(run: RunDirectory, tmp_path: Path) -> None:
    run.update(result={"weights_sha256": "w"})
    own = Manifest("m", ("a", "b"), PreprocessingSpec(8, 8), weights_sha256="w")
    smaller = replace(own, weights_sha256="s", lineage=({"step": "train", "weights_sha256": "w"},))
    for place, manifest in ((run.path / "bundle", own), (run.path / "compressed" / "best" / "bundle", smaller)):
        home = run_images.find_source_run(place, manifest)
        assert home is not None
        assert home.path == run.path
    assert run_images.find_source_run(run.path / "bundle", replace(own, weights_sha256="other")) is None
    assert run_images.find_source_run(tmp_path / "bundle", own) is None
