"""`Query`: which images to list, and in which order, as SQL conditions on the tables of `library`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from sightline.data.targets import SEPARATOR
from sightline.data.types import SPLITS
from sightline.errors import UsageError

SORTS = {
    "path": "id",
    "confidence": "confidence IS NULL, confidence, id",
    "disagreement": "label_probability IS NULL OR label != source_label, label_probability, id",
    "iou": "iou IS NULL, iou, id",
    "ood": "energy IS NULL, energy DESC, id",
    "group": "CASE :finding WHEN '' THEN look_alikes IS NULL END, CASE :finding WHEN '' THEN look_alikes ELSE "
    "(SELECT min(f.number) FROM findings f WHERE f.image = id AND f.kind = :finding) END, id",
    "size": "width * height, id",
    "rank": "(SELECT rank FROM selections WHERE key = :selection AND image = id), id",
}
"""The ``ORDER BY`` of each order; orders by the model list images without a prediction last."""

STATES = {
    "wrong": "predicted != label",
    "right": "predicted = label",
    "corrected": "(label != source_label OR split IS NOT source_split OR dropped)",
    "to-review": "NOT (kept OR dropped OR label != source_label)",
    "kept": "kept",
    "dropped": "dropped",
    "unlabeled": "label = '' AND NOT kept",
}
MAX_TEXT = 200  # characters in a search text


@dataclass(frozen=True, slots=True)
class Query:
    """Which images to list, and in which order; empty texts match everything.

    Attributes:
        label: The class, or one of the classes, after corrections.
        split: The split, after corrections.
        predicted: The class that the model predicts.
        state: ``wrong`` or ``right`` predictions, ``corrected``, ``kept`` or ``dropped`` images, or those
            ``to-review``, whose labels nobody has confirmed or corrected.
        finding: The kind of finding that the images belong to.
        slice: The name of a slice that the images belong to.
        text: A part of the path, case-insensitive.
        below: The maximum confidence of the model, 0 to 1.
        selection: The key that `Library.add_selection` returned for the images.
        sort: One of `SORTS`. ``group`` lists the finding group by group, or without a finding, all groups of
            look-alikes and then the other images. ``rank`` keeps the order of the selection.
    """

    label: str = ""
    split: str = ""
    predicted: str = ""
    state: str = ""
    finding: str = ""
    slice: str = ""
    text: str = ""
    below: str = ""
    selection: str = ""
    sort: str = "path"

    @classmethod
    def from_params(cls, params: Mapping[str, str]) -> Query:
        """Return the query from the parameters of a URL; raise `UsageError` for unknown values."""
        names = {field.name for field in fields(cls)}
        for name in params:
            if name not in names:
                raise UsageError(f"There is no filter {name!r}: expected {', '.join(sorted(names))}.")
        query = cls(**params)
        for name, value, allowed in (
            ("state", query.state, ["", *STATES]), ("sort", query.sort, [*SORTS]), ("split", query.split, ["", *SPLITS])
        ):  # fmt: skip
            if value not in allowed:
                raise UsageError(f"{name} is {value[:MAX_TEXT]!r}: expected one of {', '.join(filter(None, allowed))}.")
        if query.below:
            parse_fraction("below", query.below)
        return query

    def build_where(self, *, several: bool = False) -> tuple[str, dict[str, object]]:
        """Return the condition in SQL and its values; `several` means that images may have several classes."""
        among = f"instr('{SEPARATOR}' || {{0}} || '{SEPARATOR}', '{SEPARATOR}' || :{{0}} || '{SEPARATOR}') > 0"
        of_class = among if several else "{0} = :{0}"
        texts = {"label": of_class, "split": "{0} = :{0}", "predicted": of_class}
        conditions = [text.format(name) for name, text in texts.items() if getattr(self, name)]
        if self.state:
            conditions.append(STATES[self.state])
        if self.finding:
            conditions.append("id IN (SELECT image FROM findings WHERE kind = :finding)")
        if self.slice:
            slices = "SELECT slice FROM slices WHERE name = :slice"
            conditions.append(f"id IN (SELECT image FROM slice_images WHERE slice = ({slices}))")  # noqa: S608
        if self.text:
            conditions.append("instr(lower(path), :needle) > 0")
        if self.selection:
            conditions.append("id IN (SELECT image FROM selections WHERE key = :selection)")
        if self.below:
            conditions.append("confidence <= :limit")
        values: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        return " AND ".join(conditions) or "1", values | {
            "needle": self.text[:MAX_TEXT].lower(),
            "limit": parse_fraction("below", self.below) if self.below else None,
        }


def parse_fraction(name: str, text: str) -> float:
    """Return a number from 0 to 1 from a URL; raise `UsageError` for other texts, with the `name` of the value."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is {text[:MAX_TEXT]!r}: expected a number from 0 to 1.")
    return value
