"""The settings that choose the long-term teacher and an outside teacher.

An outside teacher is a store made by another run or by `record_predictions`. A run with this teacher alone is offline
knowledge distillation (Hinton et al., 2015); if the store is that of an earlier run of the same model, it is a
born-again network (Furlanello et al., 2018).
"""

import os
from dataclasses import dataclass, field
from typing import get_args

from .teachers import LongTermTeacher

DEFAULT_OUTSIDE_WEIGHT = 0.5
LAST, MEAN_OF_EPOCHS = "last", "mean"


@dataclass
class TeacherArguments:
    """The part of `DistillationArguments` that chooses the teachers; its docstring explains the fields."""

    long_term_teacher: LongTermTeacher = field(
        default="epoch",
        metadata={
            "help": "'epoch': the long-term teacher is one past epoch. 'ensemble': it is the running mean of all past "
            "epochs (temporal ensembling)."
        },
    )
    outside_teacher: str | None = field(
        default=None,
        metadata={
            "help": "The folder of another store of predictions that also teaches, made by `lstsd record` or by an "
            "earlier run. It is only read."
        },
    )
    outside_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss that the outside teacher takes from the label. Default: "
            f"{DEFAULT_OUTSIDE_WEIGHT}, if there is one."
        },
    )
    outside_epoch: str = field(
        default=LAST,
        metadata={"help": "Which epoch of the outside teacher's store teaches: a number, 'last', or 'mean' (of all)."},
    )

    @property
    def outside_share(self) -> float:
        """The outside teacher's weight; 0 if there is none."""
        if self.outside_teacher is None:
            return 0.0
        return DEFAULT_OUTSIDE_WEIGHT if self.outside_weight is None else self.outside_weight

    def default_share(self, default_weight: float) -> float:
        """The weight of a teacher from the run's own past if the user set none: scaled by 1 - `outside_share`."""
        return default_weight * (1 - self.outside_share)

    def wrong_teacher(self) -> tuple[str, object, str] | None:
        """The first bad field: its name, the value found and what was expected; None if all are allowed."""
        if self.long_term_teacher not in get_args(LongTermTeacher):
            return "long_term_teacher", self.long_term_teacher, "one of 'epoch', 'ensemble'"
        path, weight, epoch = self.outside_teacher, self.outside_weight, self.outside_epoch
        if path is not None and not (isinstance(path, (str, os.PathLike)) and os.fspath(path)):
            return "outside_teacher", path, "the folder of a store of predictions, or None"
        if path is None and weight is not None:
            return "outside_weight", weight, "None without an outside_teacher. Name its store as outside_teacher"
        if path is None and epoch != LAST:
            return "outside_epoch", epoch, f"{LAST!r} without an outside_teacher. Name its store as outside_teacher"
        if weight is not None and (
            isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1
        ):
            return "outside_weight", weight, f"a number from 0 to 1, or None for {DEFAULT_OUTSIDE_WEIGHT}"
        if isinstance(epoch, bool) or not (epoch in (LAST, MEAN_OF_EPOCHS) or _is_epoch(str(epoch))):
            return "outside_epoch", epoch, f"the number of an epoch, {LAST!r} or {MEAN_OF_EPOCHS!r}"
        return None


def _is_epoch(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9
