"""Makes batches with the user's collator, and adds the sample ids and the teachers' predictions to them."""

import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..method.many_rows import ManyRows
from ..method.teachers import Teacher
from ..method.vocabulary import fewer_classes
from ..store.ragged import EXTRA_PARTS
from ..store.rows import VALUES
from .sample_ids import SampleIdError
from .teacher_reader import TeacherReader

# The prefix of what the collator adds to a batch. The trainer takes it out again before the model sees the batch.
ADDED = "lstsd_"
SAMPLE_IDS = f"{ADDED}sample_ids"
POSITIONS = f"{ADDED}positions"
COUNTS = f"{ADDED}counts"
ROW_LABELS = f"{ADDED}row_labels"


def teacher_key(name: str, part: str = VALUES) -> str:
    """The key in a batch of a part of the named teacher's predictions."""
    return f"{ADDED}{name}_{'logits' if part == VALUES else part}"


def teacher_parts(added: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The predictions of the named teachers, by part of a row, with an axis for the teachers in front."""
    if not names:
        return {}
    parts = [part for part in (VALUES, *EXTRA_PARTS) if teacher_key(names[0], part) in added]
    found = [{part: added[teacher_key(name, part)] for part in parts} for name in names]
    if len(parts) > 1 and len({teacher[VALUES].shape[-1] for teacher in found}) > 1:  # an outside store has another k
        fewest = min(teacher[VALUES].shape[-1] for teacher in found)
        found = [fewer_classes(teacher, fewest) for teacher in found]
    if len({teacher[VALUES].dtype for teacher in found}) > 1:
        found = [{n: part.float() if part.is_floating_point() else part for n, part in t.items()} for t in found]
    return {part: torch.stack([teacher[part] for teacher in found]) for part in parts}


class TeachingEpochs:
    """The epoch that each teacher's predictions are read from now: one object in a run, shared by all its loaders.

    The numbers lie in shared memory, so worker processes see them change, forked or spawned, persistent or not. The
    first one tells whether a run is on, because outside of a run the batches are those of the user's collator.

    Attributes:
        sources: For each teacher: its name, the folder of its store (None for the run's own), its track, its columns.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self.sources = tuple((teacher.name, teacher.store, teacher.track, teacher.columns) for teacher in teachers)
        self._numbers = torch.full((1 + len(self.sources),), -1, dtype=torch.int64).share_memory_()
        self.end()

    def set(self, epochs: Sequence[int | None]) -> None:
        """Sets the epoch of each teacher, before the first batch of an epoch is fetched; None if it does not teach.

        From now on a run is on.
        """
        self._numbers.copy_(torch.tensor([1, *(-1 if epoch is None else epoch for epoch in epochs)]))

    def end(self) -> None:
        """Ends the run."""
        self._numbers[0] = 0

    def get(self) -> list[int]:
        """The epoch of each teacher; -1 if it does not teach now."""
        return self._numbers[1:].tolist()

    def is_on(self) -> bool:
        """Whether a run is on."""
        return bool(self._numbers[0])


class IdentifiedRow(NamedTuple):
    """An item of a map-style data set, with its id, or its position if ids are not known; None if it has neither."""

    position: int | None
    row: Any


class IdentifiedDataset(torch.utils.data.Dataset[Any]):
    """Gives the data loader each item of a map-style data set with its id, without a copy.

    The data loader fetches a batch's items at once, by `__getitems__`, which adds the ids. Everything else goes to the
    wrapped data set: its items, its attributes (`set_epoch`, `column_names` ...), and what is assigned to them.
    """

    def __init__(self, wrapped: Any, wrapped_ids: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self.wrapped = wrapped
        self.wrapped_ids = wrapped_ids

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getitem__(self, index: Any) -> Any:
        return self.wrapped[index]

    def __iter__(self) -> Iterator[Any]:  # else Python would count up until an IndexError, which may never come
        return iter(self.wrapped)

    def __getitems__(self, indices: list[Any]) -> list[IdentifiedRow]:
        if hasattr(self.wrapped, "__getitems__"):  # `datasets.Dataset` has it, and many torch data sets do not
            rows = self.wrapped.__getitems__(indices)
        else:
            rows = [self.wrapped[index] for index in indices]
        return [IdentifiedRow(self._position(index), row) for index, row in zip(indices, rows, strict=True)]

    def _position(self, index: Any) -> int | None:
        try:
            return int(self.wrapped_ids[operator.index(index)])
        except TypeError:  # a sampler may draw other indices that the data set understands
            return None
        except IndexError as error:
            raise SampleIdError(
                f"The sampler drew index {index} from a training set that had {len(self.wrapped_ids)} rows when the "
                "run began: expected the same rows in every epoch, because an earlier epoch teaches them. Make the "
                "set as large as it will be before train(), and choose among its rows with a sampler."
            ) from error

    def __getattr__(self, name: str) -> Any:
        if name in ("wrapped", "wrapped_ids"):  # not there yet, while this object is unpickled
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("wrapped", "wrapped_ids"):
            super().__setattr__(name, value)
        else:  # a callback may advance a curriculum
            setattr(self.wrapped, name, value)


class SentByValue(torch.Tensor):
    """A tensor that is sent to another process by value, and arrives as a plain one.

    Otherwise PyTorch sends a file descriptor for each tensor, which costs the training process half a millisecond per
    tensor, however small.
    """

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> "SentByValue":
        return torch.from_numpy(array).as_subclass(cls)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return torch.from_numpy, (self.numpy(),)


class TeacherCollator:
    """Takes the sample ids out, lets another collator make the batch, and adds the ids and the teachers to it.

    While no run is on, it only takes the ids out. It may run in worker processes. So it carries only the path of the
    store, and opens the store when it first reads.
    Its other attributes are those of the wrapped collator.
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], Any],
        column: str,
        num_samples: int,
        path: str,
        teaching: TeachingEpochs,
        head: ManyRows | None = None,
    ) -> None:
        """Wraps `collator`. `head` says which rows a batch has; None if each sample has one."""
        self.collator = collator
        self._head = head
        self._column = column
        self._num_samples = num_samples
        self._path = path
        self._teaching = teaching
        self._readers: dict[str, TeacherReader] = {}
        self._opened_for: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled as a full copy.
        return {**self.__dict__, "_readers": {}, "_opened_for": []}

    def __getattr__(self, name: str) -> Any:
        if name == "collator":  # not there yet, while this object is unpickled
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, features: list[Any]) -> MutableMapping[str, Any]:
        """Makes a batch of B rows.

        Raises:
            SampleIdError: a row has no id, an id that is not an integer in [0, num_samples), or that of another row.
            TypeError: the wrapped collator did not return a mapping.
        """
        identified = isinstance(features[0], IdentifiedRow)
        rows = [feature.row for feature in features] if identified else features
        if not self._teaching.is_on():
            return self.collator([self._without_id(row) if self._has_id(row) else row for row in rows])
        if identified and not any(self._has_id(row) for row in rows):
            ids = [self._id_by_position(feature) for feature in features]
        else:
            ids = [self._id_of(row) for row in rows]
            if identified:
                self._refuse_shared_ids(ids, features)
            rows = [self._without_id(row) for row in rows]
        batch = self.collator(rows)
        if not isinstance(batch, MutableMapping):
            raise TypeError(f"The data collator returned a {type(batch).__name__}: expected a mapping of tensors.")
        sample_ids = np.array(ids, np.int64)
        to_tensor = torch.from_numpy if torch.utils.data.get_worker_info() is None else SentByValue.from_numpy
        counts = None
        if self._head is not None:
            index = self._head.index(batch, len(ids))
            counts = index.counts.numpy()
            labels = self._head.row_labels(batch, index).numpy()
            batch[POSITIONS], batch[COUNTS] = to_tensor(index.positions.numpy()), to_tensor(counts)
            batch[ROW_LABELS] = to_tensor(labels)
        batch[SAMPLE_IDS] = to_tensor(sample_ids)
        epochs = self._teaching.get()
        if epochs != self._opened_for:  # memory maps of dropped epochs would hold on to their disk space
            self._readers, self._opened_for = self._open(epochs), epochs
        for name, reader in self._readers.items():
            for part, values in reader.read(sample_ids, counts).items():
                batch[teacher_key(name, part)] = to_tensor(values)
        return batch

    def _open(self, epochs: list[int]) -> dict[str, TeacherReader]:
        """Readers of the teachers that teach now, by name."""
        readers = {}
        for (name, store, track, columns), epoch in zip(self._teaching.sources, epochs, strict=True):
            if epoch >= 0:
                path, is_outside = store or self._path, store is not None
                readers[name] = TeacherReader(path, track, epoch, columns, is_outside=is_outside)
        return readers

    def _has_id(self, row: Any) -> bool:
        return isinstance(row, Mapping) and self._column in row

    def _without_id(self, row: Any) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key != self._column}

    def _id_of(self, row: Any) -> int:
        if not self._has_id(row):
            found = sorted(row) if isinstance(row, Mapping) else type(row).__name__
            raise SampleIdError(
                f"A training row has no {self._column!r}: expected an integer sample id in every row, found {found}. "
                "Add it with add_sample_ids, or where the rows are made."
            )
        try:
            sample_id = operator.index(row[self._column])
        except TypeError as error:
            raise SampleIdError(
                f"A training row has {self._column}={row[self._column]!r}: expected an integer sample id."
            ) from error
        if not 0 <= sample_id < self._num_samples:
            raise SampleIdError(
                f"A training row has {self._column}={sample_id}: expected 0 to {self._num_samples - 1}. Give the "
                "largest id plus 1 with the arguments: LSTSDConfig(num_samples=...), in place of TrainingArguments."
            )
        return sample_id

    def _id_by_position(self, feature: IdentifiedRow) -> int:
        if feature.position is None:
            raise SampleIdError(
                f"The sampler drew an index that is no position in the training set, and its rows have no "
                f"{self._column!r}: expected integers from the sampler, or an integer sample id in every row."
            )
        return feature.position

    def _refuse_shared_ids(self, ids: list[int], features: list[IdentifiedRow]) -> None:
        # A sampler may draw one row twice, but two rows with one id are an error.
        owner: dict[int, int | None] = {}
        for sample_id, feature in zip(ids, features, strict=True):
            if owner.setdefault(sample_id, feature.position) != feature.position:
                raise SampleIdError(
                    f"Rows {owner[sample_id]} and {feature.position} of the training set share "
                    f"{self._column}={sample_id}: expected an id of its own for each row."
                )
