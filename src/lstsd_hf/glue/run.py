"""Fine-tuning on a GLUE task, or on files of the user's: `lstsd glue CONFIG.yaml [--flag value ...]`.

prepare:  arguments -> rows -> configuration, tokenizer -> token ids       (whatever is wrong here is the user's)
run:      model -> Trainer or LSTSDTrainer -> metrics, predictions, model card
"""

import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from accelerate import PartialState
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    DataCollatorWithPadding,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from ..config import LSTSDConfig
from ..report import write_report
from ..training.trainer import LSTSDTrainer
from .arguments import DataArguments, ModelArguments, parse
from .data import GlueData, load_files, load_task
from .tasks import GlueMetric, write_predictions

LOSSES = ("loss", "base_loss", "long_term_loss", "short_term_loss")


@dataclass
class Job:
    """A run with everything read: what is still to do is the work itself.

    Attributes:
        to_task_id: (labels,) the task's label id by the model's; they differ where the checkpoint has its own order.
        texts: The training rows with their texts and ids; None where there is no training.
    """

    model_args: ModelArguments
    data_args: DataArguments
    args: LSTSDConfig
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: GlueData
    to_task_id: np.ndarray
    texts: Dataset | None


def prepare(argv: Sequence[str]) -> Job:
    """Reads arguments and data, and tokenizes.

    Raises:
        ValueError: an argument or the data is not as expected.
    """
    model_args, data_args, args = parse(argv)
    transformers.logging.set_verbosity(args.get_process_log_level())
    if args.local_process_index != 0:
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()

    needed = {"train": args.do_train, "evaluation": args.do_eval, "prediction": args.do_predict}
    with args.main_process_first(desc="loading the data"):
        if data_args.task_name is not None:
            data = load_task(
                data_args,
                **needed,
                sample_id_column=args.sample_id_column,
                cache_dir=model_args.cache_dir,
                token=model_args.token,
            )
        else:
            data = load_files(
                data_args,
                **needed,
                sample_id_column=args.sample_id_column,
                seed=args.seed,
            )

    name = model_args.model_name_or_path
    try:
        config = AutoConfig.from_pretrained(model_args.config_name or name, **model_args.hub)
        tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or name, **model_args.hub)
    except OSError as error:  # the model is neither on the Hub nor a folder
        raise ValueError(str(error)) from error
    labels = label_order(data.labels, config)
    set_head(config, labels)
    if model_args.num_hidden_layers is not None:
        keep_layers(config, model_args.num_hidden_layers)
    to_tokens = functools.partial(
        tokenize,
        tokenizer=tokenizer,
        columns=data.text_columns,
        max_length=min(data_args.max_seq_length, tokenizer.model_max_length),
        padding="max_length" if data_args.pad_to_max_length else False,
    )

    def ready(rows: Dataset, limit: int | None) -> Dataset:
        rows = rows.select(range(min(len(rows), limit or len(rows))))
        if labels != data.labels and "label" in rows.column_names:
            rows = rows.align_labels_with_mapping({name: i for i, name in enumerate(labels)}, "label")
        return rows.map(
            to_tokens,
            batched=True,
            remove_columns=list(data.text_columns),
            num_proc=data_args.preprocessing_num_workers,
            desc="Tokenizing",
        )

    texts = data.train
    with args.main_process_first(desc="tokenizing"):
        if data.train is not None:
            data.train = ready(data.train, data_args.max_train_samples)
        data.evaluation = {k: ready(rows, data_args.max_eval_samples) for k, rows in data.evaluation.items()}
        # The Hub's test sets have the label -1, which is no class to compute a loss with.
        data.prediction = {
            k: ready(rows.select_columns([*data.text_columns, "idx"]), data_args.max_predict_samples)
            for k, rows in data.prediction.items()
        }
    to_task_id = np.array([data.labels.index(name) for name in labels], dtype=np.int64)
    return Job(model_args, data_args, args, config, tokenizer, data, to_task_id, texts)


def tokenize(
    rows: dict[str, list],
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    max_length: int,
    padding: str | bool,
) -> BatchEncoding:
    """Token ids of a batch of rows. Not a closure: `datasets` hashes all that a function holds, splits too."""
    return tokenizer(*(rows[column] for column in columns), padding=padding, max_length=max_length, truncation=True)


def label_order(labels: tuple[str, ...], config: PretrainedConfig) -> tuple[str, ...]:
    """The order of a task's labels in the model's head: the checkpoint's own, if it knows these labels by name."""
    known = {str(name).lower(): i for i, name in (config.id2label or {}).items()}
    if sorted(known) != sorted(name.lower() for name in labels):
        return labels
    return tuple(sorted(labels, key=lambda name: known[name.lower()]))


def set_head(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Tells a model's configuration what it predicts: one of `labels`, or a score where there are none."""
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
        config.problem_type = "single_label_classification"
    else:
        config.num_labels = 1
        config.problem_type = "regression"


def keep_layers(config: PretrainedConfig, layers: int) -> None:
    """Cuts a model's configuration down to its first layers.

    Raises:
        ValueError: the model has fewer.
    """
    if not 1 <= layers <= config.num_hidden_layers:
        raise ValueError(f"num_hidden_layers={layers}: expected 1 to {config.num_hidden_layers}, which the model has.")
    config.num_hidden_layers = layers


class LossProgressCallback(ProgressCallback):
    """The progress bar, with the current losses at its end."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        losses = {name: f"{value:.4g}" for name, value in (logs or {}).items() if name in LOSSES}
        if losses and self.training_bar is not None:
            self.training_bar.set_postfix(losses)


def predicted(raw: Any, is_regression: bool) -> np.ndarray:
    """(N,) label ids or scores from what a model returned: its logits, or a tuple that begins with them."""
    logits = raw[0] if isinstance(raw, tuple) else raw
    return logits[:, 0] if is_regression else logits.argmax(axis=1)


def run(job: Job) -> dict[str, float]:
    """Trains, evaluates and predicts, as far as asked for, and leaves in `output_dir` what the Trainer's users expect.

    Returns:
        All metrics, as in `all_results.json`.
    """
    model_args, data_args, args, data = job.model_args, job.data_args, job.args, job.data
    is_regression = not data.labels
    metric = GlueMetric(
        config_name=data_args.task_name or ("regression" if is_regression else "classification"), keep_in_memory=True
    )

    def to_task(found: np.ndarray) -> np.ndarray:
        return found if is_regression else job.to_task_id[found]

    def compute_metrics(outcome: EvalPrediction) -> dict[str, float]:
        predictions = to_task(predicted(outcome.predictions, is_regression))
        scores = metric.compute(predictions=predictions, references=to_task(np.asarray(outcome.label_ids)))
        if len(scores) > 1:
            scores["combined_score"] = float(np.mean(list(scores.values())))
        return scores

    set_seed(args.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path,
        config=job.config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        **model_args.hub,
    )
    collator: Callable[..., dict[str, Any]]
    if data_args.pad_to_max_length:
        collator = default_data_collator
    else:
        on_tensor_cores = (args.fp16 or args.bf16) and args.device.type != "cpu"
        collator = DataCollatorWithPadding(job.tokenizer, pad_to_multiple_of=8 if on_tensor_cores else None)
    trainer_class = Trainer if model_args.trainer == "plain" else LSTSDTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.evaluation.get(""),
        compute_metrics=compute_metrics,
        processing_class=job.tokenizer,
        data_collator=collator,
    )
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossProgressCallback)

    results: dict[str, float] = {}
    if data.train is not None:
        results |= train(trainer, data.train)
    if data.evaluation:
        results |= evaluate(trainer, data.evaluation)
    for name, rows in data.prediction.items():
        outcome = trainer.predict(rows, metric_key_prefix="predict")
        if trainer.is_world_process_zero():
            found = to_task(predicted(outcome.predictions, is_regression))
            write_predictions(Path(str(args.output_dir), name), data.labels, data_args.task_name, rows["idx"], found)

    if model_args.report and trainer.is_world_process_zero():
        page = write_report(
            str(args.output_dir),
            job.texts,
            data.text_columns,
            logits_dir=args.logits_dir,
            sample_id_column=args.sample_id_column,
        )
        print(f"Report: {page}")
    card = model_card_arguments(model_args, data_args)
    if args.push_to_hub:  # last: all else is on disk, whatever the network does
        trainer.push_to_hub(**card)
    elif data.train is not None:
        trainer.create_model_card(**card)
    return results


def train(trainer: Trainer, rows: Dataset) -> dict[str, float]:
    """Trains, resuming where asked to, and saves the model, the metrics and the trainer's state."""
    resume: str | bool | None = trainer.args.resume_from_checkpoint
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        resume = resume.lower() == "true"  # the last checkpoint in output_dir, or none
    metrics = trainer.train(resume_from_checkpoint=resume).metrics
    metrics["train_samples"] = len(rows)
    trainer.save_model(_internal_call=True)  # without the push, which is for the end
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    return metrics


def evaluate(trainer: Trainer, halves: dict[str, Dataset]) -> dict[str, float]:
    """Evaluates on each data set; a key of `halves` is what the names of that one's metrics end in."""
    combined: dict[str, float] = {}
    for suffix, rows in halves.items():
        prefix = f"eval{suffix}"  # in the trainer's log, where the halves must not share a name
        metrics = trainer.evaluate(eval_dataset=rows, metric_key_prefix=prefix)
        metrics[f"{prefix}_samples"] = len(rows)
        combined |= {name.replace(prefix, "eval", 1) + suffix: value for name, value in metrics.items()}
    trainer.log_metrics("eval", combined)
    trainer.save_metrics("eval", combined)
    return combined


def model_card_arguments(model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    """What the model card says about the model's origin and data. A local path is nobody else's business."""
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


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the whole script.

    Args:
        argv: what follows `lstsd glue` on the command line; None takes the process's own arguments.

    Returns:
        All metrics of the run.

    Raises:
        ValueError: an argument or the data is not as expected.
    """
    return run(prepare(sys.argv[1:] if argv is None else argv))


def command(argv: list[str] | None = None) -> None:
    """`main` for a shell: what is wrong with arguments or data is one line on stderr, and exit code 2."""
    try:
        job = prepare(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        raise _end(error, 2) from None
    try:
        run(job)
    except HfHubHTTPError as error:  # a wrong token, or a repo that is refused
        raise _end(error, 1) from None
    # Left to the interpreter's end, a process of several sometimes dies of it, with everything done. What refers to
    # the group goes first: who frees it last waits with Python's lock held, and the threads waited for may want that
    # lock.
    gc.collect()
    PartialState().destroy_process_group()


def _end(error: Exception, code: int) -> SystemExit:
    """Says in one line, in one process, what was wrong."""
    if os.environ.get("RANK", "0") == "0":
        print("lstsd glue: error:", " ".join(str(error).split()), file=sys.stderr)
    return SystemExit(code)


if __name__ == "__main__":
    command()
