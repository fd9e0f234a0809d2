"""``train.precision = "auto"``: use bfloat16 where it is faster, decided by a short benchmark that is cached.

On a CPU with bfloat16 instructions it doubles the speed of VGG and of small models and does little for MobileNetV2; on
other CPUs it slows everything down. Only a measurement can tell.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline import backend, files, jsonio
from sightline.config import RunConfig
from sightline.data import cache
from sightline.errors import OutputError
from sightline.models.build import Plan, build
from sightline.models.kernels import stays_in_float32
from sightline.training.optimizer import label_shares, loss, optimizer

Precision = Literal["float32", "mixed_bfloat16"]
MARGIN = 1.1  # required speedup of bfloat16
STEPS = 200  # shorter runs are not worth a benchmark of some seconds
ROUNDS = 4
KERNELS = 3  # increment with each change of `models.kernels`, which invalidates cached measurements
PIXELS = 1 << 20  # maximum per batch: large images are measured in small batches


@dataclass(frozen=True, slots=True)
class Decision:
    """A precision and the reason for choosing it, as text."""

    precision: Precision
    why: str


def decide(plan: Plan, config: RunConfig, pictures: int) -> Decision:
    """Choose the precision for training the model of `plan` on `pictures` images; builds the model to measure it.

    The first measurement is cached, so that the same model on the same machine always gets the same precision.
    """
    if any(stage.thaw >= 0 for stage in config.train.stages):
        return Decision("float32", "layers are frozen, so little is left to train")
    steps = config.train.epochs * -(-pictures // config.train.batch_size)
    if steps < STEPS:
        return Decision("float32", f"{steps} steps are too few to be worth a measurement")
    place = cache.folder() / f"precision-{_key(plan, config)}.json"
    gain = _remembered(place)
    known = gain is not None
    if gain is None:
        gain = _measure(plan, config)
        with suppress(OutputError):  # a read-only cache: measured again next time
            files.write(place, jsonio.dumps({"gain": gain}).encode())
    found: Precision = "mixed_bfloat16" if gain >= MARGIN else "float32"
    return Decision(found, f"bfloat16 is {gain:.2f} times as fast ({'measured before' if known else 'measured'})")


@contextmanager
def lowered(model: Any, precision: str) -> Iterator[None]:
    """Make a float32 `model` compute in bfloat16 within the context, if `precision` is "mixed_bfloat16".

    As in a model built by `models.build.build`, normalization, head and strided depthwise convolutions (see
    `models.kernels.stays_in_float32`) stay in float32. Functions must be compiled within the context.
    """
    if precision != "mixed_bfloat16":
        yield
        return
    ends = {"normalize", "features", "predictions", "as_row", "two_classes", "pair", "temperature", "probabilities"}
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)  # noqa: SLF001  # the only one that enters nested models
        if layer.name not in ends and not stays_in_float32(layer)
    ]
    policies = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = precision
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy


def _remembered(place: Path) -> float | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(jsonio.loads(place.read_text(encoding="utf-8"))["gain"])
    return None


def _key(plan: Plan, config: RunConfig) -> str:
    shape = replace(plan, seed=0, precision="float32", standard=None, weights=None)
    facts = [
        backend.processor(), backend.name(), backend.keras().__version__, backend.threads(), backend.devices(),
        repr(shape), config.train.batch_size, config.train.optimizer.name, KERNELS,
    ]  # fmt: skip
    return hashlib.sha256(jsonio.dumps(facts).encode()).hexdigest()[:16]


def _measure(plan: Plan, config: RunConfig) -> float:
    """Return the speedup of a training step in bfloat16: the best of `ROUNDS` alternating steps each."""
    size = max(1, min(config.train.batch_size, PIXELS // (plan.height * plan.width)))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size, plan.height, plan.width, plan.channels), np.uint8)
    shares = label_shares(np.arange(size, dtype=np.int32) % plan.classes, plan.classes, 0.0)
    learners = [_learner(replace(plan, precision=precision), config) for precision in ("float32", "mixed_bfloat16")]
    best = [float("inf"), float("inf")]
    for turn in range(ROUNDS + 1):
        for which, learner in enumerate(learners):
            started = time.perf_counter()
            learner.train_on_batch(pixels, shares)
            if turn:  # the first step compiles
                best[which] = min(best[which], time.perf_counter() - started)
    return best[0] / best[1]


def _learner(plan: Plan, config: RunConfig) -> Any:
    network = build(plan)
    learner = backend.keras().Model(network.model.input, network.logits)
    learner.compile(optimizer=optimizer(config.train.optimizer, 0.0), loss=loss(config.train))
    return learner
