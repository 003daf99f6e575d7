"""Measures of samples with many rows, against hand arithmetic, torch's losses and cleanlab."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from cleanlab.token_classification.rank import get_label_quality_scores

from lstsd_hf.method import dynamics, token_dynamics

OFFSETS = np.array([0, 2, 2, 5])


def test_the_worst_row_of_each_sample():
    scores = np.array([0.2, 0.9, 0.4, np.nan, 0.4])
    assert token_dynamics.worst_rows(scores, OFFSETS).tolist() == [1, -1, 2]
    assert token_dynamics.worst_rows(np.full(5, np.nan), OFFSETS).tolist() == [-1, -1, -1]


def test_sums_and_means_of_rows():
    values = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    assert token_dynamics.sum_of_rows(np.nan_to_num(values), OFFSETS).tolist() == [3, 0, 8]
    np.testing.assert_array_equal(token_dynamics.mean_of_rows(values, OFFSETS), [1.5, np.nan, 4])


def test_one_sample_that_is_not_finite_leaves_the_others_alone():
    values = np.array([np.nan, 1.0, 2.0, 3.0, 4.0])
    assert token_dynamics.sum_of_rows(values, OFFSETS)[2] == 9
    scores = np.stack([values, values], axis=1)
    loss, _ = token_dynamics.span_loss(scores, np.array([1, 2, 3, 0, 0]), OFFSETS)
    assert math.isnan(loss[0])
    assert math.isfinite(loss[2])


def test_a_samples_score_is_cleanlabs():
    """For one epoch: a label's quality is its normalised margin, and a sentence's is that of its worst token."""
    rng = np.random.default_rng(0)
    lengths = [4, 1, 7, 3]
    logits = rng.normal(0, 2, (1, sum(lengths), 5)).astype(np.float64)
    labels = rng.integers(0, 5, sum(lengths))
    probabilities = dynamics.softmax(logits)
    scores = dynamics.noise_score(probabilities, labels)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    worst = token_dynamics.worst_rows(scores, offsets)
    expected, _ = get_label_quality_scores(
        [part.tolist() for part in np.split(labels, offsets[1:-1])],
        np.split(probabilities[0], offsets[1:-1]),
        token_score_method="normalized_margin",
        sentence_score_method="min",
    )
    np.testing.assert_allclose(1 - scores[worst], expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_a_span_is_that_of_the_models(seed):
    rng = np.random.default_rng(seed)
    lengths = [3, 6, 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    scores = rng.normal(0, 3, (sum(lengths), 2)).astype(np.float32)
    labels, expected, right = np.zeros(sum(lengths), int), [], []
    for begin, length in zip(offsets, lengths, strict=False):
        ends = rng.integers(0, length, 2)
        labels[begin + ends[0]] |= token_dynamics.STARTS
        labels[begin + ends[1]] |= token_dynamics.ENDS
        own = torch.from_numpy(scores[begin : begin + length].T)
        expected.append(F.cross_entropy(own, torch.from_numpy(ends)).item())
        right.append(float((own.argmax(dim=1).numpy() == ends).all()))
    loss, hits = token_dynamics.span_loss(scores, labels, offsets)
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    assert hits.tolist() == right


def test_a_feature_without_its_answer_has_no_loss():
    loss, hits = token_dynamics.span_loss(np.zeros((5, 2)), np.array([1, 0, -100, -100, -100]), OFFSETS)
    assert np.isnan(loss).all()
    assert np.isnan(hits).all()


def test_what_a_language_model_gave_to_a_label():
    probabilities = np.array([[0.5, 0.3, 0.1, 0.06, 0.04]] * 3)
    classes = np.array([[4, 2]] * 3)  # the two largest are those of classes 4 and 2
    values, rest = np.log(probabilities[:, :2]), np.log(np.full(3, 0.2))
    found, is_bound = token_dynamics.label_log_probability(values, classes, rest, np.array([2, 4, 0]))
    np.testing.assert_allclose(np.exp(found), [0.3, 0.5, 0.2])
    assert is_bound.tolist() == [False, False, True]
    # A label outside of the top k has at most the probability of the last of them, however large the rest is.
    found, _ = token_dynamics.label_log_probability(values[:1], classes[:1], np.log([0.9]), np.array([0]))
    assert math.exp(found[0]) == pytest.approx(0.3)


def test_a_prediction_that_is_missing_gives_nothing():
    missing = np.full((1, 2), np.nan)
    found, _ = token_dynamics.label_log_probability(missing, np.zeros((1, 2), int), np.array([np.nan]), np.array([3]))
    assert np.isnan(found).all()
