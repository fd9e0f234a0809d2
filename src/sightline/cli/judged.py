"""Print an evaluation report: calibration, abstention, out-of-distribution detection, errors, slices, label issues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sightline.cli.output import say, table
from sightline.errors import plural

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.evaluation.binary import OperatingPoint
    from sightline.evaluation.judgement import Judgement
    from sightline.evaluation.labels import Suspect
    from sightline.records import Figure

FIRST = 5  # rows shown of a list; the JSON holds all
RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}  # as printed


def show(found: Judgement) -> None:
    """Print an evaluation report in a few lines."""
    say()
    _detection(found)
    for text in (*_calibration(found), *_beside(found), *_abstaining(found), *_strangers(found), *_slices(found)):
        say(text)
    if wrong := found.mistakes.wrong[:FIRST]:
        say()
        say("most confident errors")
        rows = [[a.path, a.label, a.answer, f"{a.probability:.3f}"] for a in wrong]
        table(["image", "true class", "predicted", "confidence"], rows)


def show_suspects(suspects: Sequence[Suspect], patch: str) -> None:
    """Print the most suspicious labels, and where to find them all."""
    say()
    say(
        f"{plural(len(suspects), 'label')} {'looks' if len(suspects) == 1 else 'look'} wrong, worst first; "
        f"proposed fixes are in {patch}"
    )
    rows = [[s.path, s.label, f"{s.to} {s.probability:.2f}"] for s in suspects[:FIRST]]
    table(["image", "label", "looks like"], rows)


def _detection(found: Judgement) -> None:
    """Print how well the positive class is detected, and what the chosen thresholds reach."""
    b = found.binary
    if b is None:
        return
    say(f"detection of {b.positive!r} ({b.rule}) among {b.positives} positive and {b.negatives} negative images")
    figures = [(name, getattr(b.rates, key)) for key, name in RATES.items()]
    figures.append((f"average precision of {b.positive!r}", b.average_precision))
    table(["metric", "value", "95% interval", ""], [[name, *_words(f)] for name, f in figures])
    for point in b.operating_points:
        for text in _operating_point(point, b.positive):
            say(text)
    if b.operating_points:
        say(f"  {_kept(found)}")
    say()


def _kept(found: Judgement) -> str:
    """Return whether the model gives its labels by an operating point from now on."""
    kept = found.thresholds
    points = [] if found.binary is None else found.binary.operating_points
    for point in points:
        if kept is not None and (point.threshold, point.rate) == (kept.positive_threshold, kept.rate):
            return f"`predict` goes by the threshold for this {point.rate}"
    if len(points) > 1 or (kept is not None and kept.confidence is not None):
        return "not kept for `predict`: it keeps a threshold that is asked for alone"
    return "not kept for `predict`"


def _words(figure: Figure) -> list[str]:
    ends = figure.interval
    value = "" if figure.value is None else f"{figure.value:.4f}"
    return [value, "" if ends is None else f"{ends.low:.4f} to {ends.high:.4f}", figure.note]


def _operating_point(point: OperatingPoint, positive: str) -> Iterator[str]:
    if point.threshold is None:
        yield f"{point.rate} {point.target:g}: {point.note}"
        return
    yield (
        f"{point.rate} {point.target:g}: predict {positive!r} where its probability is at least {point.threshold:.4f} "
        f"(chosen on {plural(point.count, 'validation image')})"
    )
    if point.given_up and point.relaxed is not None:
        other = "specificity" if point.rate == "sensitivity" else "sensitivity"
        yield (
            f"  being conservative costs {100 * point.given_up:.1f} points of {other} on validation; --no-conservative "
            f"takes {point.relaxed:.4f}"
        )
    if point.reached is None:
        yield "  the threshold was chosen on these same images: evaluate on others for an unbiased value"
        return
    words = [(name, _words(getattr(point.reached, key))) for key, name in RATES.items()]
    yield "  on these images: " + ", ".join(f"{name} {v or 'not defined'} ({ends})" for name, (v, ends, _) in words)
    shown = "has no bound" if point.lower_bound is None else f"is at least {point.lower_bound:.4f} with 95% confidence"
    yield f"  target {'met' if point.met else 'not shown to be met'}: the {point.rate} {shown}"


def _beside(found: Judgement) -> Iterator[str]:
    s = found.shift
    if s is None:
        return
    yield (
        f"validation: accuracy {s.accuracy:.4f} on {plural(s.count, 'image')}, here "
        f"{100 * s.accuracy_difference:+.2f} points "
        f"(95% interval {100 * s.interval.low:+.2f} to {100 * s.interval.high:+.2f}); ECE {s.ece:.4f}, here "
        f"{s.ece_difference:+.4f} (p = {s.ece_p_value:.2g})"
    )
    from sightline.report import judgement, sentences

    if warning := sentences.shift(judgement.judgement(found)["validation"], found.part):
        yield f"warning: {warning}"


def _calibration(found: Judgement) -> Iterator[str]:
    c = found.calibration
    after = ""
    if c.temperature is not None and c.ece_after is not None and not c.unchanged:
        after = f"; {c.ece_after:.4f} at temperature {c.temperature.value:.3f}, fitted on validation"
    yield f"calibration: ECE {c.ece:.4f} as deployed{after}"
    if c.note:
        yield f"  {c.note}"


def _abstaining(found: Judgement) -> Iterator[str]:
    yield f"risk-coverage: area {found.curve.aurc:.4f}"
    t = found.threshold
    if t is not None and t.confidence is None:
        yield f"  precision {t.target:g}: {t.note}"
    elif t is not None:
        yield (
            f"  precision {t.target:g}: confidence {t.confidence:.4f} covers {t.share_answered:.1%} of {t.count} "
            f"validation images with precision {t.precision:.4f} (at least {t.lower_bound:.4f} with 95% confidence)"
        )
        if t.given_up:
            yield f"  being conservative costs {t.given_up:.1%} of coverage; --no-conservative gives it back"
        if t.note:
            yield f"  {t.note}"
    a = found.answered
    if a is not None:
        right = ""
        if a.precision is not None and a.interval is not None:
            right = f" with precision {a.precision:.4f} ({a.interval.low:.4f} to {a.interval.high:.4f})"
        fitted = found.thresholds is not None and found.thresholds.quantile is not None
        sets = f"; returns a set for {a.sets:.1%}" if fitted else ""
        images = plural(a.count, "image")
        yield f"  on these {images}: predicts a class for {a.classes:.1%}{right}{sets}; abstains on {a.abstained:.1%}"
        if a.met is not None and a.lower_bound is not None:
            shown = f"is at least {a.lower_bound:.4f} with 95% confidence"
            yield f"  target {a.target:g} {'met' if a.met else 'not shown to be met'}: the precision {shown}"
        elif a.target is not None and a.lower_bound is not None:
            yield "  the threshold was chosen on these same images: evaluate on others for an unbiased value"
    s = found.coverage
    if s is not None:
        yield (
            f"  prediction sets for coverage {s.wanted:g}: contain the true class for {s.covered:.4f} "
            f"({s.interval.low:.4f} to {s.interval.high:.4f}), {s.size:.2f} classes on average, "
            f"{s.single:.1%} with one class"
        )


def _strangers(found: Judgement) -> Iterator[str]:
    s = found.strangers
    if s is None:
        return
    distance = "" if s.distance is None else f", by feature distance {s.distance:.4f}"
    images = f"{plural(s.strangers, 'image')} of {s.name}"
    yield f"out-of-distribution: {images} vs. {s.count} in-distribution: AUROC by energy {s.energy:.4f}{distance}"
    if s.note:
        yield f"  {s.note}"
    if s.flagged is not None:
        yield f"  the energy limit flags {s.flagged:.1%} of them"


def _slices(found: Judgement) -> Iterator[str]:
    worse = [s for s in found.slices if s.worse]
    if found.slices and not worse:
        yield f"slices: none of {len(found.slices)} is significantly worse than the rest"
    for s in worse:
        yield (
            f"significantly worse: {s.name}: accuracy {s.accuracy:.4f} ({s.interval.low:.4f} to {s.interval.high:.4f}) "
            f"on {plural(s.count, 'image')}, {s.rest:.4f} on the rest"
        )
