"""Which epochs teach, and with what weight, against tables written by hand."""

from typing import Any

import pytest

from lstsd_hf.config import DistillationArguments
from lstsd_hf.method.teachers import (
    Teacher,
    epochs_needed,
    long_term_epoch,
    short_term_epoch,
    teachers_of,
)


def teachers(**changes: Any) -> tuple[Teacher, ...]:
    return teachers_of(DistillationArguments(**changes).resolve(0.4))


def weights(chosen: tuple[Teacher, ...], epoch: int, num_train_epochs: int) -> tuple[float, ...]:
    return tuple(teacher.weight_of(epoch, num_train_epochs) for teacher in chosen)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [(None, None), (0, 0), (1, 1), (2, 2)]),
        (2, [(None, None), (None, 0), (1, 1), (1, 2), (3, 3), (3, 4), (5, 5)]),
        (3, [(None, None), (None, 0), (None, 1), (2, 2), (2, 3), (2, 4), (5, 5)]),
    ],
)
def test_timetable(k, expected):
    assert [(long_term_epoch(epoch, k), short_term_epoch(epoch)) for epoch in range(len(expected))] == expected
    found = teachers(mini_generation_epochs=k)
    assert [tuple(teacher.epoch_of(epoch) for teacher in found) for epoch in range(len(expected))] == expected


def test_linear_weights_reach_their_full_size_in_the_last_epoch():
    found = teachers(long_term_weight=0.2, short_term_weight=0.6, weight_schedule="linear")
    for epoch, ramp in enumerate((0.25, 0.5, 0.75, 1.0)):
        assert weights(found, epoch, 4) == pytest.approx((0.2 * ramp, 0.6 * ramp))


@pytest.mark.parametrize(
    ("lone_teacher", "before", "after"), [("label", (0.3, 0.5), (0.3, 0.5)), ("teacher", (0.0, 0.8), (0.3, 0.5))]
)
def test_the_lone_teacher_may_borrow_its_partners_weight(lone_teacher, before, after):
    found = teachers(mini_generation_epochs=3, long_term_weight=0.3, short_term_weight=0.5, lone_teacher=lone_teacher)
    assert weights(found, 2, 9) == pytest.approx(before)
    assert weights(found, 3, 9) == pytest.approx(after)


def test_a_teacher_that_weighs_nothing_does_not_teach():
    long_term, short_term = teachers(long_term_weight=0.0)
    assert [long_term.teaching_epoch(epoch, 4) for epoch in range(4)] == [None] * 4
    assert [short_term.teaching_epoch(epoch, 4) for epoch in range(4)] == [None, 0, 1, 2]


def test_the_teachers_have_the_names_that_the_batch_and_the_log_use():
    assert [teacher.name for teacher in teachers()] == ["long_term", "short_term"]


def test_epochs_needed_are_those_of_the_runs_own_store():
    found = teachers(mini_generation_epochs=3)
    assert [epochs_needed(found, epoch) for epoch in range(6)] == [set(), {0}, {1}, {2}, {2, 3}, {2, 4}]
    of_another_store = Teacher("other", lambda epoch: epoch, lambda epoch, epochs: 0.1, store="elsewhere")
    assert epochs_needed([of_another_store], 4) == set()
