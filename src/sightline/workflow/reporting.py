"""The report of a run: collect its files and its evaluation, and write report.html."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.finding import Finding
from sightline.data.leakage import Leak
from sightline.errors import ModelError, plural
from sightline.evaluation.judgement import Judgement
from sightline.evaluation.mistakes import Answer
from sightline.explanation.maps import heat_maps
from sightline.prediction.keras import KerasPredictor
from sightline.records import PARTS, Labelled, Progress, no_progress
from sightline.report import judgement as report
from sightline.report import page, sentences, summary
from sightline.report.heat import overlay
from sightline.run import Run
from sightline.workflow.classifier import load
from sightline.workflow.ending import unfinished
from sightline.workflow.judging import judge

MOST = 8  # errors shown, each with a heat map
CLASSES, SLICES, SUSPECTS, LEAKS = 40, 8, 20, 20  # rows of tables
PLOTS = ("curves", "confusion", "risk-coverage", "reliability", "roc-precision-recall")  # 2 and 3 are side by side


def make(path: Path, *, progress: Progress = no_progress) -> Path:
    """Evaluate a complete run on its own images again, write its report and return the path.

    Raises `ModelError` if `path` is not a complete run, `DataError` if its images are missing.
    """
    run = Run.open(path)
    if run.info.get("status") != "complete":
        raise ModelError(f"The run {path} has nothing to report yet: {unfinished(run)}.")
    classifier = load(path)
    images = classifier.labeled_images(progress=progress)
    judged = judge(classifier, images, progress=progress)
    labelled = images.labelled("validation" if judged.part == "validation" else "test")
    trained = load(path, engine="keras").predictor
    assert isinstance(trained, KerasPredictor)
    return write(run, run.result, judged, labelled, trained)


def write(
    run: Run, result: Mapping[str, Any], judged: Judgement | None, labelled: Labelled, trained: KerasPredictor
) -> Path:
    """Write the report of `run`, whose result is `result` (as printed by ``train --json``).

    `judged` is the evaluation on the images `labelled`, None if there are none; `trained` computes the heat maps.
    """
    return run.write_report(page.html(_gathered(run, result, judged, labelled, trained)))


def _gathered(
    run: Run, result: Mapping[str, Any], judged: Judgement | None, labelled: Labelled, trained: KerasPredictor
) -> dict[str, Any]:
    """Return the content of the page as plain values; without an evaluation, it says so."""
    info, config, leaks = run.info, run.config, run.read_leaks()
    values: dict[str, Any] = {
        "title": f"{config.model.name} on {'+'.join(Path(s).name for s in config.data.sources) or 'arrays'}",
        "headline": ["No images were held out for evaluation: set split.validation or split.test above 0."],
        "run": str(run.path),
        "facts": _facts(result, judged),
        "findings": info.get("findings", []),
        "plots": [(name, *page.figure(drawn)) for name in PLOTS if (drawn := run.read_figure(name)) is not None],
        "classes": [], "hidden": 0, "slices": [], "mistakes": [], "heated": "", "thresholds": "",
        "classes_file": "", "untested": "", "validation": None, "detection": None, "points": [], "part": "",
        "suspects": run.read_suspects()[:SUSPECTS],
        "leaks": [_leak(leak) for leak in leaks[:LEAKS]],
        "hidden_leaks": max(len(leaks) - LEAKS, 0),
        "commands": _commands(run, info),
        "config": run.config_text,
        "environment": [(k, str(v)) for k, v in info.items() if k in {"backend", "devices", "threads", "platform"}]
        + sorted((k, str(v)) for k, v in info.get("versions", {}).items()),
    }  # fmt: skip
    if judged is not None:
        found = summary.evaluation(judged.evaluation) | report.judgement(judged)
        worst = page.rows(found["per_class"])
        values |= {
            "headline": page.headline(found, judged.part),
            "classes": worst[:CLASSES],
            "hidden": max(len(worst) - CLASSES, 0),
            "classes_file": f"eval/{judged.part}/metrics.json",
            "untested": sentences.untested(
                found["untested_classes"], len(found["classes"]), sentences.split_name(judged.part)
            ),
            "validation": _beside(found),
            "detection": found["binary"],
            "points": page.operating_points(found),
            "part": judged.part,
            "slices": [s for s in found["slices"] if s["worse"]][:SLICES],
            "thresholds": _thresholds(judged),
        }
        values |= _mistakes(judged.mistakes.wrong[:MOST], judged, labelled, trained)
    return values


def _leak(leak: Leak) -> dict[str, Any]:
    """Return the kind of a group and its paths by split."""
    paths = {part: [row.path for row in leak.images if row.split == part] for part in PARTS}
    kind = "identical" if leak.kind == "identical" else "near duplicates"
    return {"kind": kind, "splits": [(part, names) for part, names in paths.items() if names]}


def findings(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings in the form of ``run.json``: kind, severity, count, advice."""
    keep = ("kind", "severity", "count", "advice")
    return [{key: getattr(f, key) for key in keep} for f in found]


def _facts(result: Mapping[str, Any], judged: Judgement | None) -> list[tuple[str, str]]:
    best = result.get("best_epoch")
    facts = [
        ("network", f"{result.get('model')}, {result.get('parameters', 0):,} parameters"),
        ("recipe", str(result.get("recipe"))),
        (
            "trained",
            f"{plural(result.get('epochs') or 0, 'epoch')} in {result.get('seconds', 0):.0f} s, best: {best}",
        ),
        ("training images", f"{(result.get('train') or {}).get('count', 0)}"),
    ]
    if judged is not None:
        shown = {"macro_f1": "macro F1", "auroc": "AUROC", "brier": "Brier score"}
        for key, name in shown.items():
            figure = judged.evaluation.figures.get(key)
            if figure is not None and figure.value is not None:
                between = f" ({figure.interval.low:.3f} to {figure.interval.high:.3f})" if figure.interval else ""
                total = len(judged.evaluation.classes)
                few = f", over {figure.classes} of {total} classes" if (figure.classes or total) < total else ""
                facts.append((name, f"{figure.value:.3f}{between}{few}"))
    return facts


def _beside(found: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]] | None:
    """Return a row per metric: its name, its value on validation and on the evaluated images, and the difference.

    Each of the three is a value and its interval.
    """
    v = found["validation"]
    if v is None:
        return None
    low, high = (100 * end for end in v["accuracy_difference_interval"])
    accuracies = [(page.percent(m["accuracy"]), page.between(m["accuracy_interval"])) for m in (v, found)]
    errors = [(f"{ece:.3f}", "") for ece in (v["ece"], found["calibration"]["ece"])]
    return [
        ("images", [(str(v["count"]), ""), (str(found["count"]), ""), ("", "")]),
        ("accuracy", [*accuracies, (f"{100 * v['accuracy_difference']:+.1f} points", f"{low:+.1f} to {high:+.1f}")]),
        ("calibration error", [*errors, (f"{v['ece_difference']:+.3f}", f"p = {v['ece_p_value']:.2g}")]),
        ("cross-entropy", [(f"{v['loss']:.4f}", ""), (f"{found['loss']:.4f}", ""), ("", "")]),
    ]


def _thresholds(judged: Judgement) -> str:
    kept = judged.thresholds
    if kept is not None and kept.positive_threshold is not None:
        return (
            f"The model predicts {kept.positive} if its probability is at least "
            f"{page.percent(kept.positive_threshold, 2)}, a threshold chosen on validation for a {kept.rate} of "
            f"{page.percent(kept.target_rate)}."
        )
    if kept is not None and kept.target_precision is not None and kept.confidence is None:
        return (
            f"No threshold reaches a precision of {page.percent(kept.target_precision)} on validation, so the model "
            "never predicts a single class; run `sightline evaluate` with another target to replace it."
        )
    if judged.thresholds is None or judged.answered is None or judged.thresholds.confidence is None:
        return ""
    answered = judged.answered
    line = (
        f"The model predicts a class if its confidence is at least {page.percent(judged.thresholds.confidence)}: "
        f"for {page.percent(answered.classes)} of these images"
    )
    if answered.precision is None or answered.interval is None or answered.target is None:
        return f"{line}."
    ends, target = answered.interval, page.percent(answered.target)
    line += (
        f", of which {page.percent(answered.precision)} are correct (95% interval {page.percent(ends.low)} to "
        f"{page.percent(ends.high)})."
    )
    if answered.met is None:
        return f"{line} The threshold was fitted on these images, so expect lower precision on new ones."
    met = "is met" if answered.met else "is not demonstrated"
    bound = page.percent(answered.lower_bound)
    return f"{line} The target of {target} {met}: the precision is at least {bound} with 95% confidence."


def _mistakes(
    wrong: tuple[Answer, ...], judged: Judgement, labelled: Labelled, trained: KerasPredictor
) -> dict[str, Any]:
    """Return the most confident errors with the model's input images and heat maps."""
    if not wrong:
        return {}
    pixels = labelled.samples.take(np.array([a.at for a in wrong]))
    numbers = np.array([judged.evaluation.classes.index(a.answer) for a in wrong])
    heats = heat_maps(trained, pixels, numbers, "gradcam")
    rows = [
        {"label": a.label, "answer": a.answer, "probability": a.probability, "path": a.path,
         "image": page.picture(picture), "heat": page.picture(overlay(_coloured(picture), heat))}
        for a, picture, heat in zip(wrong, pixels, heats, strict=True)
    ]  # fmt: skip
    return {"mistakes": rows, "heated": "Grad-CAM"}


def _coloured(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _commands(run: Run, info: dict[str, Any]) -> str:
    command = info.get("command", [])
    words = ["sightline", *command[1:]] if command else []
    lines = [" ".join(shlex.quote(w) for w in words)] if words[1:2] == ["train"] else []
    place = shlex.quote(str(run.path))
    lines += [f"sightline resume {place} --epochs {entry['to']}" for entry in info.get("extended", [])]
    return "\n".join([*lines, f"sightline evaluate {place}", f"sightline report {place}"])
