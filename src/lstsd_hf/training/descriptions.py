"""What a model, a tokenizer and a data set tell of themselves, for the checks of an outside teacher."""

from collections.abc import Collection
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from ..store.manifest import is_text
from .model_head import unwrapped


def class_names(model: Any, columns: int) -> list[str] | None:
    """The names of a model's classes, in order; None if it does not name exactly `columns` classes."""
    found = getattr(getattr(unwrapped(model), "config", None), "id2label", None)
    if not isinstance(found, dict) or sorted(found) != list(range(columns)):
        return None
    names = [str(found[i]) for i in range(columns)]
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        return None
    return names if len(set(names)) == columns and all(map(is_text, names)) else None


def vocabulary_of(model: Any) -> int | None:
    """The size of a language model's vocabulary; None if the model does not tell."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    return len(weight) if weight is not None else getattr(getattr(inner, "config", None), "vocab_size", None)


def tokenizer_name(tokenizer: Any) -> str | None:
    """A tokenizer's class and size, in words; None if there is none."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return None
    return f"{type(tokenizer).__name__} of {len(tokenizer)} tokens"


def longest_input(dataset: Any, names: Collection[str] = ("input_ids",)) -> int | None:
    """The largest number of tokens in a row of a `datasets.Dataset`; None if its rows are not tokens."""
    lengths = input_lengths(dataset, names)
    return None if lengths is None or not len(lengths) else int(lengths.max())


def input_lengths(dataset: Any, names: Collection[str] = ("input_ids",)) -> npt.NDArray[np.int64] | None:
    """(N,): the number of tokens in each row; None if the rows are not tokens."""
    name = next((name for name in names if name in getattr(dataset, "column_names", ())), None)
    if name is None or not isinstance(dataset, datasets.Dataset):
        return None
    batches = dataset.with_format("arrow").select_columns([name]).iter(10_000)
    parts = [np.array([len(value) for value in table[name].to_pylist()], np.int64) for table in batches]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
