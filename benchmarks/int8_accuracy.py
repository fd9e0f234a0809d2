"""EfficientNet-Lite0 in int8 vs. float32: size, and accuracy on the test splits of three sets, with a paired test.

Each is trained with ``--effort fast`` on the images and splits of ``compare_peers.py``, and exported as a bundle. The
times of `train` and `export` are not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SETS = ("cats_vs_dogs", "flowers5", "cifar10-40")


def compare_accuracy(run: Path, bundle: Path, int8: Path) -> str:
    """Compare the accuracy of a run's bundle and of its int8 file on the run's test split."""
    import numpy as np

    from sightline.api.loading import load
    from sightline.compress import noninferiority
    from sightline.inference import bundle as bundles
    from sightline.inference import runner

    samples = load(run).labeled_images().load("test").subset
    right = []
    for path in (bundle, int8):
        probabilities = runner.predict_probabilities(bundles.load(path)[1], samples)
        right.append(np.equal(probabilities.argmax(1), samples.labels))
    comparison = noninferiority.compare_models(right[0], right[1], "test")
    return (
        f"test split: int8 {comparison.compressed_accuracy:.4f}, float32 {comparison.original_accuracy:.4f}, "
        f"difference {100 * comparison.difference:+.2f} points "
        f"({100 * comparison.difference_interval.low:+.2f} to {100 * comparison.difference_interval.high:+.2f}) on "
        f"{comparison.count} images, {comparison.describe_test()}"
    )


def run_command(*arguments: object) -> str:
    """Run a Sightline command and return its output; exit if it fails."""
    command = [sys.executable, "-m", "sightline", *map(str, arguments)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        sys.exit(completed.stderr + completed.stdout)
    return completed.stdout


def measure_set(name: str, seed: int, folder: Path) -> str:
    """Train on a set, export int8 as a bundle, and describe both bundles."""
    import compare_peers

    manifest, run, int8 = compare_peers.write_manifest(name, seed, folder), folder / "run", folder / "int8"
    run_command("train", manifest, "--recipe", "transfer", "--effort", "fast", "--seed", seed, "--out", run)
    exported = json.loads(run_command("export", run, "--precision", "int8", "--out", int8, "--format", "json"))
    sizes = (
        f"{title} {sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 1e6:.2f} MB"
        for title, path in (("int8", int8), ("float32", run / "bundle"))
    )
    return (
        f"{name}, seed {seed}: {', '.join(sizes)}; {len(exported['kept_in_float'])} layers in float, top-1 agreement "
        f"{exported['parity']['top1_agreement']:.4f} on validation images; "
        f"{compare_accuracy(run, run / 'bundle', int8)}"
    )


def main() -> None:
    """Print a line for each selected set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.sets:
        with tempfile.TemporaryDirectory() as folder:
            print(measure_set(name, options.seed, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
