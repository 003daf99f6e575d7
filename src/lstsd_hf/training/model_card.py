"""Completes the plain Trainer's model card for the Hub, with a section on the distillation. Pure functions."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments
from transformers.modelcard import TASK_MAPPING

from .._version import __version__
from ..config import DistillationArguments
from ..method.teachers import Settings
from ..paths import LOGITS_FOLDER

TAGS = ("lstsd", "self-distillation")

# What a card says if the store is pushed as well.
ON_PREDICTIONS = (
    f"The training labels, and what the model predicted for every training sample, lie in `{LOGITS_FOLDER}/`, a file "
    "for each epoch that was kept, numbered from 0: `numpy.load(file)[sample_id]`."
)

_SPEED = ("_runtime", "_per_second", "_time")
# Needed to repeat a run, beside the method's settings: the Trainer's settings that affect the weights, without paths.
_ALWAYS = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "seed")
_WHERE_CHANGED = (
    "max_steps",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
    "data_seed",
    "bf16",
    "fp16",
    "optim_args",
    "lr_scheduler_kwargs",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "dataloader_drop_last",
    # An evaluation draws random numbers too, and the best model is one of those that were saved.
    "eval_strategy",
    "eval_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "save_strategy",
    "save_steps",
)

# The same of the method's settings that `Settings` lacks.
_OWN_WHERE_CHANGED = ("problem_type", "logits_top_k", "sample_id_column", "num_samples")


def evaluation_metrics(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The finite metrics of the last evaluation, named without `eval_`, on all data sets evaluated at that step.

    With `load_best_model_at_end`, evaluate once more after training; the metrics are then the best model's.
    """
    evaluations = [entry for entry in log_history if any(name.startswith("eval_") for name in entry)]
    metrics = {}
    for entry in evaluations:
        if entry["step"] == evaluations[-1]["step"]:
            for name, value in entry.items():
                is_number = isinstance(value, (int, float)) and math.isfinite(value)
                if name.startswith("eval_") and is_number and not name.endswith(_SPEED):
                    metrics[name.removeprefix("eval_")] = float(value)
    return metrics


def coverage(log_history: Sequence[Mapping[str, Any]], teacher: str) -> tuple[float, float] | None:
    """The share of the samples that had a teacher, from 0 to 1: over the whole run, and in its last log entry.

    Args:
        log_history: The trainer's log. Each entry covers the steps since the one before.
        teacher: "long_term" or "short_term".

    Returns:
        The two shares; None if the log does not tell.
    """
    steps, seen, last, step = 0, 0.0, None, 0
    for entry in log_history:
        if "base_loss" in entry:
            last = entry.get(f"{teacher}_coverage", 0.0)
            seen += last * (entry["step"] - step)
            steps += entry["step"] - step
            step = entry["step"]
    return (seen / steps, last) if steps and last is not None else None


def infer_task(model_class: str) -> str:
    """The Hub's name for the task of a model class."""
    tasks: Any = TASK_MAPPING  # typed as objects
    for task, names in tasks.items():
        if any(model_class in ((found,) if isinstance(found, str) else found) for found in names.values()):
            return task
    return {"VideoClassification": "video-classification", "MultipleChoice": "multiple-choice"}.get(
        model_class.partition("For")[2], "other"
    )


def opening(num_samples: int | None, less_probable: int | None, model_class: type, name: str) -> str:
    """What a reader wants to know first: how many rows it was trained on, what their labels are worth, how to load it.

    Args:
        num_samples: The size of the training set; None if not known.
        less_probable: How many labels were less probable than another class, on average over the epochs; None if not
            known. It is not the report's estimate of how many are wrong.
        model_class: The model's class.
        name: The model's name on the Hub, or that of its folder.
    """
    lines = []
    if num_samples is not None:
        lines.append(f"It was trained on {num_samples:,} rows.")
    if num_samples is not None and less_probable is not None:
        lines.append(
            f"For {less_probable:,} of these another class was more probable than the label, on average over epochs."
        )
    if model_class.__module__.startswith("transformers."):
        kind = model_class.__name__
        loading = f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("{name}")'
        lines.append(f"\n\n```python\n{loading}\n```")
    return " ".join(lines).replace(" \n", "\n").strip()


def _taught(settings: Settings) -> str:
    """Sentences on which of the run's own teachers taught."""
    if not settings.long_term_weight and not settings.short_term_weight:
        return "Both teachers' weights were 0: the labels alone taught, and predictions were only recorded."
    is_ensemble = settings.long_term_teacher == "ensemble"
    short_term = "the short-term teacher is its prediction in the previous epoch"
    long_term = "the one at the end of the previous mini-generation of `K` epochs"
    if is_ensemble:
        long_term = "the running mean of its predictions"
    # Until there is a long-term teacher, its weight may be the short-term one's.
    lends = settings.lone_teacher == "teacher" and not is_ensemble
    if not settings.long_term_weight:
        teachers = f"{short_term}. The long-term teacher's weight was 0"
    elif not settings.short_term_weight and not lends:
        teachers = f"the long-term teacher is {long_term}. The short-term teacher's weight was 0"
    else:
        teachers = f"{short_term}, the long-term teacher {long_term}"
    return (
        "Every training sample was taught, beside its label, by what the model itself had predicted for it earlier: "
        f"{teachers}. There was one model, and one training run."
    )


def describe(
    settings: Settings,
    distillation: DistillationArguments,
    args: TrainingArguments,
    log_history: Sequence[Mapping[str, Any]],
    num_samples: int | None,
) -> str:
    """The card's section on the distillation, Markdown.

    Args:
        settings: The method's settings, as they are in force.
        distillation: The settings as the user gave them.
        args: The trainer's settings.
        log_history: The trainer's log.
        num_samples: The size of the training set; None if not known.
    """
    k = settings.mini_generation_epochs
    epochs = next((entry["epoch"] for entry in reversed(log_history) if "epoch" in entry), args.num_train_epochs)
    shares = [coverage(log_history, teacher) for teacher in ("long_term", "short_term")]
    is_ensemble = settings.long_term_teacher == "ensemble"
    has_own = settings.long_term_weight or settings.short_term_weight
    taught = _taught(settings)
    if settings.outside_weight:
        kept = f"kept predictions of another model, or of an earlier run, with weight {settings.outside_weight:g}"
        taught = f"{taught} Beside them taught {kept}." if has_own else f"Beside the labels taught {kept}."
    lines = [
        "## Long Short-Term Sample Distillation",
        "",
        "Trained with Long Short-Term Sample Distillation (LSTSD; Jiang et al., AAAI 2020, "
        f"[arXiv 2003.00739](https://arxiv.org/abs/2003.00739)), by `lstsd_hf` {__version__}. {taught}",
        "",
        "| | long-term teacher | short-term teacher |",
        "|---|---|---|",
        f"| weight | {settings.long_term_weight:g} | {settings.short_term_weight:g} |",
        f"| teaches from epoch (counted from 0) | {1 if is_ensemble else k} | 1 |",
    ]
    for row, title in enumerate(("over the whole run", "in its last logged steps")):
        cells = ["not logged" if share is None else f"{share[row]:.1%}" for share in shares]
        lines.append(f"| samples that had it, {title} | {cells[0]} | {cells[1]} |")
    size = "" if num_samples is None else f"- training samples: {num_samples}\n"
    lines += [
        "",
        f"{size}- epochs: {epochs:g}",
        f"- epochs in a mini-generation, `K`: {k}",
        f"- temperature: {settings.temperature:g}",
        f"- trust in a teacher: {settings.teacher_trust}; weight schedule: {settings.weight_schedule}",
    ]
    if distillation.push_logits:
        lines += ["", ON_PREDICTIONS]
    return "\n".join([*lines, "", *_recipe(settings, distillation, args)]) + "\n"


def _recipe(settings: Settings, distillation: DistillationArguments, args: TrainingArguments) -> list[str]:
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    names = [*_ALWAYS, *(name for name in _WHERE_CHANGED if getattr(args, name) != defaults[name])]
    lines = {name: getattr(args, name) for name in names}
    lines |= dataclasses.asdict(settings) | {"logits_dtype": distillation.logits_dtype}
    if distillation.teacher_trust is None:
        del lines["teacher_trust"]  # "honest" by name would not wait for `honest.SINCE_STEP`
    own = {field.name: field.default for field in dataclasses.fields(DistillationArguments)}
    lines |= {name: getattr(distillation, name) for name in _OWN_WHERE_CHANGED}
    lines = {name: value for name, value in lines.items() if name not in _OWN_WHERE_CHANGED or value != own[name]}
    if distillation.outside_teacher is None:
        del lines["outside_weight"]
    else:  # without its local path
        lines |= {"outside_teacher": "STORE", "outside_epoch": str(distillation.outside_epoch)}
    plain = {name: getattr(value, "value", value) for name, value in lines.items()}  # the value of an enumeration
    written = [
        f"    {name}={json.dumps(value) if isinstance(value, str) else repr(value)}," for name, value in plain.items()
    ]
    processes = "" if args.world_size == 1 else f", on {args.world_size} processes"
    return [
        "### How to reproduce",
        "",
        f"With `lstsd_hf` {__version__} and the versions above{processes}:",
        "",
        "```python",
        "from lstsd_hf import LSTSDConfig, LSTSDTrainer",
        "",
        "args = LSTSDConfig(",
        '    output_dir="out",',
        *written,
        ")",
        "trainer = LSTSDTrainer(model=model, args=args, train_dataset=train_dataset, processing_class=tokenizer)",
        "trainer.train()",
        "```",
    ]


def is_public(name: str) -> bool:
    """Whether a model's name may be one on the Hub. A path may not: it tells others nothing, and may name a user."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.isdir(name)


def complete(card: str, opening: str, section: str, metrics: Mapping[str, float], task: str) -> str:
    """The plain Trainer's model card with the distillation's section, tags and metrics, and without local paths.

    Args:
        card: The Trainer's card.
        opening: Text to put before the Trainer's sections.
        section: Text to append.
        metrics: For the model-index, which the Hub shows, with the data set of the Trainer's card, if it names one.
        task: The Hub's name of the task, used if the Trainer's card does not tell.
    """
    whole: Any = ModelCard(card)
    data, text = whole.data, whole.text
    if not (isinstance(data.base_model, str) and is_public(data.base_model)):
        data.base_model = None
        # The Trainer names what it loaded even if that is a local path or nothing.
        origin = r"^This model (is a fine-tuned version of \[.*\]\(.*\)|was trained from scratch) on "
        text = re.sub(origin, "This model was trained on ", text, flags=re.MULTILINE)
    text = re.sub(r"^(This model .* on )the None dataset\.", r"\1an unknown dataset.", text, flags=re.MULTILINE)
    # PEFT's adapters repeat their base model in a tag.
    tags = [tag for tag in data.tags or () if not tag.startswith("base_model:") or is_public(tag.rpartition(":")[2])]
    data.tags = [*tags, *(tag for tag in TAGS if tag not in tags)]

    known = data.eval_results or [EvalResult(task, "unknown", "unknown", "", 0.0)]
    data.eval_results = [
        dataclasses.replace(
            known[0], metric_type=metric, metric_name=metric.replace("_", " ").title(), metric_value=value
        )
        for metric, value in metrics.items()
    ] or None
    if data.eval_results is None:  # the name is only for the model-index
        data.model_name = None
    text = text.replace("\n## ", f"\n{opening}\n\n## ", 1)
    whole.text = text.rstrip("\n") + "\n\n" + section
    return str(whole)
