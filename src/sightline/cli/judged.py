"""What `evaluate` prints of a judgement: calibration, when to abstain, strangers, mistakes, slices, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sightline.cli.output import console, escape, table

if TYPE_CHECKING:  # annotations only: what judges reads pictures' packages too
    from sightline.evaluation.judgement import Judgement
    from sightline.evaluation.labels import Suspect

FIRST = 5  # of a list; all are in the JSON


def show(found: Judgement) -> None:
    """Print a judgement in a few lines."""
    out = console()
    out.print()
    for line in (*_calibration(found), *_abstaining(found), *_strangers(found), *_slices(found)):
        out.print(escape(line))
    if wrong := found.mistakes.wrong[:FIRST]:
        out.print("\nthe surest mistakes")
        rows = [[a.path, a.label, a.answer, f"{a.probability:.3f}"] for a in wrong]
        table(["picture", "truth", "answer", "confidence"], rows)


def show_suspects(suspects: Sequence[Suspect], patch: str) -> None:
    """Print the worst labels, and where all are."""
    out = console()
    out.print(f"\n{len(suspects)} labels look wrong, worst first; corrections are proposed in {escape(patch)}")
    rows = [[s.path, s.label, f"{s.to} {s.probability:.2f}"] for s in suspects[:FIRST]]
    table(["picture", "label", "looks like"], rows)


def _calibration(found: Judgement) -> Iterator[str]:
    c = found.calibration
    after = ""
    if c.temperature is not None and c.ece_after is not None:
        after = f"; {c.ece_after:.4f} at temperature {c.temperature.value:.3f}, fitted on validation"
    yield f"calibration: ECE {c.ece:.4f} as served{after}"
    if c.note:
        yield f"  {c.note}"


def _abstaining(found: Judgement) -> Iterator[str]:
    yield f"risk-coverage: area {found.curve.aurc:.4f}"
    t = found.threshold
    if t is not None and t.confidence is None:
        yield f"  precision {t.target:g}: {t.note}"
    elif t is not None:
        yield (
            f"  precision {t.target:g}: confidence {t.confidence:.4f} answers {t.share_answered:.1%} of {t.count} "
            f"validation images with precision {t.precision:.4f} (at least {t.lower_bound:.4f} with 95% confidence)"
        )
        if t.given_up:
            yield f"  being conservative costs {t.given_up:.1%} of them; --no-conservative answers these too"
        if t.note:
            yield f"  {t.note}"
    a = found.answered
    if a is not None:
        right = ""
        if a.precision is not None and a.interval is not None:
            right = f", right on {a.precision:.4f} ({a.interval.low:.4f} to {a.interval.high:.4f}) of these"
        yield (
            f"  on these {a.count} images: names {a.classes:.1%}{right}; hands on a set for {a.sets:.1%}, "
            f"abstains on {a.abstained:.1%}"
        )
        if a.target is not None and a.met is not None:
            shown = "nothing" if a.lower_bound is None else f"{a.lower_bound:.4f} or more with 95% confidence"
            yield f"  target {a.target:g} {'met' if a.met else 'not shown to be met'}: they show {shown}"
        elif a.target is not None:
            yield "  these images also chose the threshold: evaluate others to see what it really reaches"
    s = found.coverage
    if s is not None:
        yield (
            f"  sets for a coverage of {s.wanted:g}: hold the truth for {s.covered:.4f} "
            f"({s.interval.low:.4f} to {s.interval.high:.4f}), {s.size:.2f} classes on average, {s.single:.1%} single"
        )


def _strangers(found: Judgement) -> Iterator[str]:
    s = found.strangers
    if s is None:
        return
    distance = "" if s.distance is None else f", by distance of features {s.distance:.4f}"
    yield f"strangers: {s.strangers} pictures of {s.name} told from {s.count}: AUROC by energy {s.energy:.4f}{distance}"
    if s.flagged is not None:
        yield f"  the energy limit flags {s.flagged:.1%} of them"


def _slices(found: Judgement) -> Iterator[str]:
    worse = [s for s in found.slices if s.worse]
    if found.slices and not worse:
        yield f"slices: none of {len(found.slices)} is reliably worse than the rest"
    for s in worse:
        yield (
            f"reliably worse: {s.name}: accuracy {s.accuracy:.4f} ({s.interval.low:.4f} to {s.interval.high:.4f}) on "
            f"{s.count} pictures, {s.rest:.4f} on the rest"
        )
