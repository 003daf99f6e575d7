"""The processes of a run: which owns the store, how they wait, and how nodes without a shared disk copy journals."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from transformers import TrainingArguments

from ..store import LogitsStore
from ..store.files import writing

_CHUNK_BYTES = 16 << 20


class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        owns_store: Whether this process creates, seals and copies the store. One process does, or one on each node.
        nodes_share_no_disk: Whether each node has a store of its own (`save_on_each_node`).
    """

    def __init__(self, accelerator: Accelerator, args: TrainingArguments) -> None:
        self.accelerator = accelerator
        self.owns_store = args.should_save
        self.nodes_share_no_disk = args.save_on_each_node

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def count(self) -> int:
        return self.accelerator.num_processes

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.accelerator.wait_for_everyone()

    def first_says(self, answer: bool) -> bool:
        """The answer of the first process. All processes call this together."""
        if self.count == 1:
            return answer
        return bool(broadcast(torch.tensor(answer, device=self.accelerator.device).int(), 0).item())

    def sum(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sums over all processes, which call this together."""
        if self.count == 1:
            return numbers.copy()
        total = self.accelerator.reduce(torch.from_numpy(numbers.copy()).to(self.accelerator.device), "sum")
        found: npt.NDArray[np.float64] = total.cpu().numpy()
        return found

    def gather_journals(self, store: LogitsStore, epoch: int) -> None:
        """Waits for all processes. If nodes share no disk, copies the journals of all processes to each node."""
        self.wait()
        if not self.nodes_share_no_disk or self.count == 1:
            return
        device = self.accelerator.device
        node = self.rank - self.accelerator.local_process_index  # a node is named by the rank of its first process
        for source in range(self.count):
            journal = store.journal_path(epoch, source)
            size = journal.stat().st_size if source == self.rank and journal.exists() else 0
            size, source_node = broadcast(torch.tensor([size, node], device=device), source).tolist()
            if not size:
                continue
            self._hand_on(journal, source, size, receives=self.owns_store and source_node != node)
        self.wait()

    def _hand_on(self, journal: Path, source: int, size: int, receives: bool) -> None:
        """Copies the journal of one process to those that receive it. All processes call this together.

        Raises:
            StoreError: the journal could not be written. No part of it stays on the disk.
        """
        temporary = journal.parent.with_name(f".{journal.name}.tmp")
        opened: Any = nullcontext()
        with writing(journal):
            if self.rank == source:
                opened = journal.open("rb")
            elif receives:
                opened = temporary.open("wb")
            try:
                with opened as file:
                    for start in range(0, size, _CHUNK_BYTES):
                        chunk = torch.empty(min(_CHUNK_BYTES, size - start), dtype=torch.uint8)
                        if self.rank == source:
                            file.readinto(chunk.numpy())
                        chunk = broadcast(chunk.to(self.accelerator.device), source)
                        if receives:
                            file.write(chunk.cpu().numpy())
                if receives:
                    os.replace(temporary, journal)
            except BaseException:
                if receives:
                    temporary.unlink(missing_ok=True)
                raise
