"""What can be wrong with a store."""


class StoreError(Exception):
    """The logits store cannot do what was asked of it."""


class StoreMismatchError(StoreError):
    """The store was made for another data set, model head or dtype."""


class StoreCorruptionError(StoreError):
    """A file of the store is damaged, or is not one of ours."""
