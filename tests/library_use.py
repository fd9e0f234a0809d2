"""A program that uses Sightline as a library, and prints any changes to its own process; see `MODES`.

python library_use.py MODE
"""

from __future__ import annotations

import gc
import json
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageFile


def take_snapshot() -> dict[str, Any]:
    """Return process-wide state that a program may have set, and whose change it would notice."""
    values: dict[str, Any] = {f"environ {name}": value for name, value in os.environ.items()}
    values |= {f"filter {each}": True for each in warnings.filters}
    values |= {f"signal {number}": repr(signal.getsignal(number)) for number in signal.valid_signals()}
    for name in ("", "PIL", "absl", "keras", "matplotlib", "tensorflow"):
        logger = logging.getLogger(name)
        values[f"logger {name}"] = [logger.level, len(logger.filters), logger.disabled, len(logger.handlers)]
    values |= {
        "warnings.showwarning": repr(warnings.showwarning),
        "logging.disable": logging.root.manager.disable,
        "np.geterr": np.geterr(),
        "np.printoptions": repr(np.get_printoptions()),
        "np.random": repr(np.random.get_state(legacy=False)),  # noqa: NPY002  # the global one
        "random": repr(random.getstate()),
        "hooks": [repr(hook) for hook in (sys.excepthook, threading.excepthook, sys.displayhook)],
        "finders": [repr(finder) for finder in sys.meta_path],
        "path": list(sys.path),
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()],
        "pillow": [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES],
        "place": [str(os.getcwd()), socket.getdefaulttimeout(), locale.setlocale(locale.LC_ALL)],  # noqa: PTH109
        "streams": [id(sys.stdout), id(sys.stderr), os.fstat(1).st_ino, os.fstat(2).st_ino],
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }
    return values | {name: read() for name, read in READERS.items() if name in sys.modules}


def _read_keras() -> list[Any]:
    import keras

    config = keras.config
    return [
        *(config.dtype_policy().name, config.floatx(), config.epsilon(), config.image_data_format()),
        *(repr(keras.distribution.distribution()), keras.backend.backend()),
    ]


def _read_tensorflow() -> list[Any]:
    import tensorflow as tf
    from tensorflow.python.eager import context

    return [
        *(context.global_seed(), tf.config.experimental.tensor_float_32_execution_enabled()),
        *(tf.config.functions_run_eagerly(), tf.config.optimizer.get_jit()),
    ]


def _read_torch() -> list[Any]:
    import torch

    return [
        *(torch.initial_seed(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()),
        *(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
    ]


def _read_matplotlib() -> str:
    import matplotlib as mpl

    return repr(sorted(dict.items(mpl.rcParams), key=str))


READERS = {"keras": _read_keras, "tensorflow": _read_tensorflow, "torch": _read_torch, "matplotlib": _read_matplotlib}


def find_changes(before: dict[str, Any]) -> dict[str, tuple[str, str]]:
    after = take_snapshot()
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return {name: (str(before.get(name))[:200], str(after.get(name))[:200]) for name in sorted(changed)}


def import_frameworks() -> None:
    import keras
    import sklearn.linear_model  # noqa: F401
    import tensorboard.summary.writer.event_file_writer  # noqa: F401  # imports boto3 if installed

    keras.ops.ones(1)  # starts the backend


def use_sightline() -> None:
    """Train, load, predict and evaluate."""
    import sightline

    settings = ["model.name=cifar10-simple", "model.dropout=0.1", "train.epochs=2"]
    sightline.train("beans:60@16", recipe="quick", out="run", set=settings)
    model = sightline.load("run")
    assert model.predict("image.png")[0].label
    model.evaluate()


def change_settings() -> None:
    """Change process-wide settings to values other than the defaults."""
    import keras

    keras.utils.set_random_seed(5)
    keras.config.set_dtype_policy("mixed_bfloat16")
    logging.getLogger("tensorflow").setLevel(logging.INFO)
    warnings.simplefilter("error", ResourceWarning)
    np.seterr(divide="raise")


def use_wrappers() -> int:
    """Use Keras' wrappers for scikit-learn and its matplotlib plots; return the number of predicted values."""
    import keras

    images = np.zeros((2, 8, 8, 3), np.uint8)
    keras.visualization.plot_image_gallery(images, rows=1, cols=2, path="gallery.png")

    def build(X: Any, y: Any) -> Any:  # noqa: N803  # scikit-learn's names
        model = keras.Sequential([keras.Input((X.shape[1],)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    estimator = keras.wrappers.SKLearnRegressor(build, fit_kwargs={"verbose": 0})
    return len(estimator.fit(np.ones((4, 2)), np.ones(4)).predict(np.ones((3, 2))))


def main(mode: str) -> Any:
    Image.init()
    if mode == "configured":
        import_frameworks()
        change_settings()
    before = take_snapshot()
    if mode == "frameworks":
        import_frameworks()
    else:
        use_sightline()
    return {"predicted": use_wrappers()} if mode == "wrappers" else find_changes(before)


MODES = {
    "new": "changes by Sightline in a new process",
    "frameworks": "changes by importing frameworks in a new process",
    "configured": "changes by Sightline where frameworks were imported and configured first",
    "wrappers": "a use of Keras' wrappers and visualization after Sightline",
}

if __name__ == "__main__":
    assert sys.argv[1] in MODES
    sys.stdout.write(f"\n{json.dumps(main(sys.argv[1]))}\n")
