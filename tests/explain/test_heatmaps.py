"""Heat maps show what decides the class: images whose one corner is the class, and models whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

import networks
from corner_task import CLASSES, SIDE, draw_images, heat_fraction, train_predictor
from sightline import backend
from sightline.api.classifier import Classifier
from sightline.errors import ModelError, UsageError
from sightline.explain.faithfulness import check_faithfulness
from sightline.explain.gradcam import KerasGradCam, last_feature_maps
from sightline.explain.heatmaps import METHODS, Method, compute_heat_maps, resolve_method
from sightline.explain.masking import mask_images, random_masks
from sightline.export.keras_to_onnx import convert_model
from sightline.inference.predictor import FakePredictor, Outputs
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models import registry
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec

AVERAGE: dict[str, Any] = {"pooling": "average", "hidden_units": ()}
FLATTEN: dict[str, Any] = {"hidden_units": (32,)}


class Patch(FakePredictor):
    """Its logit of class 1 is the brightness of one patch alone above 100, in units of so many gray levels."""

    def __init__(self, unit: float = 10) -> None:
        super().__init__(("dark", "bright"), PreprocessingSpec(SIDE, SIDE))
        self.unit = unit

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        value = (pixels[:, 4:10, 20:28].mean((1, 2, 3)) - 100) / self.unit
        logits = np.stack([np.zeros_like(value), value], 1).astype(np.float32)
        odds = 1 / (1 + np.exp(-logits[:, 1]))
        return Outputs(np.stack([1 - odds, odds], 1), logits, logits)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.outputs(pixels).probabilities


def draw_decided(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Unseen images with a disc that decides."""
    pixels, labels = draw_images(2 * count, seed=99)
    return pixels[labels < 2][:count], labels[labels < 2][:count]


@pytest.mark.slow_with("flatten-gradcam", "flatten-rise")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [AVERAGE, FLATTEN], ids=["average", "flatten"])
def test_most_of_the_heat_is_in_the_corner_that_decides(settings: dict[str, Any], method: Method) -> None:
    learned = train_predictor(**settings)
    pixels, labels = draw_decided(4)
    assert (learned.probabilities(pixels).argmax(1) == labels).all(), "it has learned the corner"
    fractions = heat_fraction(compute_heat_maps(learned, pixels, labels, method))
    assert (fractions >= 0.6).all(), fractions


@pytest.mark.parametrize("settings", [AVERAGE, FLATTEN], ids=["average", "flatten"])
def test_hiding_the_hottest_part_takes_the_class_away(settings: dict[str, Any]) -> None:
    """As far as hiding the whole corner does: no image has an empty corner, and a network may take it for a color."""
    learned = train_predictor(**settings)
    pixels, labels = draw_decided(4)
    before = learned.probabilities(pixels)
    corner = np.ones((1, SIDE, SIDE), np.float32)
    corner[:, : SIDE // 2, SIDE // 2 :] = 0
    drops = []
    for one, label, heat, row in zip(
        pixels, labels.tolist(), compute_heat_maps(learned, pixels, labels, "gradcam"), before, strict=True
    ):
        check = check_faithfulness(learned, one, heat, label, float(row[label]), 0)
        assert check is not None
        corner_drop = float(row[label] - learned.probabilities(mask_images(one, corner))[0, label])
        assert check.drop > 0.9 * corner_drop
        if corner_drop > 0.2:
            assert check.random_drop < 0.5 * check.drop
            assert check.percentile > 0.8
        drops.append(check.drop)
    assert max(drops) > 0.5, "it cannot take an empty corner for both colors"


@pytest.mark.parametrize(
    ("settings", "method"),
    [(AVERAGE, "gradcam"), (AVERAGE, "gradcam++"), (AVERAGE, "occlusion"), (FLATTEN, "gradcam")],
    ids=["average-gradcam", "average-gradcam++", "average-occlusion", "flatten-gradcam"],
)
def test_other_weights_give_another_map(settings: dict[str, Any], method: Method) -> None:
    """The sanity check of Adebayo et al., 2018, arXiv:1810.03292: a map must depend on what the model has learned."""
    learned = train_predictor(**settings)
    pixels, labels = draw_decided(4)
    of_learned = compute_heat_maps(learned, pixels, labels, method)
    correlations = {}
    for name, noise in (("nearly the same", 0.01), ("random", None)):
        model = build_model(
            networks.make_plan("cifar10-deep", side=SIDE, classes=3, seed=7, dropout=0.0, **settings)
        ).model
        if noise is not None:
            rng = np.random.default_rng(0)
            model.set_weights([w * (1 + noise * rng.normal(size=w.shape)) for w in learned.model.get_weights()])
        other = compute_heat_maps(KerasPredictor(model, CLASSES, learned.preprocess), pixels, labels, method)
        pairs = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(of_learned, other, strict=True) if b.any()]
        correlations[name] = float(np.mean(pairs))
    assert correlations["nearly the same"] > 0.9, correlations
    assert correlations["random"] < 0.5, correlations


@pytest.mark.parametrize("name", networks.RUNS)
def test_every_network_has_maps(name: str) -> None:
    """Its exported file has the same, in closed form, or none where layers lie behind the pooling or maps before it."""
    side, classes = registry.ENTRIES[name].min_input_size, ("a", "b", "c")
    model, spec = networks.build_network(name).model, PreprocessingSpec(side, side)
    wrapped, exported = KerasPredictor(model, classes, spec), OnnxPredictor(convert_model(model), classes, spec)
    pixels = networks.random_images(3, side)
    maps = last_feature_maps(model)
    assert len(maps.shape) == 4
    layers = {layer.name: layer for layer in model.layers}
    is_linear = "pool" in layers and "fc1" not in layers and layers["pool"].input is maps
    assert resolve_method(None, wrapped) == "gradcam"
    assert resolve_method(None, exported) == ("gradcam" if is_linear else "occlusion")
    for method in METHODS[:2]:  # both kinds of Grad-CAM
        heat = compute_heat_maps(wrapped, pixels, np.array([0, 1, 2]), method)
        assert heat.shape == (3, side, side)
        assert heat.dtype == np.float32
        assert np.isfinite(heat).all()
        assert ((heat >= 0) & (heat <= 1)).all()
        assert set(heat.max((1, 2)).tolist()) <= {0.0, 1.0}
        if is_linear:
            of_file = compute_heat_maps(exported, pixels, np.array([0, 1, 2]), method)
            np.testing.assert_allclose(of_file, heat, atol=2e-3)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_gradients_are_the_dense_weights_behind_average_pooling(head: str) -> None:
    model = build_model(networks.make_plan("cifar10-deep", side=SIDE, head=head, **AVERAGE)).model
    cam = KerasGradCam(model)
    weights = cam.score_weights(np.array([0, 1]))
    maps, slopes = cam._gradient(networks.random_images(2, SIDE), weights)
    assert maps.shape == slopes.shape == (2, 14, 14, 64), "those before the last max pooling and dropout"
    kernel = np.asarray(backend.keras().ops.convert_to_numpy(model.get_layer("predictions").kernel))
    expected = (kernel * [-1, 1]).T if head == "sigmoid" else kernel.T  # of each image's class
    # the average gives each of 7x7 places the same share, and max pooling hands it on to one of four
    assert slopes.sum((1, 2)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_both_classes_of_two_have_maps(head: str) -> None:
    model = build_model(networks.make_plan("cifar10-deep", side=SIDE, head=head, **AVERAGE)).model
    wrapped = KerasPredictor(model, ("a", "b"), PreprocessingSpec(SIDE, SIDE))
    pixels = np.repeat(networks.random_images(1, SIDE), 2, 0)
    first, second = compute_heat_maps(wrapped, pixels, np.array([0, 1]), "gradcam")
    assert first.any() or second.any()
    assert not np.array_equal(first, second)


def test_more_than_one_batch_is_the_same_as_one_by_one() -> None:
    model = networks.build_network("cifar10-simple").model
    side = registry.ENTRIES["cifar10-simple"].min_input_size
    pixels, numbers = networks.random_images(35, side), np.arange(35) % 3
    heat = KerasGradCam(model).heat(pixels, numbers)
    single = np.concatenate([KerasGradCam(model).heat(pixels[i : i + 1], numbers[i : i + 1]) for i in (0, 31, 32, 34)])
    np.testing.assert_allclose(heat[[0, 31, 32, 34]], single, rtol=1e-4, atol=1e-7)


def test_a_network_without_feature_maps_is_refused() -> None:
    keras = backend.keras()
    pixels = keras.Input((4, 4, 3))
    model = keras.Model(pixels, {"logits": keras.layers.Dense(2)(keras.layers.Flatten(name="other")(pixels))})
    with pytest.raises(ModelError, match="use --method occlusion or rise"):
        last_feature_maps(model)


# Any predictor.


@pytest.mark.parametrize("method", ["occlusion", "rise"])
def test_a_model_that_looks_at_one_patch(method: Method) -> None:
    looks = Patch()
    pixels = np.full((2, SIDE, SIDE, 3), 60, np.uint8)
    pixels[:, 4:10, 20:28] = 140
    calls: list[tuple[str, int, int]] = []
    bright, dark = compute_heat_maps(
        looks, pixels, np.array([1, 0]), method, progress=lambda *state: calls.append(state)
    )
    row, column = np.unravel_index(bright.argmax(), bright.shape)
    assert 3 <= row < 11
    assert 19 <= column < 29
    assert heat_fraction(bright[None])[0] > 0.8
    assert not dark.any() if method == "occlusion" else dark[4:10, 20:28].max() < 0.5, "hiding it makes dark likelier"
    assert calls[-1][1] == calls[-1][2]
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_occlusion_still_sees_where_the_probability_is_one() -> None:
    looks = Patch(unit=1)
    pixels = np.full((1, SIDE, SIDE, 3), 180, np.uint8)
    pixels[:, 4:10, 20:28] = 255
    assert (looks.probabilities(pixels)[0, 1], looks.probabilities(np.full_like(pixels, 180))[0, 1]) == (1, 1)
    assert compute_heat_maps(looks, pixels, np.array([1]), "occlusion")[0, 4:10, 20:28].max() == 1


class Halves(FakePredictor):
    """Several labels per image: the logit of each is the brightness of one half of the image above 60."""

    def __init__(self) -> None:
        super().__init__(("left", "right"), PreprocessingSpec(SIDE, SIDE))

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        halves = pixels[:, :, : SIDE // 2], pixels[:, :, SIDE // 2 :]
        logits = np.stack([half.mean((1, 2, 3)) - 60 for half in halves], 1).astype(np.float32)
        return Outputs(np.asarray(1 / (1 + np.exp(-logits)), np.float32), logits, logits)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.outputs(pixels).probabilities


def test_occlusion_of_several_labels_sees_the_evidence_for_one_alone() -> None:
    """The regions of another label would count too, if the probabilities summed to 1."""
    pixels = np.full((SIDE, SIDE, 3), 60, np.uint8)
    pixels[4:12, 4:12], pixels[20:28, 20:28] = 200, 20  # evidence for one, and against the other
    model = Classifier(Halves())
    model.task_name = "multi_label"
    (explanation,) = model.explain(pixels, method="occlusion", label="left")
    assert explanation.heat is not None
    assert explanation.heat[:, : SIDE // 2].max() == 1
    assert not explanation.heat[:, 22:].any()


def test_the_same_seed_gives_the_same_masks() -> None:
    first, again, other = (next(random_masks(20, 33, seed)) for seed in (0, 0, 1))
    assert first.shape == (20, 33)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    mean = np.mean([mask.mean() for mask, _ in zip(random_masks(20, 33, 0), range(100), strict=False)])
    assert mean == pytest.approx(0.5, abs=0.05)


def test_the_check_tells_a_right_map_from_a_wrong_one() -> None:
    looks = Patch()
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    image[4:10, 20:28] = 140
    right, wrong = np.zeros((2, SIDE, SIDE), np.float32)
    right[4:10, 20:28] = 1
    wrong[20:26, 4:12] = 1
    before = float(looks.probabilities(image[None])[0, 1])
    check, missed = (check_faithfulness(looks, image, heat, 1, before, 0) for heat in (right, wrong))
    assert check is not None
    assert missed is not None
    assert check.masked_fraction == missed.masked_fraction == 48 / SIDE**2, "pixels without heat are not hidden"
    assert check.drop > 0.9
    assert missed.drop == pytest.approx(0, abs=1e-6)
    assert check.percentile > 0.9
    assert missed.percentile == 0
    assert check_faithfulness(looks, image, np.zeros_like(right), 1, before, 0) is None


def test_methods_by_name() -> None:
    exported = Patch()
    assert resolve_method(None, exported) == "occlusion"
    assert resolve_method("rise", exported) == "rise"
    with pytest.raises(UsageError, match=r"Use the run that it came from, or --method occlusion or rise\."):
        resolve_method("gradcam++", exported)
    with pytest.raises(UsageError, match="Did you mean 'occlusion'"):
        resolve_method("oclusion", exported)


def test_no_images_no_maps() -> None:
    assert compute_heat_maps(Patch(), np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), "rise").shape == (
        0,
        4,
        4,
    )
