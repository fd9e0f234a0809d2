"""Which images to label first: uncertain ones that differ from each other.

BADGE (Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020): each image is
represented by the gradient of the last layer, as if its predicted class were its label. That gradient is long for an
uncertain image and points in the direction of its features. k-means++ then draws images whose gradients are far from
each other, and here also from 0, so that no certain image is drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.seeding import make_generator

MAX_CANDIDATES = 10_000


def choose_images(
    features: NDArray[np.float32], probabilities: NDArray[np.float32], count: int, *, several: bool = False
) -> list[int]:
    """Return the positions of up to `count` images to label, the most useful one first.

    `features` are float32 [N, F], `probabilities` float32 [N, K]; `several`: an image may have several labels. The
    gradients [N, K, F] are never computed: the product of two is that of their features times that of their errors.
    """
    predicted = probabilities >= 0.5 if several else np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    errors = probabilities - predicted
    x = features.astype(np.float64)
    lengths = (errors**2).sum(1) * (x**2).sum(1)
    rng = make_generator(0, "label first")
    chosen: list[int] = []
    distances = lengths.copy()
    while len(chosen) < min(count, len(x)):
        total = distances.sum()
        if not total > 0:  # the others are certain, or like the chosen ones
            rest = [i for i in np.argsort(-lengths, kind="stable").tolist() if i not in set(chosen)]
            return [*chosen, *rest[: count - len(chosen)]]
        position = int(rng.choice(len(x), p=distances / total)) if chosen else int(lengths.argmax())
        chosen.append(position)
        products = (errors @ errors[position]) * (x @ x[position])
        squares = np.maximum(lengths + lengths[position] - 2 * products, 0)
        distances = np.minimum(distances, squares)
        distances[chosen] = 0
    return chosen
