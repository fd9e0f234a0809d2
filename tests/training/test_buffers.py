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

from networks import pictures, plan
from sightline import backend
from sightline.compression import rightsize
from sightline.config import AugmentConfig, OptimizerConfig, RunConfig, TrainConfig
from sightline.models import whitening
from sightline.models.build import Network, build
from sightline.prediction.keras import KerasPredictor
from sightline.preprocess import Preprocess
from sightline.records import Samples
from sightline.training import checkpoint
from sightline.training.average import averaged, settle
from sightline.training.devices import Spread
from sightline.training.fit import fit
from sightline.training.optimizer import optimizer
from sightline.training.state import State, pack, unpack
from sightline.watch import Watcher
from sightline.workflow import networks

pytestmark = pytest.mark.backends

PIXELS, SHARES = pictures(4, 8), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]


def address(value: Any) -> int:
    """Return the memory address of a variable or an array."""
    if isinstance(value, np.ndarray):
        return int(value.ctypes.data)
    if backend.name() == "jax":
        return int(value.value.unsafe_buffer_pointer())
    if backend.name() == "torch":
        return int(value.value.data_ptr())
    return id(value.value.handle)  # TensorFlow copies on write


def assert_apart(*holders: Iterable[Any]) -> None:
    """Assert that no two variables or arrays share an address."""
    every = [one for holder in holders for one in holder if np.prod(one.shape)]
    distinct = {id(one): one for one in every}
    addresses = [address(one) for one in distinct.values()]
    assert len(set(addresses)) == len(addresses), f"{len(addresses) - len(set(addresses))} buffers are shared"


def learner() -> tuple[Network, Any]:
    network = build(plan("fashion-cnn", classes=3))
    found = backend.keras().Model(network.model.input, network.logits)
    found.compile(optimizer=optimizer(OptimizerConfig("adam", 0.01), 0.01, average=0.9), loss="mse")
    found.optimizer.build(found.trainable_variables)
    return network, found


def state(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def test_averages_are_swapped_in_and_out_by_copies() -> None:
    network, trained = learner()
    for _ in range(2):  # the step after a swap is the one that failed
        trained.train_on_batch(PIXELS, SHARES)
        with averaged(trained):
            assert_apart(state(trained), network.model.variables)
            network.model.predict_on_batch(PIXELS)
        assert_apart(state(trained), network.model.variables)
    settle(trained)
    assert_apart(state(trained), network.model.variables)
    trained.train_on_batch(PIXELS, SHARES)


def test_restoring_copies_arrays() -> None:
    """The same arrays are restored into two models and kept in the state as the best weights."""
    network, trained = learner()
    trained.train_on_batch(PIXELS, SHARES)
    saved = pack(State(), network, trained.optimizer)
    other, further = learner()
    arrays: checkpoint.Arrays = {}
    for one in (network, other):
        found, arrays = unpack(saved, one)
        found.best_arrays = checkpoint.variables(one.model)
        checkpoint.restore(one.model, found.best_arrays)
        assert_apart(one.model.variables, found.best_arrays.values())
    for one in (trained, further):
        checkpoint.restore(one.optimizer, arrays)
    assert_apart(state(trained), state(further), saved.arrays.values())
    for one in (trained, further):
        one.train_on_batch(PIXELS, SHARES)
    assert int(arrays["0000:iteration"]) == 1, "a step wrote into the saved arrays"


def test_weights_read_from_files_are_copies(tmp_path: Path) -> None:
    network, trained = learner()
    trained.train_on_batch(PIXELS, SHARES)
    network.model.save(tmp_path / "m.keras")
    loaded = [KerasPredictor.load(tmp_path / "m.keras", "abc", Preprocess(8, 8)).model for _ in range(2)]
    started = build(replace(plan("fashion-cnn", classes=3), weights=_backbone(network, tmp_path)))
    assert_apart(state(trained), *(model.variables for model in loaded), started.model.variables)


def _backbone(network: Network, folder: Path) -> Path:
    layers = [network.model.get_layer(name) for name in network.backbone]
    path = folder / "backbone.weights.h5"
    backend.keras().Model(layers[0].input, layers[-1].output).save_weights(path)
    return path


def test_copies_of_networks_share_nothing() -> None:
    made = plan("fashion-cnn", classes=3)
    network = build(made)
    alone = networks.alone(network, replace(made, precision="mixed_bfloat16"), Spread())
    smaller = rightsize.rebuilt(network.model, replace(made.config, pooling="average", hidden=()), 0)
    assert_apart(network.model.variables, alone.variables, smaller.model.variables)


def test_networks_begin_apart() -> None:
    whitened, drawn = build(plan("fast-small", classes=3)), build(plan("fashion-cnn", classes=3, init="he"))
    side = whitened.model.input.shape[1]
    samples = Samples(pictures(20, side), np.arange(20), np.zeros(20, np.int32), ("",) * 20)
    whitening.begin(whitened.model, "whiten", samples)
    assert_apart(whitened.model.variables, drawn.model.variables)


def test_a_network_with_an_average_learns_on_after_the_first_epoch() -> None:
    """`fast-small` failed on JAX with "Array has been deleted" at the first step of its second epoch."""
    network = build(plan("fast-small", classes=3))
    side = network.model.input.shape[1]
    labels = (np.arange(24) % 3).astype(np.int32)
    samples = Samples(pictures(24, side), np.arange(24), labels, tuple(map(str, range(24))))
    train = TrainConfig(epochs=4, batch_size=8, optimizer=OptimizerConfig("muon", 0.001), average=0.5)
    fitted = fit(
        network, samples, samples.first(9), RunConfig(train=train, augment=AugmentConfig(flip=True)), Watcher()
    )
    assert len(fitted.history) == 4
    assert_apart(network.model.variables)
