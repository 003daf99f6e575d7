"""Predictions on their way from the device to the disk."""

from collections.abc import Iterator

import torch

Batch = tuple[int, dict[str, torch.Tensor]]


class OnItsWay:
    """Batches that the device copies to the CPU when it gets there, in order, so that no step waits for it."""

    def __init__(self) -> None:
        self._batches: list[tuple[torch.cuda.Event | None, Batch]] = []

    def put(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Starts to copy a batch of a step."""
        event = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            # Into pinned memory, which the device fills when it gets there.
            tensors = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
            event = torch.cuda.current_stream().record_event()
        self._batches.append((event, (step, {name: tensor.cpu() for name, tensor in tensors.items()})))

    def arrived(self) -> Iterator[Batch]:
        """The batches that have arrived."""
        while self._batches and (self._batches[0][0] is None or self._batches[0][0].query()):
            yield self._batches.pop(0)[1]

    def all(self) -> Iterator[Batch]:
        """All batches; waits for the device."""
        while self._batches:
            event, batch = self._batches.pop(0)
            if event is not None:
                event.synchronize()
            yield batch
