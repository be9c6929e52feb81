import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from rankstill.calibration import calibrate, expected_error


def drawn(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels that are 1 with probability sigmoid(3 * score - 1)."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=count)
    return scores, (draw.random(count) < 1 / (1 + np.exp(1 - 3 * scores))).astype(float)


def test_the_fit_is_that_of_unpenalised_logistic_regression():
    scores, labels = drawn()
    found = calibrate(scores, labels)
    peer = LogisticRegression(C=np.inf, tol=1e-8).fit(scores[:, None], labels)
    assert found.scale == pytest.approx(peer.coef_[0, 0], rel=1e-3)
    assert found.offset == pytest.approx(peer.intercept_[0], rel=1e-3)
    assert found.error_after < 0.02 < 0.1 < found.error_before


def test_graded_targets_count_in_proportion():
    assert calibrate(np.array([0.0, 0.0, 1.0]), np.array([0.25, 0.25, 0.75])).offset == pytest.approx(
        -np.log(3), abs=1e-3
    )


def test_the_error_is_that_of_ten_equal_bins():
    scores, labels = drawn()
    probabilities = 1 / (1 + np.exp(-scores))
    observed, expected = calibration_curve(labels, probabilities, n_bins=10)
    counts = np.histogram(probabilities, bins=10, range=(0, 1))[0]
    wanted = (np.abs(observed - expected) * counts[counts > 0]).sum() / len(labels)
    assert expected_error(probabilities, labels) == pytest.approx(wanted)
    assert expected_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0.0
