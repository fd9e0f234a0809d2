"""The budget of a compression search: what a smaller model must reach."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.compress.noninferiority import is_non_inferior, standard_error
from sightline.compress.search_dir import CompressionCandidate


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits; None: no limit. `max_drop` is a fraction (0.01: one point), `max_latency` is in milliseconds.

    For what counts as a drop of at most `max_drop`, see `is_non_inferior`.
    """

    max_drop: float = 0.0
    max_bytes: int | None = None
    max_latency: float | None = None
    max_parameters: int | None = None

    def exceeded_limits(self, candidate: CompressionCandidate, original_accuracy: float) -> list[str]:
        """Return a text for each limit that a candidate exceeds, with its value and the limit."""
        limits: list[tuple[str, float, float | None, str, float]] = [
            ("size", candidate.bytes, self.max_bytes, "MB", 1e6),
            ("latency", candidate.latency, self.max_latency, "ms", 1),
            ("parameters", candidate.parameters, self.max_parameters, "", 1),
        ]
        exceeded = []
        counts = candidate.only_original_correct, candidate.only_this_correct, candidate.count
        if not is_non_inferior(*counts, self.max_drop):
            drop, error = 100 * (original_accuracy - candidate.accuracy), 100 * standard_error(*counts)
            exceeded.append(
                f"accuracy {drop:.2f} points below with a standard error of {error:.2f}, "
                f"together {100 * self.max_drop:g} allowed"
            )
        for name, value, limit, unit, scale in limits:
            if limit is not None and value > limit:
                value_text, limit_text = (f"{number / scale:,.6g} {unit}".strip() for number in (value, limit))
                exceeded.append(f"{name} {value_text}, {limit_text} allowed")
        return exceeded
