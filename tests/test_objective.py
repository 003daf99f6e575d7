"""The method's formulas against arithmetic done by hand."""

import math

import pytest
import torch

from lstsd_hf.config import DistillationArguments
from lstsd_hf.objective import (
    TeacherWeights,
    confidence,
    distillation_loss,
    divergence,
    infer_problem_type,
    learn_from,
    log_probabilities,
    teacher_weights,
    teaching_epochs,
)
from toys import tiny_bert

CLASSES, LABELS, NUMBER = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [(None, None), (0, 0), (1, 1), (2, 2)]),
        (2, [(None, None), (None, 0), (1, 1), (1, 2), (3, 3), (3, 4), (5, 5)]),
        (3, [(None, None), (None, 0), (None, 1), (2, 2), (2, 3), (2, 4), (5, 5)]),
    ],
)
def test_timetable(k, expected):
    assert [tuple(teaching_epochs(epoch, k)) for epoch in range(len(expected))] == expected


def test_linear_weights_reach_their_full_size_in_the_last_epoch():
    arguments = DistillationArguments(long_term_weight=0.2, short_term_weight=0.6, weight_schedule="linear")
    found = [teacher_weights(arguments, epoch, 4) for epoch in range(4)]
    assert found == [pytest.approx((0.2 * ramp, 0.6 * ramp)) for ramp in (0.25, 0.5, 0.75, 1.0)]


@pytest.mark.parametrize(
    ("lone_teacher", "before", "after"), [("label", (0.3, 0.5), (0.3, 0.5)), ("teacher", (0.0, 0.8), (0.3, 0.5))]
)
def test_the_lone_teacher_may_borrow_its_partners_weight(lone_teacher, before, after):
    arguments = DistillationArguments(
        mini_generation_epochs=3, long_term_weight=0.3, short_term_weight=0.5, lone_teacher=lone_teacher
    )
    assert teacher_weights(arguments, 2, 9) == pytest.approx(before)
    assert teacher_weights(arguments, 3, 9) == pytest.approx(after)


def apart(problem_type: str, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence of logits."""
    return divergence(problem_type, *(log_probabilities(problem_type, x) for x in (student, teacher)), temperature)


def sure(problem_type: str, teacher: torch.Tensor) -> torch.Tensor:
    """The confidence of logits."""
    return confidence(problem_type, log_probabilities(problem_type, teacher))


def test_divergence_of_classes_is_the_full_kl_times_the_squared_temperature():
    # softmax(log([1, 3])) = [1/4, 3/4]; at temperature 2 the odds are the square roots: 1 : sqrt(3).
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    at_one = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert apart(CLASSES, student, teacher, 1.0).tolist() == pytest.approx([at_one])
    q = 1 / (1 + math.sqrt(3))
    at_two = 4 * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    assert apart(CLASSES, student, teacher, 2.0).tolist() == pytest.approx([at_two])
    assert apart(CLASSES, teacher, teacher, 3.0).tolist() == pytest.approx([0.0], abs=1e-7)


def test_divergence_of_labels_is_the_mean_of_bernoulli_kls():
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert apart(LABELS, student, teacher, 1.0).tolist() == pytest.approx([kl / 2])
    q = math.sqrt(3) / (1 + math.sqrt(3))
    at_two = 4 * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    assert apart(LABELS, student, teacher, 2.0).tolist() == pytest.approx([at_two / 2])


def test_divergence_of_numbers_is_the_squared_error_at_any_temperature_and_trust():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]])
    lessons = learn_from(NUMBER, student, teacher[None], 7.0, "confidence")
    assert lessons.divergence.tolist() == [pytest.approx([4.0, 0.25])]
    assert lessons.trust.tolist() == [[1.0, 1.0]]


def test_confidence_is_zero_for_a_teacher_that_knows_nothing_and_one_for_a_sure_one():
    teacher = torch.tensor([[0.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    assert sure(CLASSES, teacher).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    half = torch.tensor([[0.0, math.log(3)]])
    assert sure(CLASSES, half).tolist() == pytest.approx([1 - entropy / math.log(2)])
    labels = torch.tensor([[math.log(3), 0.0]])
    assert sure(LABELS, labels).tolist() == pytest.approx([(1 - entropy / math.log(2)) / 2])


def test_an_absent_teacher_gives_its_weight_back_and_leaves_no_nan_in_the_gradient():
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.0], [math.nan, math.nan]])
    lessons = learn_from(CLASSES, student, teacher[None], 1.0, "constant")
    assert lessons.present.tolist() == [[1.0, 0.0]]
    assert lessons.agreement.tolist() == [[1.0, 0.0]]
    base = student.square().mean()
    loss = distillation_loss(base, torch.tensor([0.4]), lessons)
    kl = apart(CLASSES, student[:1], teacher[:1], 1.0)[0]
    assert loss.item() == pytest.approx((0.8 * base + 0.2 * kl).item())  # half of the samples have the teacher
    loss.backward()
    assert torch.isfinite(student.grad).all()

    nobody = learn_from(CLASSES, student, torch.full((1, 2, 2), math.nan), 1.0, "constant")
    assert distillation_loss(base, torch.tensor([0.4]), nobody).item() == base.item()


def test_the_loss_is_the_convex_combination_of_the_contract():
    torch.manual_seed(0)
    student, teachers = torch.randn(5, 3), torch.randn(2, 5, 3)
    base = torch.tensor(1.25)
    expected = base.clone()
    for weight, teacher in zip((0.3, 0.5), teachers, strict=True):
        c, d = sure(CLASSES, teacher), apart(CLASSES, student, teacher, 2.0)
        share = weight * c.mean()
        expected = expected - share * base + share * (c * d).sum() / c.sum()
    lessons = learn_from(CLASSES, student, teachers, 2.0, "confidence")
    assert distillation_loss(base, torch.tensor([0.3, 0.5]), lessons).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_agreement_counts_equal_decisions():
    student = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    teachers = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    assert learn_from(CLASSES, student, teachers, 1.0, "constant").agreement.tolist() == [[1.0, 0.0]]
    assert learn_from(LABELS, student - 0.5, teachers - 0.5, 1.0, "constant").agreement.tolist() == [[0.5, 0.0]]
    assert learn_from(NUMBER, student[:, :1], teachers[..., :1], 1.0, "constant").agreement is None


@pytest.mark.parametrize(
    ("settings", "labels", "expected"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2]), CLASSES),
        ({"num_labels": 1}, torch.tensor([0.5, 2.0]), NUMBER),
        ({"num_labels": 1}, torch.tensor([1, 2]), NUMBER),
        ({"num_labels": 3}, torch.tensor([[0.0, 1.0, 1.0]]), LABELS),
    ],
)
def test_the_problem_is_what_the_models_own_head_takes_it_for(settings, labels, expected):
    model = tiny_bert(**settings)
    assert infer_problem_type(model.config, labels) == expected
    model(input_ids=torch.ones(len(labels), 4, dtype=torch.long), labels=labels)  # writes its own answer there
    assert model.config.problem_type == expected


def test_weights_are_named_like_their_teachers():
    assert TeacherWeights._fields == ("long_term", "short_term")
