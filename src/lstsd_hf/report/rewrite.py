"""Copies a user's file with some rows left out and some labels changed, and nothing else.

A changed label is the cell of another row, byte for byte, so it is spelled, typed and quoted as in the file. In a list
of 0 and 1, which may be text, single numbers change. In CSV, TSV and JSON everything else stays as it was, byte for
byte: line ends, quotes, spaces, the byte-order mark.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_from_disk

from ..store.files import remove, replacing, temporary_name, writing
from .files import parquet_file
from .matching import Array

_SPACE = re.compile(r"\s*")
_LISTED = re.compile(r"[Tt]rue|[Ff]alse|[-+.0-9eE]+")  # how JSON, Python and numpy may write 0 and 1
_OPPOSITE = {"true": "false", "false": "true", "True": "False", "False": "True"}


class Edit(NamedTuple):
    """What changes in N rows.

    Attributes:
        keep: (N,) bool: whether a row stays.
        source: (N,) int64: the row whose label a row gets; its own position if it keeps its label.
        column: The name of the label column; None: no label changes.
        flips: By position, the rows with a list of 0 and 1 that changes: (C,) bool, whether each number changes.
    """

    keep: Array
    source: Array
    column: str | None
    flips: Mapping[int, Array] = MappingProxyType({})

    def changes(self, row: int) -> bool:
        """Whether a row gets another label."""
        return bool(self.source[row] != row) or row in self.flips

    def new_text(self, row: int, source: str) -> str:
        """The label that a row gets, as text; `source`: the text of its source row's label."""
        return _flipped(source, self.flips[row]) if row in self.flips else source


def write_edited(path: Path, output: Path, edit: Edit, *, split: str, tsv_quoting: bool) -> None:
    """Writes an edited copy of a file or folder that `open_user_file` reads; it appears only when it is complete.

    Raises:
        StoreError: it cannot be written.
    """
    if path.is_dir():
        _write_folder(path, output, edit, split)
        return
    with replacing(output) as temporary:
        if path.suffix.lower() == ".parquet":
            _write_parquet(path, temporary, edit)
            return
        text = path.read_bytes().decode("utf-8")
        if path.suffix.lower() in (".json", ".jsonl"):
            parts = _edited_json(path, text, edit)
        else:
            is_csv = path.suffix.lower() == ".csv"
            parts = _edited_lines(text, edit, "," if is_csv else "\t", has_quotes=is_csv or tsv_quoting)
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part.encode("utf-8"))


def _flipped(text: str, flips: Array) -> str:
    """The text of a list of 0 and 1 with some numbers flipped, and their spelling kept: 1.0 becomes 0.0.

    `flips`: (C,) bool, whether each number is flipped.
    """
    turned = iter(flips.tolist())

    def spelled(found: re.Match[str]) -> str:
        number = found[0]
        if not next(turned):
            return number
        if number in _OPPOSITE:
            return _OPPOSITE[number]
        other = "0" if float(number) > 0.5 else "1"
        plain = re.fullmatch(r"[01](\.0*)?", number)
        return other + (plain[1] or "") if plain else other

    return _LISTED.sub(spelled, text)


# ---- CSV and TSV


def _edited_lines(text: str, edit: Edit, delimiter: str, *, has_quotes: bool) -> Iterator[str]:
    """The edited text of a delimited file, in parts; it is split as in `parsing.delimited_rows`."""
    start = len("\ufeff") if text.startswith("\ufeff") else 0
    yield text[:start]
    pieces = list(_pieces(text, start, delimiter, has_quotes))
    rows = [piece for piece in pieces if piece.fields]
    header, data = rows[0], rows[1:]
    assert len(data) == len(edit.keep), "the file is split into other rows than were read"
    place = -1
    if edit.column is not None:
        place = [_cell(text[slice(*field)], has_quotes) for field in header.fields].index(edit.column)
    row = -1
    for piece in pieces:
        if piece.fields and piece is not header:
            row += 1
            if not edit.keep[row]:
                continue
            if edit.changes(row):
                start, end = piece.fields[place]
                source = data[edit.source[row]].fields[place]
                yield text[piece.start : start] + edit.new_text(row, text[slice(*source)]) + text[end : piece.end]
                continue
        yield text[piece.start : piece.end]


class _Piece(NamedTuple):
    """A row of a delimited file, with its line end, and the places of its fields; an empty line has none."""

    start: int
    end: int
    fields: list[tuple[int, int]]


def _pieces(text: str, start: int, delimiter: str, has_quotes: bool) -> Iterator[_Piece]:
    line_end = "\r" if "\r" in text and "\n" not in text else "\n"  # the former as old Macs wrote them
    # Carriage returns before a line feed, or at the end of the file, belong to the line end; others are text.
    ends = r"\r*\n|\r*\Z" if line_end == "\n" else r"\r|\Z"
    plain = rf"[^{delimiter}{line_end}]*?(?={delimiter}|{ends})"
    field = re.compile(rf'"[^"]*(?:""[^"]*)*"(?={delimiter}|{ends})|{plain}' if has_quotes else plain)
    end = re.compile(ends)
    while start < len(text):
        fields, at = [], start
        while True:
            found = field.match(text, at)
            assert found is not None, "a row that was read cannot be split into fields"
            fields.append(found.span())
            at = found.end()
            if not text.startswith(delimiter, at):
                break
            at += 1
        found = end.match(text, at)
        assert found is not None  # the last field ends where the line does
        only = text[slice(*fields[0])]
        is_row = len(fields) > 1 or not (only == "" or only.isspace())
        yield _Piece(start, found.end(), fields if is_row else [])
        start = found.end()


def _cell(field: str, has_quotes: bool) -> str:
    """The content of a field of a delimited file, without its quotes."""
    return field[1:-1].replace('""', '"') if has_quotes and field.startswith('"') else field


# ---- JSON


def _edited_json(path: Path, text: str, edit: Edit) -> Iterator[str]:
    """The edited text of a JSON file, in parts: a list of objects, or objects one after the other."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)
    start = _after_space(text, 1 if text.startswith("\ufeff") else 0)
    is_list = text.startswith("[", start)
    spans = list(_values(text, start + is_list, decoder))
    rest = text[spans[-1][1] :].strip() if spans else ""
    is_mixed = rest != ("]" if is_list else "") or any(text[begin] == "[" for begin, _ in spans)
    if is_mixed or len(spans) != len(edit.keep):
        raise ValueError(f"{path}: expected one list of objects, or objects one after the other, found several lists.")
    yield text[: spans[0][0]]
    kept = np.flatnonzero(edit.keep)
    for row in kept.tolist():
        begin, end = spans[row]
        if not edit.changes(row):
            yield text[begin:end]
        else:
            assert edit.column is not None
            first, last = _member(text, begin, edit.column, decoder)
            source = _member(text, spans[edit.source[row]][0], edit.column, decoder)
            yield text[begin:first] + edit.new_text(row, text[slice(*source)]) + text[last:end]
        if row != kept[-1]:
            yield text[end : spans[row + 1][0]]
    yield text[spans[-1][1] :]


def _values(text: str, at: int, decoder: json.JSONDecoder) -> Iterator[tuple[int, int]]:
    """The places of the values in a text, which are separated by commas if they are in a list."""
    at = _after_space(text, at)
    while at < len(text) and text[at] != "]":
        _, end = decoder.raw_decode(text, at)
        yield at, end
        at = _after_space(text, end)
        if text.startswith(",", at):
            at = _after_space(text, at + 1)


def _member(text: str, start: int, name: str, decoder: json.JSONDecoder) -> tuple[int, int]:
    """The place of the value called `name` in the object that begins at `start`."""
    at = start
    while True:
        at = _after_space(text, at + 1)  # after the brace, or a comma
        key, at = decoder.raw_decode(text, at)
        begin = _after_space(text, _after_space(text, at) + 1)  # after the colon
        _, end = decoder.raw_decode(text, begin)
        if key == name:
            return begin, end
        at = _after_space(text, end)
        assert text.startswith(",", at), "an object that was read has no such name"


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern matches "" too
    return found.end()


# ---- parquet, and folders of datasets


def _write_parquet(path: Path, output: Path, edit: Edit) -> None:
    with parquet_file(path) as file:
        table, metadata = file.read(), file.metadata
        group = metadata.row_group(0)
        compression = {
            group.column(i).path_in_schema: group.column(i).compression.lower().replace("uncompressed", "none")
            for i in range(group.num_columns)
        }
        # The timestamps of Spark and Impala, to the nanosecond, which version 1.0 has no other way to hold.
        has_int96 = any(group.column(i).physical_type == "INT96" for i in range(group.num_columns))
        rows = max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))  # the first may be empty
    edited = _edited_table(table, edit)
    try:
        edited = edited.filter(pa.array(edit.keep))
    except pa.ArrowNotImplementedError:
        edited = _slices(edited, np.flatnonzero(edit.keep))
    with output.open("xb") as new:  # a name alone may be taken for an address
        pq.write_table(
            edited,
            new,
            compression=compression,
            row_group_size=rows,
            version=metadata.format_version,
            use_deprecated_int96_timestamps=has_int96,
        )


def _edited_table(table: pa.Table, edit: Edit) -> pa.Table:
    rows = [row for row in np.flatnonzero(edit.keep).tolist() if edit.changes(row)]
    if edit.column is None or not rows:
        return table
    at = table.schema.get_field_index(edit.column)
    column, source = table[at], edit.source.copy()
    lists = [row for row in rows if row in edit.flips]
    if lists:  # they are appended to the column, from where `take` puts them in their places
        new = pa.array([_with_flips(column[row].as_py(), edit.flips[row]) for row in lists], column.type)
        source[lists] = len(column) + np.arange(len(lists))
        column = pa.chunked_array([*column.chunks, new], column.type)
    try:
        new_labels = column.take(pa.array(source))
    except pa.ArrowNotImplementedError:
        new_labels = _slices(pa.table([column], [edit.column]), source)[0]
    return table.set_column(at, table.schema.field(at), new_labels)


def _slices(table: pa.Table, rows: Array) -> pa.Table:
    """The rows at some positions, of any type: `take` and `filter` know no views, in which polars writes text."""
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # where a run of neighbours begins
    lengths = np.diff(starts, append=len(rows))
    runs = zip(rows[starts].tolist(), lengths.tolist(), strict=True)
    return pa.concat_tables([table.slice(start, length) for start, length in runs]).combine_chunks()


def _with_flips(cell: Any, flips: Array) -> Any:
    """A list of 0 and 1, or one as text or of texts, with some numbers flipped; they keep their type."""
    if isinstance(cell, str):
        return _flipped(cell, flips)
    return [_turned(value) if turn else value for value, turn in zip(cell, flips.tolist(), strict=True)]


def _turned(value: Any) -> Any:
    return _flipped(value, np.array([True])) if isinstance(value, str) else type(value)(value < 0.5)


def _write_folder(path: Path, output: Path, edit: Edit, split: str) -> None:
    """Writes a folder as `save_to_disk` does; of several splits only the one that was read is edited."""
    saved = load_from_disk(str(path))
    edited: Dataset | DatasetDict
    if isinstance(saved, DatasetDict):
        edited = DatasetDict({**saved, split: _edited_data_set(saved[split], edit)})
    else:
        edited = _edited_data_set(saved, edit)
    temporary = temporary_name(output)
    with writing(output):
        remove(temporary)
        try:
            edited.save_to_disk(str(temporary))
            temporary.rename(output)
        finally:
            remove(temporary)


def _edited_data_set(data: Dataset, edit: Edit) -> Dataset:
    table = _edited_table(data.data.table, edit)
    # With a random fingerprint: `datasets` would hash a pickled copy of the whole table.
    edited = Dataset(table, data.info.copy(), data.split, fingerprint=uuid.uuid4().hex)
    edited = edited.select(np.flatnonzero(edit.keep))
    return edited.with_format(**data.format) if data.format["type"] else edited
