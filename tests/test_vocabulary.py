"""Distillation over a vocabulary, against the same computation with full tensors."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lstsd_hf.method import vocabulary
from lstsd_hf.method.vocabulary import TopK, confidence, student_events, vocabulary_terms

V, K = 50, 4


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def top_k(logits: torch.Tensor, positions: torch.Tensor, k: int) -> TopK:
    """The k largest classes, as they are recorded where there is no teacher yet."""
    return student_events(logits, positions, torch.empty(0, len(positions), k, dtype=torch.int64), k)[1]


@pytest.fixture(autouse=True, params=[1 << 22, 3 * V], ids=["one chunk", "chunks of three"])
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(vocabulary, "_VALUES_AT_ONCE", request.param)


def test_top_k_keeps_the_classes_and_the_rest():
    logits, positions = draw(9, V).float(), torch.tensor([8, 0, 3, 4, 1])
    found = top_k(logits, positions, K)
    everything = F.log_softmax(logits, dim=1)[positions]
    values, classes = everything.topk(K, dim=1)
    torch.testing.assert_close(found.log_probabilities, values)
    assert torch.equal(found.classes, classes)
    rest = everything.exp().scatter(1, classes, 0.0).sum(dim=1).log()
    torch.testing.assert_close(found.log_rest, rest)


def test_a_rest_that_a_difference_would_lose_is_right():
    logits = torch.zeros(1, V)
    logits[0, :K] = 60.0
    found = top_k(logits, torch.tensor([0]), K)
    exact = math.log(V - K) - 60.0 - math.log(K)  # of the order of e^-58, far below float32's steps at 1
    assert found.log_rest.item() == pytest.approx(exact, rel=1e-5)


def dense_events(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(dim=-1)
    rest = p.scatter(1, classes, 0.0).sum(dim=1, keepdim=True)
    return torch.cat([p.gather(1, classes), rest], dim=1).log()


def test_events_and_their_gradient():
    """Two teachers name different classes; positions are out of order, and some are left out."""
    positions = torch.tensor([6, 2, 5, 0])
    classes = torch.stack([draw(4, V, seed=seed).topk(K, dim=1).indices for seed in (1, 2)])
    weights = draw(2, 4, K + 1, seed=3)
    grads = []
    for dense in (True, False):
        logits = draw(8, V).float().requires_grad_()
        if dense:
            events = torch.stack([dense_events(logits.double()[positions], named) for named in classes])
        else:
            events, own = student_events(logits, positions, classes, K)
            assert torch.equal(own.classes, logits[positions].topk(K, dim=1).indices)
        (events * weights).sum().backward()
        grads.append((events.detach().double(), logits.grad))
    torch.testing.assert_close(grads[1][0], grads[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[1][1], grads[0][1], atol=1e-4, rtol=1e-4)
    assert not grads[1][1][[1, 3, 4, 7]].any()


@pytest.mark.parametrize("gap", [10.0, 20.0, 40.0, 75.0])
def test_the_gradient_of_a_student_that_is_sure_is_exact(gap):
    """The mass of the rest is down to e^-75. Both teachers name the sure class, and other ones beside it."""
    positions, weights = torch.arange(4), draw(2, 4, K + 1, seed=3)
    sure = torch.zeros(4, V)
    sure[:, 5] = gap
    classes = torch.stack([(draw(4, V, seed=seed) + sure).topk(K, dim=1).indices for seed in (1, 2)])
    logits = (draw(4, V, scale=1.0).float() + sure).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    (student_events(logits, positions, classes, K)[0] * weights).sum().backward()
    (torch.stack([dense_events(exact, named) for named in classes]) * weights).sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gap", [95.0, 1e4])
def test_a_rest_without_mass_leaves_the_loss_and_its_gradient_finite(gap):
    logits = draw(3, V).float()
    teacher = of_teacher(logits)
    student = logits.clone()
    student[torch.arange(3), teacher.classes[0, :, 0]] += gap
    student.requires_grad_()
    terms, own = vocabulary_terms(student, torch.arange(3), teacher, 1.0, "confidence", K)
    terms.divergence.sum().backward()
    assert terms.divergence.isfinite().all()
    assert student.grad.isfinite().all()
    assert own.log_rest.isfinite().all(), "it could not be recorded"


def of_teacher(logits: torch.Tensor, k: int = K) -> TopK:
    """The k most probable classes of (R, V) logits, with an axis for one teacher."""
    return TopK(*(field[None] for field in top_k(logits, torch.arange(len(logits)), k)))


def test_the_divergence_is_zero_only_where_they_agree():
    logits, positions = draw(5, V).float().requires_grad_(), torch.arange(5)
    same, _ = vocabulary_terms(logits, positions, of_teacher(logits.detach()), 1.0, "constant", K)
    torch.testing.assert_close(same.divergence, torch.zeros(1, 5), atol=1e-6, rtol=0)
    assert same.agreement.tolist() == [[1.0] * 5]
    other, _ = vocabulary_terms(logits, positions, of_teacher(draw(5, V, seed=9).float()), 1.0, "constant", K)
    assert (other.divergence > 0.1).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_that_of_the_events(temperature):
    logits, teacher = draw(5, V).float(), draw(5, V, seed=1).float()
    classes = teacher.topk(K, dim=1).indices
    log_q, log_p = (dense_events(x.double(), classes) / temperature for x in (teacher, logits))
    log_q, log_p = log_q.log_softmax(dim=1), log_p.log_softmax(dim=1)
    expected = temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim=1)
    positions = torch.arange(5)
    found, _ = vocabulary_terms(logits.requires_grad_(), positions, of_teacher(teacher), temperature, "constant", K)
    torch.testing.assert_close(found.divergence[0].double(), expected, atol=1e-4, rtol=1e-4)


def test_with_all_classes_but_one_it_is_the_divergence_of_the_vocabulary():
    logits, teacher = draw(5, V).float(), draw(5, V, seed=1).float()
    expected = F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="none").sum(1)
    positions = torch.arange(5)
    found, _ = vocabulary_terms(logits, positions, of_teacher(teacher, V - 1), 1.0, "constant", V - 1)
    torch.testing.assert_close(found.divergence[0], expected, atol=1e-5, rtol=1e-4)


def test_an_absent_teacher_has_no_trust_and_no_gradient():
    logits, positions = draw(3, V).float().requires_grad_(), torch.arange(3)
    teacher = of_teacher(draw(3, V, seed=1).float())
    teacher.log_probabilities[0, 1], teacher.log_rest[0, 1], teacher.classes[0, 1] = torch.nan, torch.nan, 0
    terms, _ = vocabulary_terms(logits, positions, teacher, 1.0, "confidence", K)
    assert terms.present.tolist() == [[1.0, 0.0, 1.0]]
    assert terms.trust[0, 1] == 0
    (terms.trust * terms.divergence).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[1].any()


def test_a_teacher_that_knows_nothing_is_not_trusted():
    even = of_teacher(torch.zeros(1, V))
    log_q = torch.cat([even.log_probabilities, even.log_rest[..., None]], dim=-1)
    assert confidence(log_q, V).item() == pytest.approx(0.0, abs=1e-6)
    sure = torch.full((1, V), -30.0)
    sure[0, 7] = 30.0
    teacher = of_teacher(sure)
    log_q = torch.cat([teacher.log_probabilities, teacher.log_rest[..., None]], dim=-1)
    assert confidence(log_q, V).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("classes", "k"), [(2048, 4), (2049, 3), (5000, 8), (300, 8), (4 * 128 * 8 + 127, 8)])
def test_the_largest_are_those_of_topk(classes, k):
    """The largest values lie in one block, after the last whole block, or anywhere."""
    rows = draw(6, classes, seed=4).float()
    rows[0, 128 : 128 + k] += 100
    rows[1, -k:] += 100
    rows[2, [0, classes - 1]] += 100
    values, found = vocabulary.largest_of(rows, k)
    expected = rows.topk(k, dim=1)
    torch.testing.assert_close(values, expected.values, atol=0, rtol=0)
    assert torch.equal(found, expected.indices)


@pytest.mark.parametrize("named", [2, 4, 7])
def test_the_rest_of_a_teacher_is_right_however_small(named):
    """Against float64: teachers name the student's largest classes, its smallest, or the largest after the first."""
    logits = draw(5, V, seed=5).float()
    logits[0, :K] += 60  # the rest is of the order of e^-60
    logits[1, 10:12] += 40
    order = logits.argsort(dim=1, descending=True)
    classes = torch.stack([order[:, :named], order[:, -named:], order[:, 1 : named + 1]])
    events, _ = student_events(logits, torch.arange(5), classes, K)
    for found, of_teacher in zip(events, classes, strict=True):
        expected = dense_events(logits.double(), of_teacher)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
