"""Several labels per image on CamVid's street scenes: `train --folds 5`, and a linear probe on the same network.

`python benchmarks/scenes.py` prints the rows of ``results/tasks.md``: out-of-fold mean average precision, micro and
macro F1, for random folds and folds of whole sequences. ``--only probe`` takes a minute, and ``--only ours`` several;
the images are in the folder ``data/camvid`` of ``SIGHTLINE_SHARED``. The probe is scikit-learn's logistic regression
for each label, with two values of C and a threshold of one half, on the standardized features of EfficientNet-Lite0
from center crops.
"""

from __future__ import annotations

import argparse
import csv
import itertools
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
PENALTIES = (1.0, 0.01)  # C: scikit-learn's default, and one that suits 1,280 features of a few hundred images
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "random folds": {"model.task": "multi_label"},
    "whole sequences": {"model.task": "multi_label", "split.group": "column:sequence"},
}


def train_folds(settings: Mapping[str, Any], seed: int, effort: str) -> list[str]:
    """Return the out-of-fold metrics, with intervals, of a run with the recipe that `train` chooses."""
    with tempfile.TemporaryDirectory() as folder:
        run = sl.train(DATA, folds=5, seed=seed, effort=effort, set=settings, out=Path(folder, "run"))
        measured = run.classifier.evaluate(split="validation").metrics
    texts = []
    for metric in map(measured.__getitem__, METRICS):
        ends = f" ({metric.interval.low:.3f} to {metric.interval.high:.3f})" if metric.interval else ""
        texts.append(f"{metric.value:.4f}{ends}")
    return texts


def read_labels() -> tuple[list[Path], NDArray[np.int64], list[str]]:
    """Return the images, their labels [N, K] as 0 and 1, and their sequences."""
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = [set(filter(None, row["labels"].split(";"))) for row in rows]
    classes = sorted(set().union(*sets))
    labels = np.array([[name in of for name in classes] for of in sets], np.int64)
    return [DATA.parent / row["path"] for row in rows], labels, [row["sequence"] for row in rows]


def fit_probe(seed: int) -> dict[tuple[str, float], list[str]]:
    """Return the out-of-fold metrics of the linear probe for each kind of folds and each penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, f1_score
    from sklearn.model_selection import GroupKFold, KFold
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    paths, labels, sequences = read_labels()
    features = sl.load("imagenet").embed(paths).vectors
    splits = {
        "random folds": list(KFold(5, shuffle=True, random_state=seed).split(features)),
        "whole sequences": list(GroupKFold(len(set(sequences))).split(features, groups=sequences)),
    }
    results = {}
    for (name, folds), penalty in itertools.product(splits.items(), PENALTIES):
        probabilities = np.zeros(labels.shape)
        for train, test in folds:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
            probabilities[test] = (
                OneVsRestClassifier(model).fit(features[train], labels[train]).predict_proba(features[test])
            )
        predicted = probabilities >= 0.5
        values = (
            average_precision_score(labels, probabilities, average="macro"),
            f1_score(labels, predicted, average="micro"),
            f1_score(labels, predicted, average="macro"),
        )
        results[name, penalty] = [f"{value:.4f}" for value in values]
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
        for (name, penalty), values in fit_probe(options.seed).items():
            print(f"| {name} | linear probe, C = {penalty:g} | {' | '.join(values)} |")
    if options.only != "probe":
        for name, settings in SETTINGS.items():
            row = " | ".join(train_folds(settings, options.seed, options.effort))
            print(f"| {name} | `--effort {options.effort}` | {row} |", flush=True)


if __name__ == "__main__":
    main()
