"""The budget of a compression search: the requirements on a smaller model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sightline.compress.noninferiority import STANDARD_ERRORS
from sightline.compress.search_dir import CompressionCandidate
from sightline.metrics import describe_metric


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits; None is no limit. `max_drop` is a fraction (0.01: one point), `max_latency` is in milliseconds.

    `PairedTest.is_non_inferior` defines what counts as a drop of at most `max_drop`.
    """

    max_drop: float = 0.0
    max_bytes: int | None = None
    max_latency: float | None = None
    max_parameters: int | None = None

    def exceeded_limits(self, candidate: CompressionCandidate) -> list[str]:
        """Return a text for each limit that a candidate exceeds, with its value and the limit."""
        exceeded = []
        comparison = candidate.comparison
        if not comparison.is_non_inferior(self.max_drop):
            drop = -comparison.difference
            error = (comparison.upper_drop - drop) / STANDARD_ERRORS
            known = f"a standard error of {100 * error:.2f}" if math.isfinite(error) else "an unknown standard error"
            exceeded.append(
                f"{describe_metric(comparison.metric)} {100 * drop:.2f} points below with {known}, together "
                f"{100 * self.max_drop:g} allowed"
            )
        for name, value, limit, unit, scale in self._list_limits(candidate):
            if value > limit:
                value_text, limit_text = (
                    f"{number / scale:,.6g} {unit}" if unit else f"{number:,}" for number in (value, limit)
                )
                exceeded.append(f"{name} {value_text}, {limit_text} allowed")
        return exceeded

    def compute_excess(self, candidate: CompressionCandidate) -> float:
        """Return the largest excess over a limit, relative to the limit; 0 if the candidate meets all limits.

        A drop, including its standard error, that is 10 points above `max_drop` counts as much as twice the size.
        """
        excess = [value / max(limit, 1e-9) - 1 for _, value, limit, *_ in self._list_limits(candidate)]
        comparison = candidate.comparison
        if not comparison.is_non_inferior(self.max_drop):
            excess.append(10 * (comparison.upper_drop - self.max_drop))
        return max([*excess, 0.0])

    def _list_limits(self, candidate: CompressionCandidate) -> Iterator[tuple[str, float, float, str, float]]:
        """Yield the name, value and limit of each limited quantity, with the unit and its scale."""
        limits: list[tuple[str, float, float | None, str, float]] = [
            ("size", candidate.bytes, self.max_bytes, "MB", 1e6),
            ("latency", candidate.latency, self.max_latency, "ms", 1),
            ("parameters", candidate.parameters, self.max_parameters, "", 1),
        ]
        for name, value, limit, unit, scale in limits:
            if limit is not None:
                yield name, value, limit, unit, scale
