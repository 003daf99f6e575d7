"""Which teachers a run has, which epoch each teaches in, and with what weight.

Long Short-Term Sample Distillation, Jiang et al., AAAI 2020 (arXiv 2003.00739). The two teachers and the single pass
are the paper's; the weights, their schedule and the mini-generation as `K` epochs are ours. Epochs count from 0.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

WeightSchedule = Literal["constant", "linear"]
TeacherTrust = Literal["constant", "confidence", "honest"]
LoneTeacher = Literal["label", "teacher"]
LongTermTeacher = Literal["epoch", "ensemble"]

# What a teacher may be read from: an epoch's predictions, their mean over epochs, or a statistic, by its name.
PREDICTIONS = "predictions"
MEAN = "mean of epochs"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Settings:
    """The settings in force, with values for what the user left open.

    The fields are explained in `DistillationArguments`.
    """

    mini_generation_epochs: int
    long_term_weight: float
    short_term_weight: float
    temperature: float
    weight_schedule: WeightSchedule
    teacher_trust: TeacherTrust
    lone_teacher: LoneTeacher
    long_term_teacher: LongTermTeacher = "epoch"
    outside_weight: float = 0.0


@dataclass(frozen=True)
class Teacher:
    """A source of past predictions.

    Attributes:
        name: Lower-case letters; names the teacher in the batch and in the log.
        epoch_of: Maps an epoch to the epoch whose predictions teach in it, or to None if there is none yet. A past
            epoch must begin to teach right after it ends and go on without a gap, because retention drops every epoch
            that does not teach in the next one.
        weight_of: Maps an epoch and the run's number of epochs to the teacher's share of the loss under full trust.
        store: The folder of another store; None: the run's own.
        track: What is read from the store: the epoch's predictions; the mean logits over all epochs; or the statistic
            of that name, whose first columns are those of a row.
        columns: For each class of the model, its column in the store's rows; None: the order is the same.
    """

    name: str
    epoch_of: Callable[[int], int | None]
    weight_of: Callable[[int, int], float]
    store: str | None = None
    track: str = PREDICTIONS
    columns: tuple[int, ...] | None = None

    def teaching_epoch(self, epoch: int, num_train_epochs: int) -> int | None:
        """The epoch that teaches in `epoch`; None if there is none, or if the weight is 0."""
        return self.epoch_of(epoch) if self.weight_of(epoch, num_train_epochs) else None


def long_term_epoch(epoch: int, mini_generation_epochs: int) -> int | None:
    """The last epoch of the previous mini-generation, `(epoch // K) * K - 1`; None in the first mini-generation."""
    last = epoch // mini_generation_epochs * mini_generation_epochs - 1
    return last if last >= 0 else None


def short_term_epoch(epoch: int) -> int | None:
    """The previous epoch; None in the first epoch."""
    return epoch - 1 if epoch >= 1 else None


@dataclass(frozen=True)
class OutsideSource:
    """Where an outside teacher's predictions are; the fields are those of `Teacher`. It teaches in every epoch."""

    store: str
    epoch: int
    track: str = PREDICTIONS
    columns: tuple[int, ...] | None = None


def teachers_of(settings: Settings, outside: OutsideSource | None = None) -> tuple[Teacher, ...]:
    """The long-term and the short-term teacher of a run with these settings, then the outside teacher if there is one.

    If the long-term teacher is the ensemble of all past epochs, it exists as soon as the short-term one.
    """
    k = settings.mini_generation_epochs
    is_ensemble = settings.long_term_teacher == "ensemble"

    def ramp(epoch: int, num_train_epochs: int) -> float:
        return (epoch + 1) / num_train_epochs if settings.weight_schedule == "linear" else 1.0

    def lends(epoch: int) -> bool:
        return epoch < k and settings.lone_teacher == "teacher" and not is_ensemble

    def long_term_weight(epoch: int, num_train_epochs: int) -> float:
        return 0.0 if lends(epoch) else settings.long_term_weight * ramp(epoch, num_train_epochs)

    def short_term_weight(epoch: int, num_train_epochs: int) -> float:
        lent = settings.long_term_weight if lends(epoch) else 0.0
        return (settings.short_term_weight + lent) * ramp(epoch, num_train_epochs)

    def outside_weight(epoch: int, num_train_epochs: int) -> float:
        return settings.outside_weight * ramp(epoch, num_train_epochs)

    if is_ensemble:
        long_term = Teacher("long_term", short_term_epoch, long_term_weight, track=ENSEMBLE)
    else:
        long_term = Teacher("long_term", lambda epoch: long_term_epoch(epoch, k), long_term_weight)
    own = (long_term, Teacher("short_term", short_term_epoch, short_term_weight))
    if outside is None:
        return own
    found = Teacher(
        "outside", lambda epoch: outside.epoch, outside_weight, outside.store, outside.track, outside.columns
    )
    return (*own, found)


def epochs_needed(teachers: Iterable[Teacher], epoch: int) -> set[int]:
    """The epochs of the run's own store that a teacher may use in `epoch` or later."""
    own = (teacher for teacher in teachers if teacher.store is None and teacher.track == PREDICTIONS)
    used = (teacher.epoch_of(epoch) for teacher in own)
    return {source for source in used if source is not None}
