"""A model card for Hugging Face: Markdown with a YAML header (https://huggingface.co/docs/hub/model-cards).

It contains only facts from the bundle and the run; what a person must add appears as a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sightline import jsonio
from sightline.errors import ModelError, plural
from sightline.escaping import printable
from sightline.inference.manifest import Manifest
from sightline.inference.results import Thresholds
from sightline.report import sentences
from sightline.tasks.protocol import find_task

NAMES = {"accuracy": "Accuracy", "loss": "Log loss"}
LABEL_NAMES = {
    "mean_average_precision": "Mean average precision",
    "micro_f1": "Micro F1",
    "macro_f1": "Macro F1",
}
MASK_NAMES = {"mean_iou": "Mean IoU", "mean_dice": "Mean Dice"}
GRADE_NAMES = {"quadratic_weighted_kappa": "Quadratic weighted kappa", "mean_absolute_error": "Mean absolute error"}
TREE_NAMES = {  # in addition to accuracy
    "hierarchical_f1": "Hierarchical F1",
    "accuracy_level_1": "Accuracy at the first level",
}


def render_card(
    manifest: Manifest,
    run: Mapping[str, Any],
    figures: Sequence[str] = (),
    *,
    license_id: str = "other",
    repository: str = "",
) -> str:
    """Return the card of a bundle.

    `run` is the content of ``run.json``, empty without one, and `figures` are the names of PNG files in the bundle.
    `license_id` is one of Hugging Face's ids, and `repository` the source to pull from, such as ``hf:user/name``.

    Raises `ModelError` if the manifest lacks a metric that the card needs.
    """
    try:
        sections = [_header(manifest, license_id), *_body(manifest, run, figures, repository)]
    except KeyError as error:
        raise ModelError(
            f"The manifest of the bundle lacks {error}, which the model card needs: train or export it again."
        ) from error
    return "\n\n".join(sections) + "\n"


def _header(manifest: Manifest, license_id: str) -> str:
    """Return the YAML header with its delimiters; each value is JSON, which is valid YAML."""
    data = str(manifest.data.get("name", "unknown"))
    task_type = "image-segmentation" if find_task(manifest.task).targets.are_masks else "image-classification"
    values = {
        "license": license_id,
        "library_name": "sightline",
        "pipeline_tag": task_type,
        "tags": [task_type, "onnx", "sightline", manifest.model],
        "metrics": [*(["accuracy"] if _states_accuracy(manifest) else []), *_get_metric_names(manifest)],
        "model-index": [
            {
                "name": manifest.model,
                "results": [
                    {
                        "task": {"type": task_type, "name": task_type.replace("-", " ").capitalize()},
                        "dataset": {"name": data, "type": data, "split": split},
                        "metrics": _list_results(metrics, manifest),
                    }
                    for split, metrics in manifest.metrics.items()
                ],
            }
        ],
    }
    if not manifest.metrics:  # Hugging Face rejects an index without results
        del values["model-index"]
    lines = [f"{key}: {printable(jsonio.dumps(value))}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _states_accuracy(manifest: Manifest) -> bool:
    """Return whether the card states the accuracy; for a tree, it does in addition to other metrics."""
    return not _get_metric_names(manifest) or find_task(manifest.task).targets.are_paths


def _get_metric_names(manifest: Manifest) -> Mapping[str, str]:
    """Return the metrics stated for a model of multiple labels, masks, grades or a tree of classes."""
    targets = find_task(manifest.task).targets
    if targets.are_ordered:
        return GRADE_NAMES
    if targets.are_paths:
        return TREE_NAMES
    return MASK_NAMES if targets.are_masks else LABEL_NAMES if targets.allows_several else {}


def _describe_scope(manifest: Manifest) -> str:
    count = len(manifest.classes)
    targets = find_task(manifest.task).targets
    if targets.are_masks:
        return f"It predicts one of the {count} classes above for each pixel of an image."
    if targets.allows_several:
        return f"It predicts which of the {count} classes above an image shows: any number of them, including none."
    classes = "grades above, from the lowest to the highest" if targets.are_ordered else "classes above"
    node = " It predicts the deepest class of their tree that is probable enough." if targets.are_paths else ""
    decision = _describe_decision(manifest)
    return f"It classifies images like its training images into the {count} {classes}. {decision}{node}"


def _describe_decision(manifest: Manifest) -> str:
    """Describe what the model predicts for an image of something else, and when it abstains."""
    limits = Thresholds.from_dict(manifest.thresholds or {"count": 0})
    anything = ", even for an image of something else" if limits.ood_limit is None else ""
    precision = f"a precision of {limits.target_precision:g}" if limits.target_precision is not None else ""
    sets = ""
    if limits.conformal_quantile is not None:
        sets = f"predicts a set of classes that contains the true one with a probability of {limits.coverage:g}"
    if limits.positive_threshold is not None:
        text = (
            f"It predicts {_escape_markdown(limits.positive)} when its probability is at least "
            f"{limits.positive_threshold:.4g}, a threshold chosen for a {limits.rate} of {limits.target_rate:g}, and "
            f"otherwise the other class{anything}."
        )
    elif limits.confidence is not None:
        text = (
            f"It {sets or 'abstains'} when its probability is below {limits.confidence:.4g}, a threshold chosen for "
            f"{precision}, and otherwise predicts one of them{anything}."
        )
    elif sets:
        text = f"It {sets}, and abstains when the set holds all classes."
    elif precision:
        return f"It abstains on every image, because its validation images do not show that {precision} can be reached."
    else:
        return "It always predicts one of them, even for an image of something else."
    if limits.ood_limit is not None:
        text += " It abstains on images that are less like its training images than about 99% of the "
        text += "validation images are, which does not catch every image of something else."
    return text


def _list_results(metrics: Mapping[str, Any], manifest: Manifest) -> list[dict[str, Any]]:
    """Return the metrics of a split in the format of Hugging Face's index, without undefined ones."""
    names = {**(NAMES if _states_accuracy(manifest) else {}), **_get_metric_names(manifest)}
    values = {key: metrics[key] if key in NAMES else metrics[key]["value"] for key in names if key in metrics}
    return [{"type": key, "name": names[key], "value": value} for key, value in values.items() if value is not None]


def _body(manifest: Manifest, run: Mapping[str, Any], figures: Sequence[str], repository: str) -> list[str]:
    folder = repository.rpartition("/")[2] or "."
    pull = f"sightline pull {repository} {folder}\n" if repository else ""
    size, count = manifest.preprocess, len(manifest.classes)
    kind = "A segmentation model" if find_task(manifest.task).targets.are_masks else "An image classifier"
    color = "grayscale" if size.channels == 1 else "RGB"
    return [
        f"# {_escape_markdown(manifest.model)} on {_escape_markdown(manifest.data.get('name', 'unknown'))}",
        (
            f"{kind} with {count} classes and {manifest.parameters:,} parameters, made with Sightline "
            f"{_escape_markdown(manifest.version)}, recipe {_escape_markdown(manifest.recipe)}. The "
            "weights are stored as "
            f"{_escape_markdown(manifest.precision)}."
        ),
        "## Classes",
        "\n".join(f"{number}. {_escape_markdown(label)}" for number, label in enumerate(manifest.classes)),
        "## Intended use and limits",
        (
            f"{_describe_scope(manifest)} The metrics below are for images from the same source; other "
            "lighting, cameras, backgrounds or subjects may reduce accuracy. Its probabilities are "
            f"{'calibrated by temperature scaling' if manifest.temperature != 1 else 'not calibrated'}."
        ),
        "What is the intended use, and what is out of scope? *To be completed by the publisher.*",
        "## Metrics",
        *_metrics_section(manifest, figures),
        "## Training data",
        *_data_section(manifest, run),
        "## Preprocessing",
        (
            f"uint8 {color} images, {size.height} high and {size.width} wide, `resize={size.resize}` with "
            f"`interpolation={size.interpolation}`, antialiased. Scaling, mean and channel order are inside "
            "`model.onnx`."
            + " `reference/` has reference examples, whose pixels and probabilities are in `manifest.json`."
            * bool(manifest.reference_examples)
        ),
        "## How to use it",
        f"```sh\n{pull}sightline predict {folder} image.jpg\n```",
        f'```python\nimport sightline\n\nprint(sightline.load("{folder}").predict("image.jpg")[0].label)\n```',
        "## Training",
        _training_section(manifest, run),
    ]


def _metrics_section(manifest: Manifest, figures: Sequence[str]) -> list[str]:
    if not manifest.metrics:
        return ["This file was not evaluated."]
    names = _get_metric_names(manifest)
    out = ["\n".join(_accuracy_table(manifest))] if _states_accuracy(manifest) else []
    out += ["\n".join(_metric_table(manifest, names))] if names else []
    for split, metrics in manifest.metrics.items():
        untested = metrics.get("untested_classes", [])
        if missing := sentences.describe_untested(untested, len(manifest.classes), sentences.describe_split(split)):
            out.append(_escape_markdown(missing))
        if leaked := sentences.describe_leakage(metrics.get("leaked"), f"the {split} images", split):
            out.append(leaked)
    if manifest.parity is not None:
        out.append(
            f"On {plural(manifest.parity['count'], 'image')} the file's probabilities differ from the trained model's "
            f"by at most {manifest.parity['max_difference']:.1e}; the top-1 agreement is "
            f"{manifest.parity['top1_agreement']:.2%}."
        )
    return out + [f"![{name.split('/')[-1].removesuffix('.png')}]({name})" for name in figures]


def _accuracy_table(manifest: Manifest) -> list[str]:
    lines = ["| split | images | accuracy | 95% interval | log loss |", "|---|---|---|---|---|"]
    for split, metrics in manifest.metrics.items():
        accuracy, loss = (_format_value(metrics[key]) for key in ("accuracy", "loss"))
        ends = _format_interval(metrics["accuracy_interval"])
        lines.append(f"| {_escape_markdown(split)} | {metrics['count']} | {accuracy} | {ends} | {loss} |")
    return lines


def _metric_table(manifest: Manifest, names: Mapping[str, str]) -> list[str]:
    lines = ["| split | images | metric | value | 95% interval |", "|---|---|---|---|---|"]
    for split, metrics in manifest.metrics.items():
        for key, name in names.items():
            number, ends = _format_value(metrics[key]["value"]), _format_interval(metrics[key]["interval"])
            lines.append(f"| {_escape_markdown(split)} | {metrics['count']} | {name} | {number} | {ends} |")
    return lines


def _format_value(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _format_interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _data_section(manifest: Manifest, run: Mapping[str, Any]) -> list[str]:
    counts = manifest.data.get("counts", {})
    lines = [
        "| split | images |",
        "|---|---|",
        *[f"| {_escape_markdown(split)} | {_escape_markdown(count)} |" for split, count in counts.items()],
    ]
    notes = run.get("result", {}).get("notes", [])
    return ["\n".join(lines), *(["\n".join(f"- {_escape_markdown(note)}" for note in notes)] if notes else [])]


def _training_section(manifest: Manifest, run: Mapping[str, Any]) -> str:
    versions = ", ".join(
        f"{_escape_markdown(name)} {_escape_markdown(version)}" for name, version in run.get("versions", {}).items()
    )
    seed, backend = (_escape_markdown(run.get(key, "unknown")) for key in ("seed", "backend"))
    platform = _escape_markdown(run.get("platform", ""))
    lines = [f"- seed {seed}, backend {backend}, {platform}", f"- {versions}"] if run else []
    lines += [
        f"- weights `{_escape_markdown(manifest.weights_sha256)}`, graph `{manifest.graph_sha256}`",
    ]
    lines += [
        "- " + ", ".join(f"{_escape_markdown(key)}: {_escape_markdown(value)}" for key, value in s.items())
        for s in manifest.lineage
    ]
    return "\n".join(lines)


def _escape_markdown(text: Any) -> str:
    """Return `text` on one line, with the special characters of Markdown and HTML escaped."""
    out = printable(" ".join(str(text).split()))
    for sign in "\\`*_[]<>|#":
        out = out.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return out
