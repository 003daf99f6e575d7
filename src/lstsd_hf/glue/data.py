"""GLUE's nine tasks, and files of the user's, as `datasets` with the Hub's columns.

Whatever a split comes from (the Hub's `nyu-mll/glue`, a folder in GLUE's own TSV layout, the user's CSV, TSV or JSON
files), it has the task's text columns, `label` (a `ClassLabel`, or a float32 score; -1 in GLUE's test sets) and `idx`
(the row's number in the file, or the index that a test file gives). Training rows also have an id: the row's number in
the whole file, before anything is selected from it.

GLUE's own layout, under `data_dir`:

    CoLA/train.tsv  CoLA/dev.tsv  CoLA/test.tsv          the same for SST-2 MRPC STS-B QQP QNLI RTE WNLI
    MNLI/train.tsv  MNLI/dev_matched.tsv  MNLI/dev_mismatched.tsv  MNLI/test_matched.tsv  MNLI/test_mismatched.tsv
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..training.sample_ids import add_sample_ids
from .arguments import HUB_DATASET, DataArguments
from .tasks import TASKS, Task

COLA_COLUMNS = ("source", "label", "original_mark", "sentence")  # its train and dev files have no header


@dataclass
class GlueData:
    """The splits that a run needs.

    Attributes:
        text_columns: one or two.
        labels: the labels' names by id; none where the label is a score.
        train: None where it is not needed.
        evaluation: by what the names of the metrics end in: "", and "_mm" for MNLI's mismatched half.
        prediction: by the name of the file that the predictions go to.
    """

    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    train: Dataset | None
    evaluation: dict[str, Dataset]
    prediction: dict[str, Dataset]


def read_tsv(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Sequence[str]]]:
    """Reads a file in GLUE's layout, where a tab always ends a field and quotes mean nothing.

    Args:
        path: the file, in UTF-8, with or without a byte-order mark.
        columns: the names of the columns, for a file without a header.

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
    try:
        # newline="\n": a lone carriage return is text. The csv module ends a row there.
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                fields = line.rstrip("\r\n").split("\t")
                if columns is None:
                    columns = fields
                elif fields == [""]:
                    continue
                elif len(fields) != len(columns):
                    raise ValueError(
                        f"{path}, line {number}: expected {len(columns)} fields ({', '.join(columns)}), found "
                        f"{len(fields)}. Fields are split at tabs; mend or delete the line."
                    )
                else:
                    rows += 1
                yield number, fields
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, found {error}.") from error
    if not rows:
        raise ValueError(f"{path}: expected rows, found an empty file.")


def load_tsv_split(task_name: str, data_dir: str | Path, split: str) -> Dataset:
    """Reads one split of a task from a folder in GLUE's own layout.

    Args:
        task_name: a key of `TASKS`.
        data_dir: the folder that holds the tasks' folders.
        split: the Hub's name of the split: train, validation, test, validation_matched ...

    Returns:
        The columns, types and label ids of the Hub's split.

    Raises:
        ValueError: a file or column is missing, or a row is not what the task expects (named by file and line).
    """
    task = TASKS[task_name]
    if not Path(data_dir, task.folder).is_dir():
        raise ValueError(f"{data_dir}: expected a folder {task.folder!r} in data_dir for {task_name}, found none.")
    path = Path(data_dir, task.folder, split.replace("validation", "dev") + ".tsv")
    is_test = split.startswith("test")
    lines = read_tsv(path, COLA_COLUMNS if task_name == "cola" and not is_test else None)
    _, columns = next(lines)
    index_column = "id" if "id" in columns else "index"  # QQP's test file calls it id
    wanted = [*task.columns.values(), index_column if is_test else task.label_column]
    _check_columns(path, wanted, columns)
    positions = [columns.index(name) for name in wanted]

    data: dict[str, list] = {name: [] for name in (*task.columns, "label", "idx")}
    for number, fields in lines:
        *texts, last = (fields[position] for position in positions)
        for name, text in zip(task.columns, texts, strict=True):
            data[name].append(text)
        data["label"].append(-1 if is_test else _label(path, task, number, last))
        data["idx"].append(_index(path, number, last) if is_test else len(data["idx"]))
    features = {name: Value("string") for name in task.columns}
    features |= {"label": _label_feature(task.labels), "idx": Value("int32")}
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


def _label_feature(labels: Sequence[str]) -> ClassLabel | Value:
    return ClassLabel(names=list(labels)) if labels else Value("float32")


def _check_columns(path: str | Path, expected: Iterable[str], found: Sequence[str]) -> None:
    for name in expected:
        if name not in found:
            raise ValueError(f"{path}: expected a column {name!r}, found the columns {', '.join(map(repr, found))}.")


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

    # What an MNLI run's metrics and files end in, and its splits.
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
    cache_dir: str | None = None,
) -> GlueData:
    """Loads the user's own files. The training file is always read, because it says what the labels are.

    Raises:
        ValueError: a file is missing or cannot be read, a column is missing, a text or label cell is empty, a label
            is none of the training file's, or a file that is needed is not named.
    """
    assert args.train_file is not None
    if evaluation and args.validation_file is None and args.validation_fraction is None:
        raise ValueError("To evaluate on your own data, give validation_file or validation_fraction.")
    if prediction and args.test_file is None:
        raise ValueError("To predict on your own data, give test_file.")

    rows = _read_user_file(args.train_file, args, cache_dir, sample_id_column)
    text_columns = _text_columns(args, rows, sample_id_column)
    _check_cells(args.train_file, rows, text_columns, args.label_column)
    values = _label_values(args.train_file, rows, args.label_column)
    keep = [*text_columns, "idx", "label"]
    training = _labelled(args.train_file, rows, args.label_column, values).select_columns([*keep, sample_id_column])

    held_out = {}
    if args.validation_file is not None and evaluation:
        rows = _read_user_file(args.validation_file, args, cache_dir)
        _check_cells(args.validation_file, rows, text_columns, args.label_column)
        held_out[""] = _labelled(args.validation_file, rows, args.label_column, values).select_columns(keep)
    elif args.validation_file is None and args.validation_fraction is not None:
        training, rest = _split(training, args.validation_fraction, seed, stratify=bool(values))
        held_out = {"": rest.select_columns(keep)} if evaluation else {}
    unseen = {}
    if args.test_file is not None and prediction:
        rows = _read_user_file(args.test_file, args, cache_dir)
        _check_cells(args.test_file, rows, text_columns)
        unseen["predictions.tsv"] = rows.select_columns([*text_columns, "idx"])
    return GlueData(text_columns, tuple(map(str, values)), training if train else None, held_out, unseen)


def _label_values(path: str, rows: Dataset, column: str) -> list:
    """What stands in the label column, sorted; the position of a value is its label id. Nothing for scores."""
    kind = rows.features[column]
    if not isinstance(kind, Value):
        raise ValueError(f"{path}: expected one label per row in {column!r}, found {kind}.")
    if kind.dtype.startswith(("float", "double")):
        return []
    values = sorted(set(rows[column]))
    if len(values) < 2:
        raise ValueError(f"{path}: expected at least two labels in {column!r}, found only {values[0]!r}.")
    return values


def _labelled(path: str, rows: Dataset, column: str, values: Sequence[Any]) -> Dataset:
    """`rows` with the label's id, or the score, as `label` in place of `column`."""
    ids = {value: i for i, value in enumerate(values)}
    labels = rows[column][:]
    for row, label in zip(rows["idx"], labels, strict=True):
        if values and label not in ids:
            expected = ", ".join(map(repr, values[:20]))
            raise ValueError(f"{path}, data row {row + 1}: the label {label!r} is none of train_file's: {expected}.")
        if not values and not (isinstance(label, (int, float)) and math.isfinite(label)):
            raise ValueError(f"{path}, data row {row + 1}: expected a number in {column!r}, found {label!r}.")
    labels = [ids[label] for label in labels] if values else [float(label) for label in labels]
    feature = _label_feature([str(value) for value in values])
    rows = rows.remove_columns([name for name in rows.column_names if name in (column, "label")])
    return rows.add_column("label", labels, feature=feature)


def _split(rows: Dataset, fraction: float, seed: int, stratify: bool) -> tuple[Dataset, Dataset]:
    try:
        parts = rows.train_test_split(fraction, seed=seed, stratify_by_column="label" if stratify else None)
    except ValueError as error:  # too few rows, or too few of a label
        raise ValueError(f"validation_fraction={fraction} cannot be held out of {len(rows)} rows: {error}") from error
    return parts["train"], parts["test"]


def _read_user_file(
    path: str, args: DataArguments, cache_dir: str | None, sample_id_column: str | None = None
) -> Dataset:
    """The rows of a file where `args.where` holds, with `idx`, and ids where a column for them is named."""
    formats: dict[str, tuple[str, dict[str, Any]]] = {
        # Only an empty cell is missing: a text may well be "null", and a label "none".
        ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),
        ".tsv": ("csv", {"keep_default_na": False, "na_values": [""], "sep": "\t", "quoting": 3}),
        ".json": ("json", {}),
        ".jsonl": ("json", {}),
    }
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(formats)}.")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file.")
    builder, options = formats[suffix]
    try:
        rows = load_dataset(builder, data_files=path, split="train", cache_dir=cache_dir, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"{path}: cannot be read as {suffix[1:].upper()}: {error.__cause__ or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected rows, found none: {error}") from error
    if sample_id_column is not None and sample_id_column not in rows.column_names:
        rows = add_sample_ids(rows, column=sample_id_column)
    if "idx" in rows.column_names:
        rows = rows.remove_columns("idx")
    rows = rows.add_column("idx", np.arange(len(rows), dtype=np.int32))
    if args.where is None:
        return rows
    column, _, wanted = args.where.partition("=")
    _check_columns(path, [column], rows.column_names)
    values = [str(value) for value in rows[column]]
    rows = rows.select([i for i, value in enumerate(values) if value == wanted])
    if not len(rows):
        found = ", ".join(map(repr, sorted(set(values))[:20]))
        raise ValueError(f"{path}: no row has {args.where!r}. Values found in {column!r}: {found}.")
    return rows


def _text_columns(args: DataArguments, rows: Dataset, sample_id_column: str) -> tuple[str, ...]:
    if args.text_columns is not None:
        return tuple(args.text_columns)
    known = ("idx", sample_id_column, args.label_column, (args.where or "").partition("=")[0])
    others = [name for name in rows.column_names if name not in known]
    for names in (("sentence1", "sentence2"), ("sentence",), ("text",)):
        if set(names) <= set(others):
            return names
    if len(others) == 1:
        return (others[0],)
    raise ValueError(
        f"{args.train_file}: which columns are the text? Name one or two of {others} with --text_columns."
    )


def _check_cells(path: str, rows: Dataset, text_columns: Sequence[str], label_column: str | None = None) -> None:
    """Raises ValueError for a column that is not there, an empty cell, or a text column without text."""
    columns = [*text_columns, label_column] if label_column else text_columns
    _check_columns(path, columns, [name for name in rows.column_names if name != "idx"])
    for name in columns:
        for row, value in zip(rows["idx"], rows[name], strict=True):
            if value is None or value != value:  # NaN
                raise ValueError(f"{path}, data row {row + 1}: the cell in {name!r} is empty.")
    for name in text_columns:
        found = rows.features[name]
        if found not in (Value("string"), Value("large_string")):
            raise ValueError(f"{path}: expected text in {name!r}, found {getattr(found, 'dtype', found)}.")
