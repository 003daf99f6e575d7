"""Predictions of past epochs, on disk: the store that everything else records into and reads. No torch."""

from .errors import StoreCorruptionError, StoreError, StoreMismatchError
from .logits_store import LogitsStore

__all__ = ["LogitsStore", "StoreCorruptionError", "StoreError", "StoreMismatchError"]
