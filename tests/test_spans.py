"""Start and end distributions over a feature's own positions, against a softmax for each feature."""

import pytest
import torch

from lstsd_hf.method.spans import span_log_probabilities, span_terms

LENGTHS = [3, 5, 1]
SAMPLES = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def features(rows: torch.Tensor) -> list[torch.Tensor]:
    return list(rows.split(LENGTHS))


def test_each_feature_has_its_own_softmax():
    rows = draw(9, 2)
    expected = torch.cat([part.log_softmax(dim=0) for part in features(rows)])
    torch.testing.assert_close(span_log_probabilities(rows, SAMPLES, 3), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_terms(temperature):
    student, teachers = draw(9, 2).requires_grad_(), draw(2, 9, 2, seed=1)
    found = span_terms(student, teachers, SAMPLES, 3, temperature, "confidence")
    for t, teacher in enumerate(teachers):
        pairs = zip(features(student), features(teacher), strict=True)
        for i, (p, q) in enumerate(pairs):
            log_p, log_q = (p / temperature).log_softmax(0), (q / temperature).log_softmax(0)
            expected = temperature**2 * (log_q.exp() * (log_q - log_p)).sum(0).mean()
            torch.testing.assert_close(found.divergence[t, i], expected)
            log_q = q.log_softmax(0)
            entropy = -(log_q.exp() * log_q).sum(0)
            sure = (1 - entropy / torch.tensor(float(max(len(q), 2))).log()).mean()
            torch.testing.assert_close(found.trust[t, i], sure)
            same = ((p.argmax(0) == q.argmax(0)).float()).mean()
            torch.testing.assert_close(found.agreement[t, i], same)
    torch.testing.assert_close(found.present, torch.ones(2, 3))


def test_the_gradient_is_that_of_the_softmaxes():
    grads = []
    teacher = draw(1, 9, 2, seed=1)
    for ours in (True, False):
        student = draw(9, 2).requires_grad_()
        if ours:
            span_terms(student, teacher, SAMPLES, 3, 1.0, "constant").divergence.sum().backward()
        else:
            for p, q in zip(features(student), features(teacher[0]), strict=True):
                log_p, log_q = p.log_softmax(0), q.log_softmax(0)
                (log_q.exp() * (log_q - log_p)).sum(0).mean().backward(retain_graph=True)
        grads.append(student.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-5)


def test_a_feature_without_a_teacher_has_none():
    student, teachers = draw(9, 2).requires_grad_(), draw(1, 9, 2, seed=1)
    teachers[0, 3:8] = torch.nan
    found = span_terms(student, teachers, SAMPLES, 3, 1.0, "confidence")
    assert found.present.tolist() == [[1.0, 0.0, 1.0]]
    assert found.trust[0, 1] == 0
    (found.trust * found.divergence).sum().backward()
    assert torch.isfinite(student.grad).all()
    assert not student.grad[3:8].any()
