"""The result of a search for a smaller model: its table, its JSON and its figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import _io, jsonio
from sightline.api.record_list import build_frame, format_html_table, format_text_table
from sightline.compress.noninferiority import Comparison
from sightline.compress.search_dir import CompressionCandidate
from sightline.report.pareto_plot import ParetoPoint, plot_pareto


@dataclass(frozen=True, slots=True, repr=False)
class CompressionResult:
    """The result of a search; in a notebook it is shown as a table of the candidates.

    Attributes:
        out: The folder of the search.
        candidates: All models, the original one first, with their metrics, size and latency.
        pareto_front: The names of the candidates that no other one beats in every respect.
        best: The smallest candidate that meets the budget, or None.
        comparison: `best` compared with the original model on images that the search has not used: by accuracy, or by a
            score of each image with several labels or a mask.
        nearest: The candidate that comes closest to the budget.
        misses: The parts of the budget that `nearest` does not meet.
        max_drop: The allowed drop in the metric of `comparison`, as a fraction.
    """

    out: Path
    candidates: tuple[CompressionCandidate, ...]
    pareto_front: tuple[str, ...]
    best: CompressionCandidate | None
    comparison: Comparison | None
    nearest: CompressionCandidate
    misses: tuple[str, ...]
    max_drop: float = 0.0

    @property
    def meets_budget(self) -> bool:
        """Whether the budget is also met on the test split: no significant loss, or none beyond `max_drop`."""
        if self.best is None or self.comparison is None:
            return False
        return not self.comparison.significantly_worse or self.comparison.difference >= -self.max_drop - 1e-9

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each candidate; raises `MissingExtraError` without pandas."""
        return build_frame(self._table())

    def __repr__(self) -> str:
        return f"{self._describe()}\n{format_text_table(self._table())}"

    def _repr_html_(self) -> str:
        return format_html_table(self._table(), title=self._describe())

    def _describe(self) -> str:
        if self.best is None:
            return f"No candidate meets the budget; the nearest one is {self.nearest.name}: {'; '.join(self.misses)}"
        return f"Best candidate: {self.best.name}, in {self.out / 'best'}"

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "candidate": c.name, **c.shown_metrics, "parameters": c.parameters, "bytes": c.bytes,
                "multiply_adds": c.multiply_adds, "latency": c.latency, "pareto": c.name in self.pareto_front,
            }
            for c in self.candidates
            if not c.failed
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``--format json`` and ``pareto_front.json``."""
        return {
            "out": str(self.out),
            "budget_met": self.meets_budget,
            "best": self.best.name if self.best else None,
            "comparison": jsonio.to_plain(self.comparison),
            "nearest": self.nearest.name,
            "misses": list(self.misses),
            "pareto_front": list(self.pareto_front),
            "candidates": jsonio.to_plain(self.candidates),
        }

    def write(self) -> None:
        """Write ``pareto_front.json`` and ``pareto_front.png`` into the folder of the search."""
        text = jsonio.dumps(self.to_dict(), indent=1) + "\n"
        _io.write_atomic(self.out / "pareto_front.json", text.encode())
        metric, value = self.candidates[0].headline
        is_compared = metric == self.candidates[0].comparison.metric
        points = [
            ParetoPoint(
                c.name,
                c.headline[1],
                c.bytes,
                c.latency,
                c.parameters,
                c.multiply_adds,
                on_front=c.name in self.pareto_front,
                best=self.best is not None and c.name == self.best.name,
            )
            for c in self.candidates
            if not c.failed
        ]
        figure = plot_pareto(points, value - self.max_drop if is_compared else None, metric)
        _io.write_atomic(self.out / "pareto_front.png", figure)
