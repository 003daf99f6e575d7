"""Checks of `lstsd train` before the first step, where Trainer would fail later or go on silently."""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from torch import nn
from transformers import PreTrainedModel, SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from ..config import LSTSDConfig
from ..store.files import read_regular
from ..store.npy import reason_of
from ..training.fingerprint import is_list
from .config_file import nearest
from .errors import WRONG_VALUE, as_value_error

# The smallest and the largest value that a setting may have.
_RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "eval_accumulation_steps": (1, math.inf),
    "dataloader_num_workers": (0, math.inf),
    "dataloader_prefetch_factor": (1, math.inf),
    "learning_rate": (0, math.inf),
    "neftune_noise_alpha": (0, math.inf),
    "weight_decay": (0, math.inf),
    "label_smoothing_factor": (0, 1),
    "seed": (0, 2**32 - 1),  # numpy's limit
    "data_seed": (0, 2**32 - 1),
}
_LARGEST_FILE = 16 << 20  # bytes
# What Trainer's evaluation adds to the metrics.
_TIMES = ("loss", "runtime", "samples_per_second", "steps_per_second")
_POSITIONS = ("position_embeddings", "embed_positions", "wpe")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a number that is not finite or has more than 64 bits."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value}: expected a finite number.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name}={value}: expected a number of at most 64 bits.")


def check_training_arguments(args: LSTSDConfig) -> None:
    """Raises ValueError for a number out of range, a folder that is a file, or settings that no optimizer takes."""
    values = {entry.name: getattr(args, entry.name) for entry in fields(args) if entry.init}
    for name, (least, most) in _RANGES.items():
        if values[name] is not None and not least <= values[name] <= most:
            expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise ValueError(f"{name}={values[name]}: expected {expected}.")
    if args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs={args.num_train_epochs}: expected a number above 0.")
    if args.max_steps != -1 and args.max_steps < 1:
        raise ValueError(f"max_steps={args.max_steps}: expected at least 1, or -1: num_train_epochs decides.")
    for what in ("logging", "eval", "save"):
        steps = values[f"{what}_steps"]
        if values[f"{what}_strategy"] == "steps" and steps is not None and steps <= 0:
            raise ValueError(f"{what}_steps={steps}: expected a number above 0.")
    if args.batch_eval_metrics or not args.eval_do_concat_batches:
        raise ValueError(
            "The metrics need all predictions at once: leave out batch_eval_metrics, eval_do_concat_batches."
        )
    if args.do_predict and args.prediction_loss_only:
        raise ValueError("prediction_loss_only=True keeps no predictions: expected False with do_predict.")
    for name in ("output_dir", "logits_dir"):
        folder = values[name]
        if not folder:
            raise ValueError(f"{name} is empty: expected the name of a folder.")
        if not _is_utf8(folder):  # tokenizers cannot write there, and would say so after the training
            raise ValueError(f"{name}={folder!r}: expected the name of a folder in UTF-8.")
        if os.path.lexists(folder) and not os.path.isdir(folder):
            what = "file" if os.path.exists(folder) else "link to nothing"
            raise ValueError(f"{name}={folder!r} is a {what}: expected a folder, or a name that is free.")
    _check_services(args)
    if args.torch_compile:
        with as_value_error("torch_compile", *WRONG_VALUE):  # compiles nothing yet, but checks the names
            torch.compile(nn.Identity(), backend=str(args.torch_compile_backend), mode=args.torch_compile_mode)
    if args.do_train:
        rehearse_optimizer(args)


def check_files_of_an_earlier_run(output_dir: Path) -> None:
    """Raises ValueError if a file in the output folder, to which the end of a run adds, cannot be read.

    Trainer would say so after the training, without the file's name. A run that was killed can leave such files.
    """
    metrics, card = output_dir / "all_results.json", output_dir / "README.md"
    try:
        held = json.loads(read_regular(metrics, _LARGEST_FILE)) if os.path.lexists(metrics) else {}
        if not isinstance(held, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{metrics}, to which this run adds its metrics, cannot be read: {reason_of(error)}. Move it aside."
        ) from error
    try:
        if os.path.lexists(card):
            ModelCard(read_regular(card, _LARGEST_FILE).decode("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, *WRONG_VALUE) as error:
        raise ValueError(
            f"{card}, which this run writes anew with its tags, cannot be read as a model card: {reason_of(error)}. "
            "Move it aside."
        ) from error


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _check_services(args: TrainingArguments) -> None:
    available = get_available_reporting_integrations()
    missing = [name for name in args.report_to or () if name not in available]
    if missing:
        raise ValueError(
            f"report_to={missing[0]!r} is not installed here: expected one of {', '.join(available)}, or none."
            f"{nearest(missing[0], available)}"
        )


def rehearse_optimizer(args: TrainingArguments) -> torch.optim.Optimizer | None:
    """Makes the optimizer and its schedule for one parameter: nothing else checks their settings in time.

    Returns:
        The optimizer; None if it is made for the modules of a model.

    Raises:
        ValueError: the settings are not allowed.
    """
    optim = OptimizerNames(args.optim)
    if args.optim_target_modules is not None or optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        return None  # these are made for a model's modules
    parameters = [nn.Parameter(torch.zeros(1))]
    with as_value_error(f"optim={optim.value!r} with optim_args={args.optim_args!r}", ValueError, *WRONG_VALUE):
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            return None
        optimizer = kind(parameters, **settings)
    schedule, kwargs = SchedulerType(args.lr_scheduler_type), args.lr_scheduler_kwargs
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError(f"lr_scheduler_kwargs={kwargs!r}: expected a JSON object.")
    what = f"lr_scheduler_type={schedule.value!r} with lr_scheduler_kwargs={kwargs!r}"
    with as_value_error(what, ValueError, *WRONG_VALUE):
        get_scheduler(schedule, optimizer, 0, 100, kwargs)
    return optimizer


def check_problem_type(args: LSTSDConfig, has_classes: bool, from_file: bool) -> None:
    """Raises ValueError if `problem_type` is not what the labels are: the teachers would learn something else.

    Args:
        args: The training arguments.
        has_classes: Whether the labels are classes; otherwise they are scores.
        from_file: Whether they are those of the user's file, of which `label_kind` says what they are.
    """
    names = {"classes": "single_label_classification", "scores": "regression"}
    kind = "classes" if has_classes else "scores"
    if args.problem_type in (None, names[kind]):
        return
    advice = "Leave it out"
    if from_file and args.problem_type in names.values():
        other = "scores" if has_classes else "classes"
        advice += f"; if the labels are {other}, set label_kind (--label_kind {other})"
    elif args.problem_type not in names.values():
        advice += ", or use LSTSDTrainer: this command learns one class or one score for each row"
    raise ValueError(
        f"problem_type={args.problem_type!r}: expected {names[kind]!r}, because the labels are {kind}. {advice}."
    )


def check_metric(args: TrainingArguments, metrics: Collection[str]) -> None:
    """Raises ValueError if `metric_for_best_model` is neither one of the metrics nor one that Trainer adds."""
    wanted = args.metric_for_best_model
    known = [*metrics, *_TIMES]
    if wanted is not None and wanted.removeprefix("eval_") not in known:
        raise ValueError(
            f"metric_for_best_model={wanted!r}: expected one of {', '.join(known)}.{nearest(wanted, known)}"
        )


def check_tokens(model: PreTrainedModel, name: str, parts: Iterable[Dataset]) -> None:
    """Raises ValueError for token ids that the model has no embedding for, and for rows longer than its positions.

    During training, each would be an IndexError on a CPU, and an error that ends the process on a GPU.

    Args:
        model: The model; its embeddings tell how many tokens and learned positions it has.
        name: The tokenizer's name or folder.
        parts: The rows, with `input_ids`.
    """
    parts = list(parts)
    least, largest, longest = _extent("input_ids", parts)
    known = _vocabulary(model)
    if known is not None and least < 0:
        raise ValueError(f"A row has the token id {least} in 'input_ids': expected ids from 0 to {known - 1}.")
    if known is not None and largest >= known:
        raise ValueError(
            f"{name}: the tokenizer gives a token the id {largest}, and the model knows {known} tokens: expected the "
            "tokenizer that the model was trained with."
        )
    limits = [_positions(module) for path, module in model.named_modules() if path.endswith(_POSITIONS)]
    limit = min([number for number in limits if number is not None], default=longest)
    if longest > limit:
        raise ValueError(
            f"A row has {longest} tokens, and the model has {limit} positions: expected at most as many. Set "
            f"max_seq_length={limit}, or cut the rows if they are tokenized already."
        )
    types = getattr(model.config, "type_vocab_size", None)
    with_types = [rows for rows in parts if "token_type_ids" in rows.column_names]
    if isinstance(types, int) and types > 0 and with_types:
        least, largest, _ = _extent("token_type_ids", with_types)
        if least < 0 or largest >= types:
            raise ValueError(
                f"A row has the type {largest if largest >= types else least} in 'token_type_ids': expected types "
                f"from 0 to {types - 1}, which the model knows."
            )


def _extent(column: str, parts: Iterable[Dataset]) -> tuple[int, int, int]:
    """The least and the largest number in a column of lists, each 0 if there is none, and the longest list's length.

    Raises ValueError if the column holds anything but lists of integers.
    """
    least, largest, longest = 0, 0, 0
    for rows in parts:
        for batch in rows.with_format("arrow").iter(10_000):
            lists = batch[column]
            values = pc.list_flatten(lists) if is_list(lists.type) else lists
            are_integers = values is not lists and (pa.types.is_integer(values.type) or not len(values))
            if not are_integers or lists.null_count or values.null_count:
                raise ValueError(
                    f"Column {column!r} holds {lists.type}, or has missing values: expected a list of integers in "
                    "each row."
                )
            found = pc.min_max(values)
            least = min(least, found["min"].as_py() or 0)
            largest = max(largest, found["max"].as_py() or 0)
            longest = max(longest, pc.max(pc.list_value_length(lists)).as_py() or 0)
    return least, largest, longest


def _vocabulary(model: PreTrainedModel) -> int | None:
    """The number of tokens that a model knows; None if it has no table of them, such as CANINE."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None


def _positions(module: nn.Module) -> int | None:
    """The number of positions of a learned position embedding; None for any other module."""
    if not isinstance(module, nn.Embedding):
        return None
    # RoBERTa's positions begin after the padding index, BART's after an offset.
    padding: Any = -1 if module.padding_idx is None else module.padding_idx
    return module.num_embeddings - int(getattr(module, "offset", padding + 1))
