"""Reads a user's data: CSV, TSV, JSON and JSON lines, parquet, and folders that `Dataset.save_to_disk` wrote.

Training, prediction and the report all read through `open_user_file`, so that a label has the same name everywhere.

- A cell is text, as it was written: "01" stays "01", and "null" is a text. No type is guessed from the values.
- An empty cell is missing. In JSON and parquet, null and NaN are missing, and "" is a text.
- Only the columns that are asked for are kept. What the others hold does not matter.
- A path is opened as it stands: "train[1].csv" is not a pattern. A file is parsed each time it is opened: 400,000 rows
  of CSV take about two seconds, and no cached table can be older than the file.
- Whatever would lose or shift text is an error, which names the file and the line or data row. Data rows count from 1.
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_from_disk

from ..paths import absent
from .cells import NUMBER, Cells, Column, in_memory, listed, tell
from .parsing import Number, delimited_rows, in_words, json_rows

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_NO_TEXT = rf"^\s*({NUMBER}|true|false)\s*$"
_ROWS_AT_ONCE = 10_000
# What the readers of other libraries raise for a file that is damaged, or of another format.
_UNREADABLE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)
_QUOTING = "if quotes enclose fields in this file, set tsv_quoting (--tsv_quoting)"


class UserFile(ABC):
    """A user's file or data set. It knows its columns' names from the start, and reads their cells when asked.

    Attributes:
        name: Its name in messages.
        columns: The names of its columns.
    """

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self.name = name
        self.columns = tuple(columns)

    @abstractmethod
    def read(self, texts: Sequence[str], others: Sequence[str] = (), *, to_show: bool = False) -> Cells:
        """Reads columns.

        Args:
            texts: Columns that must hold text; at least one.
            others: Columns that must hold one value in each row, of any type.
            to_show: Whether `texts` may hold anything, numbers and lists too, because they are only shown.

        Raises:
            ValueError: a column is missing or there twice, a row is broken, a cell is of another kind, or there are no
                rows.
        """

    @abstractmethod
    def text_columns(self, columns: Sequence[str]) -> list[str]:
        """Those of the columns that hold text, not only numbers or nothing."""

    @abstractmethod
    def value_columns(self, columns: Sequence[str]) -> list[str]:
        """Those of the columns that the file has, with one value in each row."""

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises ValueError if a column is missing, or there twice."""
        for name in columns:
            if name not in self.columns:
                hint = f" {_QUOTING.capitalize()}." if f'"{name}"' in self.columns else ""
                found = listed(self.columns)
                raise ValueError(f"{self.name}: expected a column {name!r}, found the columns {found}.{hint}")
            if self.columns.count(name) > 1:
                raise ValueError(
                    f"{self.name}: expected one column {name!r}, found {self.columns.count(name)}. Rename all but one."
                )

    def _check_read(self, texts: Sequence[str], others: Sequence[str]) -> None:
        """Raises ValueError as `check_columns`, and if `texts` names a column twice."""
        if len(set(texts)) < len(texts):
            raise ValueError(f"{self.name}: expected text columns, each once, found {listed(texts)}.")
        self.check_columns([*texts, *others])

    def _refuse_row(self, number: int, what: str) -> NoReturn:
        raise ValueError(f"{self.name}, data row {number}: {what}")

    def _refuse_empty(self, rows: int) -> None:
        if not rows:
            raise ValueError(f"{self.name}: expected rows, found none.")


def open_user_file(path: str | os.PathLike[str], *, split: str = "train", tsv_quoting: bool = False) -> UserFile:
    """Opens a file, whose suffix tells its format, or a folder.

    Args:
        path: A file that ends in one of `FORMATS`, or a folder that `save_to_disk` wrote.
        split: The split to take, of a folder that holds several.
        tsv_quoting: Whether quotes enclose fields in a TSV file, as in CSV; otherwise they are text.

    Raises:
        ValueError: nothing is there, the format is not known, or it cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path, split)
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected a folder, or a file that ends in {', '.join(FORMATS)}.")
    if not path.is_file():
        raise ValueError(f"{path}: {absent(path, 'file')}.")
    if suffix == ".parquet":
        return _open_parquet(path)
    if suffix in (".json", ".jsonl"):
        return _JsonFile(path)
    return _DelimitedFile(path, "," if suffix == ".csv" else "\t", has_quotes=suffix == ".csv" or tsv_quoting)


def open_data_set(dataset: Dataset | DatasetDict, name: str, split: str = "train") -> UserFile:
    """Opens a data set in memory as if it were a file; of several splits, the one that is named.

    Raises:
        ValueError: it has no such split.
    """
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(
                f"{name} is a dictionary: expected a split {split!r}, found {listed(list(dataset))}. Give the "
                "split that you mean; on disk it is a folder of its own in that of the dictionary."
            )
        dataset = dataset[split]
    return _TypedFile(name, dataset.features.arrow_schema, dataset.with_format(None).select_columns)


def _open_folder(path: Path, split: str) -> UserFile:
    try:
        saved = load_from_disk(str(path))
    except IndexError as error:  # it lists no files, as `save_to_disk` does where there are no rows
        raise ValueError(f"{path}: expected rows, found none.") from error
    except (*_UNREADABLE, AttributeError) as error:
        raise ValueError(f"{path}: expected a folder that Dataset.save_to_disk wrote: {error}") from error
    return open_data_set(saved, str(path), split)


def parquet_file(path: Path) -> pq.ParquetFile:
    """Opens a parquet file by its name as it stands: pyarrow would take "s3:a.parquet" for an address."""
    return pq.ParquetFile(pa.OSFile(os.fsencode(path), "rb"))


def _open_parquet(path: Path) -> UserFile:
    def load(names: list[str]) -> Dataset:
        try:
            # For "a.b", `columns` also reads the part "b" of a column "a"; `select` takes names as they are.
            table = parquet_file(path).read(columns=names).select(names)
            table.validate(full=True)  # otherwise text that is not UTF-8 fails later, without the file's name
            # `datasets` does not know string views.
            kinds = [pa.string() if pa.types.is_string_view(kind) else kind for kind in table.schema.types]
            return in_memory(table.cast(pa.schema(zip(names, kinds, strict=True), table.schema.metadata)))
        except _UNREADABLE as error:
            raise ValueError(f"{path}: cannot be read as parquet: {error}") from error

    try:
        return _TypedFile(str(path), parquet_file(path).schema_arrow, load)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as parquet: {error}") from error


class _RowFile(UserFile):
    """A file that is parsed row by row."""

    has_types = False

    @abstractmethod
    def _rows(self, texts: Sequence[str], others: Sequence[str], to_show: bool) -> Iterator[list[str | None]]:
        """The cells of the columns, row by row."""

    def read(self, texts: Sequence[str], others: Sequence[str] = (), *, to_show: bool = False) -> Cells:
        self._check_read(texts, others)
        # Lists of cells, because lists of rows would keep the garbage collector busy.
        columns: list[list[str | None]] = [[] for _ in (*texts, *others)]
        chunks: list[list[pa.Array]] = [[] for _ in texts]
        count = 0
        for count, row in enumerate(self._rows(texts, others, to_show), start=1):
            for cells, cell in zip(columns, row, strict=True):
                cells.append(cell)
            if not count % _ROWS_AT_ONCE:
                _to_arrow(columns, chunks)
        self._refuse_empty(count)
        _to_arrow(columns, chunks)
        table = pa.table([pa.chunked_array(arrays) for arrays in chunks], list(texts))
        values = zip(others, columns[len(texts) :], strict=True)
        return Cells(
            in_memory(table),
            {
                name: Column(cells, is_text=self.has_types and any(type(cell) is str for cell in cells))
                for name, cells in values
            },
        )


def _to_arrow(columns: list[list[str | None]], chunks: list[list[pa.Array]]) -> None:
    """Moves the cells of the text columns, which come first, to Arrow arrays."""
    for cells, arrays in zip(columns, chunks, strict=False):
        arrays.append(pa.array(cells, pa.large_string()))
        cells.clear()


class _DelimitedFile(_RowFile):
    """A CSV or TSV file."""

    def __init__(self, path: Path, delimiter: str, *, has_quotes: bool) -> None:
        self._path, self._delimiter, self._has_quotes = path, delimiter, has_quotes
        header = next(self._lines(), None)
        if header is None:
            raise ValueError(f"{path}: expected a header and rows, found an empty file.")
        super().__init__(str(path), header[1])

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        return delimited_rows(self._path, self._delimiter, has_quotes=self._has_quotes)

    def value_columns(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if name in self.columns]

    def _rows(self, texts: Sequence[str], others: Sequence[str], to_show: bool) -> Iterator[list[str | None]]:
        places, width = [self.columns.index(name) for name in (*texts, *others)], len(self.columns)
        lines = self._lines()
        next(lines)  # the header
        for line, fields in lines:
            if len(fields) != width:
                self._refuse_fields(line, len(fields))
            if width > 1 and fields[-1] == self.columns[-1] and self._is_header(fields):
                raise ValueError(
                    f"{self.name}, line {line}: the header is there again, as where files were joined. Delete "
                    "the line."
                )
            yield [fields[place] or None for place in places]

    def read(self, texts: Sequence[str], others: Sequence[str] = (), *, to_show: bool = False) -> Cells:
        cells = super().read(texts, others, to_show=to_show)
        if not self._has_quotes:
            columns = cells.texts.data.columns
            count = sum(pc.sum(pc.starts_with(column, '"')).as_py() or 0 for column in columns)
            if count:
                tell(
                    f"{self.name}: {count:,} cells begin with a quote, which was taken as part of the text. "
                    f"{_QUOTING.capitalize()}."
                )
        return cells

    def text_columns(self, columns: Sequence[str]) -> list[str]:
        if not columns:
            return []
        table = super().read(columns).texts.data
        no_text = (pc.match_substring_regex(table[name], _NO_TEXT, ignore_case=True) for name in columns)
        return [name for name, cells in zip(columns, no_text, strict=True) if pc.any(pc.invert(cells)).as_py()]

    def _is_header(self, fields: list[str]) -> bool:
        return (fields[0].removeprefix("\ufeff"), *fields[1:]) == self.columns

    def _refuse_fields(self, line: int, found: int) -> NoReturn:
        separator = "comma" if self._delimiter == "," else "tab"
        unless, hint = (", unless quotes enclose it", "") if self._has_quotes else ("", f"; {_QUOTING}")
        fields = f"{len(self.columns)} fields ({listed(self.columns, 8)})"
        raise ValueError(
            f"{self.name}, line {line}: expected {fields}, found {found}. A {separator} separates fields{unless}, and "
            f"one at the end of a line begins another. Mend or delete the line{hint}."
        )


class _JsonFile(_RowFile):
    """JSON, or JSON lines."""

    has_types = True

    def __init__(self, path: Path) -> None:
        self._path = path
        columns: dict[str, None] = {}
        self._text_columns: set[str] = set()
        self._nested_columns: set[str] = set()
        for row in json_rows(path):
            columns |= dict.fromkeys(row)
            self._text_columns.update(name for name, cell in row.items() if type(cell) is str)
            self._nested_columns.update(name for name, cell in row.items() if isinstance(cell, (list, dict)))
        super().__init__(str(path), list(columns))
        self._refuse_empty(len(columns))

    def text_columns(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if name in self._text_columns]

    def value_columns(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if name in self.columns and name not in self._nested_columns]

    def _rows(self, texts: Sequence[str], others: Sequence[str], to_show: bool) -> Iterator[list[str | None]]:
        for number, row in enumerate(json_rows(self._path), start=1):
            if repeated := row.repeated.intersection([*texts, *others]):
                self._refuse_row(number, f"the name {min(repeated)!r} is there twice. Delete one of them.")
            yield [
                *(self._cell(number, name, row.get(name), "anything" if to_show else "text") for name in texts),
                *(self._cell(number, name, row.get(name), "one value") for name in others),
            ]

    def _cell(self, number: int, name: str, cell: Any, expected: str) -> str | None:
        if cell is None or (isinstance(cell, Number) and cell == "NaN"):
            return None
        is_nested = isinstance(cell, (list, dict))
        if expected != "anything" and (is_nested or (expected == "text" and type(cell) is not str)):
            self._refuse_row(number, f"expected {expected} in {name!r}, found {in_words(cell)}.")
        found = cell if isinstance(cell, str) else json.dumps(cell) if is_nested else str(cell)
        if not found.isascii() and re.search("[\ud800-\udfff]", found):
            self._refuse_row(number, f"expected text in {name!r}, found half of a surrogate pair.")
        return found


class _TypedFile(UserFile):
    """Columns that have types: those of a parquet file, or of a `datasets.Dataset`."""

    def __init__(self, name: str, schema: pa.Schema, load: Callable[[list[str]], Dataset]) -> None:
        """`load` returns the columns that are named."""
        super().__init__(name, schema.names)
        self._types, self._load = dict(zip(schema.names, schema.types, strict=True)), load

    def read(self, texts: Sequence[str], others: Sequence[str] = (), *, to_show: bool = False) -> Cells:
        self._check_read(texts, others)
        for name in texts:
            if not to_show and not _is_text(self._types[name]):
                raise ValueError(f"{self.name}: expected text in {name!r}, found {self._types[name]}.")
        rows = self._load(list(dict.fromkeys([*texts, *others])))
        self._refuse_empty(len(rows))
        return Cells(rows.select_columns(list(texts)), {name: self._column(rows, name) for name in others})

    def text_columns(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if _is_text(self._types[name])]

    def value_columns(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if name in self._types and _is_value(self._types[name])]

    def _column(self, rows: Dataset, name: str) -> Column:
        cells, feature = rows.select_columns([name]).with_format("arrow")[:][name], rows.features[name]
        if isinstance(feature, ClassLabel):
            names = tuple(feature.names)
            return Column([None if i is None or i < 0 else names[i] for i in cells.to_pylist()], names)
        if _is_text(cells.type):
            return Column(cells.to_pylist(), is_text=True)
        if not isinstance(feature, Value) or not _is_value(cells.type):
            raise ValueError(f"{self.name}: expected one value in each row of {name!r}, found {cells.type}.")
        if pa.types.is_floating(cells.type):  # by numpy: float32's 0.1 is "0.1", not "0.10000000149011612"
            return Column([None if value != value else str(value) for value in cells.to_numpy()])
        return Column([None if value is None else str(value) for value in cells.to_pylist()])


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_value(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_text(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
