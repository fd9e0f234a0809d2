"""The classification head, from feature maps to probabilities, and the names of its outputs and layers.

The names are part of every saved model, so all code that looks up an output or a layer uses the names defined here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.models.entry import Activation, HeadSpec

PROBABILITIES, LOGITS, FEATURES = OUTPUTS = ("probabilities", "logits", "features")
"""The outputs of every model; the first and the last have the same names as their layers."""

POOL_LAYER, FLATTEN_LAYER = "pool", "flatten"  # a head starts with one of these
DENSE_LAYER = "predictions"
ROW_LAYER, TWO_CLASSES_LAYER, PAIR_LAYER = "as_row", "two_classes", "pair"  # only in a sigmoid head
ORDINAL_LAYERS = (
    "softplus", "scores_and_softplus", "as_column", "class_columns", "coefficients", "sum_of_scores",
)  # fmt: skip  # only in an ordinal head
TEMPERATURE_LAYER = "temperature"

FLOAT32_LAYERS = (
    FEATURES, DENSE_LAYER, ROW_LAYER, TWO_CLASSES_LAYER, PAIR_LAYER, *ORDINAL_LAYERS, TEMPERATURE_LAYER, PROBABILITIES,
)  # fmt: skip
"""The layers that compute in float32, whatever the precision of the model."""


def apply_head(x: Any, head: HeadSpec, classes: int, *, is_sigmoid: bool, activation: Activation) -> dict[str, Any]:
    """Return the symbolic outputs, by the names in `OUTPUTS`, for the feature maps `x`; see `models.build.Network`.

    With `is_sigmoid`, two classes share one unit. `activation` turns the logits into probabilities, which sum to 1 over
    the classes ("softmax", or "ordinal" with a score for each boundary between classes) or are independent ("sigmoid").
    """
    keras = backend.keras()
    layers = keras.layers
    pooling = {
        "average": layers.GlobalAveragePooling2D,
        "max": layers.GlobalMaxPooling2D,
        "flatten": layers.Flatten,
    }[head.pooling]
    x = pooling(name=FLATTEN_LAYER if head.pooling == "flatten" else POOL_LAYER)(x)
    for number, units in enumerate(head.hidden, 1):
        x = layers.Dense(units, activation="relu", name=f"fc{number}")(x)
        if head.dropout:
            x = layers.Dropout(head.dropout, name=f"fc{number}_drop")(x)
    features = layers.Activation("linear", name=FEATURES, dtype="float32")(x)
    if head.dropout and not head.hidden:
        x = layers.Dropout(head.dropout, name="head_drop")(x)
    is_ordinal = activation == "ordinal"
    units = 1 if is_sigmoid else classes - is_ordinal
    logits = layers.Dense(units, name=DENSE_LAYER, dtype="float32")(x)
    if is_ordinal:
        logits = _link_scores(logits, classes)
    elif units == 1:  # softmax of [0, z] is [1 - sigmoid(z), sigmoid(z)]
        row = layers.Reshape((1, 1), name=ROW_LAYER, dtype="float32")(logits)
        padded = layers.ZeroPadding1D((1, 0), name=TWO_CLASSES_LAYER, dtype="float32")(row)
        logits = layers.Flatten(name=PAIR_LAYER, dtype="float32")(padded)
    logits = layers.Rescaling(1.0, name=TEMPERATURE_LAYER, dtype="float32")(logits)
    if activation == "sigmoid":
        probabilities = layers.Activation("sigmoid", name=PROBABILITIES, dtype="float32")(logits)
    else:
        probabilities = layers.Softmax(name=PROBABILITIES, dtype="float32")(logits)
    return {PROBABILITIES: probabilities, LOGITS: logits, FEATURES: features}


def make_ordinal_coefficients(classes: int) -> NDArray[np.float32]:
    """Return float32 [2 (K - 1), K]: the coefficients of K - 1 scores, and of their softplus, in the K logits.

    The sigmoid of score k is the probability of a class above k, given that it is k or above (Shi et al., 2021,
    arXiv:2111.08851): log p of class k is the sum of the log sigmoids of the scores below k, plus the log sigmoid of
    minus score k. The logits are these logarithms plus a number that all classes share: the sum of softplus(z) - z / 2
    over the scores z. It is large if scores are far from 0, so that the energy of the logits detects unusual images.
    """
    boundaries = classes - 1
    not_below, above = (np.tri(boundaries, classes, k, np.float32) for k in (0, -1))  # [boundary, class]
    return np.concatenate([0.5 - not_below, above])


def _link_scores(scores: Any, classes: int) -> Any:
    """Return the logits [N, K] for the boundary scores [N, K - 1], using stock layers without weights."""
    layers, coefficients = backend.keras().layers, make_ordinal_coefficients(classes)
    softplus, both, column, columns, product, total = ORDINAL_LAYERS
    terms = layers.Activation("softplus", name=softplus, dtype="float32")(scores)
    terms = layers.Concatenate(name=both, dtype="float32")([scores, terms])
    terms = layers.Reshape((len(coefficients), 1, 1), name=column, dtype="float32")(terms)
    table = layers.Concatenate(name=columns, dtype="float32")([terms] * classes)
    scale = (coefficients * len(coefficients))[:, None].tolist()  # compensates for the mean that follows
    table = layers.Rescaling(scale, name=product, dtype="float32")(table)
    return layers.GlobalAveragePooling2D(name=total, dtype="float32")(table)


def apply_mask_head(features: Any, scores: Any) -> dict[str, Any]:
    """Return the symbolic outputs, by the names in `OUTPUTS`, for the scores [N, H, W, K] of each pixel.

    Probabilities and logits are float32 [N, H, W, K]. `features` are the last maps of the backbone; the output of this
    name is their means, [N, F], so that images can be compared as with a classifier.
    """
    layers = backend.keras().layers
    pooled = layers.GlobalAveragePooling2D(name=POOL_LAYER)(features)
    outputs = layers.Activation("linear", name=FEATURES, dtype="float32")(pooled)
    logits = layers.Rescaling(1.0, name=TEMPERATURE_LAYER, dtype="float32")(scores)
    probabilities = layers.Softmax(name=PROBABILITIES, dtype="float32")(logits)
    return {PROBABILITIES: probabilities, LOGITS: logits, FEATURES: outputs}
