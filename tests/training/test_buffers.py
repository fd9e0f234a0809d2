"""No two variables share a buffer, since each compiled step on JAX donates the buffers of all variables.

On the other backends, a variable owns its memory, and the same must hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from networks import make_plan, random_images
from sightline import backend
from sightline.callbacks import Callback
from sightline.compress import shrink_head
from sightline.config import AugmentConfig, OptimizerConfig, RunConfig, TrainConfig
from sightline.data.types import Subset
from sightline.distributed.devices import Distribution
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models import initializers
from sightline.models.build import Network, build_model
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import network_setup
from sightline.training import checkpoints
from sightline.training.ema import apply_ema, swap_in_ema
from sightline.training.loop import fit
from sightline.training.optimizers import build_optimizer
from sightline.training.state import TrainingState, pack_state, unpack_state

pytestmark = pytest.mark.backends

SMALL = make_plan("cifar10-simple", classes=3, hidden_units=(8,))
PIXELS, SOFT_LABELS = random_images(4, 8), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]


def get_address(value: Any) -> int:
    """Return the memory address of a variable or an array."""
    if isinstance(value, np.ndarray):
        return int(value.ctypes.data)
    if backend.name() == "jax":
        return int(value.value.unsafe_buffer_pointer())
    if backend.name() == "torch":
        return int(value.value.data_ptr())
    return id(value.value.handle)  # TensorFlow copies on write


def assert_no_shared_buffers(*holders: Iterable[Any]) -> None:
    """Assert that no two variables or arrays share an address."""
    variables = [variable for holder in holders for variable in holder if np.prod(variable.shape)]
    distinct = {id(one): one for one in variables}
    addresses = [get_address(one) for one in distinct.values()]
    assert len(set(addresses)) == len(addresses), f"{len(addresses) - len(set(addresses))} buffers are shared"


def build_training_model() -> tuple[Network, Any]:
    network = build_model(SMALL)
    training_model = backend.keras().Model(network.model.input, network.logits)
    training_model.compile(optimizer=build_optimizer(OptimizerConfig("adam", 0.01), 0.01, ema_decay=0.9), loss="mse")
    training_model.optimizer.build(training_model.trainable_variables)
    return network, training_model


def list_variables(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def test_averages_are_swapped_in_and_out_by_copies() -> None:
    network, training_model = build_training_model()
    for _ in range(2):  # the step after a swap is the one that failed
        training_model.train_on_batch(PIXELS, SOFT_LABELS)
        with swap_in_ema(training_model):
            assert_no_shared_buffers(list_variables(training_model), network.model.variables)
            network.model.predict_on_batch(PIXELS)
        assert_no_shared_buffers(list_variables(training_model), network.model.variables)
    apply_ema(training_model)
    assert_no_shared_buffers(list_variables(training_model), network.model.variables)
    training_model.train_on_batch(PIXELS, SOFT_LABELS)


def test_restoring_copies_arrays() -> None:
    """The same arrays are restored into two models and kept in the state as the best weights."""
    network, training_model = build_training_model()
    training_model.train_on_batch(PIXELS, SOFT_LABELS)
    saved = pack_state(TrainingState(), network, training_model.optimizer)
    other, other_model = build_training_model()
    arrays: checkpoints.Arrays = {}
    for target in (network, other):
        restored, arrays = unpack_state(saved, target)
        restored.best_arrays = checkpoints.copy_variables(target.model)
        checkpoints.restore_variables(target.model, restored.best_arrays)
        assert_no_shared_buffers(target.model.variables, restored.best_arrays.values())
    for target in (training_model, other_model):
        checkpoints.restore_variables(target.optimizer, arrays)
    assert_no_shared_buffers(list_variables(training_model), list_variables(other_model), saved.arrays.values())
    for target in (training_model, other_model):
        target.train_on_batch(PIXELS, SOFT_LABELS)
    assert int(arrays["0000:iteration"]) == 1, "a step wrote into the saved arrays"


def test_weights_read_from_files_are_copies(tmp_path: Path) -> None:
    network, training_model = build_training_model()
    training_model.train_on_batch(PIXELS, SOFT_LABELS)
    network.model.save(tmp_path / "m.keras")
    loaded = [KerasPredictor.load(tmp_path / "m.keras", "abc", PreprocessingSpec(8, 8)).model for _ in range(2)]
    started = build_model(replace(SMALL, weights=_save_backbone(network, tmp_path)))
    assert_no_shared_buffers(
        list_variables(training_model), *(model.variables for model in loaded), started.model.variables
    )


def _save_backbone(network: Network, folder: Path) -> Path:
    layers = [network.model.get_layer(name) for name in network.backbone]
    path = folder / "backbone.weights.h5"
    backend.keras().Model(layers[0].input, layers[-1].output).save_weights(path)
    return path


def test_copies_of_networks_share_nothing() -> None:
    network = build_model(SMALL)
    copied = network_setup.DistributedNetwork(
        network, replace(SMALL, precision="mixed_bfloat16"), Distribution()
    ).to_single_device_model()
    smaller = shrink_head.rebuild_with_head(network.model, replace(SMALL.config, pooling="average", hidden_units=()), 0)
    assert_no_shared_buffers(network.model.variables, copied.variables, smaller.model.variables)


def test_new_networks_share_nothing() -> None:
    whitened, he_network = (
        build_model(make_plan("fast-small", classes=3)),
        build_model(replace(SMALL, config=replace(SMALL.config, initializer="he"))),
    )
    side = whitened.model.input.shape[1]
    subset = Subset(random_images(20, side), np.arange(20), np.zeros(20, np.int32), ("",) * 20)
    initializers.init_whitening(whitened.model, "whiten", len(subset), subset.take)
    assert_no_shared_buffers(whitened.model.variables, he_network.model.variables)


def test_a_network_with_an_average_learns_on_after_the_first_epoch() -> None:
    """`fast-small` failed on JAX with "Array has been deleted" at the first step of its second epoch."""
    network = build_model(make_plan("fast-small", classes=3, alpha=0.25))
    side = network.model.input.shape[1]
    labels = (np.arange(24) % 3).astype(np.int32)
    subset = Subset(random_images(24, side), np.arange(24), labels, tuple(map(str, range(24))))
    train = TrainConfig(epochs=3, batch_size=8, optimizer=OptimizerConfig("muon", 0.001), ema_decay=0.5)
    fitted = fit(
        network, subset, subset.head(9), RunConfig(train=train, augment=AugmentConfig(horizontal_flip=True)), Callback()
    )
    assert len(fitted.history) == 3
    assert_no_shared_buffers(network.model.variables)
