"""What an evaluation means in plain sentences, from the values that ``metrics.json`` holds: for page and terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMED = 3  # classes; the others are counted


def untested(names: Sequence[str], total: int, where: str = "the evaluated images") -> str:
    """Return which of `total` classes have no image `where`; "" if all have.

    >>> untested(["defect"], 2, "the test split")
    "1 of 2 classes has no image in the test split and is not tested: 'defect'."
    """
    if not names:
        return ""
    one = len(names) == 1
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return (
        f"{len(names):,} of {total:,} classes {'has' if one else 'have'} no image in {where} and "
        f"{'is' if one else 'are'} not tested: {', '.join(map(repr, names[:NAMED]))}{more}."
    )


def split_name(part: str) -> str:
    """Return how a sentence names what was evaluated.

    >>> split_name("test"), split_name("given")
    ('the test split', 'the evaluated images')
    """
    return f"the {part} split" if part in {"train", "validation", "test"} else "the evaluated images"


def shift(value: Mapping[str, Any] | None, part: str) -> str:
    """Return the warning that validation and the evaluated images differ by more than chance; "" if they do not."""
    if value is None:
        return ""
    found = []
    if value["accuracy_differs"]:
        low, high = (100 * end for end in value["accuracy_difference_interval"])
        found.append(
            f"accuracy {100 * value['accuracy_difference']:+.1f} points (95% interval {low:+.1f} to {high:+.1f})"
        )
    if value["ece_differs"]:
        before, after = value["ece"], value["ece"] + value["ece_difference"]
        found.append(f"calibration error {after:.3f} against {before:.3f} (p = {value['ece_p_value']:.2g})")
    if not found:
        return ""
    name = split_name(part)
    name = f"{name[0].upper()}{name[1:]} {'differs' if name.endswith('split') else 'differ'}"
    return (
        f"{name} from the validation split by more than chance: {', '.join(found)}. They are not drawn alike, so "
        "thresholds and calibration from validation may not hold: look at how the splits were made."
    )
