"""Training dynamics against values computed by hand."""

import numpy as np
import pytest

from lstsd_hf.method import dynamics

NAN = np.nan
# Three epochs of four samples: learnt, forgotten once, never right, and one that only the second epoch saw.
HITS = np.array([[0, 1, 0, NAN], [1, 0, 0, 1], [1, 1, 0, NAN]], np.float32)


def test_softmax_is_stable_and_keeps_gaps() -> None:
    found = dynamics.softmax(np.array([[1000.0, 1000.0 + np.log(3)], [NAN, 0.0]]))
    assert found[0] == pytest.approx([0.25, 0.75])
    assert np.isnan(found[1]).all()


def test_the_labels_probability_and_its_margin() -> None:
    probabilities = np.array([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.2, 0.6, 0.2], [NAN, NAN, NAN]]])
    labels = np.array([1, 2])
    given = dynamics.given_probability(probabilities, labels)
    np.testing.assert_allclose(given, [[0.3, 0.7], [0.6, NAN]])
    np.testing.assert_allclose(dynamics.margin(probabilities, labels), [[-0.2, 0.5], [0.4, NAN]])
    np.testing.assert_allclose(dynamics.correct(probabilities, labels), [[0, 1], [1, NAN]])
    np.testing.assert_allclose(dynamics.confidence(given), [0.45, 0.7])
    np.testing.assert_allclose(dynamics.variability(given), [0.15, 0])
    np.testing.assert_allclose(dynamics.area_under_margin(probabilities, labels), [0.1, 0.5])
    np.testing.assert_allclose(dynamics.noise_score(probabilities, labels), [0.45, 0.25])


def test_what_no_epoch_has_stays_unknown_without_a_warning() -> None:
    with np.errstate(all="raise"):
        found = dynamics.mean_over_epochs(np.array([[NAN, 1.0], [NAN, 2.0]]))
        spread = dynamics.variability(np.array([[NAN, 1.0], [NAN, 2.0]]))
    np.testing.assert_allclose(found, [NAN, 1.5])
    np.testing.assert_allclose(spread, [NAN, 0.5])


def test_learning_and_forgetting() -> None:
    assert dynamics.forgetting_events(HITS).tolist() == [0, 1, 0, 0]
    assert dynamics.first_learnt(HITS).tolist() == [1, 0, -1, 1]
    np.testing.assert_allclose(dynamics.correctness(HITS), [2 / 3, 2 / 3, 0, 1])


def test_a_gap_does_not_hide_that_a_sample_was_forgotten() -> None:
    hits = np.array([[1], [NAN], [0], [1], [0]], np.float32)
    assert dynamics.forgetting_events(hits).tolist() == [2]


def test_noise_is_the_same_however_large_the_logits_are_and_half_where_two_classes_tie() -> None:
    labels = np.array([0])
    assert dynamics.noise_score(dynamics.softmax(np.array([[[0.0, 0.0]]])), labels) == pytest.approx(0.5)
    sure, surer = (dynamics.softmax(np.array([[[-scale, scale]]])) for scale in (20.0, 40.0))
    assert dynamics.noise_score(sure, labels) == pytest.approx(dynamics.noise_score(surer, labels))
    assert dynamics.noise_score(sure, labels) == pytest.approx(1)
    assert dynamics.noise_score(sure, 1 - labels) == pytest.approx(0)


def test_the_suggested_label_is_that_of_all_epochs_and_a_tie_is_the_given_ones() -> None:
    probabilities = np.array(
        [[[0.1, 0.9], [0.5, 0.5], [NAN, NAN], [NAN, NAN]], [[0.6, 0.4], [0.5, 0.5], [0.2, 0.8], [NAN, NAN]]]
    )
    assert dynamics.suggested_label(probabilities, np.array([0, 1, 0, 1])).tolist() == [1, 1, 1, -1]
    assert dynamics.suggested_label(probabilities, np.array([1, 0, 1, 0])).tolist() == [1, 0, 1, -1]


def test_a_label_looks_wrong_above_one_half() -> None:
    assert dynamics.flags(np.array([0.5, 0.500001, 0.49, NAN])).tolist() == [False, True, False, False]


def test_noise_of_a_score_that_is_off_by_as_much_as_scores_vary() -> None:
    errors = np.array([[0.0, 2.0, NAN], [0.0, -2.0, NAN]])
    np.testing.assert_allclose(dynamics.regression_noise_score(errors, 2.0), [0, 0.5, NAN])


def test_ranks() -> None:
    assert dynamics.ranks(np.array([0.2, NAN, 0.9, 0.2])).tolist() == [2, 0, 1, 3]


@pytest.mark.filterwarnings("error")
def test_without_predictions_nothing_is_known() -> None:
    none = np.full(3, np.nan)
    assert np.isnan(dynamics.verdict(none, np.full(3, -1), np.zeros(3, int)).contradicted)
    assert np.isnan(dynamics.calibration(none, none).expected_error)


def test_calibration() -> None:
    top = np.array([0.55, 0.55, 0.95, 1.0, NAN])
    bins = dynamics.calibration(top, np.array([0.0, 1.0, 1.0, 1.0, 1.0]))
    assert bins.samples.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert bins.confidence[[5, 9]] == pytest.approx([0.55, 0.975])
    assert bins.accuracy[[5, 9]] == pytest.approx([0.5, 1.0])
    assert np.isnan(bins.accuracy[0])
    assert bins.expected_error == pytest.approx((2 * 0.05 + 2 * 0.025) / 4)
