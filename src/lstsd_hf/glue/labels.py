"""Decides whether the labels in a user's files are names of classes or scores, once for all files of a run."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import ClassLabel, Value

from ..report.cells import NUMBER, Column, listed, shown

Kind = Literal["classes", "scores"]

_NUMBER = re.compile(NUMBER)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_CODE = re.compile(r"[+-]?0[0-9]+")  # 007: digits that name something, and count nothing
_DECIMAL = re.compile(r"[+-]?([0-9]*\.[0-9]*.*|[0-9]+[eE]-.*)")  # only matched against numbers; 1e3 has no point
_AS_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")  # 1.0: how a table writes 1 if a cell of its column is empty
_LARGEST = float(np.finfo(np.float32).max)
_MISSING = ("NA", "N/A", "#N/A", "<NA>", "nan", "NaN", "NULL", "null", "\\N")  # as R, Excel, pandas, SQL write it
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class FileLabels:
    """The labels of the rows that are used of one file.

    Attributes:
        path: The file.
        column: The name of their column.
        rows: (N,) the positions of the rows in the file, from 0.
        cells: (N,) the labels as text, without the space around them.
        names: The names of a `ClassLabel`, by id; empty for other columns.
        is_text: Whether the file has types, and holds the labels as text.
    """

    path: str
    column: str
    rows: Sequence[int]
    cells: list[str]
    names: tuple[str, ...] = ()
    is_text: bool = False

    def refuse(self, i: int, what: str) -> ValueError:
        """An error about the i-th label, which names the file and the row."""
        return ValueError(f"{self.path}, data row {self.rows[i] + 1}: {what}")


def file_labels(path: str, name: str, column: Column, rows: Sequence[int]) -> FileLabels:
    """Takes the labels of some rows out of their column.

    Raises:
        ValueError: a label is missing.
    """
    cells = [column.cells[row] or "" for row in rows]
    if not column.names:
        cells = [cell.strip() for cell in cells]
    labels = FileLabels(path, name, rows, cells, column.names, column.is_text)
    if "" in cells:
        raise labels.refuse(cells.index(""), f"the cell in {name!r} is empty.")
    return labels


def class_names(
    train: FileLabels, others: Sequence[FileLabels] = (), kind: Kind | None = None
) -> tuple[tuple[str, ...], str | None]:
    """Decides what the labels of a run's files are.

    Args:
        train: The training labels, which say what the classes are.
        others: The labels of the other files.
        kind: What they are, if it is known. None: guess; decimal numbers are scores, all others are classes.

    Returns:
        The names of the classes by id, empty for scores; and a line about the guess, None if it is beyond doubt. The
        names of a `ClassLabel` keep their order. Otherwise numbers come first, by value, and then text.

    Raises:
        ValueError: there are fewer than two classes.
    """
    values, line = set(train.cells), None
    if kind is None and not train.names:
        kind, line = _guess(train, values, others)
    if kind == "scores":
        return (), line
    if len(values) < 2:
        raise ValueError(
            f"{train.path}: expected at least two labels in {train.column!r}, found only {shown(train.cells[0])}."
        )
    return train.names or tuple(sorted(values, key=_order)), line


def _order(name: str) -> tuple[bool, float, str]:
    is_number = bool(_NUMBER.fullmatch(name))
    return not is_number, float(name) if is_number else 0.0, name


def _guess(train: FileLabels, values: set[str], others: Iterable[FileLabels]) -> tuple[Kind, str | None]:
    numbers = {value for value in values if _NUMBER.fullmatch(value)}
    words = values - numbers
    decimals = set(filter(_DECIMAL.fullmatch, numbers))
    codes = set(filter(_CODE.fullmatch, numbers))
    what = f"{train.path}: the labels in {train.column!r} ({listed(sorted(values, key=_order), 6)}) are taken as"
    not_classes = "If they are scores, set label_kind (--label_kind scores)."
    not_scores = "If they name classes, set label_kind (--label_kind classes)."
    # A word among many decimal numbers is probably a mistake: `scores` refuses it, and names its row.
    if decimals and not codes and (all(map(_NOT_FINITE.fullmatch, words)) or len(words) < len(decimals) / 20):
        if not any(map(_is_fraction, decimals)):
            return "scores", f"{what} scores, because they are written as decimal numbers. {not_scores}"
        if train.is_text:
            return "scores", f"{what} scores, because they are numbers, though written as text. {not_scores}"
        return "scores", None
    if words or (codes and decimals):
        if missing := [word for word in _MISSING if word in words]:
            count = train.cells.count(missing[0])
            also = f"{what} names of classes, also {shown(missing[0])} (rows: {count:,}). Delete rows without a label."
            return "classes", f"{also} {not_classes}" if numbers else also
        mixed = f"{what} names of classes, because {shown(min(words | codes))} is no score. {not_classes}"
        return "classes", mixed if numbers else None
    for other in others:
        fraction = next(filter(_is_fraction, other.cells), None)
        if fraction is not None and not codes:
            return "scores", f"{what} scores, because {other.path} has {fraction!r} among its own. {not_scores}"
    counted = sorted(map(float, numbers)) == list(range(len(numbers)))  # 0, 1, 2 ...
    obvious = codes or (all(map(_WHOLE.fullmatch, numbers)) and (counted or len(numbers) == 2))
    return "classes", None if obvious else f"{what} names of classes. {not_classes}"


def _is_fraction(cell: str) -> bool:
    """Whether a cell is a number that is not whole, however it is written."""
    return bool(_NUMBER.fullmatch(cell)) and not float(cell).is_integer()


def class_ids(labels: FileLabels, names: Sequence[str]) -> list[int]:
    """The class of each label: an index into `names`. A label 1.0 is the class 1 if no class is called 1.0.

    Raises:
        ValueError: a label is not a class.
    """
    ids = {name: i for i, name in enumerate(names)}
    for value in dict.fromkeys(labels.cells):
        if value in ids:
            continue
        alike = [i for i, name in enumerate(names) if _as_whole(name) == _as_whole(value)]
        if len(alike) != 1:
            what = f"the label {shown(value)} is none of train_file's: {listed(names)}. Mend or delete the row."
            raise labels.refuse(labels.cells.index(value), what)
        ids[value] = alike[0]
    return [ids[cell] for cell in labels.cells]


def _as_whole(value: str) -> str:
    found = _AS_WHOLE.fullmatch(value)
    return found[1] if found else value


def scores(labels: FileLabels) -> list[float]:
    """The labels as numbers.

    Raises:
        ValueError: a label is not a number, or one that float32 cannot hold.
    """
    found = []
    for i, cell in enumerate(labels.cells):
        score = float(cell) if _NUMBER.fullmatch(cell) else np.nan
        if not abs(score) <= _LARGEST:
            what = (
                f"expected a number in {labels.column!r}, found {shown(cell)}. Mend or delete the row; if the labels"
            )
            raise labels.refuse(i, f"{what} name classes, set label_kind (--label_kind classes).")
        found.append(score)
    return found


def label_feature(names: Sequence[str]) -> ClassLabel | Value:
    """The labels' feature in `datasets`: that of classes, or of scores if there are no names."""
    return ClassLabel(names=list(names)) if names else Value("float32")
