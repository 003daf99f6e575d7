"""The texts that the report shows, from a data set in memory or from a file, by sample id."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict

from ..training.sample_ids import LABEL_COLUMNS
from .cells import listed, sample_ids
from .files import UserFile, open_data_set, open_user_file
from .matching import KeyColumns, RowsById, SampleRows
from .run import Run

Array = npt.NDArray[Any]


class Texts:
    """A data set's texts by sample id; several text columns of a row become lines of one text."""

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
            ValueError: a column is missing, or there is no text column; an id is missing, negative, repeated, or not
                an integer; the data set has none of the run's samples, or other labels; or it has no ids, and other
                texts.
        """
        if isinstance(text_columns, str):
            text_columns = [text_columns]
        keys = KeyColumns(file, sample_id_column, label_column, text_columns or (), run=run)
        usual = [name for name in LABEL_COLUMNS if name not in run.store.texts]
        known = [name for name in file.columns if name in (sample_id_column, *usual, *keys.labels)]
        columns = text_columns or file.text_columns(_to_show(file, known))
        if not columns:
            taken = f" (taken for ids and labels: {listed(known)})" if known else ""
            raise ValueError(
                f"{file.name} has no column of text, but {listed(file.columns)}{taken}. Name the columns to show with "
                "text_columns (--text_columns), and those of labels and ids, if they are others, with label_column "
                "and sample_id_column."
            )
        self.columns = tuple(columns)
        lists, others = (keys.labels, keys.ids) if keys.are_lists else ([], [*keys.ids, *keys.labels])
        cells = file.read(
            [*columns, *(name for name in [*lists, *keys.texts] if name not in columns)], others, to_show=True
        )
        self._texts = cells.texts
        self._rows: RowsById = SampleRows(file.name, run, cells, keys)

    def of(self, sample_ids: npt.NDArray[np.integer[Any]], limit: int) -> tuple[list[str | None], int]:
        """The texts of (n,) samples, None where the data set does not have the id; and how many of them are cut.

        `limit`: the number of characters that a text is cut to.
        """
        known, rows = self._rows.find(sample_ids)
        texts: list[str | None] = [None] * len(sample_ids)
        cut = 0
        found = self._texts.select(rows)
        at = iter(np.flatnonzero(known))
        for batch in found.iter(10_000):
            for cells in zip(*(batch[name] for name in self.columns), strict=True):
                text = "\n".join("" if cell is None else str(cell) for cell in cells)
                cut += len(text) > limit
                texts[next(at)] = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
        return texts, cut


def _to_show(file: UserFile, known: Sequence[str]) -> list[str]:
    """The columns that may be shown: those with a name of their own that are not `known`."""
    return [name for name in file.columns if name and name not in known and file.columns.count(name) == 1]


class PlainTexts(Texts):
    """Texts by sample id, for a run with many rows per sample: its labels are not those of a column."""

    def __init__(
        self, file: UserFile, ids: Array, text_columns: str | Sequence[str] | None, sample_id_column: str
    ) -> None:
        """Reads the texts and the ids; `ids`: (N,) the samples of the run.

        Raises:
            ValueError: there is no text column; an id is missing, negative, repeated, or not an integer; there are no
                ids, and not as many rows as samples; or none of the samples is there.
        """
        named = [text_columns] if isinstance(text_columns, str) else list(text_columns or ())
        columns = named or file.text_columns(_to_show(file, [sample_id_column]))
        if not columns:
            raise ValueError(
                f"{file.name} has no column of text, but {listed(file.columns)}. Name the columns to show with "
                "text_columns (--text_columns)."
            )
        has_ids = sample_id_column in file.columns
        cells = file.read(columns, [sample_id_column] if has_ids else [], to_show=True)
        self.columns, self._texts = tuple(columns), cells.texts
        rows = range(len(cells.texts))
        if not has_ids and len(rows) != ids.max() + 1:
            raise ValueError(
                f"{file.name} has no column {sample_id_column!r}, and {len(rows):,} rows: expected sample ids, or the "
                f"{ids.max() + 1:,} rows that were trained on, in their order. A feature of question answering is a "
                "sample: save the features with their ids (add_sample_ids) and a column of text."
            )
        held = sample_ids(file.name, sample_id_column, cells.others[sample_id_column], rows) if has_ids else None
        self._rows = RowsById(np.arange(len(rows)) if held is None else held)
        known, _ = self._rows.find(ids)
        if not known.any():
            raise ValueError(
                f"{file.name} has none of the {len(ids)} samples: expected ids such as "
                f"{', '.join(map(str, ids[:5].tolist()))}. Is it the training set of this run?"
            )


def read_plain_texts(
    dataset: str | os.PathLike[str] | Dataset | DatasetDict,
    ids: Array,
    text_columns: str | Sequence[str] | None = None,
    *,
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    tsv_quoting: bool = False,
) -> PlainTexts:
    """As `read_texts`, for the samples `ids` (N,) of a run with many rows per sample: no labels are compared."""
    return PlainTexts(_opened(dataset, tsv_quoting), ids, text_columns, sample_id_column)


def _opened(dataset: str | os.PathLike[str] | Dataset | DatasetDict, tsv_quoting: bool) -> UserFile:
    if isinstance(dataset, (Dataset, DatasetDict)):
        return open_data_set(dataset, "The data set of the texts")
    return open_user_file(dataset, tsv_quoting=tsv_quoting)


def read_texts(
    dataset: str | os.PathLike[str] | Dataset | DatasetDict,
    run: Run,
    text_columns: str | Sequence[str] | None = None,
    *,
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    tsv_quoting: bool = False,
) -> Texts:
    """Opens the data set that has the texts, and checks that it is the one that the run was trained on.

    Args:
        dataset: A `datasets.Dataset`, or the path of a folder that `save_to_disk` wrote, or of a CSV, TSV, JSON
            (lines) or parquet file. Of a dictionary of splits, the split `train` is used.
        run: The run that was trained on it.
        text_columns: The column to show, or several; None: all text columns but the label's.
        sample_id_column: The column of ids. If it is missing, a row's position is its id; after `lstsd train`, the
            texts are then compared with the run's.
        label_column: The column of labels, which are compared with the run's; None: "labels", "label" or "label_ids",
            if there is one; after `lstsd train` on a file, the one that it learnt. Without labels, ids are needed.
        tsv_quoting: Whether quotes enclose fields in a TSV file.

    Raises:
        ValueError: nothing is there, it cannot be read, a column or the split is missing, or ids or labels, or texts
            without ids, are not those of the run.
    """
    file = _opened(dataset, tsv_quoting)
    return Texts(file, run, text_columns, sample_id_column, label_column)
