"""Wraps what users override in a subclass of Trainer, so that the distillation still takes part."""

import copy
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from .collator import ADDED, SAMPLE_IDS

logger = logging.get_logger(__name__)

Value = TypeVar("Value")

# The mixin's private names begin with it, because a user's trainer has private names too.
PRIVATE = "_lstsd_"


def taught(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a `compute_loss`: its result is the base loss of a training batch, to which the teachers add their part.

    `LSTSDMixin` wraps the `compute_loss` of every subclass when the class is defined. So one that does not call
    `super()` is taught as well, and one that does is taught only once.
    """

    @functools.wraps(compute_loss)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        model, inputs, *rest = *args, *(_named(type(self), place, kwargs) for place in range(len(args), 2))
        # A pass without gradient only looks, for instance to choose samples by their loss: it is not the one to teach.
        if model.training and torch.is_grad_enabled() and not self._lstsd_is_computing_base_loss:
            return self._lstsd_teach(compute_loss, model, inputs, *rest, **kwargs)
        if SAMPLE_IDS in inputs:  # a training batch that is evaluated, or used in another's base loss
            inputs, _ = take_added(inputs)
        return compute_loss(self, model, inputs, *rest, **kwargs)

    wrapper.is_taught = True  # type: ignore[attr-defined]
    return wrapper


def _named(trainer: type, place: int, given: dict[str, Any]) -> Any:
    """Takes the model (place 0) or the batch (1), which a step of the user's own passed by name, out of `given`.

    The user's `compute_loss` may call them something else, and may be a parent's.
    """
    for cls in trainer.__mro__:
        if "compute_loss" in vars(cls):
            name = next(iter([*inspect.signature(vars(cls)["compute_loss"]).parameters][place + 1 :]), None)
            if name in given:
                return given.pop(name)
    raise TypeError(f"{trainer.__name__}.compute_loss got {sorted(given)} by name: expected a model and a batch.")


def is_taught(compute_loss: Callable[..., Any]) -> bool:
    """Whether `taught` has wrapped it."""
    return getattr(compute_loss, "is_taught", False)


def take_added(batch: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A copy of a batch without what the collator added, and what it added. The caller's batch is not changed."""
    rest = copy.copy(batch)
    return rest, {key: rest.pop(key) for key in batch if str(key).startswith(ADDED)}


def plain_batch(batch: Any) -> Any:
    """A batch without what the collator adds in a run, for a training loss that is computed outside of one."""
    logger.warning_once(
        "The loss of a training batch is computed outside of train(): nothing is recorded, and no teacher has a part."
    )
    return take_added(batch)[0] if SAMPLE_IDS in batch else batch


def refuse_no_ids(batch: Any) -> None:
    """Raises ValueError if a training batch has no sample ids."""
    if SAMPLE_IDS not in batch:
        raise ValueError(
            f"A training batch holds {sorted(map(str, batch))}, and no sample ids: expected a batch of "
            "LSTSDTrainer.get_train_dataloader. A subclass that overrides it must call super(). One that picks keys "
            f"of the batch, in training_step or _prepare_inputs, must keep those that begin with {ADDED!r}."
        )


def is_plain(owners: tuple[type, ...], name: str) -> bool:
    """Whether, among these classes, only the plain Trainer and those of this package define a method."""
    return all(cls is Trainer or _is_ours(cls) for cls in owners if name in cls.__dict__)


class Shown(Generic[Value]):
    """A public attribute of the mixin: its value lies under a private name, for `settings` that is `_lstsd_settings`.

    A user's trainer that sets an attribute of the same name means something else by it, so that is refused.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Value:
        return cast(Value, self) if instance is None else getattr(instance, f"{PRIVATE}{self._name}")

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(same_name(type(instance).__name__, self._name))


def refuse_same_names(cls: type, mixin: type) -> None:
    """Raises TypeError if a class of the user's has a method or an attribute with a public name of the mixin."""
    ours = {base: _is_ours(base) for base in cls.__mro__}
    names = {name for base in mixin.__mro__ if ours[base] for name in vars(base) if not name.startswith("_")}
    for base in cls.__mro__:
        clash = sorted(name for name in names - set(dir(Trainer)) if name in vars(base))
        if clash and not ours[base]:
            raise TypeError(same_name(base.__name__, clash[0]))


def same_name(trainer: str, name: str) -> str:
    """What an error says of a name that both a user's trainer and the mixin have."""
    return (
        f"{trainer} has {name!r} of its own, and LSTSDMixin, which PredictionRecorder uses too, shows something else "
        f"under that name: expected another name. Rename {name!r} in your trainer, for instance to 'my_{name}'."
    )


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def refuse_wrong_order(cls: type, mixin: type) -> None:
    """Raises TypeError if a trainer stands before the mixin in a class's bases, and so hides it."""
    before = cls.__mro__[: cls.__mro__.index(mixin)]
    wrong = next((base for base in before if issubclass(base, Trainer) and not issubclass(base, mixin)), None)
    if wrong is not None:
        raise TypeError(
            f"class {cls.__name__}: {wrong.__name__} stands before {mixin.__name__} and hides it: expected the mixin "
            f"first. Write\n\n    from lstsd_hf import {mixin.__name__}\n    class {cls.__name__}({mixin.__name__}, "
            f"{wrong.__name__}): ...\n"
        )


def count_own_items(
    compute_loss_func: Callable[..., torch.Tensor], shifts: Callable[[], bool]
) -> Callable[..., torch.Tensor]:
    """Wraps a user's loss function so that it gets the number of items in its own micro-batch, not the whole step's.

    `shifts` tells at each call, because the head may not be known yet at the first, whether the loss predicts the
    label at the next position: then a sequence's first label does not count.
    """
    if getattr(compute_loss_func, "counts_own_items", False):
        return compute_loss_func

    @functools.wraps(compute_loss_func)
    def with_own_items(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        counted = labels[..., 1:] if shifts() else labels
        return compute_loss_func(outputs, labels, num_items_in_batch=items_in(counted))

    with_own_items.counts_own_items = True  # type: ignore[attr-defined]
    return with_own_items


def items_in(labels: Any) -> torch.Tensor | None:
    """How many labels are not -100; None if the labels are not a tensor."""
    return labels.ne(-100).sum() if isinstance(labels, torch.Tensor) else None


@contextmanager
def watching(wrapped: nn.Module, model: nn.Module, wanted: bool) -> Iterator[list[Any]]:
    """Collects what a model returns, if `wanted`, because the losses of some trainers do not pass it on.

    Args:
        wrapped: The model as it is wrapped for training.
        model: The model without its wrappers.
        wanted: Whether to collect.
    """
    seen: list[Any] = []
    if not wanted:
        yield seen
        return
    # For a compiled model, the hook is on the wrapper: inside, it would be compiled as well.
    watched = wrapped if hasattr(wrapped, "_orig_mod") else model
    handle = watched.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restores the global random number generators of the CPU afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
