"""The settings of the method: `LSTSDConfig`, a checked `TrainingArguments`."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

WeightSchedule = Literal["constant", "linear"]
TeacherTrust = Literal["constant", "confidence"]
LoneTeacher = Literal["label", "teacher"]
LogitsDtype = Literal["float16", "float32"]
LogitsRetention = Literal["needed", "all"]

LOGITS_FOLDER = "_logits"
REPORT_FOLDER = "_report"
# What a push to the Hub leaves out, for the underscore in front.
PRIVATE_FOLDERS = (LOGITS_FOLDER, REPORT_FOLDER)

# The teachers' weights where none are given.
DEFAULT_WEIGHT = 0.4
DEFAULT_WEIGHT_REGRESSION = 0.1

_WEIGHTS = ("long_term_weight", "short_term_weight")
_CHOICES = {
    "weight_schedule": get_args(WeightSchedule),
    "teacher_trust": get_args(TeacherTrust),
    "lone_teacher": get_args(LoneTeacher),
    "logits_dtype": get_args(LogitsDtype),
    "logits_retention": get_args(LogitsRetention),
}


def checkpoints_of(output_dir: str | os.PathLike[str]) -> list[Path]:
    """A run's folders `checkpoint-<step>`, the newest first."""
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {int(number): path for path in folders if (number := path.name.rpartition("-")[2]).isdecimal()}
    return [path for _, path in sorted(steps.items(), reverse=True)]


def _refuse(name: str, found: object, allowed: str) -> ValueError:
    return ValueError(f"{name}={found!r} is not allowed: expected {allowed}.")


@dataclass
class DistillationArguments:
    """What Long Short-Term Sample Distillation adds to the training arguments.

    `LSTSDTrainer` uses this class alone, with its defaults, beside a plain `TrainingArguments`. The defaults are for
    labels that are mostly right: with classes accuracy rose a little in all ten pairs of runs of the README's table,
    and no model was held back before it had learnt, because a teacher counts by how sure it is. Where many labels are
    wrong a teacher is as unsure as one that has learnt nothing: `teacher_trust="constant"`, with a learning rate that
    starts anew with each mini-generation, protects better there. The teachers of a regression always count in full,
    and held it back with the weights that are good for classes, so it has smaller ones: a weight that is None becomes
    a number when the trainer knows the problem.
    """

    mini_generation_epochs: int = field(
        default=2,
        metadata={
            "help": "K, the number of epochs in a mini-generation. The long-term teacher is the last epoch of the "
            "mini-generation before, so it teaches from epoch K on (epochs count from 0)."
        },
    )
    long_term_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss that the long-term teacher takes from the label. 0 is off. Default: "
            f"{DEFAULT_WEIGHT}, and {DEFAULT_WEIGHT_REGRESSION} for a regression."
        },
    )
    short_term_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss that the short-term teacher takes from the label. 0 is off. Default: "
            f"{DEFAULT_WEIGHT}, and {DEFAULT_WEIGHT_REGRESSION} for a regression."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Softens both sides of the divergence, which is multiplied by its square. Above 0."},
    )
    weight_schedule: WeightSchedule = field(
        default="constant",
        metadata={"help": "'linear': the weights grow by epoch, (epoch + 1) / epochs. 'constant': they stay."},
    )
    teacher_trust: TeacherTrust = field(
        default="confidence",
        metadata={
            "help": "'confidence': a teacher counts by 1 - its entropy / log(classes), so one that has learned "
            "nothing teaches nothing. 'constant': every teacher counts in full."
        },
    )
    lone_teacher: LoneTeacher = field(
        default="label",
        metadata={
            "help": "Who gets the long-term teacher's weight in the epochs before it exists: the 'label', or the "
            "short-term 'teacher'."
        },
    )
    sample_id_column: str = field(
        default="sample_id",
        metadata={"help": "The training set's column of integer ids. Added where the training set has none."},
    )
    logits_dir: str | None = field(
        default=None, metadata={"help": f"The folder of the logits store. Default: <output_dir>/{LOGITS_FOLDER}."}
    )
    logits_dtype: LogitsDtype = field(
        default="float16", metadata={"help": "How predictions are stored: 'float16' or 'float32'."}
    )
    logits_retention: LogitsRetention = field(
        default="needed",
        metadata={"help": "'needed': keep the epochs that can still teach. 'all': keep every epoch, for the report."},
    )
    num_samples: int | None = field(
        default=None,
        metadata={"help": "The largest sample id plus 1, where the training set cannot tell: a streamed one."},
    )
    push_logits: bool = field(
        default=False,
        metadata={
            "help": "Upload the logits store, which holds the training labels too, with the model: to "
            f"{LOGITS_FOLDER}/ of the repo, at each push_to_hub() and save_model()."
        },
    )
    resume_without_logits: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint that holds no logits store: train on without teachers at first."},
    )

    def fill_weights(self, is_regression: bool) -> None:
        """Gives the teachers' weights that are None their default."""
        for name in _WEIGHTS:
            if getattr(self, name) is None:
                setattr(self, name, DEFAULT_WEIGHT_REGRESSION if is_regression else DEFAULT_WEIGHT)

    def check(self) -> None:
        """Raises ValueError, naming the field, the value found and what is allowed.

        `LSTSDConfig` calls it when it is made; the trainer calls it again at `train()`, because a hyper-parameter
        search sets fields one by one.
        """
        k = self.mini_generation_epochs
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise _refuse("mini_generation_epochs", k, "an integer of at least 1")
        weights = {name: DEFAULT_WEIGHT if getattr(self, name) is None else getattr(self, name) for name in _WEIGHTS}
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
                raise _refuse(name, weight, "a number from 0 to 1, or None for the default")
        total = sum(weights.values())
        if total > 1 + 1e-9:  # 0.9 + 0.1 is allowed, however the binary fractions round
            given = " and ".join(f"{name}={weight}" for name, weight in weights.items())
            raise ValueError(
                f"{given} add up to {total:.6g}: expected at most 1, because the label keeps what they leave."
            )
        tau = self.temperature
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0 < tau < math.inf:
            raise _refuse("temperature", tau, "a finite number above 0")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise _refuse(name, getattr(self, name), "one of " + ", ".join(map(repr, allowed)))
        if not isinstance(self.sample_id_column, str) or not self.sample_id_column:
            raise _refuse("sample_id_column", self.sample_id_column, "the name of a column")
        if self.num_samples is not None and (
            isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int) or self.num_samples < 1
        ):
            raise _refuse("num_samples", self.num_samples, "an integer of at least 1, or None")


@dataclass
class LSTSDConfig(DistillationArguments, TrainingArguments):
    """`transformers.TrainingArguments` with the settings of Long Short-Term Sample Distillation.

    Takes every argument of `TrainingArguments`, and those of `DistillationArguments`, which explain themselves in
    `lstsd glue --help`. `logits_dir` becomes `<output_dir>/_logits` where it is not given.

    Raises:
        ValueError: a field is out of its range, or `logits_dir` lies inside `output_dir` under a name without a
            leading underscore, which `push_to_hub` would upload.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        output_dir = str(self.output_dir)  # typed as optional, and never None by now
        if self.logits_dir is None:
            self.logits_dir = os.path.join(output_dir, LOGITS_FOLDER)
        check_logits_dir(self.logits_dir, output_dir)


def check_logits_dir(logits_dir: str, output_dir: str) -> None:
    """Raises ValueError where a push of `output_dir` to the Hub would take the store with it."""
    inside = os.path.relpath(os.path.realpath(logits_dir), os.path.realpath(output_dir))
    first = inside.split(os.sep)[0]
    if first != os.pardir and not first.startswith("_"):
        raise ValueError(
            f"logits_dir={logits_dir!r} lies inside output_dir={output_dir!r} under {first!r}: expected a name that "
            "starts with '_', because a push to the Hub uploads everything else in output_dir. Use "
            f"{os.path.join(output_dir, LOGITS_FOLDER)!r}, or a folder outside of output_dir."
        )
