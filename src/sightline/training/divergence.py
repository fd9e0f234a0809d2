"""Detect divergence: a loss that is NaN, or too large for training to recover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sightline.errors import DivergedError
from sightline.models.build import Network

MAX_LOSS_RATIO = 1e6
"""Training has diverged when the loss exceeds this multiple of the loss of a uniform guess.

A uniform guess over K classes has a loss of log(K). A million times that means logits that are wrong by about a million
on average, so that the softmax has almost no gradient. Working training stays below 100 times; training that starts
from unscaled pixels or with weighted rare classes stays below 10,000 times. The L2 penalty is added to the limit,
because with a large ``train.l2`` the loss starts high and falls.
"""


@dataclass(frozen=True, slots=True)
class LossLimit:
    """The largest loss at which training continues."""

    value: float

    @classmethod
    def from_network(cls, network: Network) -> LossLimit:
        """Return the limit for an untrained `network`; a resumed run uses the same limit."""
        penalty = math.fsum(float(loss) for loss in network.model.losses)
        return cls(MAX_LOSS_RATIO * (math.log(max(network.logits.shape[-1], 2)) + penalty))

    def is_exceeded(self, loss: float) -> bool:
        """Return whether `loss` is above the limit or NaN."""
        return not loss <= self.value

    def make_error(self, loss: float, where: str, rate: float | None, paths: Sequence[str] = ()) -> DivergedError:
        """Return the error for a `loss` above the limit, at learning `rate` (if any), in the batch of `paths`."""
        limit_text = f" (above {self.value:.1g})" if math.isfinite(loss) else ""
        file_list = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        batch_text = f", in the batch of {file_list}" if paths else ""
        rate_text, advice = "", ""
        if rate is not None:
            rate_text, advice = f", learning rate {rate:g}", " Use a lower train.optimizer.learning_rate."
        return DivergedError(
            f"Training diverged: the loss is {loss:.6g}{limit_text} at {where}{rate_text}{batch_text}.{advice}",
            tuple(paths),
        )
