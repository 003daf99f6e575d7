"""Loads GLUE's nine tasks, and the user's own files, as `datasets` with the Hub's columns.

A split comes from the Hub's `nyu-mll/glue`, from a folder in GLUE's own TSV layout, or from the user's files. It has
the text columns, `label` (a `ClassLabel`, or a float32 score; -1 in GLUE's test sets) and `idx` (the row's number in
the file, or the index that a test file gives). Training rows also have a sample id: their own, or else the row's
number in the whole file, before any rows are selected.

GLUE's own layout, under `data_dir`:

    CoLA/train.tsv  CoLA/dev.tsv  CoLA/test.tsv          the same for SST-2 MRPC STS-B QQP QNLI RTE WNLI
    MNLI/train.tsv  MNLI/dev_matched.tsv  MNLI/dev_mismatched.tsv  MNLI/test_matched.tsv  MNLI/test_mismatched.tsv
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value, load_dataset

from ..report.cells import in_memory, listed, sample_ids, tell
from ..report.files import UserFile, open_user_file
from ..report.parsing import text_lines
from ..training.sample_ids import add_sample_ids
from .arguments import HUB_DATASET, DataArguments
from .labels import FileLabels, class_ids, class_names, file_labels, label_feature, scores
from .tasks import TASKS, Task

# GLUE's own files of these tasks have rows that end early, mostly at a line feed in a question.
_WITH_SHORT_ROWS = ("qqp",)
COLA_COLUMNS = ("source", "label", "original_mark", "sentence")  # its train and dev files have no header


@dataclass
class GlueData:
    """The splits that a run needs.

    Attributes:
        text_columns: the names of the one or two text columns.
        labels: the labels' names by id; empty if the label is a score.
        train: the training rows; None if they are not needed.
        evaluation: the rows to evaluate on, by the suffix of their metrics: "", and "_mm" for MNLI's mismatched half.
        prediction: the rows to predict, by the name of the file that the predictions go to.
    """

    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    train: Dataset | None
    evaluation: dict[str, Dataset]
    prediction: dict[str, Dataset]


def read_tsv(
    path: Path, columns: Sequence[str] | None = None, *, allow_short: bool = False
) -> Iterator[tuple[int, Sequence[str]]]:
    """Reads a file in GLUE's layout, where a tab always ends a field and quotes mean nothing.

    Args:
        path: the file, in UTF-8, with or without a byte-order mark.
        columns: the names of the columns, for a file without a header.
        allow_short: whether a row may have too few fields.

    Yields:
        The line number, which counts from 1, and the fields. The names of the columns come first, as line 0 where the
        file has no header.

    Raises:
        ValueError: the file is missing, has no rows, is not UTF-8, or a row has too few or too many fields.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a file in GLUE's TSV layout there, found none.")
    rows = 0
    if columns is not None:
        yield 0, columns
    # A lone carriage return is text, as are quotes.
    for number, line in enumerate(text_lines(path), start=1):
        fields = line.rstrip("\r\n").split("\t")
        if columns is None:
            columns = fields
        elif fields == [""]:
            continue
        elif len(fields) > len(columns) or (len(fields) < len(columns) and not allow_short):
            raise ValueError(
                f"{path}, line {number}: expected {len(columns)} fields ({', '.join(columns)}), found "
                f"{len(fields)}. Fields are split at tabs; mend or delete the line."
            )
        else:
            rows += 1
        yield number, fields
    if not rows:
        raise ValueError(f"{path}: expected rows, found an empty file.")


def load_tsv_split(task_name: str, data_dir: str | Path, split: str) -> Dataset:
    """Reads one split of a task from a folder in GLUE's own layout.

    Args:
        task_name: a key of `TASKS`.
        data_dir: the folder that holds the tasks' folders.
        split: the Hub's name of the split: train, validation, test, validation_matched ...

    Returns:
        The split, with the columns, types and label ids that it has on the Hub.

    Raises:
        ValueError: a file or column is missing, or a row is not what the task expects; the message names the line.
    """
    task = TASKS[task_name]
    if not Path(data_dir, task.folder).is_dir():
        raise ValueError(f"{data_dir}: expected a folder {task.folder!r} in data_dir for {task_name}, found none.")
    path = Path(data_dir, task.folder, split.replace("validation", "dev") + ".tsv")
    is_test = split.startswith("test")
    header = COLA_COLUMNS if task_name == "cola" and not is_test else None
    lines = read_tsv(path, header, allow_short=task_name in _WITH_SHORT_ROWS and not is_test)
    _, columns = next(lines)
    index_column = "id" if "id" in columns else "index"  # QQP's test file calls it id
    wanted = [*task.columns.values(), index_column if is_test else task.label_column]
    for name in wanted:
        if name not in columns:
            found = ", ".join(map(repr, columns))
            raise ValueError(f"{path}: expected a column {name!r}, found the columns {found}.")
    positions = [columns.index(name) for name in wanted]

    data: dict[str, list] = {name: [] for name in (*task.columns, "label", "idx")}
    short = []
    for row, (number, fields) in enumerate(lines):
        if len(fields) < len(columns):
            short.append(number)
            continue
        *texts, last = (fields[position] for position in positions)
        for name, text in zip(task.columns, texts, strict=True):
            data[name].append(text)
        data["label"].append(-1 if is_test else _label(path, task, number, last))
        data["idx"].append(_index(path, number, last) if is_test else row)
    if short:
        tell(
            f"{path}: {len(short)} rows have too few fields, the first in line {short[0]}. They were left out, as in "
            "the Hub's version."
        )
    features = {name: Value("string") for name in task.columns}
    features |= {"label": label_feature(task.labels), "idx": Value("int32")}
    return Dataset.from_dict(data, features=Features(features))


def _label(path: Path, task: Task, line: int, text: str) -> int | float:
    if not task.labels:
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{path}, line {line}: expected a number as {task.label_column}, found {text!r}.")
        return score
    written = task.labels if task.spelled_out else [str(i) for i in range(len(task.labels))]
    if text not in written:
        expected = ", ".join(written)
        raise ValueError(f"{path}, line {line}: expected one of {expected} as {task.label_column}, found {text!r}.")
    return written.index(text)


def _index(path: Path, line: int, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{path}, line {line}: expected a whole number as the index, found {text!r}.")
    return int(text)


def load_task(
    args: DataArguments,
    *,
    train: bool,
    evaluation: bool,
    prediction: bool,
    sample_id_column: str,
    cache_dir: str | None = None,
    token: str | None = None,
) -> GlueData:
    """Loads the splits of a GLUE task that are needed, from the Hub or from `args.data_dir`.

    Raises:
        ValueError: the data is not there, or not what the task expects.
    """
    name = args.task_name
    assert name is not None
    task = TASKS[name]

    def load(split: str) -> Dataset:
        if args.data_dir is not None:
            return load_tsv_split(name, args.data_dir, split)
        try:
            return load_dataset(HUB_DATASET, name, split=split, cache_dir=cache_dir, token=token)
        except OSError as error:
            raise ValueError(
                f"{HUB_DATASET} could not be loaded from the Hub ({error}). Where there is no connection, give a "
                "folder in GLUE's own TSV layout with --data_dir."
            ) from error

    # The endings of an MNLI run's metrics, files and splits.
    halves = [("", "-m", "_matched"), ("_mm", "-mm", "_mismatched")] if name == "mnli" else [("", "", "")]
    return GlueData(
        text_columns=tuple(task.columns),
        labels=task.labels,
        train=add_sample_ids(load("train"), column=sample_id_column) if train else None,
        evaluation={suffix: load(f"validation{half}") for suffix, _, half in halves if evaluation},
        prediction={f"{task.folder}{ending}.tsv": load(f"test{half}") for _, ending, half in halves if prediction},
    )


def load_files(
    args: DataArguments,
    *,
    train: bool,
    evaluation: bool,
    prediction: bool,
    sample_id_column: str,
    seed: int,
) -> GlueData:
    """Loads the user's own files. The training file is always read, because it defines the labels.

    Raises:
        ValueError: a file is missing or cannot be read, a column is missing, a text or label cell is empty, a label
            is not in the training file, or a file that is needed is not named.
    """
    assert args.train_file is not None
    if evaluation and args.validation_file is None and args.validation_fraction is None:
        raise ValueError("To evaluate on your own data, give validation_file or validation_fraction.")
    if prediction and args.test_file is None:
        raise ValueError("To predict on your own data, give test_file.")

    def open_file(path: str, split: str) -> UserFile:
        return open_user_file(path, split=split, tsv_quoting=args.tsv_quoting)

    file = open_file(args.train_file, "train")
    text_columns = _text_columns(args, file.columns, sample_id_column)
    training = _Rows(file, args.where, text_columns, [args.label_column, *_own_ids(file, sample_id_column)])
    labels = [training.labels(args.label_column)]
    if args.validation_file is not None and evaluation:
        held_out = _Rows(open_file(args.validation_file, "validation"), args.where, text_columns, [args.label_column])
        labels.append(held_out.labels(args.label_column))
    names, line = class_names(labels[0], labels[1:], args.label_kind)
    if line is not None:
        tell(line)

    rows = training.data_set(labels[0], names, {sample_id_column: training.ids(sample_id_column)})
    splits = {}
    if labels[1:]:
        splits[""] = held_out.data_set(labels[1], names)
    elif args.validation_file is None and args.validation_fraction is not None:
        rows, rest = _split(rows, args.validation_fraction, seed, stratify=bool(names))
        splits = {"": rest.remove_columns(sample_id_column)} if evaluation else {}
    unseen = {}
    if args.test_file is not None and prediction:
        unseen["predictions.tsv"] = _Rows(open_file(args.test_file, "test"), args.where, text_columns).data_set()
    return GlueData(text_columns, names, rows if train else None, splits, unseen)


def load_texts(args: DataArguments, sample_id_column: str) -> GlueData:
    """Loads the texts and ids of the user's training file; whether it has labels, and which, does not matter.

    Raises:
        ValueError: the file is missing or cannot be read, a column is missing, or a text cell is empty.
    """
    assert args.train_file is not None
    file = open_user_file(args.train_file, tsv_quoting=args.tsv_quoting)
    text_columns = _text_columns(args, file.columns, sample_id_column)
    rows = _Rows(file, args.where, text_columns, _own_ids(file, sample_id_column))
    return GlueData(text_columns, (), rows.data_set(ids={sample_id_column: rows.ids(sample_id_column)}), {}, {})


def _own_ids(file: UserFile, sample_id_column: str) -> list[str]:
    return [sample_id_column] if sample_id_column in file.columns else []


class _Rows:
    """The rows of a user's file, or those where COLUMN=VALUE holds.

    Attributes:
        file: The file.
        numbers: (N,) their positions in the file, from 0.
    """

    def __init__(
        self, file: UserFile, where: str | None, text_columns: Sequence[str], others: Sequence[str] = ()
    ) -> None:
        """Raises ValueError if a column is missing, no row is left, or a text is missing."""
        column, _, wanted = (where or "").partition("=")
        cells = file.read(text_columns, [*others, *([column] if where else [])])
        self.file, self._others, self._features = file, cells.others, cells.texts.features
        self._texts: pa.Table = cells.texts.with_format("arrow")[:].replace_schema_metadata(None)
        self.numbers = list(range(len(self._texts)))
        if where:
            values = [(cell or "").strip() for cell in cells.others[column].cells]
            self.numbers = [i for i in self.numbers if values[i] == wanted.strip()]
            if not self.numbers:
                found = listed(sorted(set(values)))
                raise ValueError(f"{file.name}: no row has {where!r}. Values found in {column!r}: {found}.")
            self._texts = self._texts.filter(pa.array([value == wanted.strip() for value in values]))
        for name in text_columns:
            if self._texts[name].null_count:
                first = self.numbers[self._texts[name].is_null().to_pylist().index(True)]
                raise ValueError(f"{file.name}, data row {first + 1}: the cell in {name!r} is empty.")

    def labels(self, column: str) -> FileLabels:
        return file_labels(self.file.name, column, self._others[column], self.numbers)

    def ids(self, column: str) -> npt.NDArray[np.int64]:
        """The sample ids: those of the column, or, if the file has none, the positions of the rows."""
        if column not in self._others:
            return np.array(self.numbers, np.int64)
        return sample_ids(self.file.name, column, self._others[column], self.numbers)

    def data_set(
        self,
        labels: FileLabels | None = None,
        names: Sequence[str] = (),
        ids: Mapping[str, npt.NDArray[np.int64]] | None = None,
    ) -> Dataset:
        """A data set of the texts, `idx`, the labels as class ids or scores, and `ids`: sample ids by column name."""
        columns: dict[str, tuple[Value | ClassLabel, Any]] = {"idx": (Value("int32"), self.numbers)}
        if labels is not None:
            columns["label"] = label_feature(names), class_ids(labels, names) if names else scores(labels)
        columns |= {name: (Value("int64"), values) for name, values in (ids or {}).items()}
        table = self._texts
        for name, (feature, values) in columns.items():
            table = table.append_column(name, pa.array(values, feature.pa_type))
        return in_memory(table, Features(self._features | {name: feature for name, (feature, _) in columns.items()}))


def _split(rows: Dataset, fraction: float, seed: int, stratify: bool) -> tuple[Dataset, Dataset]:
    try:
        parts = rows.train_test_split(fraction, seed=seed, stratify_by_column="label" if stratify else None)
    except ValueError as error:  # too few rows, or too few with one of the labels
        raise ValueError(f"validation_fraction={fraction} cannot be held out of {len(rows)} rows: {error}") from error
    return parts["train"], parts["test"]


def _text_columns(args: DataArguments, columns: Sequence[str], sample_id_column: str) -> tuple[str, ...]:
    """The text columns: those of the arguments, or found by usual names. Checks that no column has two roles."""
    if sample_id_column in (args.label_column, "label"):
        raise ValueError(
            f"sample_id_column={sample_id_column!r}: the labels go by that name. Name another (--sample_id_column)."
        )
    if args.text_columns is not None:
        for name in args.text_columns:
            if name == sample_id_column:
                raise ValueError(f"text_columns={args.text_columns}: {name!r} holds the sample ids.")
            if name in ("idx", "label"):
                raise ValueError(f"text_columns={args.text_columns}: the name {name!r} is taken. Rename the column.")
        return tuple(args.text_columns)
    known = ("", "idx", "label", args.label_column, sample_id_column, (args.where or "").partition("=")[0])
    others = [name for name in columns if name not in known]
    for names in (("sentence1", "sentence2"), ("sentence",), ("text",)):
        if set(names) <= set(others):
            return names
    if len(others) == 1:
        return (others[0],)
    if not others:
        raise ValueError(
            f"{args.train_file}: expected a column of texts beside those of labels, ids and where "
            f"({', '.join(name for name in columns if name in known)}), found none. Is one of them named by mistake?"
        )
    raise ValueError(
        f"{args.train_file}: which columns are the text? Name one or two of {others[:20]} with --text_columns."
    )
