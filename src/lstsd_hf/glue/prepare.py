"""Prepares a run of `lstsd train`: arguments -> rows -> configuration, tokenizer -> token ids."""

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import transformers
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

from ..config import LSTSDConfig
from ..extras import require
from ..report.folder import report_folder
from .arguments import DataArguments, ModelArguments, parse
from .checks import check_files_of_an_earlier_run, check_problem_type
from .data import GlueData, load_files, load_task
from .errors import as_value_error
from .resume import checkpoint_to_resume


@dataclass
class Job:
    """A run whose arguments and data have been read: only the work itself is left.

    Attributes:
        checkpoint: The folder to resume from; None: the run starts anew.
        to_task_id: (labels,) int64, the task's label id by the model's; they differ if a checkpoint has its own order.
        texts: The training rows with their texts and ids; None if there is no training.
    """

    model_args: ModelArguments
    data_args: DataArguments
    args: LSTSDConfig
    checkpoint: str | None
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: GlueData
    to_task_id: np.ndarray
    texts: Dataset | None


def prepare(argv: Sequence[str]) -> Job:
    """Reads the arguments and the data, and tokenizes the data.

    Raises:
        ValueError: an argument, the data, the model's files or the checkpoint are not as expected.
        ImportError: `--report` without the extra that it needs.
        OSError: the output folder cannot be made.
    """
    model_args, data_args, args = parse(argv)
    if model_args.report:
        require("report")
        report_folder(Path(str(args.output_dir)))  # refuses a file or a link there before training
    if args.should_save:
        check_files_of_an_earlier_run(Path(str(args.output_dir)))
    checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, str(args.output_dir)) if args.do_train else None
    transformers.logging.set_verbosity(args.get_process_log_level())
    if args.local_process_index != 0 or not sys.stderr.isatty():  # a log file would get every state of the bars
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
    check_problem_type(args, bool(data.labels), data_args.train_file is not None)

    config, tokenizer = load_config_and_tokenizer(model_args)
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

    def in_head_order(rows: Dataset) -> Dataset:
        if labels == data.labels:
            return rows
        return rows.align_labels_with_mapping({name: i for i, name in enumerate(labels)}, "label")

    def ready(rows: Dataset, limit: int | None) -> Dataset:
        rows = rows.select(range(min(len(rows), limit or len(rows))))
        return rows.map(
            to_tokens,
            batched=True,
            remove_columns=list(data.text_columns),
            num_proc=data_args.preprocessing_num_workers,
            desc="Tokenizing",
        )

    with args.main_process_first(desc="tokenizing"):
        texts = None if data.train is None else in_head_order(data.train)
        data.train = None if texts is None else ready(texts, data_args.max_train_samples)
        data.evaluation = {
            k: ready(in_head_order(rows), data_args.max_eval_samples) for k, rows in data.evaluation.items()
        }
        # Without labels: the Hub's test sets have -1, which is not a class to compute a loss with.
        data.prediction = {
            k: ready(rows.select_columns([*data.text_columns, "idx"]), data_args.max_predict_samples)
            for k, rows in data.prediction.items()
        }
    to_task_id = np.array([data.labels.index(name) for name in labels], dtype=np.int64)
    if args.should_save:  # before training, so that nothing is lost if it fails
        os.makedirs(str(args.output_dir), exist_ok=True)
    return Job(model_args, data_args, args, checkpoint, config, tokenizer, data, to_task_id, texts)


def load_config_and_tokenizer(model_args: ModelArguments) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Loads a model's configuration and tokenizer. A tokenizer without a padding token pads with its end token.

    Raises:
        ValueError: the model is neither on the Hub nor a folder, its files are damaged, or the tokenizer has neither
            token.
    """
    name = model_args.config_name or model_args.model_name_or_path
    # A folder can hold anything, and transformers can raise any kind of exception for it.
    with as_value_error(f"{name}: no model's configuration can be read from it", Exception):
        config = AutoConfig.from_pretrained(name, **model_args.hub)
    name = model_args.tokenizer_name or model_args.model_name_or_path
    with as_value_error(f"{name}: no tokenizer can be read from it", Exception):
        tokenizer = AutoTokenizer.from_pretrained(name, **model_args.hub)
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ValueError(f"{name}: model_max_length is {tokenizer.model_max_length!r}: expected a number.")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"{name}: the tokenizer has no padding token and no end token: expected one of them.")
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config, tokenizer


def tokenize(
    rows: dict[str, list],
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    max_length: int,
    padding: str | bool,
) -> BatchEncoding:
    """Tokenizes a batch of rows. Not a closure: `datasets` hashes all that a function refers to, even splits."""
    return tokenizer(*(rows[column] for column in columns), padding=padding, max_length=max_length, truncation=True)


def label_order(labels: tuple[str, ...], config: PretrainedConfig) -> tuple[str, ...]:
    """The order of a task's labels in the model's head: the checkpoint's own, if it knows these labels by name."""
    known = {str(name).lower(): i for i, name in (config.id2label or {}).items()}
    if sorted(known) != sorted(name.lower() for name in labels):
        return labels
    return tuple(sorted(labels, key=lambda name: known[name.lower()]))


def set_head(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Sets in a configuration what the model predicts: one of `labels`, or a score if there are none."""
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
        ValueError: the model has fewer layers, or `layers` is below 1.
    """
    if not 1 <= layers <= config.num_hidden_layers:
        raise ValueError(f"num_hidden_layers={layers}: expected 1 to {config.num_hidden_layers}, which the model has.")
    config.num_hidden_layers = layers
