"""Several labels per image on CamVid's street scenes: `train --folds 5`, and a linear probe on the same network.

`python benchmarks/scenes.py` prints the rows of ``results/tasks.md``: out-of-fold mean average precision, micro and
macro F1, of random folds and of folds of whole sequences. ``--only probe`` takes a minute, and ``--only ours`` eight; the
images are in the folder ``data/camvid`` of ``SIGHTLINE_SHARED``. The probe is scikit-learn's logistic regression of each
label (C = 1, standardized features, a threshold of one half) on the features of EfficientNet-Lite0 for center crops.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray

import sightline as sl

DATA = measure.SHARED / "data" / "camvid" / "labels.csv"
METRICS = ("mean_average_precision", "micro_f1", "macro_f1")
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "random folds": {"model.task": "multi_label"},
    "whole sequences": {"model.task": "multi_label", "split.group": "column:sequence"},
}


def train_folds(settings: Mapping[str, Any], seed: int, effort: str) -> dict[str, str]:
    """Return the out-of-fold metrics of a run of the recipe that `train` chooses, with their intervals."""
    with tempfile.TemporaryDirectory() as folder:
        run = sl.train(DATA, folds=5, seed=seed, effort=effort, set=settings, out=Path(folder, "run"))
        found = run.classifier.evaluate(split="validation").metrics
    texts = {}
    for name in METRICS:
        metric = found[name]
        ends = f" ({metric.interval.low:.3f} to {metric.interval.high:.3f})" if metric.interval else ""
        texts[name] = f"{metric.value:.4f}{ends}"
    return texts


def read_labels() -> tuple[list[Path], NDArray[np.int64], list[str]]:
    """Return the images, their labels [N, K] as 0 and 1, and their sequences."""
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = [set(filter(None, row["labels"].split(";"))) for row in rows]
    classes = sorted(set().union(*sets))
    labels = np.array([[name in of for name in classes] for of in sets], np.int64)
    return [DATA.parent / row["path"] for row in rows], labels, [row["sequence"] for row in rows]


def fit_probe(seed: int) -> dict[str, dict[str, str]]:
    """Return the out-of-fold metrics of the linear probe for each kind of folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, f1_score
    from sklearn.model_selection import GroupKFold, KFold
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    paths, labels, sequences = read_labels()
    features = sl.load("imagenet").embed(paths).vectors
    splits = {
        "random folds": KFold(5, shuffle=True, random_state=seed).split(features),
        "whole sequences": GroupKFold(len(set(sequences))).split(features, groups=sequences),
    }
    results = {}
    for name, folds in splits.items():
        probabilities = np.zeros(labels.shape)
        for train, test in folds:
            probe = OneVsRestClassifier(make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)))
            probabilities[test] = probe.fit(features[train], labels[train]).predict_proba(features[test])
        predicted = probabilities >= 0.5
        values = (
            average_precision_score(labels, probabilities, average="macro"),
            f1_score(labels, predicted, average="micro"),
            f1_score(labels, predicted, average="macro"),
        )
        results[name] = {metric: f"{value:.4f}" for metric, value in zip(METRICS, values, strict=True)}
    return results


def main() -> None:
    """Print a row for each kind of folds and method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=["probe", "ours"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", default="balanced")
    options = parser.parse_args()
    print(f"commit {measure.read_commit()}, seed {options.seed}, {measure.describe_machine()}\n")
    print("| folds | model | mean average precision | micro F1 | macro F1 |\n|---|---|---|---|---|")
    if options.only != "ours":
        for name, values in fit_probe(options.seed).items():
            print(f"| {name} | linear probe | {' | '.join(values.values())} |")
    if options.only != "probe":
        for name, settings in SETTINGS.items():
            values = train_folds(settings, options.seed, options.effort)
            print(f"| {name} | `--effort {options.effort}` | {' | '.join(values.values())} |", flush=True)


if __name__ == "__main__":
    main()
