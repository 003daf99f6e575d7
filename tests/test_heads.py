"""The heads: their parts of the loss against values computed by hand, and how a head is chosen."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lstsd_hf.method.heads import HEADS, Classes, Labels, Scores, choose_head
from lstsd_hf.method.loss import bernoulli_log_probabilities, confidence, distillation_loss, divergence
from toys import tiny_bert

CLASSES, LABELS, NUMBER = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_terms_of_classes_are_divergence_and_confidence_of_their_softmax(temperature):
    torch.manual_seed(0)
    student, teachers = torch.randn(5, 3), torch.randn(2, 5, 3)
    log_p, log_q = F.log_softmax(student, dim=-1), F.log_softmax(teachers, dim=-1)
    terms = Classes().terms(student, teachers, temperature, "confidence")
    torch.testing.assert_close(terms.divergence, divergence(log_p, log_q, temperature))
    torch.testing.assert_close(terms.trust, confidence(log_q))
    assert terms.present.tolist() == [[1.0] * 5] * 2


def test_the_terms_of_labels_are_means_over_labels():
    torch.manual_seed(0)
    student, teachers = torch.randn(5, 4), torch.randn(2, 5, 4)
    log_p, log_q = bernoulli_log_probabilities(student), bernoulli_log_probabilities(teachers)
    terms = Labels().terms(student, teachers, 2.0, "confidence")
    torch.testing.assert_close(terms.divergence, divergence(log_p, log_q, 2.0).mean(dim=-1))
    torch.testing.assert_close(terms.trust, confidence(log_q).mean(dim=-1))


def test_divergence_of_numbers_is_the_squared_error_at_any_temperature_and_trust():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]])
    terms = HEADS[NUMBER].terms(student, teacher[None], 7.0, "confidence")
    assert terms.divergence.tolist() == [pytest.approx([4.0, 0.25])]
    assert terms.trust.tolist() == [[1.0, 1.0]]


def test_an_absent_teacher_gives_its_weight_back_and_leaves_no_nan_in_the_gradient():
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.0], [math.nan, math.nan]])
    terms = HEADS[CLASSES].terms(student, teacher[None], 1.0, "constant")
    assert terms.present.tolist() == [[1.0, 0.0]]
    assert terms.agreement.tolist() == [[1.0, 0.0]]
    base = student.square().mean()
    loss = distillation_loss(base, torch.tensor([0.4]), terms)
    kl = divergence(F.log_softmax(student[:1], dim=-1), F.log_softmax(teacher[:1], dim=-1), 1.0)[0]
    assert loss.item() == pytest.approx((0.8 * base + 0.2 * kl).item())  # half of the samples have the teacher
    loss.backward()
    assert torch.isfinite(student.grad).all()

    nobody = HEADS[CLASSES].terms(student, torch.full((1, 2, 2), math.nan), 1.0, "constant")
    assert distillation_loss(base, torch.tensor([0.4]), nobody).item() == base.item()


def test_agreement_counts_equal_decisions():
    student = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    teachers = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    assert HEADS[CLASSES].terms(student, teachers, 1.0, "constant").agreement.tolist() == [[1.0, 0.0]]
    assert HEADS[LABELS].terms(student - 0.5, teachers - 0.5, 1.0, "constant").agreement.tolist() == [[0.5, 0.0]]
    assert HEADS[NUMBER].terms(student[:, :1], teachers[..., :1], 1.0, "constant").agreement is None


# ---- the choice


@pytest.mark.parametrize(
    ("settings", "labels", "expected"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2]), CLASSES),
        ({"num_labels": 1}, torch.tensor([0.5, 2.0]), NUMBER),
        ({"num_labels": 1}, torch.tensor([1, 2]), NUMBER),
        ({"num_labels": 3}, torch.tensor([[0.0, 1.0, 1.0]]), LABELS),
    ],
)
def test_the_head_is_what_the_models_own_loss_takes_it_for(settings, labels, expected):
    model = tiny_bert(**settings)
    assert choose_head(model.config.problem_type, labels, settings["num_labels"]).head is HEADS[expected]
    model(input_ids=torch.ones(len(labels), 4, dtype=torch.long), labels=labels)  # writes its choice into the config
    assert model.config.problem_type == expected
    assert choose_head(model.config.problem_type, labels, settings["num_labels"]).head is HEADS[expected]


@pytest.mark.parametrize(
    ("problem_type", "labels", "columns", "expected", "guessed"),
    [
        # One logit with labels of 0 and 1 is a probability, unless problem_type says that it is a score.
        (None, torch.tensor([0, 1, 1]), 1, LABELS, True),
        (None, torch.tensor([0.0, 1.0]), 1, LABELS, True),
        (NUMBER, torch.tensor([0, 1]), 1, NUMBER, False),
        (None, None, 1, NUMBER, True),
        # One class alone would always have probability 1.
        (CLASSES, torch.tensor([0, 0]), 1, LABELS, False),
        (LABELS, torch.tensor([0, 0]), 1, LABELS, False),
        (NUMBER, torch.tensor([[0.5, 1.0]]), 2, NUMBER, False),
        (None, torch.tensor([0.5, 1.0]), 2, NUMBER, True),
        (CLASSES, torch.tensor([[0.5, 0.5]]), 2, CLASSES, False),
        (None, None, 3, CLASSES, False),
    ],
)
def test_what_is_said_counts_and_a_guess_gives_its_reason(problem_type, labels, columns, expected, guessed):
    found = choose_head(problem_type, labels, columns)
    assert found.head is HEADS[expected]
    assert (found.guessed_from is not None) == guessed


# ---- what a run keeps of its epochs


@pytest.mark.parametrize(
    ("head", "labels", "expected"),
    [
        (Classes(), np.array([0, 1]), ["margin"]),
        (Classes(), np.array([[0.5, 0.5]], np.float32), []),  # soft labels: no class is the given one
        (Scores(), np.array([0.5, 1.0], np.float32), ["absolute_error"]),
        (Scores(), np.array([[0.5, 1.0]], np.float32), []),
        (Labels(), np.array([[0.0, 1.0]], np.float32), []),
    ],
)
def test_a_head_keeps_the_statistics_that_its_labels_allow(head, labels, expected):
    assert [statistic.name for statistic in head.statistics(labels)] == expected
