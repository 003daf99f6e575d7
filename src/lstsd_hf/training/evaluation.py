"""What `record_predictions` needs around a prediction: its arguments, the weights as a hash, evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
import xxhash
from accelerate import PartialState
from torch import nn

from ..method.heads import ProblemType
from ..store.manifest import is_whole


def weights_hash(model: nn.Module) -> str:
    """A hash of all parameters and buffers, bit for bit."""
    digest = xxhash.xxh3_64()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def device_of(model: nn.Module) -> torch.device:
    """Where a model predicts: where its parts were placed, or on this process's device."""
    is_placed = getattr(model, "hf_device_map", None) is not None
    return next(model.parameters()).device if is_placed else PartialState().device


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode without gradients, and restores the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def refuse_arguments(dataset: Any, batch_size: int, dtype: str, top_k: int, problem_type: str | None) -> None:
    """Raises ValueError if an argument of `record_predictions` is not as expected."""
    for name, value in (("batch_size", batch_size), ("top_k", top_k)):
        if not is_whole(value, low=1):
            raise ValueError(f"{name}={value!r} is not allowed: expected an integer of at least 1.")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype={dtype!r} is not allowed: expected 'float16' or 'float32'.")
    if problem_type not in (None, *get_args(ProblemType)):
        known = ", ".join(map(repr, get_args(ProblemType)))
        raise ValueError(f"problem_type={problem_type!r} is not allowed: expected None or one of {known}.")
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}: expected a data set with a length, whose rows can be taken by "
            "their number. Make a datasets.Dataset of the stream first."
        )
    if not len(dataset):
        raise ValueError("dataset is empty: expected at least one row.")
