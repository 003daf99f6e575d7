"""Matches the rows of a user's data set to a run's samples: by an id column, or by position if the labels agree."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from ..training.fingerprint import fingerprint
from ..training.sample_ids import LABEL_COLUMNS
from .cells import NUMBER, Cells, Column, listed, sample_ids, shown
from .files import UserFile
from .parsing import list_in
from .run import Run

Array = npt.NDArray[Any]

_NUMBER = re.compile(NUMBER)


class KeyColumns:
    """The columns that say which sample a row is.

    Attributes:
        id_column: The name of the id column, whether the file has it or not.
        ids: A list of the id column; empty if there is none. The rows are then taken to be in the order of their ids,
            as in a file that was trained on without ids; the labels must agree.
        labels: A list of the label column; empty if there is none.
        texts: The columns whose texts must be those that were trained on, in their order, because there are no ids.
        are_lists: Whether the label column is read as lists of numbers.
    """

    def __init__(
        self,
        file: UserFile,
        sample_id_column: str,
        label_column: str | None,
        wanted: Sequence[str] = (),
        *,
        run: Run | None = None,
    ) -> None:
        """Chooses the columns; for labels the one that is named, else "labels", "label" or "label_ids".

        After `lstsd train` on a file, the column that it learnt comes first, because another may say the same, and
        would be the one to correct. A column of texts that the run was trained on is none of labels unless it is
        named.

        `run`: if its labels are rows of numbers, the label column may hold lists.

        Raises:
            ValueError: one of these columns, or of `wanted`, is missing.
        """
        self.id_column = sample_id_column
        trained_on, learnt = ({}, None) if run is None else (run.store.texts, run.store.label_column)
        names = dict.fromkeys([*([] if learnt is None else [learnt]), *LABEL_COLUMNS])
        usual = [name for name in names if name in file.columns and name not in trained_on]
        there = [label_column] if label_column else usual
        values = file.value_columns(there)
        may_be_lists = label_column is not None or (run is not None and run.vectors is not None)
        self.labels = (values or there if may_be_lists else values)[:1]
        self.are_lists = run is not None and run.vectors is not None and (run.is_multi_label or not values)
        self.ids = [] if self.labels and sample_id_column not in file.columns else [sample_id_column]
        self.texts = [] if self.ids else [name for name in trained_on if name in file.columns]
        needed = [*self.ids, *wanted, *self.labels]
        missing = [name for name in needed if name not in file.columns]
        if missing:
            if there and not self.labels and set(there) <= set(file.columns) and missing == self.ids:
                raise ValueError(
                    f"{file.name} has no column {sample_id_column!r}, and its labels in {there[0]!r} are lists or "
                    "bytes: expected ids, or one label in each row, as the run was trained on. Name these columns "
                    "(sample_id_column, label_column)."
                )
            raise ValueError(
                f"{file.name} has no column {missing[0]!r}: expected {', '.join(map(repr, needed))}, found "
                f"{listed(file.columns)}. The ids are those of the training set: save it with them "
                "(add_sample_ids), or name the columns (sample_id_column, text_columns, label_column). Without ids "
                "the rows are known by their labels."
            )


class RowsById:
    """The rows of a data set by sample id."""

    def __init__(self, ids: Array) -> None:
        """`ids`: (rows,) without repeats."""
        self._order = np.argsort(ids)
        self._ids = ids[self._order]

    def find(self, sample_ids: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.bool_], Array]:
        """(n,) bool, whether the data set has each sample; and the rows of those that it has."""
        place = np.minimum(np.searchsorted(self._ids, sample_ids), len(self._ids) - 1)
        known = self._ids[place] == sample_ids
        return known, self._order[place[known]]


class SampleRows(RowsById):
    """The rows of the data set that a run was trained on, by sample id."""

    def __init__(self, name: str, run: Run, cells: Cells, keys: KeyColumns) -> None:
        """Checks that the data set is the one that the run was trained on.

        Args:
            name: The data set's name in messages.
            run: The run.
            cells: The columns that were read of it, with those of `keys`; its `texts` among the texts.
            keys: The columns of ids and labels.

        Raises:
            ValueError: an id is missing, negative, repeated, or not an integer; the data set has none of the run's
                samples, or other labels; or it has no ids, and other texts.
        """
        rows = range(len(cells.texts))
        ids = np.arange(len(rows))
        if keys.ids:
            ids = sample_ids(name, keys.id_column, cells.others[keys.id_column], rows)
        super().__init__(ids)
        self._refuse_others(name, run, None if keys.ids else keys.id_column)
        for column in keys.labels:
            if column in cells.others:
                self._refuse_other_labels(name, run, column, cells.others[column], keys)
            else:
                self._refuse_other_vectors(name, run, column, list(cells.texts[column]))
        for column in keys.texts:
            self._refuse_other_texts(name, run, column, cells.texts, keys)

    def _refuse_others(self, name: str, run: Run, missing_column: str | None) -> None:
        if missing_column is not None and len(self._ids) <= run.ids.max():
            raise ValueError(
                f"{name} has no column {missing_column!r}, and {len(self._ids):,} rows: expected sample ids, or the "
                f"rows that were trained on in their order, {run.ids.max() + 1:,} of them. Save the training set with "
                "its ids (add_sample_ids), or name their column with sample_id_column (--sample_id_column)."
            )
        if not np.isin(run.ids, self._ids).any():
            expected, found = (", ".join(map(str, ids[:5].tolist())) for ids in (run.ids, self._ids))
            raise ValueError(
                f"{name} has none of the {len(run.ids)} samples: expected ids such as {expected}, found {found}. Is "
                "it the training set of this run?"
            )

    def _refuse_other_labels(self, name: str, run: Run, column: str, labels: Column, keys: KeyColumns) -> None:
        known, rows = self.find(run.ids)
        stored = (run.labels if run.numbers is None else run.numbers)[known]
        # The names of a `ClassLabel` stand as they are: they may differ by spaces alone, and one may be empty.
        cells = [labels.cells[row] if labels.names else (labels.cells[row] or "").strip() or None for row in rows]
        differ = np.flatnonzero(_differences(cells, labels.names, stored, run))
        if not len(differ):
            return
        first = differ[0]
        found = shown(cells[first] or "")
        expected = shown(run.classes[stored[first]]) if run.numbers is None else f"{stored[first]:g}"
        taken = "" if keys.ids else f"It has no column {keys.id_column!r}, so its rows were counted. "
        raise ValueError(
            f"{name}: {len(differ):,} of {len(cells):,} labels in {column!r} are not those that the run was trained "
            f"on; the first is in data row {rows[first] + 1}, for sample id {run.ids[known][first]}: expected "
            f"{expected}, found {found}. {taken}Texts may be those of other samples. Give the data set "
            "that was trained on, as it was, with the ids that it had then (sample_id_column, --sample_id_column). If "
            "its labels are in another column, name that (label_column, --label_column)."
        )

    def _refuse_other_vectors(self, name: str, run: Run, column: str, cells: Sequence[Any]) -> None:
        assert run.vectors is not None
        known, rows = self.find(run.ids)
        stored = run.vectors[known]
        found = np.array([as_vector(cells[row], stored.shape[1]) for row in rows.tolist()])
        differ = np.flatnonzero(~np.isclose(found, stored, rtol=0, atol=1e-3).all(axis=1))
        if len(differ):
            first = differ[0]
            raise ValueError(
                f"{name}: {len(differ):,} of {len(stored):,} labels in {column!r} are not those that the run was "
                f"trained on; the first is in data row {rows[first] + 1}, for sample id {run.ids[known][first]}: "
                f"expected {stored[first].tolist()}, found {shown(str(cells[rows[first]]))}. Give the data set that "
                "was trained on, as it was, with the ids that it had then (sample_id_column, --sample_id_column)."
            )

    def _refuse_other_texts(self, name: str, run: Run, column: str, texts: Dataset, keys: KeyColumns) -> None:
        _, rows = self.find(run.ids)  # each sample has a row, because the rows were counted
        if fingerprint(texts.select(rows), run.ids, [column]) != run.store.texts[column]:
            raise ValueError(
                f"{name} has no column {keys.id_column!r}, so its rows were counted, and the texts in {column!r} are "
                "not those that the run was trained on, row by row: expected the file that was trained on, as it was. "
                "If its rows have moved, put them back in their order, or add a column with the number that each row "
                "had then, from 0, and name it (sample_id_column, --sample_id_column)."
            )


def as_vector(cell: Any, size: int) -> Array:
    """(size,) the numbers in a cell that holds a list, or one as JSON, Python or numpy write it; else NaN."""
    try:
        vector = np.asarray(list_in(cell) if isinstance(cell, str) else cell, np.float64)
    except (ValueError, TypeError):
        return np.full(size, np.nan)
    return vector if vector.shape == (size,) else np.full(size, np.nan)


def _differences(cells: Sequence[str | None], names: Sequence[str], stored: Array, run: Run) -> npt.NDArray[np.bool_]:
    """(n,) bool: whether a label in a data set differs from the one in the store.

    Classes are compared by their names in the run's configuration, and by number. If a label is neither (the user
    turned names into numbers, or counted from 1), each label must always go with the same class, and no two labels
    with one class.

    Args:
        cells: (n,) the labels as text, None where missing.
        names: The names of a `ClassLabel`, by id; empty for other columns.
        stored: (n,) the labels in the store: class ids, or numbers that are none.
        run: The run.
    """
    if run.numbers is not None:
        found = np.array([float(cell) if cell and _NUMBER.fullmatch(cell) else np.nan for cell in cells])
        return ~np.isclose(found, stored, rtol=1e-5, atol=1e-8)
    values = list(dict.fromkeys(cells))
    place = {value: i for i, value in enumerate(values)}
    codes = np.array([place[cell] for cell in cells])
    by_name, by_number = (
        {name.strip(): i for i, name in enumerate(known)} | {name: i for i, name in enumerate(known)}
        for known in (run.classes, names or [*map(str, range(len(run.classes)))])
    )
    readings = [
        np.array([-1 if value is None else ids.get(value, -1) for value in values]) for ids in (by_name, by_number)
    ]
    is_label = np.array([value is not None for value in values])
    understood = [ids for ids in readings if (ids >= 0)[is_label].all()]
    return min(
        (
            ids[codes] != stored
            for ids in understood or [_classes_beside(codes, stored, len(values), len(run.classes))]
        ),
        key=np.count_nonzero,
    )


def _classes_beside(codes: Array, stored: Array, num_values: int, num_classes: int) -> Array:
    """(V,) the class that each value of a column mostly goes with, if the class mostly goes with it; else -1.

    Args:
        codes: (n,) which of the V values each row has.
        stored: (n,) the class of each row.
        num_values: V.
        num_classes: How many classes there are.
    """
    pairs, counts = np.unique(codes * num_classes + stored, return_counts=True)
    pairs = pairs[np.argsort(counts, kind="stable")]  # the last of several assignments to one index stays
    value, label = pairs // num_classes, pairs % num_classes
    to_label, to_value = np.full(num_values, -1), np.full(num_classes, -1)
    to_label[value], to_value[label] = label, value
    return np.where(to_value[to_label] == np.arange(num_values), to_label, -1)
