"""`sightline explain` from the user's side, and the same from Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline as library
from command import Command
from sightline.api.classifier import Classifier
from sightline.errors import UsageError
from sightline.inference.predictor import FakePredictor
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec

pytestmark = pytest.mark.usefixtures("plain_figures")

Trained = tuple[Path, dict[str, Any]]
GREEN = np.array((60, 200, 60))


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A 600x400 image, red with a green right third, rotated by its EXIF orientation."""
    pixels = np.random.default_rng(0).normal((200, 60, 60), 40, (400, 600, 3))
    pixels[:, 400:] += GREEN - (200, 60, 60)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated clockwise: displayed as 400x600, with the green third at the bottom
    path = tmp_path / "half.jpg"
    image.save(path, exif=exif)
    return path


@pytest.mark.usefixtures("drawn_figures")
def test_one_line_and_one_plot_per_image(sightline: Command, trained: Trained, half: Path, tmp_path: Path) -> None:
    out = tmp_path / "why" / "here"
    result = sightline(
        "explain", trained[0], half, "--class", "green", "--method", "occlusion", "--out", out, "--format", "json"
    )
    assert (result.code, result.err) == (0, "")
    (row,) = result.lines
    assert list(row) == ["path", "label", "probability", "method", "figure", "region", "heat_fraction", "faithfulness"]
    assert (row["path"], row["label"], row["method"]) == (str(half), "green", "occlusion")
    left, top, right, bottom = row["region"]
    assert 0 <= left < right <= 400
    assert 350 <= top < bottom <= 600, "the green third of the image as displayed"
    assert 0 < row["heat_fraction"] <= 1
    assert set(row["faithfulness"]) == {"masked_fraction", "drop", "random_drop", "percentile", "positions"}
    assert row["faithfulness"]["masked_fraction"] == pytest.approx(0.2, abs=0.001)
    with Image.open(row["figure"]) as figure:
        assert figure.width >= 2 * 400
        assert figure.height >= 600
    assert [p.name for p in out.iterdir()] == ["half-green-occlusion.png"]


def test_an_image_that_cannot_be_read_is_a_line_and_exit_code_1(
    sightline: Command, trained: Trained, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    result = sightline("explain", trained[0], "bad.jpg", half, "gone.png", "--format", "json")
    assert result.code == 1
    bad, good, gone = result.lines
    assert bad == {"path": "bad.jpg", "method": "gradcam", "error": "not an image"}
    assert gone["error"] == "cannot be opened: No such file or directory"
    assert good["method"] == "gradcam"
    assert Path(good["figure"]).parent == Path("explanations")
    text = sightline("explain", trained[0], "bad.jpg", half)
    assert text.code == 1
    assert "not an image" in text.out
    assert "with the same shape masked elsewhere" in text.out or "nothing in the image" in text.out


@pytest.mark.slow
def test_images_of_the_same_name_have_separate_plots(
    sightline: Command, trained: Trained, half: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "half.jpg").write_bytes(half.read_bytes())
    arguments = ("explain", trained[0], half, other, "--class", "red", "--out", tmp_path / "out", "--format", "json")
    names = ["half-red-gradcam.png", "half-red-gradcam-2.png"]
    for _ in range(2):  # our own figures are overwritten
        assert [Path(line["figure"]).name for line in sightline(*arguments).lines] == names
    (tmp_path / "out" / names[0]).write_bytes(half.read_bytes())
    refused = sightline(*arguments)
    assert refused.code == 2
    assert "was not written by Sightline: move it, or choose another folder." in refused.err
    assert (tmp_path / "out" / names[0]).read_bytes() == half.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "gren"), "The model has no class 'gren'. Did you mean 'green'?"),
        (("--method", "gradcamm"), "There is no method 'gradcamm'. Did you mean 'gradcam'?"),
        (("--out", "half.jpg"), "The folder half.jpg for the figures cannot be created"),
    ],
    ids=["class", "method", "out"],
)
def test_mistakes_are_one_sentence(
    sightline: Command,
    trained: Trained,
    half: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(half.parent)
    result = sightline("explain", trained[0], half, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_from_python(trained: Trained, half: Path) -> None:
    model = library.load(trained[0])
    with Image.open(half) as image:
        pixels = np.asarray(image)
    of_file, of_array = model.explain([half, pixels], label="green", method="gradcam++")
    assert of_file.heat is not None
    assert of_file.heat.shape == (32, 32)
    assert of_file.heat.dtype == np.float32
    assert (of_file.figure, of_array.path) == (None, "[1]")
    alone = model.explain(half, label="green", method="gradcam++")[0].heat
    assert alone is not None
    np.testing.assert_allclose(alone, of_file.heat, atol=1e-4)


def test_a_run_and_its_bundle_give_the_same_grad_cam_without_a_framework(
    colors: Path, sightline: Command, half: Path, tmp_path: Path
) -> None:
    """Where the head is one dense layer behind pooling, as in most networks."""
    run, folder = tmp_path / "run", tmp_path / "out"
    library.train(colors, recipe="quick", set={"model.name": "fast-small"}, epochs=3, out=run)
    code = (
        "import sys, sightline as sl\n"
        "kept = [sl.load(path).explain(sys.argv[4])[0] for path in sys.argv[1:4]]\n"
        "assert not {'keras', 'tensorflow', 'onnx'} & sys.modules.keys()\n"
        "for one in kept[1:]: assert one.to_dict() == kept[0].to_dict() and (one.heat == kept[0].heat).all()\n"
        "print(kept[0].method, kept[0].heat.max())"
    )
    paths = (run, run / "bundle", run / "bundle" / "model.onnx", half)
    result = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["gradcam", "1.0"]
    plus = sightline("explain", run / "bundle", half, "--method", "gradcam++", "--out", folder, "--format", "json").json
    assert plus["method"] == "gradcam++"
    assert "gradcam++" in Path(plus["figure"]).name


def test_from_a_bundle_alone_there_is_no_grad_cam_through_several_layers(
    sightline: Command, trained: Trained, half: Path, tmp_path: Path
) -> None:
    bundle = trained[0] / "bundle"
    refused = sightline("explain", bundle, half, "--method", "gradcam", "--out", tmp_path / "out")
    assert (refused.code, refused.out) == (2, "")
    assert "Use the run that it came from, or --method occlusion or rise." in refused.err
    arguments = (half, "--class", "green", "--out", tmp_path / "out", "--format", "json")
    of_bundle = sightline("explain", bundle, *arguments).json
    of_run = sightline("explain", trained[0], *arguments, "--method", "occlusion").json
    assert of_bundle == of_run
    assert of_bundle["method"] == "occlusion"
    lone = shutil.copy(bundle / "model.onnx", tmp_path / "lone.onnx")
    result = sightline("explain", lone, half, "--out", tmp_path / "out")
    assert "Grad-CAM cannot be computed from this exported model: using occlusion" in result.err
    assert "Grad-CAM" not in sightline("explain", lone, half, "--method", "rise", "--out", tmp_path / "out").err


class Broken(FakePredictor):
    def probabilities(self, pixels: Any) -> Any:
        return np.where(pixels.mean((1, 2, 3))[:, None] > 128, np.nan, super().probabilities(pixels))


def test_an_exported_model_and_nan_predictions() -> None:
    model = Classifier(Broken(("black", "white"), PreprocessingSpec(6, 6)))
    with pytest.raises(UsageError, match="Grad-CAM cannot be computed from this exported model"):
        model.explain(np.zeros((6, 6, 3), np.uint8), method="gradcam")
    dark, bright = model.explain([np.full((6, 6), level, np.uint8) for level in (10, 250)])
    assert (dark.method, dark.label, dark.error) == ("occlusion", "black", None)
    assert (dark.region, dark.faithfulness) == (None, None), "occluding an image of a single color changes nothing"
    assert bright.error == "the model's answer is not a finite number"


def test_the_class_is_by_default_the_one_that_a_threshold_predicts(
    sightline: Command, colors: Path, tmp_path: Path
) -> None:
    """The threshold of a positive class may predict it although the other class is more probable."""
    two = tmp_path / "two"
    for name in ("red", "green"):
        shutil.copytree(colors / name, two / name)
    run = library.train(two, recipe="quick", set={"model.hidden_units": [16]}, epochs=1, out=tmp_path / "run")
    image = next((two / "green").iterdir())
    (before,) = run.classifier.predict(image)
    other = next(name for name in run.classifier.classes if name != before.label)
    run.classifier.save_thresholds(
        Thresholds(9, rate="sensitivity", target_rate=0.9, positive=other, positive_threshold=1e-9)
    )
    arguments = (image, "--method", "occlusion", "--out", tmp_path / "out", "--format", "json")
    for path in (run.path, run.path / "bundle"):
        assert sightline("predict", path, image, "--format", "json").json["label"] == other
        assert sightline("explain", path, *arguments).json["label"] == other
        assert sightline("explain", path, *arguments, "--class", before.label).json["label"] == before.label


def test_a_damaged_image_of_pillow_is_one_row(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    model = Classifier(FakePredictor(("black", "white"), PreprocessingSpec(6, 6)))
    with Image.open(tmp_path / "half.png") as half, Image.open(tmp_path / "whole.png") as whole:
        damaged, explained = model.explain([half, whole])
    assert (damaged.error, explained.error) == ("truncated", None)
