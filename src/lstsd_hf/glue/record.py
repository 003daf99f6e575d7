"""`lstsd record`: stores a model's predictions for a data set, which then teach other models."""

import argparse
import functools
import gc
import sys
from pathlib import Path
from typing import Any

import datasets
import transformers
from accelerate import PartialState
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..store import LogitsStore
from ..training.model_head import many_rows_problem
from ..training.record import record_predictions
from .arguments import DataArguments, ModelArguments
from .checks import check_tokens
from .data import load_task, load_texts
from .errors import as_value_error, errors_of_a_run
from .prepare import load_config_and_tokenizer, tokenize
from .tasks import TASKS


def record(parsed: argparse.Namespace) -> LogitsStore:
    """Runs `lstsd record`, and returns the store.

    Args:
        parsed: The arguments; see `lstsd record --help`.

    Raises:
        ValueError: the model, the data set or an argument is not as expected.
        StoreError, OSError, ImportError: likewise.
    """
    if not sys.stderr.isatty():  # a log file would get every state of the bars
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
    model_args = ModelArguments(model_name_or_path=parsed.model, tokenizer_name=parsed.tokenizer)
    config, tokenizer = load_config_and_tokenizer(model_args)
    model = _load_model(model_args, config)
    problem = many_rows_problem(model)
    with errors_of_a_run():
        rows = _rows(parsed, tokenizer, problem)
        check_tokens(model, model_args.tokenizer_name or parsed.model, [rows])
        store = record_predictions(
            model,
            rows,
            parsed.output,
            _collator(problem, model, tokenizer, rows),
            processing_class=tokenizer,
            batch_size=parsed.batch_size,
            dtype=parsed.dtype,
            top_k=parsed.top_k,
            sample_id_column=parsed.sample_id_column,
            disable_tqdm=not sys.stderr.isatty(),
        )
    return store


def command(parsed: argparse.Namespace) -> None:
    """Runs `record` in a process that exits afterwards."""
    store = record(parsed)
    state = PartialState()
    if state.process_index == 0:
        size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
        print(
            f"The predictions are {parsed.output}, {size / 1e6:,.1f} MB. Train with outside_teacher={parsed.output}."
        )
    gc.collect()  # see `lstsd_hf.glue.run.command`
    state.destroy_process_group()


def _load_model(model_args: ModelArguments, config: Any) -> PreTrainedModel:
    """Loads a model with the class that its configuration names, and with the head that it was trained with."""
    name = model_args.model_name_or_path
    architecture = (getattr(config, "architectures", None) or ["none"])[0]
    kind = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ValueError(
            f"{name}: its configuration names the class {architecture!r}: expected one of transformers, with a head. "
            "Call record_predictions with a model of your own."
        )
    with as_value_error(f"{name}: the model cannot be loaded", Exception):
        loaded: Any = kind.from_pretrained(name, **model_args.hub, output_loading_info=True)
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(
            f"{name}: the weights {', '.join(missing[:3])} are not in its files: expected a model that was trained "
            "for the task. Fine-tune it first."
        )
    return model


def _rows(parsed: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, problem: str | None) -> datasets.Dataset:
    """The data set with token ids: as it is if a folder has them, else its texts, tokenized as in `lstsd train`."""
    if Path(parsed.dataset).is_dir():
        with as_value_error(f"{parsed.dataset}: no data set with rows can be read from it", Exception):
            found = datasets.load_from_disk(parsed.dataset)
        if isinstance(found, datasets.DatasetDict):
            if "train" not in found:
                raise ValueError(f"{parsed.dataset}: found the splits {sorted(found)}: expected one that is 'train'.")
            found = found["train"]
        if "input_ids" in found.column_names:
            if parsed.where or parsed.text_columns:
                raise ValueError(
                    f"{parsed.dataset} has input_ids, so it is used as it is: expected neither where nor "
                    "text_columns. Choose its rows before you save it (Dataset.filter)."
                )
            return found
    if problem is not None:
        raise ValueError(
            f"{parsed.dataset}: expected rows with input_ids, as Dataset.save_to_disk writes them, because only for "
            "classifiers and regressions texts are tokenized here. Tokenize the data set first."
        )
    names = ("max_seq_length", "label_column", "data_dir", "text_columns", "where", "tsv_quoting")
    of_data = {name: getattr(parsed, name) for name in names}
    if parsed.dataset.lower() in TASKS:
        task = DataArguments(task_name=parsed.dataset, **of_data)
        column = parsed.sample_id_column
        data = load_task(task, train=True, evaluation=False, prediction=False, sample_id_column=column)
    else:
        data = load_texts(DataArguments(train_file=parsed.dataset, **of_data), parsed.sample_id_column)
    assert data.train is not None
    to_tokens = functools.partial(
        tokenize,
        tokenizer=tokenizer,
        columns=data.text_columns,
        max_length=min(parsed.max_seq_length, tokenizer.model_max_length),
        padding=False,
    )
    return data.train.map(to_tokens, batched=True, remove_columns=list(data.text_columns), desc="Tokenizing")


def _collator(
    problem: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset
) -> Any:
    """The collator that a Trainer of such a model would use; labels of tokens are padded with -100."""
    if problem == "seq2seq_lm":
        return DataCollatorForSeq2Seq(tokenizer, model)
    if problem == "causal_lm" and "labels" not in rows.column_names:
        return DataCollatorForLanguageModeling(tokenizer, mlm=False)
    if problem in ("token_classification", "causal_lm", "masked_lm"):
        return DataCollatorForTokenClassification(tokenizer)
    return DataCollatorWithPadding(tokenizer)
