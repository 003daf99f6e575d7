"""Turns errors of other libraries into ValueErrors, if a wrong input or the machine caused them.

`lstsd` shows a ValueError in one line. It shows an exception that is none of `cli.USER_ERRORS`, and so a bug, with its
traceback.
"""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What libraries raise for a value of the wrong kind that they did not check first.
WRONG_VALUE = (TypeError, KeyError, AttributeError, AssertionError, ArithmeticError, RuntimeError)

# How torch reports a file that it cannot write or read: the part that does so, and what C++ says of a full disk.
_FILE_OF_TORCH = ("inline_container.cc", "iostream error")
# How the tokenizers report the same, with an exception that has no type of its own.
_BY_THE_SYSTEM = re.compile(r"\(os error [0-9]+\)$")

# Packages whose own exceptions report a problem with a server, a file or a service.
_OUTSIDE = ("datasets", "httpx", "httpx2", "huggingface_hub", "mlflow", "safetensors", "trackio", "wandb")


@contextmanager
def as_value_error(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of some kinds into a ValueError whose message begins with `what`."""
    try:
        yield
    except kinds as error:
        # The names of these two say no more than their messages do.
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{error}") from error


@contextmanager
def errors_of_a_run() -> Iterator[None]:
    """Turns failures of memory, disk or network during a run into a ValueError; other exceptions stay as they are."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"Out of memory: {error} Set per_device_train_batch_size lower, and gradient_accumulation_steps higher."
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"A file of the checkpoint is damaged: {error}") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _FILE_OF_TORCH):
            raise
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ValueError(
            f"A file of the checkpoint could not be written or read: {cause}. Is the disk full? Earlier checkpoints "
            "are intact."
        ) from error
    except Exception as error:
        if type(error) is Exception and _BY_THE_SYSTEM.search(str(error)):
            raise ValueError(f"A file of the tokenizer could not be written: {error}.") from error
        if type(error).__module__.partition(".")[0] not in _OUTSIDE or isinstance(error, (ValueError, OSError)):
            raise
        raise ValueError(f"{type(error).__name__}: {error}") from error
