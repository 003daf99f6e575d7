"""The texts that the report shows, from a data set in memory or from a file, by sample id."""

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict

from ..training.sample_ids import LABEL_COLUMNS
from .cells import NUMBER, Column, listed, sample_ids, shown
from .files import UserFile, open_data_set, open_user_file
from .run import Run

Array = npt.NDArray[Any]

_NUMBER = re.compile(NUMBER)


class Texts:
    """A data set's texts by sample id; several text columns of a row are lines of one text."""

    def __init__(
        self,
        file: UserFile,
        run: Run,
        text_columns: str | Sequence[str] | None,
        sample_id_column: str,
        label_column: str | None,
    ) -> None:
        """Reads ids and labels, and checks that the data set is the one that the run was trained on.

        Raises:
            ValueError: a column is missing, or there is no text column; an id is missing, negative, repeated, or no
                integer; the data set has none of the run's samples, or other labels.
        """
        if isinstance(text_columns, str):
            text_columns = [text_columns]
        labels = [label_column] if label_column else file.value_columns(LABEL_COLUMNS)[:1]
        # A file that was trained on without ids has its rows in the order of their ids, if its labels say so.
        ids = [] if labels and sample_id_column not in file.columns else [sample_id_column]
        self._check_columns(file, [*ids, *(text_columns or ()), *labels])
        others = (sample_id_column, *LABEL_COLUMNS, *labels)
        columns = text_columns or file.text_columns([name for name in file.columns if name and name not in others])
        if not columns:
            raise ValueError(
                f"{file.name} has no column of text, but {listed(file.columns)}. Name the columns to "
                "show with text_columns (--text_columns)."
            )
        self.columns = tuple(columns)
        cells = file.read(columns, [*ids, *labels], to_show=True)
        self._rows, rows = cells.texts, range(len(cells.texts))
        if ids:
            self._ids = sample_ids(file.name, sample_id_column, cells.others[sample_id_column], rows)
        else:
            self._ids = np.arange(len(rows))
        self._order = np.argsort(self._ids)
        self._ids = self._ids[self._order]
        self._refuse_others(file.name, run, sample_id_column if not ids else None)
        if labels:
            self._refuse_other_labels(file.name, run, labels[0], cells.others[labels[0]], sample_id_column, bool(ids))

    @staticmethod
    def _check_columns(file: UserFile, wanted: Sequence[str]) -> None:
        missing = [name for name in wanted if name not in file.columns]
        if missing:
            raise ValueError(
                f"{file.name} has no column {missing[0]!r}: expected {', '.join(map(repr, wanted))}, found "
                f"{listed(file.columns)}. The ids are those of the training set: save it with them "
                "(add_sample_ids), or name the columns (sample_id_column, text_columns, label_column). Without ids "
                "the rows are known by their labels."
            )

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

    def _refuse_other_labels(
        self, name: str, run: Run, column: str, labels: Column, sample_id_column: str, has_ids: bool
    ) -> None:
        known, rows = self._find(run.ids)
        stored = run.labels[known]
        cells = [(labels.cells[row] or "").strip() for row in rows]
        differ = np.flatnonzero(_differences(cells, labels.names, stored, run))
        if not len(differ):
            return
        first = differ[0]
        expected = f"{stored[first]:g}" if run.is_regression else shown(run.classes[stored[first]])
        taken = "" if has_ids else f"It has no column {sample_id_column!r}, so its rows were counted. "
        raise ValueError(
            f"{name}: {len(differ):,} of {len(cells):,} labels in {column!r} are not those that the run was trained "
            f"on; the first is in data row {rows[first] + 1}, for sample id {run.ids[known][first]}: expected "
            f"{expected}, found {shown(cells[first])}. {taken}Texts may be those of other samples. Give the data set "
            "that was trained on, as it was, with the ids that it had then (sample_id_column, --sample_id_column). If "
            "its labels are in another column, name that (label_column, --label_column)."
        )

    def _find(self, sample_ids: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.bool_], Array]:
        """(n,) whether the data set has a sample, and the rows of those that it has."""
        place = np.minimum(np.searchsorted(self._ids, sample_ids), len(self._ids) - 1)
        known = self._ids[place] == sample_ids
        return known, self._order[place[known]]

    def of(self, sample_ids: npt.NDArray[np.integer[Any]], limit: int) -> tuple[list[str | None], int]:
        """The texts of (n,) samples, None where the data set does not have the id; and how many of them were cut.

        `limit`: the number of characters that a text is cut to.
        """
        known, rows = self._find(sample_ids)
        texts: list[str | None] = [None] * len(sample_ids)
        cut = 0
        found = self._rows.select(rows)
        at = iter(np.flatnonzero(known))
        for batch in found.iter(10_000):
            for cells in zip(*(batch[name] for name in self.columns), strict=True):
                text = "\n".join("" if cell is None else str(cell) for cell in cells)
                cut += len(text) > limit
                texts[next(at)] = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
        return texts, cut


def _differences(cells: Sequence[str], names: Sequence[str], stored: Array, run: Run) -> npt.NDArray[np.bool_]:
    """(n,) whether a label in a data set is another than the one in the store.

    Classes are compared by the names that the run's configuration gives them, and by number. Where a label is neither
    (the user made numbers of names, or counted from 1), each must stand beside one class, and no other.

    Args:
        cells: (n,) the labels as text, "" where missing.
        names: The names of a `ClassLabel`, by id; else none.
        stored: (n,) the labels in the store: class ids, or scores.
        run: The run.
    """
    if run.is_regression:
        found = np.array([float(cell) if _NUMBER.fullmatch(cell) else np.nan for cell in cells])
        return ~np.isclose(found, stored, rtol=1e-5, atol=1e-8)
    values = list(dict.fromkeys(cells))
    place = {value: i for i, value in enumerate(values)}
    codes = np.array([place[cell] for cell in cells])
    by_name = {name.strip(): i for i, name in enumerate(run.classes)}
    by_number = {name.strip(): i for i, name in enumerate(names or map(str, range(len(run.classes))))}
    readings = [np.array([ids.get(value, -1) for value in values]) for ids in (by_name, by_number)]
    is_label = np.array([value != "" for value in values])
    understood = [ids for ids in readings if (ids >= 0)[is_label].all()]
    return min(
        (
            ids[codes] != stored
            for ids in understood or [_classes_beside(codes, stored, len(values), len(run.classes))]
        ),
        key=np.count_nonzero,
    )


def _classes_beside(codes: Array, stored: Array, num_values: int, num_classes: int) -> Array:
    """(V,) of each value in a column the class that it mostly stands beside, if the class mostly stands beside it.

    Args:
        codes: (n,) which of the V values each row has.
        stored: (n,) the class of each row.
        num_values: V.
        num_classes: How many classes there are.
    """
    pairs, counts = np.unique(codes * num_classes + stored, return_counts=True)
    pairs = pairs[np.argsort(counts, kind="stable")]  # of several assignments to one place, the last one stays
    value, label = pairs // num_classes, pairs % num_classes
    to_label, to_value = np.full(num_values, -1), np.full(num_classes, -1)
    to_label[value], to_value[label] = label, value
    return np.where(to_value[to_label] == np.arange(num_values), to_label, -1)


def read_texts(
    dataset: str | os.PathLike[str] | Dataset | DatasetDict,
    run: Run,
    text_columns: str | Sequence[str] | None = None,
    *,
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    tsv_quoting: bool = False,
) -> Texts:
    """Opens what holds the texts, and checks that it is what the run was trained on.

    Args:
        dataset: A `datasets.Dataset`, or the path of a folder that `save_to_disk` wrote (of a dictionary of splits,
            either way, its `train`), or of a CSV, TSV, JSON (lines) or parquet file.
        run: The run whose samples they are.
        text_columns: The column to show, or several; None: all columns of text but the label's.
        sample_id_column: The column of ids. Where it is missing, a row's position is its id.
        label_column: The column of labels, which are compared with the run's; None: "labels", "label" or "label_ids",
            where there is one. Where there is none, ids are needed.
        tsv_quoting: Whether quotes enclose fields in a TSV file.

    Raises:
        ValueError: nothing is there, it cannot be read, a column or the split is missing, or ids or labels are not
            those of the run.
    """
    if isinstance(dataset, (Dataset, DatasetDict)):
        file = open_data_set(dataset, "The data set of the texts")
    else:
        file = open_user_file(dataset, tsv_quoting=tsv_quoting)
    return Texts(file, run, text_columns, sample_id_column, label_column)
