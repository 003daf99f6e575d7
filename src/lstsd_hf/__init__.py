"""Long Short-Term Sample Distillation (Jiang et al., AAAI 2020) for the Hugging Face Trainer."""

from typing import TYPE_CHECKING

from ._version import __version__
from .store import LogitsStore, StoreCorruptionError, StoreError, StoreMismatchError

if TYPE_CHECKING:
    from .config import LSTSDConfig
    from .data import add_sample_ids
    from .report import write_report
    from .trainer import LSTSDTrainer

__all__ = [
    "LSTSDConfig",
    "LSTSDTrainer",
    "LogitsStore",
    "StoreCorruptionError",
    "StoreError",
    "StoreMismatchError",
    "__version__",
    "add_sample_ids",
    "write_report",
]

# torch and transformers take seconds to import, and the store needs neither of them: they come with the first name
# that does.
_ROOMS = {"LSTSDConfig": "config", "LSTSDTrainer": "trainer", "add_sample_ids": "data", "write_report": "report"}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
