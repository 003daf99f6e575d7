"""The texts that the report shows, from a data set in memory or from a file, by sample id."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from ..training.sample_ids import LABEL_COLUMNS, sample_ids_of

# Only an empty cell is missing: a text may well be "null".
_CSV = {"keep_default_na": False, "na_values": [""]}
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t", "quoting": 3}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_TEXT = (Value("string"), Value("large_string"))


class Texts:
    """A data set's texts by sample id; several text columns of a row are lines of one text."""

    def __init__(self, dataset: Dataset, text_columns: str | Sequence[str] | None, sample_id_column: str) -> None:
        """Checks the columns; reads the ids, and no text yet.

        Raises:
            ValueError: a column is missing, or there is no text column; `SampleIdError`, which is one: an id is
                missing, negative, repeated, or no integer.
        """
        if isinstance(text_columns, str):
            text_columns = [text_columns]
        wanted = [sample_id_column, *(text_columns or ())]
        missing = [name for name in wanted if name not in dataset.column_names]
        if missing:
            raise ValueError(
                f"The data set of the texts has no column {missing[0]!r}: expected {', '.join(map(repr, wanted))}, "
                f"found {', '.join(map(repr, dataset.column_names))}. The ids are those of the training set: save it "
                "with them (add_sample_ids), or name the columns."
            )
        others = (sample_id_column, *LABEL_COLUMNS)
        kinds = dataset.features.items()
        columns = text_columns or [name for name, kind in kinds if kind in _TEXT and name not in others]
        if not columns:
            raise ValueError(
                f"The data set of the texts has no column of text, but {', '.join(map(repr, dataset.column_names))}. "
                "Name the columns to show with text_columns."
            )
        self.columns = tuple(columns)
        ids = np.asarray(sample_ids_of(dataset, sample_id_column))
        self._order = np.argsort(ids)
        self._ids = ids[self._order]
        self._rows = dataset.with_format(None).select_columns(list(self.columns))

    def refuse_others(self, sample_ids: npt.NDArray[np.integer[Any]]) -> None:
        """Raises ValueError where the data set has none of the samples: it is of another run."""
        if not np.isin(sample_ids, self._ids).any():
            expected, found = (", ".join(map(str, ids[:5].tolist())) for ids in (sample_ids, self._ids))
            raise ValueError(
                f"The data set of the texts has none of the {len(sample_ids)} samples: expected ids such as "
                f"{expected}, found {found}. Is it the training set of this run?"
            )

    def of(self, sample_ids: npt.NDArray[np.integer[Any]], limit: int) -> tuple[list[str | None], int]:
        """The texts of (n,) samples, None where the data set does not have the id; and how many of them were cut.

        `limit`: the number of characters that a text is cut to.
        """
        place = np.minimum(np.searchsorted(self._ids, sample_ids), len(self._ids) - 1)
        known = self._ids[place] == sample_ids
        texts: list[str | None] = [None] * len(sample_ids)
        cut = 0
        found = self._rows.select(self._order[place[known]])
        at = iter(np.flatnonzero(known))
        for batch in found.iter(10_000):
            for cells in zip(*(batch[name] for name in self.columns), strict=True):
                text = "\n".join("" if cell is None else str(cell) for cell in cells)
                cut += len(text) > limit
                texts[next(at)] = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
        return texts, cut


def read_texts(
    dataset: str | os.PathLike[str] | Dataset | DatasetDict,
    text_columns: str | Sequence[str] | None,
    sample_id_column: str = "sample_id",
) -> Texts:
    """Opens what holds the texts.

    Args:
        dataset: A `datasets.Dataset`, or the path of a folder that `save_to_disk` wrote (of a dictionary of splits,
            either way, its `train`), or of a CSV, TSV, JSON (lines) or parquet file. It needs the column of ids.
        text_columns: The column to show, or several; None: all columns of text but the label's.
        sample_id_column: The column of ids.

    Raises:
        ValueError: nothing is there, it cannot be read, or a column or the split is missing.
    """
    found = dataset if isinstance(dataset, (Dataset, DatasetDict)) else _read(Path(dataset))
    if isinstance(found, DatasetDict):
        if "train" not in found:
            raise ValueError(
                "The data set of the texts is a dictionary: expected a split 'train', found "
                f"{', '.join(map(repr, found))}. Give the split that the run was trained on."
            )
        found = found["train"]
    return Texts(found, text_columns, sample_id_column)


def _read(path: Path) -> Dataset | DatasetDict:
    if path.is_dir():
        try:
            return load_from_disk(str(path))
        except FileNotFoundError as error:
            raise ValueError(f"{path}: expected a folder that Dataset.save_to_disk wrote: {error}") from error
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path}: expected a folder, or a file that ends in {', '.join(_FORMATS)}.")
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    builder, options = _FORMATS[path.suffix.lower()]
    try:
        return load_dataset(builder, data_files=glob.escape(str(path)), split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as {builder}: {error.__cause__ or error}") from error
