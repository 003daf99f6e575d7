"""What can be told of a model's head: ahead of the first batch by its class, then by what it returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto

# The kinds of models that do not predict one row of logits for each sample, as transformers' tables name them.
_UNSUPPORTED = (
    "CAUSAL_LM",
    "CTC",
    "DEPTH_ESTIMATION",
    "DOCUMENT_QUESTION_ANSWERING",
    "INSTANCE_SEGMENTATION",
    "MASKED_IMAGE_MODELING",
    "MASKED_LM",
    "OBJECT_DETECTION",
    "QUESTION_ANSWERING",
    "SEMANTIC_SEGMENTATION",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "TABLE_QUESTION_ANSWERING",
    "TOKEN_CLASSIFICATION",
    "UNIVERSAL_SEGMENTATION",
    "VISUAL_QUESTION_ANSWERING",
    "ZERO_SHOT_OBJECT_DETECTION",
)
_SUPPORTED = (
    "heads that predict one row of logits for each sample: sequence, image, audio and video classification, multiple "
    "choice, regression, multi-label and pairs (a score for the chosen and for the rejected text)"
)


def _names(kind: str) -> set[str]:
    table = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {})
    entries = (names if isinstance(names, tuple) else (names,) for names in table.values())
    return {name for names in entries for name in names}


def unwrapped(model: Any) -> Any:
    """The model inside PEFT's wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def refuse_unsupported(model: Any) -> None:
    """Raises ValueError where the model's class says that it does not predict one row of logits for each sample."""
    name = type(unwrapped(model)).__name__
    kind = next((kind for kind in _UNSUPPORTED if name in _names(kind)), None)
    if kind is not None and name not in _names("SEQUENCE_CLASSIFICATION"):
        raise ValueError(
            f"{name} is a model for {kind.replace('_', ' ').lower()}: LSTSDTrainer works with {_SUPPORTED}. Train it "
            "with the plain Trainer."
        )


def known_columns(model: Any) -> int | None:
    """How many columns the model's rows will have, where that can be told; else None.

    Every config has `num_labels`, 2 where nobody said a number, and a head of the user's own may have another size:
    the number counts where the last linear layer has as many outputs. A multiple-choice head has a column per choice.
    """
    model = unwrapped(model)
    if type(model).__name__ in _names("MULTIPLE_CHOICE"):
        return None
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = getattr(getattr(model, "config", None), "num_labels", None)
    return found if linear and linear[-1].out_features == found else None


def rows_of(outputs: Any, samples: int) -> torch.Tensor:
    """The (B, C) logits in what a model returned for B samples.

    One number for each sample, (B,), is one column. Twice as many rows as samples, of one column, are pairs: first the
    scores of all chosen texts, then of all rejected ones, which are a sample's two classes.

    Args:
        outputs: A mapping with "logits" or "scores", a tuple, or the logits themselves.
        samples: B.

    Raises:
        ValueError: there are no such logits, or they are no row for each sample.
    """
    if isinstance(outputs, Mapping):
        logits, found = outputs.get("logits", outputs.get("scores")), f"outputs {', '.join(map(str, outputs)) or '{}'}"
    elif isinstance(outputs, torch.Tensor):
        logits, found = outputs, "a tensor"
    else:
        tensors = [entry for entry in outputs or () if isinstance(entry, torch.Tensor) and entry.ndim]
        logits, found = (tensors[0] if tensors else None), f"a {type(outputs).__name__}"
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"The model returned no logits, but {found}: LSTSDTrainer works with {_SUPPORTED}.")
    if logits.ndim == 1:
        logits = logits[:, None]
    if logits.ndim == 2 and logits.shape == (2 * samples, 1):
        return logits.view(2, samples).T
    if logits.ndim != 2 or len(logits) != samples:
        raise ValueError(
            f"The model returned logits of shape {tuple(logits.shape)} for {samples} samples: expected "
            f"({samples}, classes). LSTSDTrainer works with {_SUPPORTED}. If the data collator drops or adds rows, "
            "do that in the data set instead: each row that it gets must be one row of the batch."
        )
    return logits
