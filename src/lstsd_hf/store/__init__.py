"""Predictions of past epochs on disk: the store that all other parts of the package write and read. No torch."""

from .errors import StoreCorruptionError, StoreError, StoreMismatchError
from .logits_store import LogitsStore

__all__ = ["LogitsStore", "StoreCorruptionError", "StoreError", "StoreMismatchError"]
