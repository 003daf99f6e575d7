"""Columns of a user's file as text, and what the readers of such files share."""

import logging
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features

# A number in decimal notation. `float` also takes "nan", "1_000" and the digits of other scripts.
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_ID = re.compile("[0-9]{1,19}")
_LARGEST_ID = 2**63 - 1

logger = logging.getLogger(__name__)


def tell(line: str) -> None:
    """Logs in one line what was assumed; only one of several processes does."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(line)


def shown(value: str) -> str:
    """A value for a message: in quotes, in one line, and not too long."""
    return repr(value) if len(value) <= 60 else repr(value[:60]) + "..."


def listed(values: Sequence[str], limit: int = 20) -> str:
    """The first of some values, for a message."""
    return ", ".join([*map(shown, values[:limit]), *(["..."] if len(values) > limit else [])])


def in_memory(table: pa.Table, features: Features | None = None) -> Dataset:
    """A table as a data set, with a random fingerprint: `datasets` would hash a pickled copy of the whole table."""
    return Dataset(table, DatasetInfo(features=features), fingerprint=uuid.uuid4().hex)


@dataclass(frozen=True)
class Column:
    """The cells of a column as text.

    Attributes:
        cells: (N,) None where a cell is missing.
        names: The names of a `ClassLabel`, by id; empty for other columns.
        is_text: Whether the file has types, and holds text there: in JSON "1", not 1.
    """

    cells: list[str | None]
    names: tuple[str, ...] = ()
    is_text: bool = False


def sample_id(cell: str | None) -> int:
    """The sample id that a cell holds: an integer from 0 to 2^63 - 1; -1 if it holds none."""
    cell = (cell or "").strip()
    found = int(cell) if _ID.fullmatch(cell) else -1
    return found if found <= _LARGEST_ID else -1


def sample_ids(name: str, column: str, held: Column, rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """The sample ids of some rows, from the column that holds them.

    Args:
        name: The file's name in messages.
        column: The name of the column.
        held: Its cells.
        rows: (n,) the positions of the rows, from 0.

    Returns:
        (n,) integers of at least 0, without repeats.

    Raises:
        ValueError: an id is missing, repeated, or not an integer of at least 0.
    """
    first: dict[int, int] = {}
    for row in rows:
        cell = (held.cells[row] or "").strip()
        found = sample_id(cell)
        if found < 0:
            raise ValueError(
                f"{name}, data row {row + 1}: expected a sample id, an integer of at least 0, in {column!r}, found "
                f"{shown(cell)}. Name another column with sample_id_column (--sample_id_column)."
            )
        if found in first:
            raise ValueError(
                f"{name}, data row {row + 1}: the sample id {found} in {column!r} is that of data row "
                f"{first[found] + 1}: expected no repeated sample ids. Name another column with sample_id_column "
                "(--sample_id_column)."
            )
        first[found] = row
    return np.fromiter(first, np.int64, len(first))


@dataclass(frozen=True)
class Cells:
    """The columns that were read from a file.

    Attributes:
        texts: (N rows) the text columns.
        others: Other columns by name: labels, ids, and the column that rows are chosen by.
    """

    texts: Dataset
    others: dict[str, Column]
