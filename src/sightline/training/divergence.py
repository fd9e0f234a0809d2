"""When training has diverged: at a loss that is no number, or far above any that a network can come back from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sightline.errors import DivergedError
from sightline.models.build import Network

TIMES = 1e6
"""A loss beyond so many times that of a guess is divergence.

A guess costs log(K). A million times that means logits that are wrong by about a million on average, whose softmax has
no gradient but for the few that are near each other; training that works stays below a hundred times, and a start
from unscaled pixels or with rare classes weighted below ten thousand. The penalty on weights comes on top: with a large
``train.l2`` the loss begins high and falls.
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """The greatest loss that training may have and go on."""

    value: float

    @classmethod
    def of(cls, network: Network) -> Limit:
        """Return the limit for a `network` that has not been trained yet, whatever it is resumed from later."""
        penalty = math.fsum(float(loss) for loss in network.model.losses)
        return cls(TIMES * (math.log(max(network.logits.shape[-1], 2)) + penalty))

    def exceeded(self, loss: float) -> bool:
        """Tell whether `loss` is beyond the limit, or is no number."""
        return not loss <= self.value

    def error(self, loss: float, where: str, rate: float, paths: Sequence[str] = ()) -> DivergedError:
        """Return the error for a `loss` that exceeds the limit, met at learning `rate` in the batch of `paths`."""
        beyond = f" (above {self.value:.1g})" if math.isfinite(loss) else ""
        named = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        batch = f", in the batch of {named}" if paths else ""
        return DivergedError(
            f"Training diverged: the loss is {loss:.6g}{beyond} at {where}, learning rate {rate:g}{batch}. "
            "Lower train.optimizer.learning_rate.",
            tuple(paths),
        )
