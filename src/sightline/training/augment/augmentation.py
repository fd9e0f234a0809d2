"""The base class of augmentations, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.plugins import Registry
from sightline.seeding import make_generator


class Augmentation(ABC):
    """One kind of augmentation: parameters are sampled on the host and applied inside the compiled training step.

    `sample` draws the parameters of all images of an epoch at once, one row per image, from a random stream named after
    the augmentation, so they do not depend on the order of the batches, on threads or on other augmentations. `apply`
    is called once, when the step is compiled, with symbolic tensors.
    """

    name: str
    position: ClassVar[int] = 500
    """Augmentations are applied from the lowest position to the highest: geometry 200, color 300, erasing 800."""
    values: ClassVar[Literal["uint8", "float32"]] = "float32"
    """The type of the pixels that `apply` receives and returns, in [0, 255]."""

    def is_enabled(self, config: AugmentConfig) -> bool:
        """Return whether `config` enables this augmentation."""
        return self.get_strength(config) > 0

    def get_strength(self, config: AugmentConfig) -> float:
        """Return the strength in ``augment.custom``; 0 if this augmentation is not listed there."""
        return next((custom.strength for custom in config.custom if custom.name == self.name), 0.0)

    def count_columns(self, config: AugmentConfig) -> int:
        """Return the number of parameters for each image; by default one."""
        del config
        return 1

    def make_uniforms(self, num_images: int, columns: int, seed: int, epoch: int) -> NDArray[np.float64]:
        """Return uniform numbers in [0, 1) from the stream of this augmentation: float64 [num_images, columns]."""
        return make_generator(seed, "augment", self.name, epoch).random((num_images, columns))

    @abstractmethod
    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        """Return parameters for `num_images` images of `size` (height, width): float64 [num_images, columns]."""

    @abstractmethod
    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        """Return `pixels` [N, H, W, C] changed by `params` float32 [N, columns], using operations of `keras.ops`."""


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")
A = TypeVar("A", bound=type[Augmentation])


def register_augmentation(name: str) -> Callable[[A], A]:
    """Register the decorated subclass of `Augmentation`, which ``augment.custom`` then enables.

    See [Extending](extending.md).

    Args:
        name: The name of the augmentation.

    Returns:
        A decorator, which returns the class unchanged.

    Raises:
        UsageError: If another augmentation has this name.
    """

    def make_augmentation(augmentation: A) -> Augmentation:
        AUGMENTATIONS.check_subclass(augmentation, Augmentation)
        augmentation.name = name
        return augmentation()

    return AUGMENTATIONS.make_decorator(name, make_augmentation)


def per_image(params: Any) -> Any:
    """Reshape `params` [N, 1] to [N, 1, 1, 1], to broadcast over pixels [N, H, W, C]."""
    return backend.keras().ops.reshape(params[:, 0], (-1, 1, 1, 1))
