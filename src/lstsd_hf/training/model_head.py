"""What is known about a model's head: before the first batch from its class, then from its outputs."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Kinds of models, named as in transformers' tables. These predict, or may predict, one row of logits for each sample:
_SUPPORTED_KINDS = (
    "AUDIO_CLASSIFICATION",
    "AUDIO_XVECTOR",
    "IMAGE_CLASSIFICATION",
    "MULTIPLE_CHOICE",
    "NEXT_SENTENCE_PREDICTION",
    "SEQUENCE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "VISUAL_QUESTION_ANSWERING",  # a classifier of answers, or a model that writes one
)
# ... these predict many, ...
_MANY_ROWS = {
    "TOKEN_CLASSIFICATION": "token_classification",
    "QUESTION_ANSWERING": "question_answering",
    "CAUSAL_LM": "causal_lm",
    "SEQ_TO_SEQ_CAUSAL_LM": "seq2seq_lm",
    "MASKED_LM": "masked_lm",
}
# ... these have no head, ...
_WITHOUT_HEAD = ("BACKBONE", "IMAGE", "TEXT_ENCODING")
# ... and these tables repeat models that others name more precisely.
_VAGUE = ("MULTIMODAL_LM", "PRETRAINING")
_SUPPORTED = (
    "sequence, image, audio and video classification, multiple choice, regression, multi-label, pairs (a score for "
    "the chosen and for the rejected text), token classification, question answering by spans, and language models"
)


@functools.cache
def _kinds() -> dict[str, set[str]]:
    """The names of the model classes of each kind, vague kinds last."""
    pattern = re.compile("MODEL_FOR_(.*)_MAPPING_NAMES")
    tables = {found[1]: table for name, table in vars(modeling_auto).items() if (found := pattern.fullmatch(name))}
    kinds = {}
    for kind in sorted(tables, key=lambda kind: (kind in _VAGUE, kind)):
        entries = (entry if isinstance(entry, tuple) else (entry,) for entry in tables[kind].values())
        kinds[kind] = {name for names in entries for name in names}
    return kinds


def unwrapped(model: Any) -> Any:
    """The model inside PEFT's wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _kinds_of(model: Any) -> tuple[str, list[str]]:
    """The name of a model's class, and its kinds."""
    name = type(unwrapped(model)).__name__
    return name, [kind for kind, names in _kinds().items() if name in names]


def many_rows_problem(model: Any) -> str | None:
    """The problem type of a model whose class says that its samples have many rows; None if it does not."""
    _, kinds = _kinds_of(model)
    if any(kind in _SUPPORTED_KINDS for kind in kinds):
        return None
    return next((problem for kind, problem in _MANY_ROWS.items() if kind in kinds), None)


def refuse_unsupported(model: Any) -> None:
    """Raises ValueError if the model's class says that no head here fits its predictions."""
    name, kinds = _kinds_of(model)
    if any(kind in _SUPPORTED_KINDS or kind in _MANY_ROWS for kind in kinds):
        return
    kind = next((kind for kind in kinds if kind not in _WITHOUT_HEAD), None)
    if kind is not None:
        raise ValueError(
            f"{name} is a model for {kind.replace('_', ' ').lower()}: LSTSDTrainer works with {_SUPPORTED}. Train it "
            "with the plain Trainer."
        )


def known_columns(model: Any) -> int | None:
    """How many columns the model's rows will have; None if that is not known.

    Every config has `num_labels`, which is 2 by default, and a user's own model or head may have another size. So the
    number counts only for a class of transformers whose last linear layer has as many outputs. A multiple-choice head
    has a column for each choice, so its number is not known.
    """
    model = unwrapped(model)
    if not type(model).__module__.startswith("transformers.") or type(model).__name__ in _kinds()["MULTIPLE_CHOICE"]:
        return None
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = getattr(getattr(model, "config", None), "num_labels", None)
    return found if linear and linear[-1].out_features == found else None


def known_vocabulary(model: Any) -> int | None:
    """How many classes a language model's logits will have; None if the model does not tell."""
    find = getattr(unwrapped(model), "get_output_embeddings", None)
    weight = getattr(find() if find else None, "weight", None)
    return None if weight is None else len(weight)


class Rows(NamedTuple):
    """The rows of logits of B samples.

    Attributes:
        logits: (B, C).
        paired: Whether a row holds the scores of a pair of texts, the chosen one's first.
    """

    logits: torch.Tensor
    paired: bool


def rows_of(outputs: Any, samples: int, inputs: Mapping[str, Any] | None = None) -> Rows:
    """The rows of logits in a model's outputs for B samples.

    Logits of shape (B,) become one column; those of shape () or (C,), for one sample, become its row. If the model was
    given two texts for each sample, first all chosen ones, then all rejected ones, and returned one score for each, a
    sample's row is its two scores.

    Args:
        outputs: A mapping with "logits", "scores", or one tensor beside "loss"; a tuple; or the logits themselves.
        samples: B.
        inputs: What the model was given.

    Raises:
        ValueError: there are no logits, or they are not one row for each sample.
    """
    if isinstance(outputs, Mapping):
        logits, found = _logits_in(outputs), f"outputs {', '.join(map(str, outputs)) or '{}'}"
    elif isinstance(outputs, torch.Tensor):
        logits, found = outputs, "a tensor"
    else:
        entries = [entry for entry in outputs or () if isinstance(entry, torch.Tensor)]
        tensors = [entry for entry in entries if entry.ndim] or (entries[1:] if samples == 1 else [])
        logits, found = (tensors[0] if tensors else None), f"a {type(outputs).__name__}"
    if outputs is None:
        found = "nothing beside its loss, and its forward pass was not seen: return (loss, outputs)"
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"The model returned no logits, but {found}: LSTSDTrainer works with {_SUPPORTED}.")
    if samples == 1 and logits.ndim < 2 and not (len(logits.flatten()) == 2 and _has_rows(inputs or {}, 2)):
        logits = logits.reshape(1, -1)  # `squeeze()` takes away the axis of a single sample as well
    if logits.ndim == 1:
        logits = logits[:, None]
    if logits.shape == (2 * samples, 1) and _has_rows(inputs or {}, 2 * samples):
        return Rows(logits.view(2, samples).T, paired=True)
    if logits.ndim != 2 or len(logits) != samples:
        raise ValueError(
            f"The model returned logits of shape {tuple(logits.shape)} for {samples} samples: expected "
            f"({samples}, classes). LSTSDTrainer works with {_SUPPORTED}. If a model of your own has many rows "
            "for each sample, set problem_type, for instance 'token_classification', a field of LSTSDConfig. If the "
            "data collator drops or adds rows, do that in the data set instead: each row that it gets must be one row "
            "of the batch. If your loss runs the model on a batch more than once at a time, return the outputs of one "
            "pass."
        )
    return Rows(logits, paired=False)


def _logits_in(outputs: Mapping[str, Any]) -> Any:
    """The logits among a model's named outputs. If there is only one output, it may have any name."""
    named = next((outputs[name] for name in ("logits", "scores") if name in outputs), None)
    if named is not None:
        return named
    others = [name for name, value in outputs.items() if name != "loss" and isinstance(value, torch.Tensor)]
    if len(others) != 1:
        return None
    logger.warning_once(f"The model returned no 'logits': {others[0]!r}, its only output, is taken for them.")
    return outputs[others[0]]


def _has_rows(inputs: Mapping[str, Any], count: int) -> bool:
    """Whether a tensor among a model's inputs has `count` rows."""
    return any(isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == count for value in inputs.values())


def grid_of(outputs: Any, names: Sequence[str], shape: tuple[int, ...]) -> torch.Tensor:
    """The (B x L, C) grid of logits in a model's outputs.

    Args:
        outputs: A mapping, or a tuple in which the logits are the first tensors with at least two axes.
        names: The names of the logits. Several become the columns of one grid.
        shape: (B, L), the shape of the labels or of the inputs.

    Raises:
        ValueError: the logits are missing, or have another shape.
    """
    if isinstance(outputs, Mapping):
        found: list[Any] = [outputs.get(name) for name in names]
    else:
        entries = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        found = [entry for entry in entries if isinstance(entry, torch.Tensor) and entry.ndim > 1][: len(names)]
    tensors = [entry for entry in found if isinstance(entry, torch.Tensor)]
    if len(tensors) < len(names):
        held = f"outputs {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(f"The model returned no {' and '.join(names)}, but {held}: expected logits for each token.")
    if any(tensor.shape[:2] != shape for tensor in tensors):
        raise ValueError(
            f"The model returned {' and '.join(names)} of shape {tuple(tensors[0].shape)} for a batch of shape "
            f"{tuple(shape)}: expected logits for each of its tokens. Prompt tuning adds tokens: it is not supported."
        )
    grid = torch.stack(tensors, dim=-1) if len(names) > 1 else tensors[0]
    return grid.flatten(0, 1)


def grid_with_gradient(candidates: Sequence[Any], names: Sequence[str], shape: Any, trainer: str) -> torch.Tensor:
    """The first grid with a gradient, among what a loss and then its model returned."""
    return _first_with_gradient(candidates, lambda found: grid_of(found, names, tuple(shape)), trainer)


def rows_with_gradient(candidates: Sequence[Any], samples: int, inputs: Mapping[str, Any], trainer: str) -> Rows:
    """The first rows of logits with a gradient, among what a loss and then its model returned."""
    return _first_with_gradient(candidates, lambda found: rows_of(found, samples, inputs), trainer)


def refuse_lists(labels: Any) -> None:
    """Raises ValueError if each sample of a batch has a tensor of labels of its own, and so several predictions."""
    if isinstance(labels, (list, tuple)) and any(isinstance(own, torch.Tensor) and own.ndim for own in labels):
        raise ValueError(
            "The labels of a batch are a list with a tensor for each sample, as for losses over lists of documents "
            "(LambdaLoss, ListNetLoss): expected one row of predictions, and one label or row of labels, for each "
            "sample. Make each pair a sample of its own, with a loss for pairs."
        )


def _first_with_gradient(candidates: Sequence[Any], read: Callable[[Any], Any], trainer: str) -> Any:
    """The first result of `read` that has a gradient, among what a loss and then its model returned.

    Raises:
        ValueError: there is none.
    """
    refusals = []
    for found in candidates:
        try:
            rows = read(found)
        except ValueError as error:
            refusals.append(error)
            continue
        if (rows.logits if isinstance(rows, Rows) else rows).requires_grad:
            return rows
    if len(refusals) == len(candidates):
        raise refusals[-1]
    raise ValueError(
        f"The logits that {trainer}.compute_loss returns have no gradient, so no teacher could reach the model: "
        "expected those of the forward pass that the loss is made of. Compute both in one pass with gradient, and "
        "return (loss, outputs) for return_outputs=True."
    )


def refuse_no_loss(loss: Any, outputs: Any, own_loss: bool) -> None:
    """Raises ValueError if a micro-batch's loss is not a scalar, or if the model returned no loss but a bare tensor.

    Args:
        loss: The loss.
        outputs: What the model returned.
        own_loss: Whether the user computes the loss; else the plain Trainer takes it from the outputs.
    """
    if isinstance(outputs, torch.Tensor) and not own_loss:
        raise ValueError(
            "The model returned a tensor, whose first entry the plain Trainer takes for the loss: expected "
            '{"loss": ..., "logits": ...} or the tuple (loss, logits). Return one of these, or give a '
            "compute_loss_func."
        )
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        found = f"of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        raise ValueError(
            f"The loss of a micro-batch is {found}: expected a scalar tensor, the mean over its samples. Reduce it "
            "where it is computed: in the model, in the compute_loss_func or in compute_loss."
        )
