"""How well a ranker's scores serve as probabilities, and how to make them serve better."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(scale * score + offset), and the expected calibration error before and after.

    `scale` is below zero where high scores go with low targets.
    """

    scale: float
    """One over the temperature."""
    offset: float
    error_before: float
    error_after: float


def calibrate(scores_B: Floats, targets_B: Floats) -> Calibration:
    """Fit scale and offset by the cross-entropy with targets in [0, 1].

    Platt 1999, "Probabilistic Outputs for Support Vector Machines"; with a temperature alone, Guo et al. 2017, "On
    Calibration of Modern Neural Networks".
    """
    scores_B, targets_B = np.asarray(scores_B, dtype=np.float64), np.clip(targets_B, 0.0, 1.0).astype(np.float64)
    spread, middle = max(float(scores_B.std()), 1e-12), float(scores_B.mean())
    standard_B = (scores_B - middle) / spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logits_B = parameters[0] * standard_B + parameters[1]
        errors_B = expit(logits_B) - targets_B
        value = np.mean(np.logaddexp(0.0, logits_B) - targets_B * logits_B)
        return float(value), np.array([np.mean(errors_B * standard_B), np.mean(errors_B)])

    slope, level = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B").x
    scale = float(slope) / spread
    offset = float(level) - scale * middle
    before = expected_error(expit(scores_B), targets_B)
    return Calibration(scale, offset, before, expected_error(expit(scale * scores_B + offset), targets_B))


def expected_error(probabilities_B: Floats, targets_B: Floats) -> float:
    """Expected calibration error: mean |probability - target| of ten bins of equal width, weighed by their pairs.

    Naeini, Cooper and Hauskrecht 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning".
    """
    bins_B = np.minimum((np.asarray(probabilities_B) * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins_B, weights=probabilities_B - targets_B, minlength=BINS)
    return float(np.abs(gaps).sum() / len(bins_B))
