"""What the user sets: `DistillationArguments`, and `LSTSDConfig`, which adds them to `TrainingArguments`."""

import math
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
}


def _refuse(name: str, found: object, allowed: str) -> ValueError:
    return ValueError(f"{name}={found!r} is not allowed: expected {allowed}.")


@dataclass
class DistillationArguments(TeacherArguments):
    """What Long Short-Term Sample Distillation adds to the training arguments of any trainer.

    ```python
    @dataclass
    class MyConfig(DistillationArguments, SomeConfig): ...
    ```

    has every check. With the defaults a teacher counts by how sure it is, so no model is held back before it has
    learnt; and where labels look wrong, what the model said of them before takes their place. The teachers of a
    regression always count in full, and held it back with the weights that are good for classes, so their default is
    smaller; and smaller weights were better for tokens and spans.

    Attributes:
        mini_generation_epochs: K, the number of epochs in a mini-generation. 2.
        long_term_weight: The long-term teacher's share of the loss, 0 to 1. None: 0.4; of tokens and spans 0.2, of a
            regression and a language model 0.1.
        short_term_weight: The short-term teacher's, likewise. Both together at most 1.
        temperature: Softens both sides of the divergence. Above 0; 1.
        weight_schedule: "constant", or "linear": the weights grow by epoch.
        teacher_trust: "confidence": a teacher counts by how sure it is. "constant": in full. "honest": the same as
            "confidence", and labels are smoothed as far as the model claims more than it can do. Where labels look
            wrong, it learns from the label and from its own earlier predictions together, each weighed by how often
            it is right; see `method.honest`. None: "honest" for one class for each sample, with labels that are
            known before training and samples in random order, else "confidence".
        lone_teacher: Whose the long-term teacher's weight is until it exists: "label", or the short-term "teacher".
        problem_type: "regression", "single_label_classification", "multi_label_classification",
            "token_classification", "question_answering", "causal_lm", "seq2seq_lm", "masked_lm"; None: as the
            model's class or config says, else a guess from the labels.
        sample_id_column: The training set's column of integer ids. "sample_id".
        logits_dir: The folder of the logits store. None: `<output_dir>/_logits`.
        logits_dtype: "float16" or "float32".
        logits_top_k: Of a language model: how many of the vocabulary's classes to keep of each predicted token. 8.
        logits_retention: "needed": keep the epochs that can still teach. "all": keep every epoch. None: all, where the
            whole history takes at most `history_budget` bytes. The report finds wrong labels better with all.
        history_budget: Bytes that the history may take where `logits_retention` is None. 256 MiB.
        num_samples: The largest sample id plus 1, for a streamed training set.
        push_logits: Whether to upload the store with the model. False.
        resume_without_logits: Whether to resume from a checkpoint that holds no store. False.
        accept_new_labels: Whether to resume where labels were corrected since, and nothing else. False.
        long_term_teacher: "epoch": the long-term teacher is one past epoch. "ensemble": the running mean of all.
        outside_teacher: The folder of a store of predictions that teaches as well, of `record_predictions` or of an
            earlier run. It is only read. None: there is none.
        outside_weight: Its share of the loss, 0 to 1. None: 0.5; long and short then share what it leaves.
        outside_epoch: Which epoch of it teaches: a number, "last", or "mean": the mean of the logits of all.

    Raises:
        TypeError: when a subclass is made: another config stands before this one.
        ValueError: a field is out of its range, or `logits_dir` lies inside `output_dir` under a name without a
            leading underscore, which `push_to_hub` would upload.
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
            f"{Classes.default_weight}; {ManyRows.default_weight} for tokens and spans, {Scores.default_weight} for a "
            f"regression, {Vocabulary.default_weight} for a language model."
        },
    )
    short_term_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss that the short-term teacher takes from the label. 0 is off. Default: "
            f"{Classes.default_weight}; {ManyRows.default_weight} for tokens and spans, {Scores.default_weight} for a "
            f"regression, {Vocabulary.default_weight} for a language model."
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
    teacher_trust: TeacherTrust | None = field(
        default=None,
        metadata={
            "help": "'confidence': a teacher counts by 1 - its entropy / log(classes), so one that has learned "
            "nothing teaches nothing. 'constant': every teacher counts in full. 'honest': as 'confidence', with "
            "labels smoothed as far as the model claims more than it can do; where labels look wrong, it learns "
            "from the label and from its own earlier predictions together, each weighed by how often it is right. "
            "Default: 'honest' for one class for each sample, labels that are known before training and samples "
            "in random order, else 'confidence'."
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
            "labels. Set it for soft labels (single_label_classification), several scores for each sample "
            "(regression), or one logit with a binary cross-entropy (multi_label_classification)."
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
    logits_top_k: int = field(
        default=8,
        metadata={
            "help": "Of a language model: how many classes of the vocabulary to keep of each predicted token, beside "
            "the mass of all others."
        },
    )
    logits_retention: LogitsRetention | None = field(
        default=None,
        metadata={
            "help": "'needed': keep the epochs that can still teach. 'all': keep every epoch, for the report. "
            "Default: all, where the whole history takes at most history_budget bytes."
        },
    )
    history_budget: int = field(
        default=256 << 20,
        metadata={"help": "How many bytes the history may take where logits_retention is not set."},
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
    accept_new_labels: bool = field(
        default=False,
        metadata={
            "help": "Resume where the labels of the training set, and nothing else, were changed since. What the "
            "model predicted so far, when it had learnt from the old ones, goes on to teach. The store notes it."
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
        # In `class C(DistillationArguments, SomeConfig)` the other class has one to call; alone there is none.
        if isinstance(self, TrainingArguments):
            super().__post_init__()  # type: ignore[misc]
            self.check()
            self.outside_teacher = self.outside_teacher and os.fspath(self.outside_teacher)  # a path is no JSON
            output_dir = str(self.output_dir)  # typed as optional, and never None by now
            if self.logits_dir is None:
                self.logits_dir = os.path.join(output_dir, LOGITS_FOLDER)
            check_logits_dir(self.logits_dir, output_dir)
        else:
            self.check()

    def resolve(self, default_weight: float) -> Settings:
        """The settings in force for a head whose teachers weigh `default_weight` each where the user says nothing."""
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
        """Raises ValueError, naming the field, the value found and what is allowed.

        Called when the arguments are made; the trainer calls it again at `train()`, because a hyper-parameter search
        sets fields one by one.
        """
        k = self.mini_generation_epochs
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise _refuse("mini_generation_epochs", k, "an integer of at least 1")
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
        if total > 1 + 1e-9:  # 0.9 + 0.1 is allowed, however the binary fractions round
            all_of_them = " and ".join(f"{name}={weight}" for name, weight in weights.items())
            raise ValueError(
                f"{all_of_them} add up to {total:.6g}: expected at most 1, because the label keeps what they leave."
            )
        tau = self.temperature
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0 < tau < math.inf:
            raise _refuse("temperature", tau, "a finite number above 0")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise _refuse(name, getattr(self, name), "one of " + ", ".join(map(repr, allowed)))
        budget = self.history_budget
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise _refuse("history_budget", budget, "a number of bytes, an integer of at least 0")
        k = self.logits_top_k
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise _refuse("logits_top_k", k, "an integer of at least 1")
        if not isinstance(self.sample_id_column, str) or not self.sample_id_column:
            raise _refuse("sample_id_column", self.sample_id_column, "the name of a column")
        if self.num_samples is not None and (
            isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int) or self.num_samples < 1
        ):
            raise _refuse("num_samples", self.num_samples, "an integer of at least 1, or None")


@dataclass
class LSTSDConfig(DistillationArguments, TrainingArguments):
    """`transformers.TrainingArguments` with the settings of Long Short-Term Sample Distillation.

    Takes every argument of `TrainingArguments`, and these:

    Attributes:
        mini_generation_epochs: K, the number of epochs in a mini-generation. 2.
        long_term_weight: The long-term teacher's share of the loss, 0 to 1. None: 0.4; of tokens and spans 0.2, of a
            regression and a language model 0.1.
        short_term_weight: The short-term teacher's, likewise. Both together at most 1.
        temperature: Softens both sides of the divergence. Above 0; 1.
        weight_schedule: "constant", or "linear": the weights grow by epoch.
        teacher_trust: "confidence": a teacher counts by how sure it is. "constant": in full. "honest": the same as
            "confidence", and labels are smoothed as far as the model claims more than it can do. Where labels look
            wrong, it learns from the label and from its own earlier predictions together, each weighed by how often
            it is right; see `method.honest`. None: "honest" for one class for each sample, with labels that are
            known before training and samples in random order, else "confidence".
        lone_teacher: Whose the long-term teacher's weight is until it exists: "label", or the short-term "teacher".
        problem_type: "regression", "single_label_classification", "multi_label_classification",
            "token_classification", "question_answering", "causal_lm", "seq2seq_lm", "masked_lm"; None: as the
            model's class or config says, else a guess from the labels.
        sample_id_column: The training set's column of integer ids. "sample_id".
        logits_dir: The folder of the logits store. None: `<output_dir>/_logits`.
        logits_dtype: "float16" or "float32".
        logits_top_k: Of a language model: how many of the vocabulary's classes to keep of each predicted token. 8.
        logits_retention: "needed": keep the epochs that can still teach. "all": keep every epoch. None: all, where the
            whole history takes at most `history_budget` bytes. The report finds wrong labels better with all.
        history_budget: Bytes that the history may take where `logits_retention` is None. 256 MiB.
        num_samples: The largest sample id plus 1, for a streamed training set.
        push_logits: Whether to upload the store with the model. False.
        resume_without_logits: Whether to resume from a checkpoint that holds no store. False.
        accept_new_labels: Whether to resume where labels were corrected since, and nothing else. False.
        long_term_teacher: "epoch": the long-term teacher is one past epoch. "ensemble": the running mean of all.
        outside_teacher: The folder of a store of predictions that teaches as well, of `record_predictions` or of an
            earlier run. It is only read. None: there is none.
        outside_weight: Its share of the loss, 0 to 1. None: 0.5; long and short then share what it leaves.
        outside_epoch: Which epoch of it teaches: a number, "last", or "mean": the mean of the logits of all.

    Raises:
        ValueError: a field is out of its range, or `logits_dir` lies inside `output_dir` under a name without a
            leading underscore, which `push_to_hub` would upload.
    """


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
