"""What people do instead of the store, with the same loss and the same two teachers; for comparison only."""

import copy
import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from lstsd_hf import LSTSDTrainer
from lstsd_hf.config import DistillationArguments
from lstsd_hf.method.heads import Classes
from lstsd_hf.method.loss import distillation_loss

_HEAD = Classes()
_METHOD = DistillationArguments().resolve(_HEAD.default_weight)


class TeachersTrainer(Trainer):
    """The plain Trainer with the loss of both teachers. A subclass provides the teachers' logits."""

    weights: torch.Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        ids = inputs.pop("sample_id")
        teachers = self.look_up(ids, inputs)
        base_loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        student = outputs["logits"]
        terms = _HEAD.terms(student, teachers, _METHOD.temperature, _METHOD.teacher_trust)
        self.keep(ids, student.detach())
        if self.weights is None:
            weights = [_METHOD.long_term_weight, _METHOD.short_term_weight]
            self.weights = torch.tensor(weights, device=student.device)
        return distillation_loss(base_loss, self.weights, terms)

    def look_up(self, ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Returns both teachers' logits, (2, B, C)."""
        raise NotImplementedError

    def keep(self, ids: torch.Tensor, logits: torch.Tensor) -> None:
        """Keeps this epoch's logits, (B, C), if the subclass needs them."""


class SnapshotTrainer(TeachersTrainer):
    """Runs two frozen copies of the model on each batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        self.frozen = [copy.deepcopy(model).eval().requires_grad_(False) for _ in range(2)]

    def look_up(self, ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        columns = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad(), self.accelerator.autocast():
            return torch.stack([model(**columns)["logits"] for model in self.frozen])


class RowByRow:
    """A table in memory for each epoch, updated row by row."""

    def __init__(self, samples: int, classes: int) -> None:
        self.past = [torch.randn(samples, classes) for _ in range(2)]
        self.present = torch.zeros(samples, classes)

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([table[ids] for table in self.past])

    def keep(self, ids: torch.Tensor, logits: torch.Tensor) -> None:
        for sample_id, row in zip(ids.tolist(), logits, strict=True):
            self.present[sample_id] = row


class FilePerSample:
    """A pickled file for each sample and epoch."""

    def __init__(self, folder: Path, samples: int, classes: int) -> None:
        self._folder = folder
        for epoch in range(3):
            (folder / str(epoch)).mkdir(parents=True)
        for epoch in range(2):
            self._write(epoch, torch.arange(samples), torch.randn(samples, classes))

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.stack([self._read(epoch, i) for i in ids.tolist()]) for epoch in range(2)])

    def keep(self, ids: torch.Tensor, logits: torch.Tensor) -> None:
        self._write(2, ids, logits)

    def _read(self, epoch: int, sample_id: int) -> torch.Tensor:
        with self._path(epoch, sample_id).open("rb") as file:
            return torch.from_numpy(pickle.load(file))

    def _write(self, epoch: int, ids: torch.Tensor, logits: torch.Tensor) -> None:
        for sample_id, row in zip(ids.tolist(), logits.numpy(), strict=True):
            with self._path(epoch, sample_id).open("wb") as file:
                pickle.dump(row, file)

    def _path(self, epoch: int, sample_id: int) -> Path:
        return self._folder / str(epoch) / f"{sample_id}.pkl"


class TableTrainer(TeachersTrainer):
    """Takes the teachers from `RowByRow`, or from another table."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = self.new_table()

    def new_table(self) -> RowByRow | FilePerSample:
        rows: Any = self.train_dataset
        model: Any = self.model
        return RowByRow(len(rows), model.config.num_labels)

    def look_up(self, ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        return self.table.look_up(ids.cpu()).to(ids.device)

    def keep(self, ids: torch.Tensor, logits: torch.Tensor) -> None:
        self.table.keep(ids.cpu(), logits.float().cpu())


class FilesTrainer(TableTrainer):
    """Takes the teachers from `FilePerSample`."""

    def new_table(self) -> RowByRow | FilePerSample:
        rows: Any = self.train_dataset
        model: Any = self.model
        return FilePerSample(Path(str(self.args.output_dir)) / "files", len(rows), model.config.num_labels)


TRAINERS: dict[str, type[Trainer]] = {
    "lstsd": LSTSDTrainer,
    "snapshots": SnapshotTrainer,
    "table": TableTrainer,
    "files": FilesTrainer,
}
