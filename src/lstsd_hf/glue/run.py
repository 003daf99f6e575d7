"""Fine-tuning on a GLUE task, or on the user's own files: `lstsd train CONFIG [--flag value ...]`.

prepare:  arguments -> rows -> configuration, tokenizer -> token ids
run:      model -> Trainer or LSTSDTrainer -> metrics, predictions, model card
"""

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from ..report import write_measured
from ..report.folder import report_folder
from ..report.history import open_run
from ..report.measures import measure
from ..report.texts import read_texts
from ..store import StoreError
from ..training.fingerprint import fingerprint
from ..training.trainer import LSTSDTrainer
from . import words
from .arguments import DataArguments, ModelArguments
from .callbacks import InterruptCallback, LossProgressCallback
from .checks import check_metric, check_tokens
from .errors import as_value_error, errors_of_a_run
from .prepare import Job, prepare
from .resume import check_checkpoint, how_to_resume
from .tasks import GlueMetric, write_predictions


def predicted(raw: Any, is_regression: bool) -> np.ndarray:
    """(N,) label ids or scores from what a model returned: its logits, or a tuple that begins with them."""
    logits = raw[0] if isinstance(raw, tuple) else raw
    return logits[:, 0] if is_regression else logits.argmax(axis=1)


def main(argv: Sequence[str]) -> dict[str, float]:
    """Runs `lstsd train`.

    Args:
        argv: The arguments after `lstsd train`.

    Returns:
        All metrics, as in `all_results.json`.

    Raises:
        ValueError: an argument, the data, the model's files, the checkpoint or the machine are not as expected.
        StoreError, OSError, ImportError: likewise.
        KeyboardInterrupt: after Ctrl-C; its message says how to resume.
    """
    with errors_of_a_run():
        return run(prepare(argv))


def command(argv: Sequence[str]) -> None:
    """Runs `main` in a process that exits afterwards."""
    main(argv)
    # Destroy the process group explicitly: at interpreter exit it can deadlock. Collect garbage first, so that nothing
    # refers to it.
    gc.collect()
    PartialState().destroy_process_group()


def run(job: Job) -> dict[str, float]:
    """Trains, evaluates and predicts, as far as asked for, and writes to `output_dir` what Trainer's users expect.

    Returns:
        All metrics, as in `all_results.json`.
    """
    progress = LossProgressCallback()
    try:
        return _run(job, progress)
    except KeyboardInterrupt as stop:
        advice = how_to_resume(job.args, records=job.model_args.trainer == "lstsd")
        raise KeyboardInterrupt(advice) from stop
    finally:
        progress.close()


def _run(job: Job, progress: LossProgressCallback) -> dict[str, float]:
    model_args, data_args, args, data = job.model_args, job.data_args, job.args, job.data
    is_regression = not data.labels

    def to_task(found: np.ndarray) -> np.ndarray:
        return found if is_regression else job.to_task_id[found]

    metric = metric_of(data_args.task_name, is_regression)

    def compute_metrics(outcome: EvalPrediction) -> dict[str, float]:
        predictions = to_task(predicted(outcome.predictions, is_regression))
        return metric(predictions, to_task(np.asarray(outcome.label_ids)))

    check_metric(args, metric([0, 1], [0, 1]))
    set_seed(args.seed)
    model = load_model(job)
    trainer_class = Trainer if model_args.trainer == "plain" else LSTSDTrainer
    # accelerate's classes take the keys of accelerator_config, and raise TypeError for an unknown one.
    with as_value_error("The training arguments", TypeError):
        trainer = trainer_class(
            model=model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.evaluation.get(""),
            compute_metrics=compute_metrics,
            processing_class=job.tokenizer,
            data_collator=collator_of(job),
        )
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(progress)
    interrupts = InterruptCallback()
    trainer.add_callback(interrupts)

    if isinstance(trainer, LSTSDTrainer):
        trainer._lstsd_texts = fingerprints_of_texts(job)
        trainer._lstsd_label_column = None if data_args.train_file is None else data_args.label_column

    results: dict[str, float] = {}
    if data.train is not None:
        refuse_no_batch(args, len(data.train))
        if trainer.is_world_process_zero():
            print(words.plan(job, model), flush=True)
        with interrupts:
            results |= train(trainer, data.train, job.checkpoint)
    if data.evaluation:
        with interrupts:
            results |= evaluate(trainer, data.evaluation)
    for name, rows in data.prediction.items():
        with interrupts:
            outcome = trainer.predict(rows, metric_key_prefix="predict")
        if trainer.is_world_process_zero():
            found = to_task(predicted(outcome.predictions, is_regression))
            write_predictions(Path(str(args.output_dir), name), data.labels, data_args.task_name, rows["idx"], found)

    card = model_card_arguments(model_args, data_args)
    if data.train is not None:
        trainer.create_model_card(**card)
    if isinstance(trainer, LSTSDTrainer) and data.train is not None and trainer.is_world_process_zero():
        conclude(job)
    if args.push_to_hub:  # last, so that all else is on disk if the network fails
        trainer.push_to_hub(**card)
    return results


def metric_of(task_name: str | None, is_regression: bool) -> Callable[[Any, Any], dict[str, float]]:
    """A function from predictions and references to a task's metrics, and to their mean if there are several."""
    config_name = task_name or ("regression" if is_regression else "classification")
    metric = GlueMetric(config_name=config_name, keep_in_memory=True)

    def compute(predictions: Any, references: Any) -> dict[str, float]:
        scores = metric.compute(predictions=predictions, references=references)
        if len(scores) > 1:
            scores["combined_score"] = float(np.mean(list(scores.values())))
        return scores

    return compute


def load_model(job: Job) -> PreTrainedModel:
    """Loads the model with the task's head.

    Raises:
        ValueError: the folder holds no model, or one that does not fit the rows, the tokenizer or the checkpoint.
    """
    model_args, data = job.model_args, job.data
    name = model_args.model_name_or_path
    lenient = model_args.ignore_mismatched_sizes
    with as_value_error(f"{name}: the model cannot be loaded", Exception):
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                name, config=job.config, ignore_mismatched_sizes=lenient, **model_args.hub
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"expected weights of this run's shapes, with {len(data.labels) or 1} outputs. Give "
                "--ignore_mismatched_sizes true to begin with a new head."
            ) from error
    parts = [rows for rows in (data.train, *data.evaluation.values(), *data.prediction.values()) if rows is not None]
    check_tokens(model, model_args.tokenizer_name or name, parts)
    if job.checkpoint is not None:
        check_checkpoint(job.checkpoint, model, job.args)
    return model


def fingerprints_of_texts(job: Job) -> dict[str, str]:
    """By text column of the user's file, the fingerprint of the training texts; empty without file or training.

    The report compares them with a file that has no ids, whose rows may have moved. GLUE's texts differ between the
    Hub and GLUE's own files.
    """
    if job.data.train is None or job.texts is None or job.data_args.train_file is None:
        return {}
    rows = job.texts.select(range(len(job.data.train)))
    ids = np.asarray(rows[job.args.sample_id_column])
    return {name: fingerprint(rows, ids, [name]) for name in job.data.text_columns}


def collator_of(job: Job) -> Callable[..., dict[str, Any]]:
    """The collator: rows that are padded already are stacked, others padded to the longest of their batch."""
    if job.data_args.pad_to_max_length:
        return default_data_collator
    on_tensor_cores = (job.args.fp16 or job.args.bf16) and job.args.device.type != "cpu"
    return DataCollatorWithPadding(job.tokenizer, pad_to_multiple_of=8 if on_tensor_cores else None)


def conclude(job: Job) -> None:
    """Prints how many labels look wrong, and writes the run's report if one is wanted."""
    args = job.args
    try:
        found = open_run(str(args.output_dir), args.logits_dir)
        measures = measure(found)
    except StoreError as error:  # if the run diverged; its model is saved all the same
        if job.model_args.report:
            raise
        print(f"It is not known what the model learnt of each row: {error}")
        return
    print(words.found(job, found, measures))
    if job.model_args.report:
        texts = None
        if job.texts is not None:
            column, shown = args.sample_id_column, job.data.text_columns
            texts = read_texts(job.texts, found, shown, sample_id_column=column, label_column="label")
        print(f"Report: {write_measured(report_folder(Path(str(args.output_dir))), found, measures, texts)}")


def refuse_no_batch(args: TrainingArguments, rows: int) -> None:
    """Raises ValueError if the only batch is incomplete, and so dropped."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise ValueError(
            f"dataloader_drop_last=True leaves no batch of {rows} rows: expected at least {batch}. Set "
            "per_device_train_batch_size lower."
        )


def train(trainer: Trainer, rows: Dataset, checkpoint: str | None) -> dict[str, float]:
    """Trains, from a checkpoint if there is one, and saves the model, the metrics and the trainer's state."""
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    metrics["train_samples"] = len(rows)
    trainer.save_model(_internal_call=True)  # without the push to the Hub, which comes last
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    return metrics


def evaluate(trainer: Trainer, halves: dict[str, Dataset]) -> dict[str, float]:
    """Evaluates on each data set; its key in `halves` is the suffix of its metrics' names."""
    combined: dict[str, float] = {}
    for suffix, rows in halves.items():
        prefix = f"eval{suffix}"  # the halves must not share a name in the trainer's log
        metrics = trainer.evaluate(eval_dataset=rows, metric_key_prefix=prefix)
        metrics[f"{prefix}_samples"] = len(rows)
        combined |= {name.replace(prefix, "eval", 1) + suffix: value for name, value in metrics.items()}
    trainer.log_metrics("eval", combined)
    trainer.save_metrics("eval", combined)
    return combined


def model_card_arguments(model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    """What the model card says about the model's origin and data. A local path is private, and left out."""
    card: dict[str, Any] = {"tasks": "text-classification"}
    if not os.path.exists(model_args.model_name_or_path):
        card["finetuned_from"] = model_args.model_name_or_path
    if data_args.task_name is not None:
        card |= {
            "language": "en",
            "dataset_tags": "glue",
            "dataset_args": data_args.task_name,
            "dataset": f"GLUE {data_args.task_name.upper()}",
        }
    return card
