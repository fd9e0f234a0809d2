"""A damaged or untrusted search folder: no code runs, nothing outside is written, and the message names the file."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import Command
from damage import choose_damage, hash_files, replace_by_links
from networks import make_plan
from sightline import backend
from sightline.models.build import build_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need special rights, and there are no named pipes")
SEARCH = ("--methods", "shrink-head,float16", "--epochs", "1")


@pytest.fixture(scope="module")
def search(trained: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete search in a folder outside of the run."""
    from sightline.api.compression import compress

    out = tmp_path_factory.mktemp("searches") / "search"
    assert compress(trained[0], out=out, methods=("shrink-head", "float16"), epochs=1).best is not None
    return out


@pytest.fixture
def out(search: Path, tmp_path: Path) -> Path:
    """A copy of the search."""
    return shutil.copytree(search, tmp_path / "search")


def remake(out: Path) -> Path:
    """Remove a candidate, so that it is made from the Keras model of another one again; return that model."""
    shutil.rmtree(out / "candidates" / "shrink-head-float16")
    return out / "candidates" / "shrink-head" / "model.keras"


def change_config(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the last layer in the configuration of a ``.keras`` file."""
    with zipfile.ZipFile(model) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    config = json.loads(members["config.json"])
    change(config["config"]["layers"][-1])
    with zipfile.ZipFile(model, "w") as archive:
        for name, content in (members | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(name, content)


def write_lambda(model: Path, marker: Path) -> None:
    keras = backend.keras()
    pixels = keras.Input((32, 32, 3), dtype="uint8")

    def mark(pixels: Any, path: str) -> Any:
        with open(path, "w"):  # noqa: PTH123  # the function must not need a name of this module
            return pixels

    keras.Model(pixels, keras.layers.Lambda(mark, arguments={"path": str(marker)})(pixels)).save(model)
    marker.unlink()  # building the model called it


def name_class(model: Path, marker: Path) -> None:
    config = {"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", str(marker)]}}
    change_config(model, lambda layer: layer.update(config))


def write_other_network(model: Path, _marker: Path) -> None:
    build_model(make_plan("cifar10-simple", side=16, classes=3)).model.save(model)


def write_other_classes(model: Path, _marker: Path) -> None:
    build_model(make_plan("cifar10-simple", side=32, classes=4)).model.save(model)


def write_plain_keras(model: Path, _marker: Path) -> None:
    keras = backend.keras()
    pixels = keras.Input((32, 32, 3))
    probabilities = keras.layers.Dense(3, "softmax")(keras.layers.Flatten()(pixels))
    keras.Model(pixels, {"probabilities": probabilities}).save(model)


def link_elsewhere(model: Path, marker: Path) -> None:
    model.rename(marker.with_name("elsewhere.keras"))
    model.symlink_to(marker.with_name("elsewhere.keras"))


@pytest.mark.parametrize(
    "replace",
    [write_lambda, name_class, write_other_network, write_other_classes, write_plain_keras, link_elsewhere],
)  # fmt: skip
def test_a_model_that_was_replaced_is_refused(
    replace: Callable[[Path, Path], None], out: Path, trained: tuple[Path, Any], tmp_path: Path, sightline: Command
) -> None:
    model, marker = remake(out), tmp_path / "code ran"
    replace(model, marker)
    result = sightline("compress", trained[0], "--out", out, *SEARCH)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    assert str(model) in "".join(result.err.split("\n"))
    assert not marker.exists()
    assert not (out / "candidates" / "shrink-head-float16").exists()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "name", ["search.json", "comparisons.json", "candidates/original/record.json", "candidates/shrink-head/record.json"]
)
def test_a_damaged_file_is_named(
    name: str, seed: int, out: Path, trained: tuple[Path, Any], sightline: Command
) -> None:
    damage = choose_damage(out / name, seed)
    damage.apply(out / name)
    result = sightline("compress", trained[0], "--out", out, *SEARCH)
    assert result.code == 2, f"{damage.description}: {result.err}"
    assert "Traceback" not in result.err
    assert str(out) in result.err.replace("\n", ""), f"{damage.description}: {result.err}"


@pytest.mark.slow
def test_no_damage_is_an_internal_error(
    search: Path, trained: tuple[Path, Any], tmp_path: Path, sightline: Command
) -> None:
    rounds = int(os.environ.get("SIGHTLINE_DAMAGE_ROUNDS", "1"))  # for a longer search
    names = sorted(p.relative_to(search) for p in search.rglob("*") if p.is_file())
    for number, name in enumerate(names * rounds):
        out = shutil.copytree(search, tmp_path / str(number))
        damage = choose_damage(out / name, number)
        if not name.is_relative_to("candidates/shrink-head-float16"):
            remake(out)
        damage.apply(out / name)
        result = sightline("compress", trained[0], "--out", out, *SEARCH)
        message = f"{name}: {damage.description}: {result.err[-1000:]}"
        assert result.code in {0, 1, 2}, message
        assert result.code != 2 or str(out) in result.err.replace("\n", ""), message
        shutil.rmtree(out)


@pytest.mark.parametrize("links", ["files", "folders", pytest.param("each", marks=pytest.mark.slow)])
def test_nothing_is_written_through_a_link(
    links: str, search: Path, trained: tuple[Path, Any], tmp_path: Path, sightline: Command
) -> None:
    names = [""]
    if links == "each":
        names = sorted(p.relative_to(search).as_posix() for p in search.rglob("*"))
    for number, name in enumerate(names):
        out, stash = shutil.copytree(search, tmp_path / f"out{number}"), tmp_path / f"stash{number}"
        if not name.startswith("candidates/shrink-head-float16"):
            remake(out)
        if name:
            stash.mkdir()
            (out / name).rename(stash / "victim")
            (out / name).symlink_to(stash / "victim")
        else:
            replace_by_links(out, stash, folders=links == "folders")
        before = hash_files(stash)
        result = sightline("compress", trained[0], "--out", out, *SEARCH, "--max-size", "1GB")
        assert result.code in {0, 1, 2}, (name, result.err)
        assert hash_files(stash) == before, name
