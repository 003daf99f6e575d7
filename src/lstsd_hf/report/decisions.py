"""Reads what a person decided about samples: the decisions.csv from the report's page, which may have been edited.

Columns, found by name, in any order; others are ignored:

    sample_id   the sample
    decision    keep, relabel or drop
    label       for relabel: the class to give, by its name in the report, or as the training file writes it
    given       the name of the label that the decision was made about; if it is there, it must still be the label

If each sample has several labels, a row is about one of them: `label` is its name, `given` says yes or no, and the
decision may be flip, in place of relabel. A sample that one row drops is dropped, whatever its other rows say.

A spreadsheet may have written the file: with commas, semicolons or tabs, a byte-order mark, Windows line ends, extra
cells to the right, rows of empty cells, and 7.0 for an id, as a table does if one of its ids is missing. The page puts
an apostrophe in front of a name that a spreadsheet would run as a formula. If no class has the name as it stands, the
apostrophe is removed. A spreadsheet also writes TRUE for True, 1 for 01 and 1,5 for 1.5: a name that no class has is
that of the only class whose name differs by case, spaces, or how a number is written.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from ..paths import absent
from .cells import NUMBER, listed, sample_id, shown
from .matching import Array
from .parsing import delimited_rows, text_lines
from .run import Run

_NEEDED = ("sample_id", "decision")
KEEP, RELABEL, DROP, FLIP = "keep", "relabel", "drop", "flip"
_GIVEN = {"no": 0, "yes": 1, "0": 0, "1": 1}  # for several labels


class Decisions(NamedTuple):
    """Decisions, in the order of the file.

    Attributes:
        drop: (n,) int64: the samples to drop.
        relabel: (m,) int64: the samples to relabel.
        labels: (m,) int64: the classes to give them; for a multi-label head (m, C), of 0 and 1.
        kept: The number of samples that the file names to be kept as they are.
    """

    drop: Array
    relabel: Array
    labels: Array
    kept: int


def read_decisions(path: Path, run: Run, known: Array, written: Mapping[str, int]) -> Decisions:
    """Reads decisions, and checks each row.

    Args:
        path: The file.
        run: The run that they are about.
        known: (n,) the sample ids that the training file and the run have, ascending.
        written: The class of each label as the training file writes it.

    Raises:
        ValueError: a column is missing, or a row has an unknown sample id, decision or class, names a sample twice, or
            was made about another label; the message names the file and the row.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {absent(path, 'file')}: expected decisions, as the report's page gives them.")
    reader = (_LabelReader if run.is_multi_label else _Reader)(path, run, known, written)
    rows = delimited_rows(path, _delimiter(path), has_quotes=True)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    reader.check_header(header)
    for line, fields in rows:
        cells = [field.strip() for field in fields]
        if any(cells):
            reader.take(line, dict(zip(header, cells, strict=False)))
    return reader.decisions()


def _delimiter(path: Path) -> str:
    """The character between the header's names: a spreadsheet chooses it by the language of its user."""
    header = next((line for line in text_lines(path) if not line.isspace()), "")
    return max(",;\t", key=header.count)


def _spelled(name: str) -> str:
    """A name without its case and spaces, and a number by its value: what a spreadsheet may change of it."""
    name = " ".join(name.split()).casefold()
    return str(float(name.replace(",", "."))) if re.fullmatch(NUMBER, name.replace(",", ".", 1)) else name


class _Reader:
    def __init__(self, path: Path, run: Run, known: Array, written: Mapping[str, int]) -> None:
        self._path, self._run, self._known = path, run, known
        # The report's names take precedence, because the page wrote those.
        self._classes = dict(written) | {name.strip(): i for i, name in enumerate(run.classes)}
        self._alike: dict[str, set[int]] = {}  # classes by their names as a spreadsheet might spell them
        for name, label in self._classes.items():
            self._alike.setdefault(_spelled(name), set()).add(label)
        self._made: dict[int, tuple[str, int, int]] = {}  # by sample id: the decision, its class, its line

    def check_header(self, header: list[str]) -> None:
        for name in _NEEDED:
            if header.count(name) != 1:
                raise ValueError(
                    f"{self._path}, line 1: expected one column {name!r}, found the columns {listed(header)}. Give "
                    "the decisions.csv that the report's page made, with its header."
                )
        for name in ("label", "given"):
            if header.count(name) > 1:
                raise ValueError(
                    f"{self._path}, line 1: expected one column {name!r}, found {header.count(name)}. Rename all "
                    "but one."
                )

    def take(self, line: int, row: dict[str, str]) -> None:
        sample_id = self._sample_id(line, row.get("sample_id", ""))
        if sample_id in self._made:
            self._refuse(
                line,
                f"sample id {sample_id} has a decision in line {self._made[sample_id][2]} already: expected one for "
                "each sample. Delete one of them",
            )
        label = int(self._label_of(sample_id)) if self._run.classes else -1
        if row.get("given"):
            self._check_given(line, sample_id, row["given"])
        decision = row.get("decision", "").lower()
        if decision == RELABEL:
            label = self._new_label(line, row.get("label", ""))
        elif decision not in (KEEP, DROP):
            self._refuse(
                line, f"expected keep, relabel or drop as decision, found {shown(row.get('decision', ''))}. Mend it"
            )
        self._made[sample_id] = decision, label, line

    def decisions(self) -> Decisions:
        def ids(wanted: str) -> Array:
            return np.array([i for i, (made, *_) in self._made.items() if made == wanted], np.int64)

        labels = [label for made, label, _ in self._made.values() if made == RELABEL]
        return Decisions(ids(DROP), ids(RELABEL), np.array(labels, np.int64), len(ids(KEEP)))

    def _sample_id(self, line: int, cell: str) -> int:
        found = sample_id(re.sub(r"\A([0-9]{1,15})\.0+\Z", r"\1", cell))  # a float holds no more digits
        place = np.searchsorted(self._known, found)
        if place == len(self._known) or self._known[place] != found:
            self._refuse(
                line,
                f"expected the id of a sample that is in the run and in the data set, such as {self._known[0]}, found "
                f"{shown(cell)}. Are these decisions about this run?",
            )
        return found

    def _label_of(self, sample_id: int) -> float:
        return float(self._run.labels[np.searchsorted(self._run.ids, sample_id)])

    def _check_given(self, line: int, sample_id: int, given: str) -> None:
        label = self._label_of(sample_id)
        if self._run.is_regression:
            try:
                is_label = bool(np.isclose(float(_spelled(given)), label, rtol=1e-3, atol=1e-6))
            except ValueError:
                is_label = False
            name = f"{label:g}"
        else:
            name = self._run.classes[int(label)]
            is_label = given == name.strip() or self._class(given) == label  # several classes may have one name
        if not is_label:
            self._refuse(
                line,
                f"the decision was made about the label {shown(given)}, and sample id {sample_id} has {shown(name)}. "
                "Make it anew, with the report of this run",
            )

    def _new_label(self, line: int, cell: str) -> int:
        if self._run.is_regression:
            self._refuse(line, "a score cannot be relabelled: expected keep or drop. Change it in the data set itself")
        label = self._class(cell)
        if [name.strip() for name in self._run.classes].count(cell) > 1:
            self._refuse(line, f"{shown(cell)} is the name of several classes: expected one. Rename them (id2label)")
        if label is None:
            self._refuse(
                line, f"expected a class as label, one of {listed(self._run.classes)}, found {shown(cell)}. Mend it"
            )
        return label

    def _class(self, name: str) -> int | None:
        for exact in (name, name.removeprefix("'").strip()):
            if exact in self._classes:
                return self._classes[exact]
        alike = self._alike.get(_spelled(name), set())
        return next(iter(alike)) if len(alike) == 1 else None

    def _refuse(self, line: int, what: str) -> NoReturn:
        end = "" if what.endswith("?") else "."
        raise ValueError(f"{self._path}, line {line}: {what}{end}")


class _LabelReader(_Reader):
    """Reads decisions about single labels of samples that have several."""

    def __init__(self, path: Path, run: Run, known: Array, written: Mapping[str, int]) -> None:
        super().__init__(path, run, known, written)
        self._lines: dict[tuple[int, int], tuple[str, int]] = {}  # by sample id and label: the decision, its line

    def take(self, line: int, row: dict[str, str]) -> None:
        sample_id = self._sample_id(line, row.get("sample_id", ""))
        decision, name = row.get("decision", "").lower(), row.get("label", "")
        if decision not in (KEEP, FLIP, DROP):
            self._refuse(
                line, f"expected keep, flip or drop as decision, found {shown(row.get('decision', ''))}. Mend it"
            )
        label = self._class(name)
        if label is None and (name or decision == FLIP):
            self._refuse(
                line,
                f"expected a label's name as label, one of {listed(self._run.classes)}, found {shown(name)}. Mend it",
            )
        if label is not None and self._run.classes.count(self._run.classes[label]) > 1:
            self._refuse(line, f"{shown(name)} is the name of several labels: expected one. Rename them (id2label)")
        place = (sample_id, -1 if label is None else label)
        if place in self._lines:
            self._refuse(
                line,
                f"sample id {sample_id} has a decision about {shown(name)} in line {self._lines[place][1]} already: "
                "expected one. Delete one of them",
            )
        if label is not None and row.get("given"):
            is_given = self._labels_of(sample_id)[label]
            if _GIVEN.get(row["given"].lower()) != is_given:
                self._refuse(
                    line,
                    f"the decision was made where {shown(name)} was given as {shown(row['given'])}, and sample id "
                    f"{sample_id} has {shown('yes' if is_given else 'no')}. Make it anew, with the report of this run",
                )
        self._lines[place] = decision, line

    def decisions(self) -> Decisions:
        dropped = {sample for (sample, _), (decision, _) in self._lines.items() if decision == DROP}
        flipped: dict[int, Array] = {}
        for (sample, label), (decision, _) in self._lines.items():
            if decision == FLIP and sample not in dropped:
                labels = flipped.setdefault(sample, self._labels_of(sample).copy())
                labels[label] = 1 - labels[label]
        samples = {sample for sample, _ in self._lines}
        return Decisions(
            np.array(sorted(dropped), np.int64),
            np.array(list(flipped), np.int64),
            np.array(list(flipped.values()), np.int64).reshape(-1, len(self._run.classes)),
            len(samples) - len(dropped) - len(flipped),
        )

    def _labels_of(self, sample_id: int) -> Array:
        labels: Array = self._run.labels[np.searchsorted(self._run.ids, sample_id)]
        return labels
