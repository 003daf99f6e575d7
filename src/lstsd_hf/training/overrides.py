"""What users override in a subclass of Trainer, and how the distillation still gets its say."""

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from .collator import SAMPLE_IDS


def taught(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a `compute_loss` the base loss of a training batch, beside which the teachers have their part.

    `LSTSDMixin` does it to the `compute_loss` of every subclass when the class is made, so that one without `super()`
    is taught as well, and one with `super()` is taught once.
    """

    @functools.wraps(compute_loss)
    def wrapper(
        self: Any, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training and not self.is_computing_base_loss:
            if SAMPLE_IDS not in inputs:
                raise ValueError(
                    f"A training batch holds {sorted(inputs)}, and no sample ids: expected a batch of "
                    "LSTSDTrainer.get_train_dataloader. A subclass that overrides it must call super()."
                )
            return self.teach(compute_loss, model, inputs, return_outputs, num_items_in_batch)
        return compute_loss(self, model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    wrapper.is_taught = True  # type: ignore[attr-defined]
    return wrapper


def is_taught(compute_loss: Callable[..., Any]) -> bool:
    """Whether `taught` made it."""
    return getattr(compute_loss, "is_taught", False)


def is_plain(trainer: Any, name: str) -> bool:
    """Whether a method is the plain Trainer's, apart from what this package adds to it."""
    package = __name__.partition(".")[0]
    owners = [cls for cls in type(trainer).__mro__ if name in cls.__dict__]
    return all(cls is Trainer or cls.__module__.partition(".")[0] == package for cls in owners)


def refuse_wrong_order(cls: type, mixin: type) -> None:
    """Raises TypeError where a trainer stands before the mixin in a class's bases, and so would hide it."""
    before = cls.__mro__[: cls.__mro__.index(mixin)]
    wrong = next((base for base in before if issubclass(base, Trainer) and not issubclass(base, mixin)), None)
    if wrong is not None:
        raise TypeError(
            f"class {cls.__name__}: {wrong.__name__} stands before {mixin.__name__} and hides it: expected the mixin "
            f"first. Write\n\n    from lstsd_hf import {mixin.__name__}\n    class {cls.__name__}({mixin.__name__}, "
            f"{wrong.__name__}): ...\n"
        )


def count_own_items(compute_loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Hands a user's loss function the number of items in its own micro-batch, in place of the whole step's."""

    @functools.wraps(compute_loss_func)
    def counted(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return compute_loss_func(outputs, labels, num_items_in_batch=items_in(labels))

    return counted


def items_in(labels: Any) -> torch.Tensor | None:
    """How many labels count, or None where there are none that can be counted."""
    return labels.ne(-100).sum() if isinstance(labels, torch.Tensor) else None


@contextmanager
def watching(model: nn.Module, wanted: bool) -> Iterator[list[Any]]:
    """Collects what the model returns meanwhile, where `wanted`: some trainers' losses do not hand it on."""
    seen: list[Any] = []
    if not wanted:
        yield seen
        return
    handle = model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leaves the global random number generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
