"""The user's settings: `DistillationArguments`, and `LSTSDConfig`, which adds them to `TrainingArguments`."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from .method.heads import Classes, ProblemType, Scores
from .method.many_rows import ManyRows, Vocabulary
from .method.outside import TeacherArguments
from .method.teachers import LoneTeacher, Settings, TeacherTrust, WeightSchedule
from .paths import LOGITS_FOLDER

LogitsDtype = Literal["float16", "float32"]
LogitsRetention = Literal["needed", "all"]

_CHOICES = {
    "weight_schedule": get_args(WeightSchedule),
    "teacher_trust": (None, *get_args(TeacherTrust)),
    "lone_teacher": get_args(LoneTeacher),
    "logits_dtype": get_args(LogitsDtype),
    "logits_retention": (None, *get_args(LogitsRetention)),
    "problem_type": (None, *get_args(ProblemType)),
    # The text "false" would count as true.
    **dict.fromkeys(("push_logits", "resume_without_logits", "accept_new_labels"), (False, True)),
}
# Beyond these the square of a temperature, or a quotient by it, may be infinite.
_TEMPERATURES = (1e-6, 1e6)


def _refuse(name: str, found: object, allowed: str) -> ValueError:
    return ValueError(f"{name}={found!r} is not allowed: expected {allowed}.")


@dataclass
class DistillationArguments(TeacherArguments):
    """The settings of Long Short-Term Sample Distillation, to be added to the training arguments of any trainer.

    ```python
    @dataclass
    class MyConfig(DistillationArguments, SomeConfig): ...
    ```

    Such a class checks every setting. By default a teacher counts by how sure it is, so that teachers which have
    learnt nothing hold no model back. Where labels look wrong, a classifier learns from the label and from its own
    earlier predictions together. The teachers of a regression always count in full. The weights that suit classes held
    a regression back, so its default weights are smaller. Tokens and spans also did better with smaller weights.

    Attributes:
        mini_generation_epochs: K, the number of epochs in a mini-generation. Default: 2.
        long_term_weight: The long-term teacher's share of the loss, from 0 to 1. None: 0.4; for tokens and spans 0.2;
            for a regression or a language model 0.1.
        short_term_weight: The short-term teacher's share, with the same defaults. All shares add up to at most 1.
        temperature: Softens both sides of the divergence. From 1e-6 to 1e6. Default: 1.
        weight_schedule: "constant", or "linear": the weights grow from epoch to epoch. Default: "constant".
        teacher_trust: "confidence": a teacher counts by how sure it is. "constant": it counts in full. "honest": as
            "confidence", and labels are smoothed as far as the model claims more than it can do; where labels look
            wrong, the model learns from the label and from its own earlier predictions together, each weighted by
            how often it is right; see `method.honest`. None: "honest" for one class for each sample, labels known
            before training, samples in random order, and no outside teacher; otherwise "confidence".
        lone_teacher: What gets the long-term teacher's weight until that teacher exists: the "label" (default), or
            the short-term "teacher".
        problem_type: "regression", "single_label_classification", "multi_label_classification",
            "token_classification", "question_answering", "causal_lm", "seq2seq_lm", "masked_lm". None: what the
            model's class or config says, else a guess from the labels.
        sample_id_column: The training set's column of integer ids. Default: "sample_id".
        logits_dir: The folder of the logits store. None: `<output_dir>/_logits`.
        logits_dtype: "float16" (default) or "float32".
        logits_top_k: For a language model, how many classes to keep for each predicted token. Default: 8.
        logits_retention: "needed": keep the epochs that can still teach. "all": keep every epoch, with which the
            report finds wrong labels better. None: "all" if the whole history takes at most `history_budget` bytes.
        history_budget: How many bytes the history may take if `logits_retention` is None. Default: 256 MiB.
        num_samples: The largest sample id plus 1, for a streamed training set.
        push_logits: Whether to upload the store with the model. Default: False.
        resume_without_logits: Whether to resume from a checkpoint that holds no store. Default: False.
        accept_new_labels: Whether to resume after the labels, and nothing else, were corrected. Default: False.
        long_term_teacher: "epoch" (default): one past epoch. "ensemble": the running mean of all past epochs.
        outside_teacher: The folder of another store of predictions that also teaches, made by `record_predictions` or
            by an earlier run. It is only read. None: no outside teacher.
        outside_weight: The outside teacher's share of the loss, from 0 to 1. None: 0.5. With an outside teacher, the
            default weights of the other two are multiplied by 1 minus this share.
        outside_epoch: Which epoch of its store teaches: a number, "last" (default), or "mean", the mean logits of all.

    Raises:
        TypeError: a subclass is defined with another config before this one in its bases.
        ValueError: a field is out of range, or `logits_dir` lies inside `output_dir` under a name without a leading
            underscore, which `push_to_hub` would upload.
    """

    mini_generation_epochs: int = field(
        default=2,
        metadata={
            "help": "K, the number of epochs in a mini-generation. The long-term teacher is the last epoch of the "
            "previous mini-generation, so it teaches from epoch K on (epochs count from 0)."
        },
    )
    long_term_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss that the long-term teacher takes from the label. 0 turns it off. Default: "
            f"{Classes.default_weight}; {ManyRows.default_weight} for tokens and spans, {Scores.default_weight} for a "
            f"regression, {Vocabulary.default_weight} for a language model."
        },
    )
    short_term_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss that the short-term teacher takes from the label. 0 turns it off. Default: "
            f"{Classes.default_weight}; {ManyRows.default_weight} for tokens and spans, {Scores.default_weight} for a "
            f"regression, {Vocabulary.default_weight} for a language model."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Softens both sides of the divergence, which is multiplied by temperature^2. 1e-6 to 1e6."},
    )
    weight_schedule: WeightSchedule = field(
        default="constant",
        metadata={"help": "'linear': the weights are multiplied by (epoch + 1) / epochs. 'constant': they stay."},
    )
    teacher_trust: TeacherTrust | None = field(
        default=None,
        metadata={
            "help": "'confidence': a teacher counts by 1 - its entropy / log(classes), so one that has learned "
            "nothing teaches nothing. 'constant': every teacher counts in full. 'honest': as 'confidence', with "
            "labels smoothed as far as the model claims more than it can do; where labels look wrong, the model "
            "learns from the label and from its own earlier predictions together, each weighted by how often it is "
            "right. Default: 'honest' for one class for each sample, labels known before training, samples in random "
            "order, and no outside teacher; otherwise 'confidence'."
        },
    )
    lone_teacher: LoneTeacher = field(
        default="label",
        metadata={
            "help": "Until the long-term teacher exists, its weight goes to the 'label', or to the short-term "
            "'teacher'."
        },
    )
    problem_type: ProblemType | None = field(
        default=None,
        metadata={
            "help": "What the logits stand for. Default: what the model's class or config says, else a guess from the "
            "labels. Set it for soft labels (single_label_classification), for several scores per sample "
            "(regression), and for one logit with binary cross-entropy (multi_label_classification)."
        },
    )
    sample_id_column: str = field(
        default="sample_id",
        metadata={"help": "The training set's column of integer ids. It is added if the training set has none."},
    )
    logits_dir: str | None = field(
        default=None, metadata={"help": f"The folder of the logits store. Default: <output_dir>/{LOGITS_FOLDER}."}
    )
    logits_dtype: LogitsDtype = field(
        default="float16", metadata={"help": "How predictions are stored: 'float16' or 'float32'."}
    )
    logits_top_k: int = field(
        default=8,
        metadata={
            "help": "For a language model: how many classes of the vocabulary to keep for each predicted token, "
            "beside the total probability of all others."
        },
    )
    logits_retention: LogitsRetention | None = field(
        default=None,
        metadata={
            "help": "'needed': keep the epochs that can still teach. 'all': keep every epoch, for the report. "
            "Default: all, if the whole history takes at most history_budget bytes."
        },
    )
    history_budget: int = field(
        default=256 << 20,
        metadata={"help": "How many bytes the history may take if logits_retention is not set."},
    )
    num_samples: int | None = field(
        default=None,
        metadata={"help": "The largest sample id plus 1. Needed for a streamed training set, which cannot tell it."},
    )
    push_logits: bool = field(
        default=False,
        metadata={
            "help": f"Upload the logits store with the model, to {LOGITS_FOLDER}/ of the repo, at each push_to_hub() "
            "and save_model(). It holds the training labels too."
        },
    )
    resume_without_logits: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint that holds no logits store. At first there are no teachers."},
    )
    accept_new_labels: bool = field(
        default=False,
        metadata={
            "help": "Resume if the labels of the training set, and nothing else, have changed. Predictions of the "
            "model that had learnt the old labels go on teaching. The store notes the change."
        },
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(DistillationArguments)]
        others = (base for base in before if issubclass(base, TrainingArguments))
        hides = next((base for base in others if not issubclass(base, DistillationArguments)), None)
        if hides is not None:
            raise TypeError(
                f"class {cls.__name__}: {hides.__name__} stands before DistillationArguments, so no setting would be "
                f"checked: expected it behind. Write\n\n    class {cls.__name__}(DistillationArguments, "
                f"{hides.__name__}): ...\n"
            )

    def __post_init__(self) -> None:
        # In `class C(DistillationArguments, SomeConfig)` the other class has a __post_init__; alone there is none.
        if isinstance(self, TrainingArguments):
            super().__post_init__()  # type: ignore[misc]
            self.check()
            self.outside_teacher = self.outside_teacher and os.path.expanduser(self.outside_teacher)
            if self.logits_dir is None or isinstance(self.logits_dir, DefaultFolder):
                self.logits_dir = DefaultFolder(os.path.join(str(self.output_dir), LOGITS_FOLDER))
            else:
                self.logits_dir = os.path.expanduser(self.logits_dir)  # as the Trainer does with output_dir
                check_logits_dir(self.logits_dir, str(self.output_dir))
        else:
            self.check()

    def resolve(self, default_weight: float) -> Settings:
        """The settings in force for a head whose teachers weigh `default_weight` each unless the user set a weight."""
        share = self.default_share(default_weight)
        long_term, short_term = (share if weight is None else weight for weight in self._weights())
        return Settings(
            mini_generation_epochs=self.mini_generation_epochs,
            long_term_weight=long_term,
            short_term_weight=short_term,
            temperature=self.temperature,
            weight_schedule=self.weight_schedule,
            teacher_trust=self.teacher_trust or "confidence",
            lone_teacher=self.lone_teacher,
            long_term_teacher=self.long_term_teacher,
            outside_weight=self.outside_share,
        )

    def _weights(self) -> tuple[float | None, float | None]:
        return self.long_term_weight, self.short_term_weight

    def check(self) -> None:
        """Raises ValueError for a bad field, naming it, the value found and what is allowed.

        Called when the arguments are created, and again by the trainer in `train()`, because a hyper-parameter search
        sets fields one by one.
        """
        for name in ("mini_generation_epochs", "logits_top_k"):
            k = getattr(self, name)
            if isinstance(k, bool) or not isinstance(k, int) or k < 1:
                raise _refuse(name, k, "an integer of at least 1")
        wrong = self.wrong_teacher()
        if wrong is not None:
            raise _refuse(*wrong)
        share = self.default_share(Classes.default_weight)
        given = (share if weight is None else weight for weight in self._weights())
        weights = dict(zip(("long_term_weight", "short_term_weight"), given, strict=True))
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
                raise _refuse(name, weight, "a number from 0 to 1, or None for the default")
        weights |= {"outside_weight": self.outside_share} if self.outside_teacher else {}
        total = sum(weights.values())
        if total > 1 + 1e-9:  # 0.9 + 0.1 is allowed, however floats round
            all_of_them = " and ".join(f"{name}={weight}" for name, weight in weights.items())
            raise ValueError(
                f"{all_of_them} add up to {total:.6g}: expected at most 1, because the label keeps what they leave."
            )
        tau = self.temperature
        least, most = _TEMPERATURES
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not least <= tau <= most:
            raise _refuse("temperature", tau, f"a finite number above 0: {least:g} to {most:g}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise _refuse(name, getattr(self, name), "one of " + ", ".join(map(repr, allowed)))
        if not (self.logits_dir is None or (isinstance(self.logits_dir, (str, os.PathLike)) and str(self.logits_dir))):
            raise _refuse("logits_dir", self.logits_dir, "a folder for the store alone, or None")
        budget = self.history_budget
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise _refuse("history_budget", budget, "a number of bytes, an integer of at least 0")
        if not isinstance(self.sample_id_column, str) or not self.sample_id_column:
            raise _refuse("sample_id_column", self.sample_id_column, "the name of a column")
        n = self.num_samples
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise _refuse("num_samples", n, "an integer of at least 1, or None")


@dataclass
class LSTSDConfig(DistillationArguments, TrainingArguments):
    """`transformers.TrainingArguments` with the settings of Long Short-Term Sample Distillation.

    Takes every argument of `TrainingArguments`, and every attribute of `DistillationArguments`, whose docstring
    explains them and says what is refused.
    """


class DefaultFolder(str):
    """The `logits_dir` that was not given. It follows `output_dir`, also if that is set later or replaced."""


def check_logits_dir(logits_dir: str, output_dir: str) -> None:
    """Raises ValueError if the store would be the root, or if a push of `output_dir` to the Hub would upload it."""
    if not os.path.basename(os.path.realpath(logits_dir)):
        raise ValueError(
            f"logits_dir={logits_dir!r} is the root of all folders: expected a folder for the store alone, such as "
            f"{os.path.join(output_dir, LOGITS_FOLDER)!r}."
        )
    inside = os.path.relpath(os.path.realpath(logits_dir), os.path.realpath(output_dir))
    first = inside.split(os.sep)[0]
    if first != os.pardir and not first.startswith("_"):
        raise ValueError(
            f"logits_dir={logits_dir!r} lies inside output_dir={output_dir!r} under {first!r}: expected a name that "
            "starts with '_', because a push to the Hub uploads everything else in output_dir. Use "
            f"{os.path.join(output_dir, LOGITS_FOLDER)!r}, or a folder outside of output_dir."
        )
