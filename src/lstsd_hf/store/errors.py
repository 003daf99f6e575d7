"""The errors of a store."""


class StoreError(Exception):
    """The logits store cannot do what was asked."""


class StoreMismatchError(StoreError):
    """The store was made for another data set, model head or dtype."""


class StoreCorruptionError(StoreError):
    """A file of the store is missing or damaged, or was not written by this package."""
