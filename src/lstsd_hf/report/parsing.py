"""Splits text files into rows: fields between commas or tabs, and objects of JSON. No cell is interpreted here."""

import ast
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cells import NUMBER, shown

# Stands for a carriage return that is text while the csv module, which would end the row there, splits a line. No file
# in UTF-8 can hold it: half of a surrogate pair has no encoding.
_RETURN = "\udc0d"
_LARGEST_FIELD = 2**31 - 1  # the csv module refuses fields above 128 KB unless told otherwise
_SPACE = re.compile(r"\s*")
_LIST = re.compile(r"\s*[\[(](.*)[\])]\s*", re.DOTALL)
# An item of a list as Python or numpy write it.
_ITEM = re.compile(rf"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|True|False|{NUMBER.replace("(", "(?:")}""")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file in UTF-8, with their line ends, without a byte-order mark. Only a line feed ends a line.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8; the message names the line.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8")
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, found {error} in line {number}. Save the file as UTF-8."
        ) from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from error


def delimited_rows(path: Path, delimiter: str, *, has_quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV or TSV file, the header first, split by Python's csv module.

    A line with only white space is not a row. A carriage return ends a row if a line feed follows, or if the file has
    no line feeds; otherwise it is text.

    Args:
        path: The file, in UTF-8.
        delimiter: The character between fields.
        has_quotes: Whether a field may be enclosed in quotes; otherwise quotes are text.

    Yields:
        The number of the line that the row begins in, from 1, and its fields.

    Raises:
        ValueError: the file is not UTF-8, or its quotes do not match; the message names the line.
    """
    has_returns, last = False, ""

    def lines() -> Iterator[str]:
        nonlocal has_returns, last
        for number, line in enumerate(text_lines(path)):
            body, last = line.rstrip("\r\n"), line  # `last` is what the reader has read last
            if "\r" not in body:
                yield line
            elif number == 0 and not line.endswith("\n"):  # no line feed in the file: as old Macs wrote them
                for last in io.StringIO(line, newline="\r"):  # noqa: UP028
                    yield last
            else:
                has_returns = True
                yield body.replace("\r", _RETURN) + line[len(body) :]

    reader = csv.reader(
        lines(), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE, strict=True
    )
    while True:
        number = reader.line_num + 1
        # The limit holds for the whole process, so it is lifted for one row at a time.
        limit = csv.field_size_limit(_LARGEST_FIELD)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {number}: the row that begins here cannot be split into fields: {error}. Where a field "
                'begins with a quote, a quote ends it, and quotes in it are doubled: "a ""b"" c".'
            ) from error
        finally:
            csv.field_size_limit(limit)
        if fields is None:
            return
        # Not by the field itself: white space in quotes is text.
        if fields and not (len(fields) == 1 and last.isspace()):
            yield number, [field.replace(_RETURN, "\r") for field in fields] if has_returns else fields


class Number(str):
    """A number in JSON as it is written, also NaN and Infinity."""


class Object(dict[str, Any]):
    """An object in JSON, and the names that occur in it more than once."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: frozenset[str] = frozenset()
        if len(self) < len(pairs):
            self.repeated = frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)


def json_rows(path: Path) -> Iterator[Object]:
    """The rows of a JSON file: a list of objects, or objects one after the other, each on its own line or not.

    If the rows are texts instead of objects, they are the cells of a column "text", as in `datasets`.

    Raises:
        ValueError: the file is not UTF-8 or not JSON, or a row is not an object.
    """
    only_texts = False
    for number, row in enumerate(_json_values(path), start=1):
        if number == 1:
            only_texts = type(row) is str
        if only_texts and type(row) is str:
            yield Object([("text", row)])
        elif isinstance(row, Object) and not only_texts:
            yield row
        else:
            expected = "a text, as in the first row" if only_texts else "an object of columns"
            raise ValueError(f"{path}, data row {number}: expected {expected}, found {in_words(row)}.")


def _json_values(path: Path) -> Iterator[Any]:
    text = "".join(text_lines(path))
    decoder = json.JSONDecoder(
        object_pairs_hook=Object, parse_int=Number, parse_float=Number, parse_constant=Number, strict=False
    )
    at = _after_space(text, 0)
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: cannot be read as JSON: {error}.") from error
        except RecursionError as error:
            raise ValueError(f"{path}: cannot be read as JSON: it is nested too deeply.") from error
        yield from value if isinstance(value, list) else [value]
        at = _after_space(text, at)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern matches "" too
    return found.end()


def list_in(text: str) -> list[Any] | None:
    """The list that a cell of text holds, as JSON, Python or numpy write it; None if it holds anything else.

    pandas writes lists to CSV as Python does, and `Dataset.to_csv` as numpy does: ['a' 'b'], [1. 0.].
    """
    try:
        found = json.loads(text)
        return found if isinstance(found, list) else None
    except (ValueError, RecursionError):
        inside = _LIST.fullmatch(text)
    if inside is None or _ITEM.sub("", inside[1]).strip(", \n"):
        return None
    items = _ITEM.findall(inside[1])
    try:
        return [ast.literal_eval(item) if item[0] in "'\"TF" else item for item in items]
    except (ValueError, SyntaxError):
        return None


def in_words(cell: Any) -> str:
    """Describes a value in JSON, for a message."""
    if isinstance(cell, (list, dict)):
        return "a list" if isinstance(cell, list) else "an object"
    if isinstance(cell, Number):
        return f"the number {cell[:60]}"
    return shown(cell) if isinstance(cell, str) else json.dumps(cell)
