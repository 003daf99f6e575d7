"""What `lstsd train` prints about a run: its plan at the start, and what it found at the end."""

import math
import shlex

import numpy as np
from transformers import PreTrainedModel

from ..config import DefaultFolder
from ..method.heads import Classes, Scores
from ..method.teachers import teachers_of
from ..report.cells import shown
from ..report.headline import caution, headline
from ..report.measures import Measures
from ..report.run import Run
from .prepare import Job

_MOST_CLASSES = 6  # the sizes of more do not fit a line


def plan(job: Job, model: PreTrainedModel) -> str:
    """Rows and classes; epochs and teachers; the predictions' folder and size, if there are any. A line for each."""
    args, rows = job.args, job.data.train
    assert rows is not None
    labels = np.asarray(rows["label"])
    if not job.data.labels:
        kinds = f"scores from {labels.min():g} to {labels.max():g}"
    else:
        names = list((model.config.id2label or {}).values())
        counts = np.bincount(labels, minlength=len(names))
        sizes = ", ".join(f"{count:,} {_plain(name)}" for name, count in zip(names, counts, strict=True))
        kinds = sizes if len(names) <= _MOST_CLASSES else f"{len(names)} classes"
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    lines = [f"{type(model).__name__} learns {len(rows):,} rows ({kinds}).", f"{length}, with transformers.Trainer."]
    if job.model_args.trainer == "lstsd":
        head = Classes if job.data.labels else Scores
        teachers, epochs = teachers_of(args.resolve(head.default_weight)), math.ceil(args.num_train_epochs)
        could = sorted({1, args.mini_generation_epochs})  # not all epochs, which may be any number
        could = [epoch for epoch in could if epoch < epochs]
        speaks = {t.name: next((e for e in could if t.teaching_epoch(e, epochs) is not None), None) for t in teachers}
        firsts = [f"{n.replace('_', '-')} from epoch {first}" for n, first in speaks.items() if first is not None]
        firsts += ["outside from epoch 0"] if args.outside_share else []
        size = len(rows) * (len(job.data.labels) or 1) * np.dtype(args.logits_dtype).itemsize
        lines[1] = f"{length}. Teachers: {', '.join(firsts) or 'none'}."
        lines.append(f"Predictions: {args.logits_dir}, {size / 1000:,.0f} kB for each epoch that is kept.")
    return "\n".join(lines)


def found(job: Job, run: Run, measures: Measures) -> str:
    """How many labels look wrong, and the command that shows them if there is no report yet."""
    sentence = f"{caution(measures)}\n{headline(run, measures).title}.".lstrip()
    if job.model_args.report or not measures.has_learnt:
        return sentence
    return f"{sentence} To see them: {shlex.join(report_command(job))}"


def report_command(job: Job) -> list[str]:
    """The command that writes the run's report, with the options that its data set and its store need."""
    args, data = job.args, job.data_args
    words = ["lstsd", "report", _path(str(args.output_dir))]
    if data.train_file is not None:
        words += ["--dataset", _path(data.train_file)]
        words += [f"--label_column={data.label_column}"] if data.label_column != "label" else []
        words += [f"--sample_id_column={args.sample_id_column}"] if args.sample_id_column != "sample_id" else []
        words += ["--tsv_quoting"] if data.tsv_quoting else []
        words += ["--text_columns", *data.text_columns] if data.text_columns else []
    words += [] if isinstance(args.logits_dir, DefaultFolder) else ["--logits_dir", _path(str(args.logits_dir))]
    return words


def _path(name: str) -> str:
    """A path that a command does not take for an option."""
    return f"./{name}" if name.startswith("-") else name


def _plain(name: str) -> str:
    """A class's name as it is, or in quotes and escaped if a terminal would not show it in one line."""
    return name if name.isprintable() and len(name) <= 60 else shown(name)
