"""Errors of other libraries that a wrong input or the machine causes, as ValueErrors that say what was being done.

`lstsd` shows a ValueError in one line, and any other exception, which would be a fault of the program, with its
traceback.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# How libraries answer a value of the wrong kind, where they did not look at it first.
WRONG_VALUE = (TypeError, KeyError, AttributeError, AssertionError, ArithmeticError, RuntimeError)

# Packages whose own exceptions tell of a server, a file or a service.
_OUTSIDE = ("datasets", "httpx", "httpx2", "huggingface_hub", "mlflow", "safetensors", "trackio", "wandb")


@contextmanager
def as_value_error(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of some kinds into a ValueError that begins with `what`."""
    try:
        yield
    except kinds as error:
        # The names of these two say no more than their messages do.
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{error}") from error


@contextmanager
def errors_of_a_run() -> Iterator[None]:
    """Turns what a run can meet in memory, on the disk or on the network into a ValueError; all else stays."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"Out of memory: {error} Set per_device_train_batch_size lower, and gradient_accumulation_steps higher."
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"A file of the checkpoint is damaged: {error}") from error
    except RuntimeError as error:
        if "inline_container.cc" not in str(error):  # the part of torch.save and torch.load that writes and reads
            raise
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ValueError(
            f"A file of the checkpoint could not be written or read: {cause}. Is the disk full? Earlier checkpoints "
            "are intact."
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _OUTSIDE or isinstance(error, (ValueError, OSError)):
            raise
        raise ValueError(f"{type(error).__name__}: {error}") from error
