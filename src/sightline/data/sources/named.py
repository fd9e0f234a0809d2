"""Data sets by name: generated (``beans``), from scikit-learn (``digits``), from Keras, or from plugins."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.data.masks import MaskClasses
from sightline.data.sources.arrays import list_array_items
from sightline.data.sources.listing import MaskFile, SourceItem, SourceListing
from sightline.data.storage import GeneratedStore
from sightline.data.targets import join_classes
from sightline.data.types import Split
from sightline.datasets import coffee_beans
from sightline.errors import DataError, PluginError, require
from sightline.plugins import Registry
from sightline.preprocessing import encode_png

BEANS_COUNT, BEANS_SIZE = 1200, 224
_BEANS_PATTERN = re.compile(r"beans(?::(\d+))?(?:@(\d+))?(?:#(\d+))?")


@dataclass(frozen=True, slots=True)
class KerasDataset:
    """A data set of `keras.datasets`: its classes, its path below ``KERAS_HOME``, and its download URL."""

    classes: tuple[str, ...]
    file: str
    url: str


_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
_CIFAR100 = (
    "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,castle,"
    "caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,elephant,"
    "flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn_mower,leopard,lion,lizard,lobster,man,"
    "maple_tree,motorcycle,mountain,mouse,mushroom,oak_tree,orange,orchid,otter,palm_tree,pear,pickup_truck,pine_tree,"
    "plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,"
    "snail,snake,spider,squirrel,streetcar,sunflower,sweet_pepper,table,tank,telephone,television,tiger,tractor,train,"
    "trout,tulip,turtle,wardrobe,whale,willow_tree,wolf,woman,worm"
)

KERAS_DATASETS = {
    "mnist": KerasDataset(
        tuple("0123456789"),
        "datasets/mnist.npz",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    ),
    "fashion_mnist": KerasDataset(
        tuple(_FASHION.split(",")),
        "datasets/fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    "cifar10": KerasDataset(
        tuple(_CIFAR10.split(",")),
        "datasets/cifar-10-batches-py-target_archive",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar100": KerasDataset(
        tuple(_CIFAR100.split(",")),
        "datasets/cifar-100-python-target_archive",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
}

NAMES = ("beans:COUNT@SIZE", "digits", *KERAS_DATASETS)

Source = Callable[[str], SourceListing]
SOURCES: Registry[Source] = Registry("source", reserved=("beans", "digits", *KERAS_DATASETS))


def register_source(name: str) -> Callable[[Source], Source]:
    """Register the decorated function as a source of images, which users name as ``name`` or ``name:argument``.

    The function takes the argument, an empty string if there is none, and returns a `SourceListing`, without opening
    any image. See [Extending](extending.md).

    Args:
        name: The name of the source.

    Returns:
        A decorator, which returns the function unchanged.

    Raises:
        UsageError: If another source has this name, one of Sightline's own included.
    """
    return SOURCES.make_decorator(name, lambda source: source)


def is_named(text: str) -> bool:
    """Return whether `text` names a data set.

    >>> is_named("beans:400@96"), is_named("beans.zip")
    (True, False)
    """
    known = text == "digits" or text in KERAS_DATASETS or _BEANS_PATTERN.fullmatch(text) is not None
    return known or text.partition(":")[0] in SOURCES


def load_named(text: str) -> SourceListing:
    """Return the listing of the data set named `text`."""
    if text == "digits":
        return _load_digits()
    if text in KERAS_DATASETS:
        return _load_keras(text)
    match = _BEANS_PATTERN.fullmatch(text)
    if match is None:
        name, _, argument = text.partition(":")
        listing = SOURCES[name](argument)
        if not isinstance(listing, SourceListing):
            raise PluginError(
                f"The source {name!r} returned {type(listing).__name__}, but expected a SourceListing: see the "
                "function that was registered with @register_source."
            )
        return listing
    count, size, seed = match.groups()
    return _load_beans(int(count or BEANS_COUNT), int(size or BEANS_SIZE), int(seed or 0))


def _load_beans(count: int, size: int, seed: int) -> SourceListing:
    coffee_beans.check_request(size, count)

    def draw(i: int) -> NDArray[np.uint8]:
        return coffee_beans.draw(i, size, seed)

    def identity(i: int) -> str:  # these values determine the image
        return hashlib.sha256(f"beans {coffee_beans.GENERATOR_VERSION} {seed} {i} {size}".encode()).hexdigest()

    def draw_mask(i: int) -> bytes:
        return encode_png(coffee_beans.draw_mask(i, size, seed))

    store = GeneratedStore("beans", (size, size, 3), draw, identity, draw_mask)
    classes, mask_classes = coffee_beans.CLASSES, MaskClasses(dict(enumerate(coffee_beans.MASK_CLASSES)))
    label = join_classes(coffee_beans.MASK_CLASSES)
    return SourceListing([
        SourceItem(
            store, str(i), path := f"beans[{i}]", classes[i % len(classes)],
            mask=MaskFile(f"mask:{i}", f"{path}.mask", mask_classes, label),
        )
        for i in range(count)
    ])  # fmt: skip


def _load_digits() -> SourceListing:
    bunch = require("sklearn.datasets", "The data set digits").load_digits()  # 1,797 images of 8x8 pixels, values 0..16
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return SourceListing(list_array_items(pixels, bunch.target, "digits"))


def _load_keras(name: str) -> SourceListing:
    backend.keras()
    module: Any = importlib.import_module(f"keras.datasets.{name}")
    load_data: Callable[[], Any] = module.load_data
    spec = KERAS_DATASETS[name]
    try:
        with redirect_stdout(sys.stderr):  # Keras prints progress to stdout, which is reserved for results
            splits: tuple[tuple[Split, Any], ...] = tuple(zip(("train", "test"), load_data(), strict=True))
    except Exception as error:
        home = backend.keras_home()
        raise DataError(
            f"The data set {name} is not on this machine and could not be downloaded ({error}). "
            f"Download {spec.url} on another machine and put it at {home / spec.file}."
        ) from error
    entries = []
    for split, (pixels, labels) in splits:
        entries += list_array_items(np.ascontiguousarray(pixels), labels, f"{name}/{split}", split, spec.classes)
    return SourceListing(entries)
