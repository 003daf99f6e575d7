"""Which teachers there are beside the short-term one: the settings of an outside teacher, and of the long-term one.

An outside teacher is a store that another run, or `record_predictions`, has made. Alone it makes a run offline
knowledge distillation (Hinton et al., 2015); with a store of an earlier run of the same model the run is a born-again
network (Furlanello et al., 2018).
"""

import os
from dataclasses import dataclass, field
from typing import get_args

from .teachers import LongTermTeacher

DEFAULT_OUTSIDE_WEIGHT = 0.5
LAST, MEAN_OF_EPOCHS = "last", "mean"


@dataclass
class TeacherArguments:
    """The part of `DistillationArguments` that says which teachers there are; see there."""

    long_term_teacher: LongTermTeacher = field(
        default="epoch",
        metadata={
            "help": "'epoch': the long-term teacher is one past epoch. 'ensemble': the running mean of all of them "
            "(temporal ensembling)."
        },
    )
    outside_teacher: str | None = field(
        default=None,
        metadata={
            "help": "A store of predictions that teaches as well: of `lstsd record`, or an earlier run's. It is only "
            "read."
        },
    )
    outside_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss that the outside teacher takes from the label. Default: "
            f"{DEFAULT_OUTSIDE_WEIGHT}, where there is one."
        },
    )
    outside_epoch: str = field(
        default=LAST,
        metadata={"help": "Which epoch of the outside teacher's store teaches: a number, 'last', or 'mean' of all."},
    )

    @property
    def outside_share(self) -> float:
        """The outside teacher's weight; 0 where there is none."""
        if self.outside_teacher is None:
            return 0.0
        return DEFAULT_OUTSIDE_WEIGHT if self.outside_weight is None else self.outside_weight

    def default_share(self, default_weight: float) -> float:
        """What a teacher of the run's own past weighs where the user says nothing: a part of what is left."""
        return default_weight * (1 - self.outside_share)

    def wrong_teacher(self) -> tuple[str, object, str] | None:
        """The first field that is not allowed: its name, what was found, what was expected; None: all are."""
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
