"""Copies the file that a run was trained on, and drops or corrects labels that look wrong.

    lstsd clean out --dataset train.csv --relabel -o clean.csv                      # what looks wrong to the run
    lstsd clean out --dataset train.csv --decisions decisions.csv -o clean.csv      # what a person decided

To train on the copy, as a new run with its own folder:

    lstsd train --model_name_or_path bert-base-uncased --train_file clean.csv --output_dir out_clean ...
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..paths import absent
from .cells import Column, shown
from .decisions import Decisions, read_decisions
from .files import UserFile, open_user_file
from .headline import of_unknown_classes
from .history import open_run
from .matching import Array, KeyColumns, SampleRows
from .measures import measure
from .multi_label import measure_labels
from .rewrite import Edit, write_edited
from .run import Run

_PAIRS_SHOWN = 6


@dataclass(frozen=True)
class Cleaned:
    """What `clean` did; as text, in one to three lines.

    Attributes:
        output: The file that it wrote.
        rows: How many rows there were.
        dropped: How many were left out.
        relabelled: How many got another label, by the names of the old class and the new one.
        unchanged: How many were chosen but keep their label, because the class that the run suggests is the given one.
        chosen_by: What chose the rows, in words.
        emptied: The names of the classes that no sample has any longer.
    """

    output: Path
    rows: int
    dropped: int
    relabelled: Mapping[tuple[str, str], int]
    unchanged: int
    chosen_by: str
    emptied: Sequence[str]

    def __str__(self) -> str:
        count = sum(self.relabelled.values())
        kept = self.rows - self.dropped
        lines = [
            f"{self.output}: {kept:,} of {self.rows:,} rows kept, {self.dropped:,} dropped, {count:,} of the kept "
            f"ones relabelled; chosen by {self.chosen_by}."
        ]
        pairs = sorted(self.relabelled.items(), key=lambda pair: (-pair[1], pair[0]))
        told = [f"{shown(old)} to {shown(new)} {number:,}" for (old, new), number in pairs[:_PAIRS_SHOWN]]
        rest = sum(number for _, number in pairs[_PAIRS_SHOWN:])
        told += [f"others {rest:,}"] if rest else []
        second = [f"Relabelled: {', '.join(told)}."] if told else []
        if self.unchanged:
            second.append(f"{self.unchanged:,} chosen rows keep their label, which the run suggests as well.")
        lines += [" ".join(second)] if second else []
        if self.emptied:
            names = ", ".join(map(shown, self.emptied))
            lines.append(f"No sample is left of the class {names}: look at its rows before you train.")
        return "\n".join(lines)


def clean(
    run_dir: str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    drop: bool = False,
    relabel: bool = False,
    decisions: str | os.PathLike[str] | None = None,
    min_score: float | None = None,
    logits_dir: str | os.PathLike[str] | None = None,
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    split: str = "train",
    tsv_quoting: bool = False,
) -> Cleaned:
    """Writes a copy of a training set in which labels that look wrong are dropped or corrected.

    The copy has the format, the columns and the order of the original. In CSV, TSV and JSON, everything that is not
    dropped or relabelled stays byte for byte; parquet keeps its schema, its metadata and its compression; a folder
    keeps its features and its other splits. A new label is spelled as the file spells that class in another row. With
    several labels, a list of 0 and 1 for each sample, only the numbers that must change do. Rows without a label in
    the run, such as held-out rows, stay. To train on the copy: `lstsd train --train_file clean.csv`, with a new
    output_dir.

    Args:
        run_dir: The run's output_dir, or a checkpoint in it.
        dataset: What the run was trained on: a CSV, TSV, JSON (lines) or parquet file, or a folder that `save_to_disk`
            wrote. Rows are matched to samples by ids, or by position, labels and texts, as for the report.
        output: The file or folder to write, which must not exist; a file must have the suffix of `dataset`.
        drop: Whether to leave out the samples whose label looks wrong, by `looks_wrong` of `read_history`.
        relabel: Whether to give them the class with the highest mean probability over epochs; with several labels,
            whether to flip those that look wrong.
        decisions: A file of decisions, see `report.decisions`. It alone says which rows change, and how: all other
            rows stay as they are, even if `drop` or `relabel` is set.
        min_score: The lowest `noise_score` of a label that looks wrong, from 0 to 1. None: as many labels look wrong
            as `dynamics.wrong_share` estimates, or, without an estimate, those above 0.5. Not with `decisions`.
        logits_dir: The store's folder, if it is not `<run_dir>/_logits`.
        sample_id_column: The data set's id column. If it has none, a row's position is its id.
        label_column: Its label column; None: "labels", "label" or "label_ids", if there is one; after `lstsd train` on
            a file, the one that it learnt.
        split: The split to clean, of a folder with several; the others are copied.
        tsv_quoting: Whether quotes enclose fields in a TSV file.

    Returns:
        What was done.

    Raises:
        StoreError: there is no store, no epoch of it is sealed, it is damaged, or the copy cannot be written.
        ValueError: nothing says what to do, or two options exclude each other; the data set cannot be read, or is
            not the run's; a decision cannot be followed; `output` exists, or has another suffix; a label is not a
            class; the model has not learnt enough to judge labels; no row of the file has a class that is to be given;
            or no row would stay.
    """
    _check_options(drop, relabel, decisions is not None, min_score)
    path, output = Path(dataset), Path(output)
    if split != "train" and path.is_file():
        raise ValueError(f"split={split!r} goes with a folder that has several: found the file {path}. Leave it out.")
    file = open_user_file(path, split=split, tsv_quoting=tsv_quoting)
    _check_output(path, output)
    run = open_run(run_dir, logits_dir, multi_label=True)
    _check_head(run, relabel)
    if relabel and run.is_regression:
        raise ValueError(
            f"{run.store.path} holds scores: expected classes to relabel. Drop what looks wrong (--drop)."
        )
    rows = _Rows(file, run, sample_id_column, label_column)
    if decisions is not None:
        chosen = read_decisions(Path(decisions), run, rows.ids, rows.written())
        chosen_by = f"the decisions in {decisions}"
    else:
        chosen, chosen_by = _by_score(run, rows.ids, drop, min_score)
    edit, relabelled = rows.edit(chosen)
    if not edit.keep.any():
        raise ValueError(f"{path}: all of the {len(edit.keep):,} rows would be dropped: expected some to stay.")
    write_edited(path, output, edit, split=split, tsv_quoting=tsv_quoting)
    dropped = int((~edit.keep).sum())
    unchanged = len(chosen.relabel) - sum(relabelled.values())
    unchanged = unchanged if decisions is None else 0
    return Cleaned(output, len(edit.keep), dropped, relabelled, unchanged, chosen_by, rows.emptied(edit))


def _check_options(drop: bool, relabel: bool, has_decisions: bool, min_score: float | None) -> None:
    if drop and relabel:
        raise ValueError("drop and relabel: expected one of them. To do both, decide row by row (decisions).")
    if not (drop or relabel or has_decisions):
        raise ValueError(
            "Nothing says what to do with labels that look wrong: expected drop (--drop), relabel (--relabel) or "
            "decisions (--decisions)."
        )
    if min_score is None:
        return
    if has_decisions:
        raise ValueError("min_score beside decisions: expected one of them, because decisions name the rows.")
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score={min_score} is not allowed: expected a number from 0 to 1.")


def _check_head(run: Run, relabel: bool) -> None:
    if relabel and run.vectors is not None and not run.is_multi_label:
        raise ValueError(
            f"{run.store.path} holds soft labels, which are probabilities: expected classes to relabel, because the "
            "run suggests a class. Drop what looks wrong (--drop), or change those labels yourself (read_history)."
        )


def _check_output(path: Path, output: Path) -> None:
    if os.path.lexists(output):
        raise ValueError(
            f"{output} exists: expected a new name. Nothing is written over: move it aside, or choose another."
        )
    if not output.parent.is_dir():
        parent = output.parent
        raise ValueError(
            f"{parent}: {absent(parent, 'folder')}: expected one to write {output.name} in. Make it, or name another."
        )
    if path.is_dir():
        if output.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{output} lies in {path}, the data set itself: expected another folder.")
    elif output.suffix.lower() != path.suffix.lower():
        raise ValueError(
            f"{output}: expected a name that ends in {path.suffix}, because the copy has the format of {path}."
        )


class _Rows:
    """The rows of the user's file that are samples of a run.

    Attributes:
        ids: (n,) the ids of the samples that both have, ascending.
    """

    def __init__(self, file: UserFile, run: Run, sample_id_column: str, label_column: str | None) -> None:
        self._run = run
        keys = KeyColumns(file, sample_id_column, label_column, run=run)
        key_columns = [*keys.ids, *keys.labels]
        texts = list(dict.fromkeys([*key_columns[-1:], *keys.texts]))
        cells = file.read(texts, keys.ids if keys.are_lists else key_columns, to_show=True)
        known, self._places = SampleRows(file.name, run, cells, keys).find(run.ids)
        self.ids, self._labels = run.ids[known], run.labels[known]
        self._file, self._count, self._column = file.name, len(cells.texts), next(iter(keys.labels), None)
        self._cells: Column | None = None if self._column is None else cells.others.get(self._column)

    def written(self) -> dict[str, int]:
        """The class of each label as the file writes it, without spaces around it."""
        if self._cells is None or self._run.is_regression:
            return {}
        pairs = zip(self._places.tolist(), self._labels.tolist(), strict=True)
        return {(self._cells.cells[row] or "").strip(): label for row, label in pairs}

    def edit(self, chosen: Decisions) -> tuple[Edit, dict[tuple[str, str], int]]:
        """What becomes of the file's rows; and how many labels change, by the names of the old and the new class.

        Raises:
            ValueError: there is no label column; or no row has a class that is to be given.
        """
        keep, source = np.ones(self._count, np.bool_), np.arange(self._count)
        keep[self._rows_of(chosen.drop)] = False
        at = np.searchsorted(self.ids, chosen.relabel)
        if self._run.is_multi_label:
            return self._edit_lists(keep, source, at, chosen.labels)
        differs = self._labels[at] != chosen.labels
        old, new = self._labels[at[differs]], chosen.labels[differs]
        if len(new):
            source[self._places[at[differs]]] = self._examples(new)
        names = self._run.classes
        return Edit(keep, source, self._column), Counter(
            (names[a], names[b]) for a, b in zip(old.tolist(), new.tolist(), strict=True)
        )

    def emptied(self, edit: Edit) -> list[str]:
        """The names of the classes that samples have now, and none has after the edit. Empty without classes."""
        if self._run.is_regression or self._run.is_multi_label:
            return []
        labels = np.full(self._count, -1)
        labels[self._places] = self._labels
        gone = np.setdiff1d(self._labels, labels[edit.source[edit.keep]])
        return [self._run.classes[label] for label in gone.tolist()]

    def _edit_lists(
        self, keep: Array, source: Array, at: Array, labels: Array
    ) -> tuple[Edit, dict[tuple[str, str], int]]:
        """As `edit`, for a multi-label head: numbers in a row's list change."""
        flips: dict[int, Array] = {}
        relabelled: Counter[tuple[str, str]] = Counter()
        for old, new, row in zip(self._labels[at], labels, self._places[at].tolist(), strict=True):
            if (old != new).any():
                self._check_column(self._column is not None)
                flips[row] = old != new
                relabelled[self._named(old), self._named(new)] += 1
        return Edit(keep, source, self._column, flips), relabelled

    def _check_column(self, is_there: bool) -> None:
        if not is_there:
            raise ValueError(f"{self._file} has no column of labels: expected one. Name it (--label_column).")

    def _named(self, labels: Array) -> str:
        return " + ".join(name for name, holds in zip(self._run.classes, labels, strict=True) if holds) or "none"

    def _rows_of(self, sample_ids: Array) -> Array:
        return self._places[np.searchsorted(self.ids, sample_ids)]

    def _examples(self, classes: Array) -> Array:
        """(n,) for each class, a row that has it, spelled as most rows spell it."""
        self._check_column(self._cells is not None)
        assert self._cells is not None
        examples = {}
        for label in np.unique(classes).tolist():
            rows = self._places[self._labels == label].tolist()
            if not rows:
                raise ValueError(
                    f"{self._file}: no row has the class {shown(self._run.classes[label])}, so how "
                    f"{self._column!r} would write it is not known: expected one. Change those labels yourself."
                )
            usual = Counter(self._cells.cells[row] for row in rows).most_common(1)[0][0]
            examples[label] = next(row for row in rows if self._cells.cells[row] == usual)
        return np.array([examples[label] for label in classes.tolist()])


def _by_score(run: Run, known: Array, drop: bool, min_score: float | None) -> tuple[Decisions, str]:
    """Decisions to drop or relabel the samples whose label looks wrong; and what chose them, in words."""
    measures = measure_labels(run) if run.is_multi_label else measure(run)
    samples, count = measures.samples, measures.wrong_labels
    if min_score is None and not measures.has_learnt:
        raise ValueError(
            f"{run.store.path}: the model learnt too little to judge labels: expected that it predicts more than half "
            "of the classes, is sure of some samples, and agrees with their labels more often than the largest class "
            "does. Train for more epochs, or with another learning rate; or choose by --min_score or --decisions."
        )
    if min_score is not None:
        chosen_by = f"noise_score of at least {min_score:g}"
    elif count is not None:
        chosen_by = f"noise_score, the {count:,} highest, because about so many labels are wrong"
        if unknown := of_unknown_classes(measures):
            chosen_by += f"; {unknown}"
    else:
        chosen_by = "flags (noise_score above 0.5)"
    wrong = samples["looks_wrong"] if min_score is None else samples["noise_score"] >= min_score
    wrong = wrong & np.isin(run.ids, known)
    nothing = np.empty(0, np.int64)
    if drop:
        return Decisions(run.ids[wrong], nothing, nothing, 0), chosen_by
    suggested = samples["suggested_label"][wrong]
    if run.is_multi_label and min_score is not None:  # a sample may reach it by only one of its labels
        reached = samples["noise_score_by_label"][wrong] >= min_score
        suggested = np.where(reached, suggested, run.labels[wrong])
    return Decisions(nothing, run.ids[wrong], suggested, 0), chosen_by
