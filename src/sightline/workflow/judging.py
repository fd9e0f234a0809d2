"""`judge`: metrics, calibration, abstention, OOD detection, errors and slices; and `check_labels`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sightline import files, jsonio
from sightline.data.dataset import decode
from sightline.data.index import Sources
from sightline.data.index import index as make_index
from sightline.errors import DataError, MissingImagesError
from sightline.evaluation import abstain, judgement, labels, ood, slices
from sightline.evaluation.evaluate import figures
from sightline.evaluation.judgement import Judgement, Said, Wanted, listen
from sightline.evaluation.labels import Suspect
from sightline.evaluation.leaked import noted
from sightline.evaluation.mistakes import mistakes
from sightline.evaluation.ood import Strangers
from sightline.prediction.views import Mirrored
from sightline.randomness import generator
from sightline.records import PARTS, Labelled, Part, Picture, Progress, Samples, Thresholds, no_progress
from sightline.report import canvas
from sightline.report import judged as drawings
from sightline.report import judgement as report
from sightline.workflow.classifier import Classifier
from sightline.workflow.labeled import LabeledImages


@dataclass(frozen=True, slots=True)
class Admit:
    """What an evaluation accepts beyond the default: `training` images, or a split with `missing` images."""

    training: bool = False
    missing: bool = False


NOTHING, STRICT = Wanted(), Admit()
STRANGERS = 1000  # maximum OOD images; they estimate an AUROC to about 0.01


def judge(
    classifier: Classifier,
    sources: Sources | LabeledImages | None = None,
    *,
    split: Part | None = None,
    wanted: Wanted = NOTHING,
    strange: Sources | None = None,
    admit: Admit = STRICT,
    cache: bool = True,
    progress: Progress = no_progress,
) -> Judgement:
    """Evaluate a classifier as `Classifier.evaluate` does, and how far its predictions can be trusted.

    `wanted` thresholds are fitted on the validation split: the run's or, for a bundle, zip or file, which has no
    images, that of `sources`. They are saved in the run, or in the bundle, zip or file, and evaluated on the other
    images. `strange` are out-of-distribution images, of which at most a thousand are used. If a complete split of the
    run's own images is evaluated, metrics and figures are saved in the run.

    Raises `DataError` if thresholds are requested without validation images, `MissingImagesError` if some of the run's
    own images are missing and `admit` does not allow it, and `UsageError` if thresholds cannot be saved (see
    `Classifier.keep`).
    """
    wanted = replace(wanted, positive=wanted.positive or _positive(classifier))
    judgement.check(wanted, classifier.classes)
    if wanted:
        classifier.check_keeping()
    if strange is not None and classifier.run is not None:  # its training images may be known
        ood.check_packages()
    data = sources if isinstance(sources, LabeledImages) else classifier.labeled_images(sources, progress)
    if classifier.run is not None and data.own:  # its figures are redrawn
        canvas.check_packages()
    # A run has validation images; for a bundle they are the validation split of the given sources.
    own = data if data.own or classifier.run is None else classifier.labeled_images(progress=progress)
    reader = _Reader(classifier, own, admit, progress, cache=cache)
    found = data.labelled(split, include_training=admit.training, allow_missing=admit.missing, cache=cache)
    said = listen(classifier.predictor, found.samples, progress)
    part = found.split or "given"
    fits = part == "validation" or (classifier.run is None and split == "validation")
    held_out = said if fits else reader.listen("validation", strict=bool(wanted) or data.own)
    thresholds, threshold = classifier.thresholds, None
    if wanted:
        if held_out is None:
            raise DataError(_nothing_held_out(classifier))
        thresholds, threshold = judgement.fit_thresholds(held_out, wanted, thresholds, classifier.classes)
    result = judged(classifier.classes, said, found, part, held_out, thresholds, wanted)
    result = replace(result, threshold=threshold)
    if strange is not None:
        result = replace(result, strangers=_strangers(reader, said, result, strange))
    _write(classifier, result, found, fitted=bool(wanted))
    return result


def judged(
    classes: tuple[str, ...],
    said: Said,
    found: Labelled,
    part: str,
    held_out: Said | None,
    thresholds: Thresholds | None = None,
    wanted: Wanted = NOTHING,
) -> Judgement:
    """Return the evaluation of the model outputs `said` for the images `found`, given those of the validation split."""
    evaluation = noted(
        figures(classes, said.outputs.probabilities, found.samples, rejects=found.rejects), found
    )  # fmt: skip
    sure, right = evaluation.probabilities.max(1), evaluation.probabilities.argmax(1) == evaluation.labels
    return Judgement(
        evaluation=evaluation,
        part=part,
        calibration=judgement.calibrate(said, held_out),
        curve=abstain.risk_coverage(sure, right),
        mistakes=mistakes(evaluation),
        slices=slices.slices(slices.properties(found.samples, found.pictures), right),
        thresholds=thresholds,
        selective=judgement.select(said, held_out),
        answered=None if thresholds is None else judgement.answered(said, classes, thresholds, fitted=held_out is said),
        coverage=None if thresholds is None else judgement.covered(said, thresholds),
        binary=judgement.detect(evaluation, said, held_out, wanted, thresholds),
        shift=judgement.beside(said, held_out),
    )


def _positive(classifier: Classifier) -> str:
    """Return the positive class of the saved threshold, else of the run or the bundle; "" if there is none."""
    kept = classifier.thresholds
    if kept is not None and kept.positive is not None:
        return kept.positive
    if classifier.run is not None:
        return classifier.run.config.evaluation.positive
    return "" if classifier.manifest is None else str(classifier.manifest.data.get("positive", ""))


def _nothing_held_out(classifier: Classifier) -> str:
    if classifier.run is None:
        return (
            "Thresholds are fitted on validation images, and a model without its run has none: give images with a "
            "validation split (folders validation/ and test/), none of which the model was trained on."
        )
    return (
        "Thresholds are fitted on validation images, and none are available for this run: restore its images, or train "
        "with split.validation above 0."
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Runs a classifier on images other than the evaluated ones: other splits of `images`, OOD images."""

    classifier: Classifier
    images: LabeledImages
    admit: Admit
    progress: Progress
    cache: bool

    def listen(self, split: Part, *, strict: bool = False) -> Said | None:
        """Return the model outputs for a split; None if it is not available.

        `strict`: raise if some of its images are missing, instead of returning None.
        """
        try:
            samples = self.images.labelled(
                split, include_training=self.admit.training, allow_missing=self.admit.missing, cache=self.cache
            ).samples
        except MissingImagesError:
            if strict and not self.admit.missing:
                raise
            return None
        except DataError:
            return None
        return listen(self.classifier.predictor, samples, self.progress, f"the {split} split") if len(samples) else None


def _strangers(reader: _Reader, said: Said, result: Judgement, sources: Sources) -> Strangers:
    """Compare with OOD images, whose labels are ignored; the run's own images among them are excluded."""
    index = make_index(sources, reader.progress)
    run = reader.classifier.home
    own = set() if run is None else {row.sha256 for row in run.read_data() or ()}
    chosen = [i for i, picture in enumerate(index.pictures) if picture.sha256 not in own]
    if not chosen:
        raise DataError(f"All {len(index.pictures)} images of {index.name} belong to the run: give others with --ood.")
    note = f"{len(index.pictures) - len(chosen)} images that belong to the run were excluded."
    note = "" if len(chosen) == len(index.pictures) else note
    if len(chosen) > STRANGERS:
        at = np.sort(generator(0, "strangers").permutation(len(chosen))[:STRANGERS]).tolist()
        chosen = [chosen[i] for i in at]
    predictor = reader.classifier.predictor
    decoded = decode(index.at(chosen), predictor.preprocess, keep=reader.cache, progress=reader.progress)
    count = len(decoded.rows)
    samples = Samples(decoded.pixels.array, decoded.rows, np.zeros(count, np.int32), ("",) * count)
    other = listen(predictor, samples, reader.progress, "OOD images").outputs
    found = judgement.strangers(said, other, reader.listen("train"), index.name, result.thresholds)
    return replace(found, note=" ".join(filter(None, (found.note, note))))


def _write(classifier: Classifier, result: Judgement, found: Labelled, *, fitted: bool) -> None:
    if fitted and result.thresholds is not None:
        classifier.keep(result.thresholds)
    run = classifier.run
    if run is None or found.split is None or found.missing is not None or isinstance(classifier.predictor, Mirrored):
        return
    run.write_evaluation(found.split, result.evaluation, report.judgement(result))
    run.write_figures(drawings.drawings(result, found.samples))


def check_labels(
    classifier: Classifier,
    patch: Path,
    *,
    allow_missing: bool = False,
    cache: bool = True,
    progress: Progress = no_progress,
) -> tuple[Suspect, ...]:
    """Find likely label errors in the run's own images, with out-of-fold heads on the features of the network.

    Writes a patch with a line for each (JSON lines: action, path, sha256, label, to, reason), worst first, and saves
    the same list in the run, unless images are missing. Raises `DataError` if the run's images are unavailable,
    `MissingImagesError` if some are missing, unless `allow_missing`.
    """
    pictures: list[Picture] = []
    said: list[Said] = []
    complete = True
    images = classifier.labeled_images(progress=progress)
    for part in PARTS:
        if not _holds(classifier, part):
            continue
        found = images.labelled(part, allow_missing=allow_missing, cache=cache)
        complete &= found.missing is None
        pictures += found.pictures
        said.append(listen(classifier.predictor, found.samples, progress, f"the {part} split"))
    features = np.concatenate([s.outputs.features for s in said])
    given = np.concatenate([s.labels for s in said])
    seed = 0 if classifier.run is None else classifier.run.config.seed
    probabilities = labels.out_of_fold(features, given, len(classifier.classes), seed, progress)
    suspects = labels.suspects(pictures, given, probabilities, classifier.classes)
    lines = [s.to_patch() for s in suspects]
    files.write(patch, jsonio.dump_lines(lines), "Choose another file with --labels.")
    if classifier.run is not None and complete:
        classifier.run.write_suspects(lines)
    return suspects


def _holds(classifier: Classifier, part: Part) -> bool:
    """Return whether the run has images in a split; without a run, reading them raises the right error."""
    rows = None if classifier.run is None else classifier.run.read_data()
    return rows is None or any(row.split == part for row in rows)
