"""Train on CIFAR-10 from scratch: the recipes `fast-small` and `airbench` vs. the tutorial's plain Keras script.

Ours is the whole of `sightline train`, from the archives to the report; the script is timed from decoded images to the
end of 20 epochs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import SHARED

SOURCES = [str(SHARED / "data" / "cifar10" / name) for name in ("train-1.zip", "train-2.zip", "test.zip")]


def run_script() -> None:
    """Run the tutorial's script: the deep net, RMSprop, batch size 128, 20 epochs, a fifth of the images held out."""
    import keras

    import training
    from sightline.config import SplitConfig
    from sightline.data.dataset import build_dataset
    from sightline.data.indexing import build_index
    from sightline.preprocessing import PreprocessingSpec

    data = build_dataset(build_index(SOURCES), PreprocessingSpec(32, 32), SplitConfig("stratified", 0.2), 0)
    started = time.perf_counter()
    arrays = {}
    for name in ("train", "validation", "test"):
        samples = data.subset(name)
        arrays[name] = samples.take(slice(None)).astype("float32") / 255, keras.utils.to_categorical(samples.labels, 10)
    model = training.deep(training.Task("cifar10-deep", 32, 3, 0, 128))
    model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
    model.fit(*arrays["train"], batch_size=128, epochs=20, verbose=0, validation_data=arrays["validation"])
    seconds = time.perf_counter() - started
    accuracy = model.evaluate(*arrays["test"], verbose=0)[1]
    print(f"the script: {seconds:.0f} s, test accuracy {accuracy:.4f}")


def run_recipe(recipe: str, *options: str) -> None:
    """Run `sightline train --recipe RECIPE` with an empty cache, and evaluate six views of each test image."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "sightline",
            "train",
            *SOURCES,
            "--recipe",
            recipe,
            "--format",
            "json",
            *options,
        ]
        environment = os.environ | {"SIGHTLINE_CACHE": f"{folder}/cache"}
        started = time.perf_counter()
        completed = subprocess.run(
            [*command, "--out", f"{folder}/run"], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - started
        result = json.loads(completed.stdout)
        evaluate = [sys.executable, "-m", "sightline", "evaluate", f"{folder}/run", "--tta", "flip-shift"]
        views = json.loads(
            subprocess.run(
                [*evaluate, "--format", "json"], env=environment, stdout=subprocess.PIPE, text=True, check=True
            ).stdout
        )
        history = [json.loads(line) for line in Path(folder, "run", "history.jsonl").read_text().splitlines()]
        steps = sum(record["seconds"] for record in history)
        print(
            f"{recipe} {' '.join(options)}: {seconds:.0f} s in all, {steps:.0f} s of steps, "
            f"test accuracy {result['test']['accuracy']:.4f}, with six views {views['accuracy']:.4f} in "
            f"{time.perf_counter() - started - seconds:.0f} s more; validation by epoch "
            + ", ".join(f"{record['val_accuracy']:.3f}" for record in history)
        )


if __name__ == "__main__":
    if "--script" in sys.argv:
        run_script()
    else:
        subprocess.run([sys.executable, __file__, "--script"], check=True)
        run_recipe("fast-small", "--epochs", "3")
        run_recipe("fast-small")
        run_recipe("airbench")
