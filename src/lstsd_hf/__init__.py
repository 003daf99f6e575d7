"""Long Short-Term Sample Distillation (Jiang et al., AAAI 2020) for the Hugging Face Trainer."""

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .config import DistillationArguments, LSTSDConfig
    from .report import write_report
    from .report.clean import clean
    from .report.history import read_history
    from .store import LogitsStore, StoreCorruptionError, StoreError, StoreMismatchError
    from .training.memory_stopping import MemoryStoppingCallback
    from .training.mixin import LSTSDMixin
    from .training.prediction_recorder import PredictionRecorder
    from .training.record import record_predictions
    from .training.sample_ids import add_sample_ids
    from .training.trainer import LSTSDTrainer

__all__ = [
    "DistillationArguments",
    "LSTSDConfig",
    "LSTSDMixin",
    "LSTSDTrainer",
    "LogitsStore",
    "MemoryStoppingCallback",
    "PredictionRecorder",
    "StoreCorruptionError",
    "StoreError",
    "StoreMismatchError",
    "__version__",
    "add_sample_ids",
    "clean",
    "read_history",
    "record_predictions",
    "write_report",
]

# torch and transformers take seconds to import, and the store needs neither; numpy takes a tenth of one, in which a
# Ctrl-C could not be told in one line. So each of these names is imported on first use.
_MODULES = {
    "DistillationArguments": "config",
    "LSTSDConfig": "config",
    "LSTSDMixin": "training.mixin",
    "LSTSDTrainer": "training.trainer",
    "LogitsStore": "store",
    "MemoryStoppingCallback": "training.memory_stopping",
    "PredictionRecorder": "training.prediction_recorder",
    "StoreCorruptionError": "store",
    "StoreError": "store",
    "StoreMismatchError": "store",
    "add_sample_ids": "training.sample_ids",
    "clean": "report.clean",
    "read_history": "report.history",
    "record_predictions": "training.record",
    "write_report": "report",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
