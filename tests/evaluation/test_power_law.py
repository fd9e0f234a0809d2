"""The fit of power laws recovers them, keeps to their bounds, and fits each curve alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.evaluation.learning_curve import EXPONENTS, fit_power_laws

LABELS = 20.0 * np.sqrt(2.0) ** np.arange(9)
EQUAL = np.ones(len(LABELS))


def errors_of(asymptote: float, scale: float, exponent: float) -> NDArray[np.float64]:
    return np.asarray(asymptote + scale * LABELS**-exponent)


@pytest.mark.parametrize(("asymptote", "scale", "at"), [(0.03, 0.8, 20), (0.0, 2.0, 30), (0.2, 0.0, 0)])
def test_a_law_is_recovered(asymptote: float, scale: float, at: int) -> None:
    errors = errors_of(asymptote, scale, EXPONENTS[at])
    laws = fit_power_laws(LABELS, errors[None], EQUAL)
    np.testing.assert_allclose(laws.predict_errors(LABELS)[0], errors, atol=1e-9)
    assert laws.asymptote[0] == pytest.approx(asymptote, abs=1e-9)
    assert laws.scale[0] == pytest.approx(scale, abs=1e-9)


def test_no_law_rises_or_goes_below_zero() -> None:
    rising = np.linspace(0.1, 0.3, len(LABELS))
    steep = np.maximum(0.5 - 0.1 * np.arange(len(LABELS)), 0)
    laws = fit_power_laws(LABELS, np.array([rising, steep]), EQUAL)
    far = laws.predict_errors(np.array([10.0, 1e3, 1e9]))
    assert (np.diff(far, axis=1) <= 0).all()
    assert ((far >= 0) & (far <= 1)).all()
    assert laws.scale[0] == 0, "a curve that rises is a constant"


def test_each_curve_is_fitted_alone_and_by_its_weights() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (5, len(LABELS)))
    errors = errors_of(0.05, 1.0, 0.5) + noise
    together = fit_power_laws(LABELS, errors, EQUAL)
    for number, row in enumerate(errors):
        alone = fit_power_laws(LABELS, row[None], EQUAL)
        assert alone.exponent[0] == together.exponent[number]
        assert alone.scale[0] == pytest.approx(together.scale[number])
    outlier = errors_of(0.05, 1.0, EXPONENTS[20])
    outlier[0] += 0.2
    weights = np.where(np.arange(len(LABELS)) == 0, 1e-9, 1.0)
    exact = errors_of(0.05, 1.0, EXPONENTS[20])
    fits = [fit_power_laws(LABELS, outlier[None], w).predict_errors(LABELS)[0, -1] for w in (weights, EQUAL)]
    assert fits[0] == pytest.approx(exact[-1], abs=1e-4)
    assert abs(fits[1] - exact[-1]) > 1e-3
